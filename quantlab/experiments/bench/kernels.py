"""Speed of products with packed weights, beside the dense product.

Every format is checked first: its error against the decoded weight, in units of
`|x| @ |w|`. Then all are timed in turns. A call multiplies by several copies of
a weight, one after the other, so that none stays in a cache.

Shape letters: M rows of activations, K contraction, N output.
"""

from collections.abc import Callable, Iterator, Sequence
import datetime
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import quantlab as ql
from quantlab.core import base, grids, qtensor, sparse, stored
from quantlab.experiments.bench import peers, timing
from quantlab.kernels import ops

Array = jax.Array

CACHE = 128 * 2**20
"""Bytes of copies that no cache of an accelerator holds."""

COPIES = 16
"""At most so many copies: each is a product of its own in the program."""


class Format(NamedTuple):
  """A way to store a weight.

  Attributes:
    bits: of a code.
    cell: codes of a grid cell along K; 0 for all.
    kind: a key of `_GRIDS`.
  """

  bits: int
  cell: int = 0
  kind: str = "uniform"


FORMATS = {
  "8-bit": Format(8),
  "4-bit": Format(4),
  "4-bit, blocks of 128": Format(4, 128),
  "3-bit": Format(3),
  "3-bit, blocks of 128": Format(3, 128),
  "2-bit": Format(2),
  "2-bit, blocks of 128": Format(2, 128),
  "ICQuant 2-bit, 5 %": Format(2, kind="icquant"),
  "ICQuant 3-bit, 5 %": Format(3, kind="icquant"),
  "ICQuant 4-bit, 5 %": Format(4, kind="icquant"),
  "codebook 2-bit": Format(2, kind="codebook"),
  "codebook 4-bit": Format(4, kind="codebook"),
  "EasyQuant 4-bit, 0.5 % exact": Format(4, kind="exact"),
  "SplitQuant 2-bit, 3 parts": Format(2, kind="parts"),
}


def numbers(text: str, separator: str) -> tuple[int, ...]:
  """Reads whole numbers.

  Raises:
    ValueError: the text is something else.

  Example:
    >>> numbers("4096x14336", "x")
    (4096, 14336)
  """
  parts = text.split(separator)
  if not all(part.isdecimal() for part in parts):
    raise ValueError(
      f"expected numbers with {separator!r} between, got {text!r}"
    )
  return tuple(map(int, parts))


def weight(form: Format, shape: tuple[int, ...], key: Array, dtype: Any) -> Any:
  """A weight `[K, N]` of random codes, as `ql.prepare` would leave it."""
  keys = iter(jax.random.split(key, 32))
  if form.kind == "parts":
    part = form._replace(kind="uniform")
    return ql.Sum(tuple(weight(part, shape, next(keys), dtype) for _ in "abc"))
  if form.kind == "exact":
    whole = weight(form._replace(kind="uniform"), shape, next(keys), dtype)
    return ql.Sum((whole, _sparse(shape, keys, dtype)))
  grid = _GRIDS[form.kind](form, shape, keys)
  return ql.QTensor(_packed(form.bits, shape, next(keys)), grid, dtype)


