"""Random bit errors in stored arrays.

Every stored bit has a number u of its own, uniform in [0, 1), and is wrong
where u is below the rate. The numbers follow from a key alone: a key is a chip,
whose errors are the same at every reading, and those at a lower rate are among
those at a higher one.

The numbers are not drawn one by one. With `u = 1 - exp(-t)`, t is the time of
the first arrival in a Poisson process; the processes of 512 bits together are
one that is 512 times as fast, whose arrivals each fall on one of the bits by
chance. So a group of bits needs as many draws as it has errors, and one more,
where bit by bit it would need 512.

References:
  arXiv 2006.13977: independent flips, persistent and nested over rates. The
  draws by arrivals are our own.
"""

from collections.abc import Iterable
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from quantlab.core import qtensor

Array = jax.Array
PyTree = Any

WORDS = 2**14
"""Words whose errors are drawn together: what a core's cache holds."""

GROUP = 16
"""Words of one process. The more, the fewer draws and the more comparisons."""

PARTS = ("codes", "grid", "labels", "index", "exact", "float")
"""What the bits of a tree are of; see `parts`."""

# By the innermost field of a quantized tensor that says it.
_PART_OF_FIELD = {
  "codes": "codes",
  "grid": "grid",
  "labels": "labels",
  "symbols": "index",
  "shuffled": "index",
  "positions": "index",
  "index": "index",
  "values": "exact",
}


def flips(
  key: Array, shape: tuple[int, ...], rate: Any, bits: int = 32
) -> Array:
  """Masks whose ones are the errors of a chip.

  Args:
    key: the chip. On a CPU the default `threefry2x32` keys are faster than
      `rbg` ones (260 and 210 MB of words a second at a rate of 1 %, 2 cores),
      and only theirs are the same numbers on every device.
    shape: of the codes.
    rate: the probability of an error, in [0, 1]; a traced number too. It is
      resolved to 3e-10.
    bits: of a code, 1 to 32, from the least significant one.

  Returns:
    uint32 masks of that shape; bits from number `bits` on are 0.

  Raises:
    ValueError: the rate, as far as it is concrete, or `bits` is out of range.

  Example:
    >>> few, many = (
    ...   flips(jax.random.key(0), (1000,), p, 8) for p in (0.01, 0.1)
    ... )
    >>> int(lax.population_count(few).sum()), bool(((few & ~many) == 0).all())
    (73, True)
  """
  check(rate)
  if not 1 <= bits <= 32:
    raise ValueError(f"codes have 1 to 32 bits, got {bits=}")
  return _flips(key, tuple(shape), rate, bits)


def flip_bits(
  tree: PyTree, rate: Any, key: Array, *, protect: Iterable[str] = ()
) -> PyTree:
  """The tree as a memory with bit errors returns it.

  Every stored bit may flip, whatever it is of: packed codes, index code, scales
  and floats alike. Of a bool, which takes a byte, one bit may. Damaged trees
  dequantize as any other: what points outside its tensor is dropped.

  Args:
    tree: a quantized tree, or any tree of arrays.
    rate: the probability of an error, in [0, 1]; a traced number too.
    key: the chip, as in `flips`. Each array has bits of its own; they depend on
      its place among the arrays, and not on what is protected.
    protect: names of parts that have no errors; see `parts`.

  Returns:
    The tree.

  Raises:
    ValueError: the rate, as far as it is concrete, is outside [0, 1]; a part is
      unknown; or an array is of a type whose bits are not whole bytes.

  Example:
    >>> import quantlab as ql
    >>> q = ql.quantize(ql.rtn(4), jnp.eye(64))
    >>> bad = flip_bits(q, 0.01, jax.random.key(0), protect=("grid",))
    >>> int((bad.dequantize() != q.dequantize()).sum())
    179
  """
  check(rate)
  safe = frozenset(protect)
  if unknown := sorted(safe - {*PARTS}):
    raise ValueError(f"protect: unknown parts {unknown}; there are {PARTS}")
  leaves, structure = jax.tree.flatten(tree)
  flipped = [
    leaf if part in safe else _leaf(leaf, rate, jax.random.fold_in(key, i))
    for i, (part, leaf) in enumerate(zip(_parts(tree), leaves, strict=True))
  ]
  return jax.tree.unflatten(structure, flipped)


def parts(tree: PyTree) -> dict[str, int]:
  """The stored bits of a tree by what they are of.

  | part | arrays |
  |---|---|
  | codes | codes |
  | grid | scales, zero points, levels, ranges |
  | labels | planes of labels |
  | index | positions: gap symbols and their flag, indices of exact values |
  | exact | exact values |
  | float | arrays that are not quantized |

  Args:
    tree: a quantized tree; shapes alone (`jax.eval_shape`) will do.

  Returns:
    Bits of every part; they add up to `ql.nbits(tree)`.

  Raises:
    ValueError: a quantized tensor has a field of unknown meaning.

  Example:
    >>> import quantlab as ql
    >>> q = {"w": ql.quantize(ql.rtn(4), jnp.eye(64)), "b": jnp.zeros(64)}
    >>> {part: bits for part, bits in parts(q).items() if bits}
    {'codes': 16384, 'grid': 4096, 'float': 2048}
  """
  count = dict.fromkeys(PARTS, 0)
  for part, leaf in zip(_parts(tree), jax.tree.leaves(tree), strict=True):
    count[part] += qtensor.nbits(leaf)
  return count


