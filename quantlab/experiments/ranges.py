"""Which range estimator for which tensor: the table of `docs/ranges.md`.

Weights get a symmetric range per output; activations one per tensor, with an
exact zero, from a histogram of eight batches, and count on eight others.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

import quantlab as ql
from quantlab.core import base

Array = jax.Array
BITS = (4, 8)


class Choice(NamedTuple):
  """A row of the table.

  Attributes:
    name: the call.
    estimator: of ranges.
    use: when to use it.
  """

  name: str
  estimator: base.Estimator
  use: str


CHOICES = (
  Choice(
    "minmax",
    ql.minmax,
    "nothing may be clipped, or outliers are stored apart",
  ),
  Choice(
    "percentile(99.9)",
    ql.percentile(99.9),
    "4 bits, when a search is too slow; at 8 bits it clips too much",
  ),
  Choice(
    "percentile(99.99)",
    ql.percentile(99.99),
    "8 bits, when a search is too slow and outliers are noise",
  ),
  Choice("mse", ql.mse, "by default"),
  Choice(
    "mse_golden()",
    ql.mse_golden(),
    "by default on much data; where the range has to shrink more than 5 times",
  ),
  Choice(
    "by_gradient(absmax)",
    ql.by_gradient(ql.absmax),
    "symmetric ranges without far outliers, as in EasyQuant",
  ),
  Choice(
    "kl()",
    ql.kl(),
    "to do as 8-bit engines do; never behind a ReLU",
  ),
  Choice(
    "kl(start=0)",
    ql.kl(start=0.0),
    "to see why KL starts at half of the range",
  ),
  Choice(
    "kl_improved()",
    ql.kl_improved(),
    "behind a ReLU, as in CFWS; never on weights",
  ),
)

WEIGHTS = ("Gaussian weights", "heavy-tailed weights")
ACTIVATIONS = ("ReLU activations", "activations with outliers")
SHAPE = (4096, 32)


def draw(name: str, seed: int = 0) -> Array:
  """A tensor of a kind.

  Args:
    name: of `WEIGHTS` or `ACTIVATIONS`. Tails are those of Student's t with 4
      degrees of freedom. ReLU activations are max(z - 1, 0) of normal z, 84 %
      of them 0. Of activations with outliers, 0.1 % are 20 times as large.
    seed: of the draw.

  Returns:
    `SHAPE` float.
  """
  key, other = jax.random.split(jax.random.key(seed))
  if name == "heavy-tailed weights":
    return jax.random.t(key, 4.0, SHAPE)
  z = jax.random.normal(key, SHAPE)
  if name == "ReLU activations":
    return jax.nn.relu(z - 1)
  if name == "activations with outliers":
    return jnp.where(jax.random.bernoulli(other, 1e-3, SHAPE), 20 * z, z)
  return z


def sqnr(x: Array, out: Array) -> float:
  """Signal over quantization noise, in dB."""
  return float(10 * jnp.log10(jnp.mean(x**2) / jnp.mean((out - x) ** 2)))


def on_weights(estimator: base.Estimator, name: str, bits: int) -> float:
  """The SQNR of weights on ranges of their own."""
  spec = base.IntSpec(bits, symmetric=True)
  q = ql.chain(ql.fit(estimator, spec, ql.per_channel(-1)), ql.nearest())
  w = draw(name)
  return sqnr(w, ql.dequantize(ql.quantize(q, w)))


def on_activations(
  observer: base.Observer, name: str, bits: int, batches: int = 8
) -> float:
  """The SQNR of batches on ranges from as many others."""
  spec = base.IntSpec(bits, exact_zero=True)
  q = ql.chain(ql.tracked(observer, spec, ql.per_tensor), ql.nearest())
  state, apply = q.init(draw(name)), jax.jit(q.apply)
  for seed in range(batches):
    _, stats = apply(draw(name, seed), state)
    state = state._replace(stats=stats)
  xs = [draw(name, seed) for seed in range(batches, 2 * batches)]
  out = [apply(x, state)[0].dequantize() for x in xs]
  return sqnr(jnp.stack(xs), jnp.stack(out))


def estimators() -> Iterator[tuple[str, ...]]:
  """Yields `(name, SQNR of each kind and bits, use)`, as text."""
  for name, estimator, use in CHOICES:
    cells = [
      f"{on_weights(estimator, kind, bits):.1f}"
      for kind in WEIGHTS
      for bits in BITS
    ]
    for kind in ACTIVATIONS:
      for bits in BITS:
        if "gradient" in name:
          cells.append("–")
          continue
        observer = ql.histogram(estimator)
        cells.append(f"{on_activations(observer, kind, bits):.1f}")
    yield f"`{name}`", *cells, use


OBSERVERS = (
  ("ema()", ql.ema(), "ranges drift, as in training"),
  ("extremes()", ql.extremes(), "nothing may be clipped"),
  (
    "histogram(mse)",
    ql.histogram(ql.mse),
    "calibration: any estimator, of all batches as one",
  ),
)


def observers() -> Iterator[tuple[str, ...]]:
  """Yields `(name, SQNR of each kind and bits, use)`, as text."""
  for name, observer, use in OBSERVERS:
    cells = (
      f"{on_activations(observer, kind, bits):.1f}"
      for kind in ACTIVATIONS
      for bits in BITS
    )
    yield f"`{name}`", *cells, use


def show() -> None:
  """Prints both tables, in Markdown."""
  _table("estimator", (*WEIGHTS, *ACTIVATIONS), estimators())
  print()
  _table("observer", ACTIVATIONS, observers())


def _table(
  first: str, kinds: tuple[str, ...], rows: Iterator[tuple[str, ...]]
) -> None:
  heads = [f"{kind}, {bits} bits" for kind in kinds for bits in BITS]
  _line(first, *heads, "when to use")
  _line("---", *(len(heads) * ["--:"]), "---")
  for row in rows:
    _line(*row)


def _line(*cells: str) -> None:
  print("|", " | ".join(cells), "|", flush=True)
