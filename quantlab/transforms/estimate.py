"""Range estimators: `(rows, mask, spec) -> Range`.

They see rows `[R, E]`, one per grid cell, treat each on its own, and cover the
elements of the mask. A row without any gets the range (0, 0). Sums run over
the first axis of `rows.T`: kernels lie in memory that way.

Shape letters: R rows, E elements per row.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from quantlab.core import base, numerics

Array = jax.Array
Range = base.Range


def minmax(rows: Array, mask: Array, spec: base.IntSpec) -> Range:
  """From the smallest to the largest element."""
  del spec
  lo = jnp.min(jnp.where(mask.T, rows.T, jnp.inf), axis=0)
  hi = jnp.max(jnp.where(mask.T, rows.T, -jnp.inf), axis=0)
  return _guard(lo, hi)


def absmax(rows: Array, mask: Array, spec: base.IntSpec) -> Range:
  """Symmetric around 0, out to the largest magnitude."""
  del spec
  hi = jnp.max(jnp.where(mask.T, jnp.abs(rows.T), 0), axis=0)
  return Range(-hi, hi)


def percentile(p: float = 99.9) -> base.Estimator:
  """Leaves out the extremes: keeps `p` percent of the elements.

  Args:
    p: percent to keep, split evenly between the two ends, in (0, 100].

  Returns:
    An estimator; quantiles interpolate linearly between elements.

  Raises:
    ValueError: `p` is not in (0, 100].
  """
  if not 0 < p <= 100:
    raise ValueError(f"percentile keeps p in (0, 100] percent, got {p=}")

  def estimator(rows, mask, spec):
    del spec
    x = jnp.where(mask, rows, jnp.nan)
    cut = (100 - p) / 2
    lo, hi = jnp.nanpercentile(x, jnp.array([cut, 100 - cut]), axis=1)
    return _guard(*(jnp.where(jnp.isnan(v), jnp.inf, v) for v in (lo, hi)))

  return estimator


def mse(
  rows: Array | None = None,
  mask: Array | None = None,
  spec: base.IntSpec | None = None,
  *,
  candidates: int = 80,
  smallest: float = 0.2,
) -> Any:
  """The shrunken min-max range with the least squared error.

  A grid search over `candidates` factors from `smallest` to 1. Without rows,
  returns the estimator with these settings.

  Args:
    rows: `[R, E]` values.
    mask: `[R, E]` elements to cover.
    spec: the codes.
    candidates: factors tried.
    smallest: the smallest factor.

  Returns:
    The best range of each row.
  """
  if rows is None or mask is None or spec is None:
    return functools.partial(mse, candidates=candidates, smallest=smallest)
  lo, hi = minmax(rows, mask, spec)

  def search(x, ends):
    return _best_factor(x, Range(*ends), spec, candidates, smallest)

  constant = jax.lax.stop_gradient((jnp.where(mask, rows, jnp.nan), lo, hi))
  factor = numerics.by_columns(search, constant[0].T, jnp.stack(constant[1:]))
  return Range(lo * factor, hi * factor)


def _best_factor(
  x: Array, range_: Range, spec: base.IntSpec, candidates: int, smallest: float
) -> Array:
  """The factor of each column's range with the least error; NaN is left out."""

  def error(factor):
    ends = Range(*(v[None] * factor for v in range_))
    scale, zero = numerics.affine_from_range(ends, spec, x.dtype)
    codes = jnp.clip(jnp.round(x / scale + zero), spec.lo, spec.hi)
    return jnp.nansum(((codes - zero) * scale - x) ** 2, axis=0)

  def better(i, best):
    factor = 1 - (1 - smallest) * i / max(1, candidates - 1)
    now = error(factor)
    wins = now < best[1]
    return jnp.where(wins, factor, best[0]), jnp.where(wins, now, best[1])

  one = jnp.ones(x.shape[1:], x.dtype)
  return jax.lax.fori_loop(0, candidates, better, (one, jnp.inf * one))[0]


def by_gradient(
  estimator: base.Estimator, *, steps: int = 100, learning_rate: float = 0.05
) -> base.Estimator:
  """Tunes a symmetric range by Adam on the squared error under the mask.

  The integer codes count as locally constant, which gives the derivative

    d|Q(x) - x|^2 / ds = 2 * sum_i (Q(x_i) - x_i) * code_i,   code_i clamped,

  with respect to the step s. The trained variable is the range `r = s * hi`.

  Args:
    estimator: where to start. It sees whole rows, also what the mask leaves
      out.
    steps: Adam steps. The paper takes 100 (BLOOM) or 500 (LLaMA).
    learning_rate: Adam's, in units of each row's root mean square. 0.05 is the
      paper's 1e-3 for weights with sigma = 0.02.

  Returns:
    An estimator for a symmetric spec.

  Raises:
    ValueError: (when used) the spec is not symmetric.

  References:
    EasyQuant, arXiv 2403.02775, eq. 2. Reconstruction: the clamped code, the
    range as the trained variable, its start, Adam's other constants (0.9,
    0.999, 1e-8), the relative rate and the last iterate as the result.
  """

  def tuned(rows, mask, spec):
    if not spec.symmetric:
      raise ValueError(f"by_gradient needs a symmetric spec, got {spec}")
    rows = jax.lax.stop_gradient(rows)  # the result counts as a constant
    start = estimator(rows, jnp.ones_like(mask), spec).hi
    adam = optax.adam(learning_rate)
    # In units of its size a row's rate is relative, and nothing underflows.
    size = jnp.sqrt(jnp.mean(rows.T**2, axis=0))
    size = jnp.where(size > 0, size, 1)
    floor = float(jnp.finfo(rows.dtype).eps)

    def optimized(x, r):
      def step(_, carry):
        r, state = carry
        update, state = adam.update(range_gradient(x, r, spec), state)
        return jnp.maximum(r + update, floor), state

      return jax.lax.fori_loop(0, steps, step, (r, adam.init(r)))[0]

    # Outside the mask stands a 0: it has code 0 and no gradient.
    x = jnp.where(mask.T, rows.T, 0) / size[None]
    r = numerics.by_columns(optimized, x, jnp.maximum(start / size, floor))
    r = jnp.where(jnp.any(mask.T, axis=0), r * size, start)
    return Range(-r, r)

  return tuned


def range_gradient(columns: Array, r: Array, spec: base.IntSpec) -> Array:
  """The derivative of each column's squared error with respect to its range.

  Args:
    columns: `[E, R]` values.
    r: `[R]` ranges; the step is `r / spec.absmax_code`.
    spec: symmetric codes.

  Returns:
    `[R]`.
  """
  scale = (r / spec.absmax_code)[None]
  codes = jnp.clip(jnp.round(columns * (1 / scale)), spec.lo, spec.hi)
  error = codes * scale - columns
  return 2 / spec.absmax_code * jnp.sum(error * codes, axis=0)


def _guard(lo: Array, hi: Array) -> Range:
  """An empty row has no extremes."""
  empty = lo > hi
  empty |= ~jnp.isfinite(lo)
  return Range(jnp.where(empty, 0, lo), jnp.where(empty, 0, hi))