def check(rate: Any) -> None:
  """Refuses what is no probability, as far as it is concrete."""
  if isinstance(rate, jax.core.Tracer):
    return
  if not np.all((np.asarray(rate) >= 0) & (np.asarray(rate) <= 1)):
    raise ValueError(f"bits flip with a probability in [0, 1], got {rate=}")


def _parts(tree: PyTree) -> list[str]:
  """The part of each array of a tree."""
  found = []
  for leaf in jax.tree.leaves(tree, is_leaf=qtensor.is_quantized):
    if qtensor.is_quantized(leaf):
      paths, _ = jax.tree_util.tree_flatten_with_path(leaf)
      found.extend(_part(path) for path, _ in paths)
    else:
      found.append("float")
  return found


def _part(path: tuple[Any, ...]) -> str:
  for entry in reversed(path):
    name = getattr(entry, "name", None)
    if name in _PART_OF_FIELD:
      return _PART_OF_FIELD[name]
  at = jax.tree_util.keystr(path)
  raise ValueError(f"the array {at} of a quantized tensor is of no known part")


@functools.partial(jax.jit, static_argnames=("shape", "bits"))
def _flips(key: Array, shape: tuple[int, ...], rate: Any, bits: int) -> Array:
  width = next(width for width in (8, 16, 32) if bits <= width)
  masks = _flipped(jnp.zeros(shape, f"uint{width}"), rate, key)
  return masks.astype(jnp.uint32) & np.uint32(2**bits - 1)


@jax.jit
def _leaf(x: Array, rate: Any, key: Array) -> Array:
  if x.dtype == bool:
    return (_flipped(x.astype(jnp.uint8), rate, key) & 1).astype(bool)
  if 8 * x.dtype.itemsize != _width(x.dtype):
    raise ValueError(f"cannot flip bits of {x.dtype}: {x.shape=}")
  # As integers: some of the flipped floats are NaNs, which not every operation
  # on floats leaves as they are.
  unsigned = jnp.dtype(f"uint{8 * min(4, x.dtype.itemsize)}")
  words = lax.bitcast_convert_type(x, unsigned)
  return lax.bitcast_convert_type(_flipped(words, rate, key), x.dtype)


def _width(dtype: Any) -> int:
  """Bits of a real number of this type; 0 of any other type."""
  if jnp.issubdtype(dtype, jnp.integer):
    return jnp.iinfo(dtype).bits
  return jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.floating) else 0


def _flipped(x: Array, rate: Any, key: Array) -> Array:
  """Flips bits of unsigned integers, chunk by chunk in one copy of them."""
  rate = lax.stop_gradient(jnp.asarray(rate, jnp.float32))
  per_word = 4 // x.dtype.itemsize
  size = per_word * WORDS
  whole, rest = divmod(x.size, size)

  def chunk(i, flat, size=size):
    start = (i * per_word * WORDS,)
    piece = lax.dynamic_slice(flat, start, (size,))
    masks = _masks(jax.random.fold_in(key, i), -(-size // per_word), rate)
    masks = lax.bitcast_convert_type(masks, x.dtype).reshape(-1)[:size]
    return lax.dynamic_update_slice(flat, piece ^ masks, start)

  flat = x.reshape(-1)
  if whole:
    flat = lax.fori_loop(0, whole, chunk, flat)
  if rest:
    flat = chunk(whole, flat, rest)
  return flat.reshape(x.shape)


def _masks(key: Array, count: int, rate: Array) -> Array:
  """Errors in `count` words."""
  groups = -(-count // GROUP)
  bits = 32 * GROUP
  # At a rate of 1 no time would do.
  end = jnp.where(rate < 1, -bits * jnp.log1p(-rate), 0)
  word = lax.broadcasted_iota(jnp.uint32, (GROUP, groups), 0)

  def more(carry):
    time, _, _ = carry
    return jnp.any(time < end)

  def arrival(carry):
    time, masks, i = carry
    draw = jax.random.bits(jax.random.fold_in(key, i), (groups,), jnp.uint32)
    # The upper 23 bits say when, the lower 9 on which bit.
    uniform = ((draw >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
    time -= jnp.log(uniform)
    hit = jnp.where(time < end, jnp.uint32(1) << (draw % 32), 0)
    here = word == (draw // 32 % GROUP)[None]
    return time, jnp.where(here, masks | hit[None], masks), i + 1

  start = jnp.zeros(groups), jnp.zeros((GROUP, groups), jnp.uint32), 0
  _, masks, _ = lax.while_loop(more, arrival, start)
  masks = jnp.where(rate < 1, masks, jnp.uint32(0xFFFFFFFF))
  return masks.reshape(-1)[:count]