def _packed(bits: int, shape: tuple[int, ...], key: Array) -> stored.Packed:
  length, columns = shape
  words = jax.random.bits(key, (length * bits // 32, columns), jnp.uint32)
  return stored.Packed(words, bits, 0, (-2,), (length,))


def _uniform(form: Format, shape: tuple[int, ...], keys: Iterator[Array]):
  cells = shape[0] // (form.cell or shape[0])
  scale, shift = jax.random.uniform(next(keys), (2, cells, shape[1])) + 0.5
  middle = (2**form.bits - 1) / 2
  spec = base.IntSpec(form.bits, signed=False)
  return grids.Affine(scale, shift * middle, spec)


def _icquant(form: Format, shape: tuple[int, ...], keys: Iterator[Array]):
  half = form._replace(bits=form.bits - 1)
  ends = _uniform(half, shape, keys), _uniform(half, shape, keys)
  tails = grids.Tails(*ends, base.IntSpec(form.bits, signed=False))
  marked = jax.random.bernoulli(next(keys), 0.05, shape)
  labels = stored.Packed.pack(marked, 1, 0, (-2,))
  return grids.Labelled(labels, (_uniform(form, shape, keys), tails))


def _codebook(form: Format, shape: tuple[int, ...], keys: Iterator[Array]):
  levels = jax.random.normal(next(keys), (1, shape[1], 2**form.bits))
  return grids.Codebook(jnp.sort(levels, axis=-1))


_GRIDS = {"uniform": _uniform, "icquant": _icquant, "codebook": _codebook}


def _sparse(shape: tuple[int, ...], keys: Iterator[Array], dtype: Any):
  count = shape[0] * shape[1] // 200
  index = jax.random.randint(next(keys), (count,), 0, 200)
  index += 200 * jnp.arange(count)
  values = jax.random.normal(next(keys), (count,), dtype)
  return sparse.Sparse(index.astype(jnp.uint32), values, shape)


class _Product(NamedTuple):
  """What is timed for one shape.

  Attributes:
    name: of the case.
    multiply: `multiply(x, w)`, compiled.
    weights: copies.
    bits: stored per weight.
  """

  name: str
  multiply: Callable[[Array, Any], Array]
  weights: list[Any]
  bits: float


def _products(
  shape: tuple[int, ...], dtype: Any, only: Sequence[str]
) -> Iterator[_Product]:
  """The dense product first, then every format."""

  def asked(name):
    return not only or name.startswith(tuple(only))

  def product(name, multiply, make):
    first = make(jax.random.key(0))
    size = qtensor.nbits(first)
    count = max(1, min(COPIES, -(-CACHE * 8 // size)))
    copies = [make(jax.random.key(i)) for i in range(1, count)]
    weights = shape[0] * shape[1]
    return _Product(name, jax.jit(multiply), [first, *copies], size / weights)

  def dense(key, kind=dtype):
    return jax.random.normal(key, shape, kind)

  yield product(f"{jnp.dtype(dtype).name} dot", jnp.dot, dense)
  if dtype != jnp.bfloat16 and asked("bfloat16 dot"):
    yield product(
      "bfloat16 dot",
      lambda x, w: jnp.dot(x.astype(w.dtype), w),
      lambda key: dense(key, jnp.bfloat16),
    )
  if asked("4-bit, decoded, then dot"):
    yield product(
      "4-bit, decoded, then dot",
      lambda x, w: jnp.dot(x, w.dequantize()),
      lambda key: weight(Format(4), shape, key, dtype),
    )
  for name, form in FORMATS.items():
    if asked(name):
      yield product(
        name,
        ops.dot,
        lambda key, form=form: weight(form, shape, key, dtype),
      )


@jax.jit
def error(y: Array, x: Array, w: Any) -> Array:
  """The largest error of a product, in units of `|x| @ |w|`."""
  rows = x.astype(jnp.float32)
  wide = qtensor.dequantize(w).astype(jnp.float32)
  exact, most = (
    jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
    for a, b in ((rows, wide), (jnp.abs(rows), jnp.abs(wide)))
  )
  return jnp.max(jnp.abs(y - exact) / most)


def _case(product: _Product, x: Array) -> timing.Case:
  """One call of all copies: a program where calls are dear, else a loop."""
  multiply, weights = product.multiply, product.weights
  if jax.default_backend() == "cpu":
    call = lambda: [multiply(x, w) for w in weights]  # noqa: E731
  else:
    every = jax.jit(lambda x, weights: [multiply(x, w) for w in weights])
    call = lambda: every(x, weights)  # noqa: E731
  return timing.Case(product.name, call, x.shape[0], len(weights))


def copy_speed(size: int = 2**28) -> float:
  """Bytes per second that this device reads and writes in a copy."""
  a = jnp.zeros(size // 4, jnp.float32)
  copy = jax.jit(lambda a: a + 1)
  found = timing.run([timing.Case("copy", lambda: copy(a), 1)], rounds=7)
  return 2 * a.nbytes / found["cases"]["copy"]["seconds"]


def run(
  shapes: Sequence[tuple[int, ...]],
  rows: Sequence[int],
  *,
  rounds: int = 9,
  only: Sequence[str] = (),
) -> dict[str, Any]:
  """Times every format at every shape.

  Activations are float32 on CPUs and bfloat16 elsewhere.

  Args:
    shapes: (K, N) of each weight; K a multiple of 128.
    rows: M, of each activation.
    rounds: timed rounds; the median counts.
    only: names, or starts of names, of formats; all if empty.

  Returns:
    `machine`, `date`, `copy_bytes_per_second`, and under `products` a list with
    `k`, `n`, `m` and, by name under `cases`, `seconds` of a product, `ratio` of
    the dense product's seconds to it, `bits` stored per weight, `bandwidth`,
    the bytes of the weight per second as a share of the copy's, and `error`.

  Raises:
    ValueError: a shape is out of range, or nothing matches `only`.
  """
  _check(shapes, rows, only)
  cpu = jax.default_backend() == "cpu"
  dtype = jnp.float32 if cpu else jnp.bfloat16
  copied = copy_speed()
  found = []
  for shape in shapes:
    products = list(_products(shape, dtype, only))
    for m in rows:
      x = jax.random.normal(jax.random.key(m), (m, shape[0]), dtype)
      others = list(peers.cases(shape, m, only))
      cases = _compare(products, x, others, rounds)
      for case in cases.values():
        size = case["bits"] * shape[0] * shape[1] / 8
        case["bandwidth"] = size / case["seconds"] / copied
      found.append({"k": shape[0], "n": shape[1], "m": m, "cases": cases})
  return {
    "machine": timing.machine(),
    "date": datetime.date.today().isoformat(),
    "rounds": rounds,
    "copy_bytes_per_second": copied,
    "products": found,
  }


def _check(shapes, rows, only):
  for shape in shapes:
    if len(shape) != 2 or shape[0] % 128 or min(shape) < 1:
      raise ValueError(
        "a shape is KxN, K a multiple of 128 and N at least 1, got "
        + "x".join(map(str, shape))
      )
  if not shapes or not rows or min(rows) < 1:
    raise ValueError(f"nothing to run: {shapes=}, {rows=}")
  names = (*FORMATS, *_OTHERS)
  if only and not any(name.startswith(tuple(only)) for name in names):
    raise ValueError(f"{only=} matches none of {names}")


def _compare(
  products: Sequence[_Product],
  x: Array,
  others: Sequence[timing.Case],
  rounds: int,
) -> dict[str, dict[str, Any]]:
  """What is known of each product with x, by name; the dense one leads."""
  known = {
    product.name: {
      "bits": product.bits,
      "error": float(error(product.multiply(x, w), x, w)),
    }
    for product in products
    for w in product.weights[:1]
  }
  known |= {case.name: {"bits": peers.BITS[case.name]} for case in others}
  cases = [*(_case(product, x) for product in products), *others]
  times = timing.run(cases, rounds=rounds)["cases"]
  dense = times[products[0].name]["seconds"]
  return {
    name: {
      "seconds": found["seconds"],
      "ratio": dense / found["seconds"],
      **known[name],
    }
    for name, found in times.items()
  }


_OTHERS = ("bfloat16 dot", "4-bit, decoded, then dot", *peers.BITS)


def show(results: dict[str, Any]) -> None:
  """Prints a table for each shape of weights."""
  from rich import console, table

  out = console.Console()
  machine = results["machine"]
  speed = results["copy_bytes_per_second"] / 1e9
  out.print(
    f"{machine['device']}, {machine['cores']} cores, jax {machine['jax']}, "
    f"copies {speed:.0f} GB/s. Each cell: how many times as fast as the dense "
    "product (% of the copy's bandwidth).",
    highlight=False,
  )
  shapes = {(each["k"], each["n"]): [] for each in results["products"]}
  for each in results["products"]:
    shapes[each["k"], each["n"]].append(each)
  for (k, n), every in shapes.items():
    found = table.Table(title=f"{k} x {n}")
    found.add_column("weight")
    found.add_column("bits", justify="right")
    for each in every:
      found.add_column(f"M = {each['m']}", justify="right")
    for name, first in every[0]["cases"].items():
      cells = [each["cases"][name] for each in every]
      found.add_row(
        name,
        f"{first['bits']:.2f}",
        *(f"{c['ratio']:.2f} ({c['bandwidth']:.0%})" for c in cells),
      )
    out.print(found)
