"""Range estimators: `(rows, weight, spec) -> Range`.

They see rows `[R, E]`, one per grid cell, and treat each on its own. A weight
is bool, or a float of at least 0: an element counts like that many repetitions,
so the bins of a histogram are rows like any other. What has weight 0 is not
covered; a row without weight gets the range (0, 0). Sums run over the first
axis of `rows.T`: kernels lie in memory that way.

Shape letters: R rows, E elements per row.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from quantlab.core import base, numerics
from quantlab.transforms import search

Array = jax.Array
Range = base.Range


def minmax(rows: Array, weight: Array, spec: base.IntSpec) -> Range:
  """From the smallest to the largest element."""
  del spec
  part = weight.T > 0
  lo = jnp.min(jnp.where(part, rows.T, jnp.inf), axis=0)
  hi = jnp.max(jnp.where(part, rows.T, -jnp.inf), axis=0)
  return guard(lo, hi)


def absmax(rows: Array, weight: Array, spec: base.IntSpec) -> Range:
  """Symmetric around 0, out to the largest magnitude."""
  del spec
  hi = jnp.max(jnp.where(weight.T > 0, jnp.abs(rows.T), 0), axis=0)
  return Range(-hi, hi)


@base.interned
def fixed(lo: float, hi: float) -> base.Estimator:
  """The same range for every row, whatever is in it.

  Args:
    lo: its lower end.
    hi: its upper end, above it.

  Returns:
    An estimator.

  Raises:
    ValueError: `lo` is not below `hi`.

  Example:
    A fixed-point format of 16 bits, 12 of them of the fraction:

    >>> import quantlab as ql
    >>> q12 = ql.rtn(
    ...   16,
    ...   symmetric=True,
    ...   narrow=False,
    ...   tight=True,
    ...   granularity=ql.per_tensor,
    ...   estimator=fixed(-8, 8 - 2**-12),
    ... )
    >>> 4096 * ql.dequantize(ql.quantize(q12, jnp.array([1 / 3]))).item()
    1365.0
  """
  if not lo < hi:
    raise ValueError(f"a fixed range needs lo < hi, got {lo=} and {hi=}")

  def estimator(rows, weight, spec):
    del weight, spec
    ends = (jnp.full(rows.shape[0], end, rows.dtype) for end in (lo, hi))
    return Range(*ends)

  return estimator


@base.interned
def percentile(p: float = 99.9) -> base.Estimator:
  """Leaves out the extremes: keeps `p` percent of the elements.

  Args:
    p: percent to keep, split evenly between the two ends, in (0, 100].

  Returns:
    An estimator. Quantiles interpolate linearly between elements, each repeated
    as often as it counts; where the smallest weight of a row is below 1, it
    counts once and the others in proportion.

  Raises:
    ValueError: `p` is not in (0, 100].

  Example:
    >>> import quantlab as ql
    >>> x, twice = jnp.array([[0.0, 4.0, 8.0]]), jnp.array([[1.0, 2.0, 1.0]])
    >>> [end.item() for end in percentile(50)(x, twice, ql.INT4)]
    [3.0, 5.0]
  """
  if not 0 < p <= 100:
    raise ValueError(f"percentile keeps p in (0, 100] percent, got {p=}")
  cut = (100 - p) / 200

  def estimator(rows, weight, spec):
    del spec
    x, reached = _sorted(rows, weight)
    return guard(_quantile(x, reached, cut), _quantile(x, reached, 1 - cut))

  return estimator


def _sorted(rows: Array, weight: Array) -> tuple[Array, Array]:
  """Elements in ascending order, and how many there are up to each."""
  x = jnp.where(weight > 0, rows, jnp.inf)
  if weight.dtype == bool:  # nothing to carry along, which is twice as fast
    count = jnp.sum(weight, axis=1, keepdims=True)
    order = jnp.arange(1, x.shape[1] + 1)[None]
    return jnp.sort(x, axis=1), jnp.minimum(order, count)
  least = jnp.min(jnp.where(weight > 0, weight, 1), axis=1, keepdims=True)
  x, weight = jax.lax.sort((x, weight / least), num_keys=1)
  return x, jnp.cumsum(weight, axis=1)


def _quantile(x: Array, reached: Array, q: float) -> Array:
  """Linear between sorted elements `[R, E]`, each repeated as it counts."""
  reached = reached.astype(x.dtype)
  place = numerics.uncontracted(q * (reached[:, -1:] - 1))

  def first(values, after):
    return jnp.min(jnp.where(reached > after, values, jnp.inf), axis=1)

  end = first(reached, place)
  lower, upper = first(x, place), first(x, end[:, None])
  # An element holds the places from the end of the one before to its own - 1.
  part = place[:, 0] - (end - 1)
  between = (part > 0) & jnp.isfinite(upper)
  rise = jnp.where(between, upper, lower) - lower
  return lower + numerics.uncontracted(jnp.where(between, part * rise, 0))


def mse(
  rows: Array | None = None,
  weight: Array | None = None,
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
    weight: `[R, E]`, of each squared error.
    spec: the codes.
    candidates: factors tried.
    smallest: the smallest factor.

  Returns:
    The best range of each row.
  """
  estimator = _mse(candidates, smallest)
  if rows is None or weight is None or spec is None:
    return estimator
  return estimator(rows, weight, spec)


@base.interned
def _mse(candidates: int, smallest: float) -> base.Estimator:
  method = functools.partial(
    search.grid, candidates=candidates, smallest=smallest
  )
  return functools.partial(_shrunken, method=method)


@base.interned
def mse_golden(*, steps: int = 16, smallest: float = 0.01) -> base.Estimator:
  """`mse` by golden-section search: a quarter of the evaluations.

  Assumes that the error has one minimum between the two ends. That holds but
  for ripples where codes are many (8 bits) and bumps where few elements make
  most of the error (heavy tails at 2 bits). Of several minima it finds some
  local one, never worse than the min-max range.

  Args:
    steps: of the search, each of one evaluation, besides three others. The
      default leaves 0.2 % of the range to doubt.
    smallest: the smallest factor, in (0, 1). Evaluations grow with its
      logarithm only, so heavier tails can be cut than by a grid.

  Returns:
    An estimator.

  Raises:
    ValueError: `smallest` is not in (0, 1).
  """
  if not 0 < smallest < 1:
    raise ValueError(f"the smallest factor is in (0, 1), got {smallest=}")
  method = functools.partial(search.golden, steps=steps, smallest=smallest)
  return functools.partial(_shrunken, method=method)


@base.interned
def cosine(*, candidates: int = 80, smallest: float = 0.2) -> base.Estimator:
  """The shrunken min-max range that turns the row the least.

  A grid search for the largest cosine between a row and its quantized form:
  what counts of a gradient is its direction.

  Args:
    candidates: factors tried.
    smallest: the smallest factor.

  Returns:
    An estimator.

  References:
    Direction-sensitive gradient clipping (DSGC), arXiv 1912.12607. The grid is
    reconstruction.
  """
  method = functools.partial(
    search.grid, candidates=candidates, smallest=smallest
  )
  return functools.partial(_shrunken, method=method, measure=_turn)


@base.interned
def mse_ends(*, rounds: int = 4, steps: int = 16) -> base.Estimator:
  """The range with the least squared error, of both ends apart.

  `mse` shrinks both ends by one factor, which suits what is symmetric. Here
  each end moves on its own between its extreme and the mean, one after the
  other, by golden-section search: a one-sided outlier is cut off alone, and 0
  may lie outside.

  Args:
    rounds: how often each end is searched for.
    steps: of each search; see `mse_golden`.

  Returns:
    An estimator, never worse than min-max.

  References:
    What LSQ+ (arXiv 2004.09576) starts activations from; the search for it is
    ours.
  """
  method = functools.partial(search.golden, steps=steps, smallest=0.01)

  def estimator(rows, weight, spec):
    range_ = minmax(rows, weight, spec)

    def best(x, w, ends, mean):
      def at(factors):
        return Range(*(mean + f * (end - mean) for f, end in factors))

      def turn(_, factors):
        low, high = factors
        low = method(lambda f: error((f, high)), jnp.ones_like(mean))
        high = method(lambda f: error((low, f)), jnp.ones_like(mean))
        return low, high

      def error(factors):
        return _squared(x, w, at(zip(factors, ends, strict=True)), spec)

      start = (jnp.ones_like(mean), jnp.ones_like(mean))
      factors = jax.lax.fori_loop(0, rounds, turn, start)
      return jnp.stack(at(zip(factors, ends, strict=True)))

    w = _relative(weight).T
    x = jnp.where(weight.T > 0, rows.T, 0)
    total = jnp.sum(w, axis=0)
    mean = jnp.sum(w * x, axis=0) / jnp.where(total > 0, total, 1)
    constant = jax.lax.stop_gradient((x, w, jnp.stack(range_), mean))
    return Range(*numerics.by_columns(best, *constant))

  return estimator


def _on_grid(x: Array, range_: Range, spec: base.IntSpec) -> Array:
  """Columns `[E, R]` on the grids of `[R]` ranges."""
  ends = Range(*(end[None] for end in range_))
  scale, zero = numerics.affine_from_range(ends, spec, x.dtype)
  codes = jnp.clip(jnp.round(x / scale + zero), spec.lo, spec.hi)
  return (codes - zero) * scale


def _squared(
  x: Array, weight: Array, range_: Range, spec: base.IntSpec
) -> Array:
  """The squared error `[R]` of columns."""
  return jnp.sum(weight * (_on_grid(x, range_, spec) - x) ** 2, axis=0)


def _turn(x: Array, weight: Array, range_: Range, spec: base.IntSpec) -> Array:
  """The squared sine between columns and what they are rounded to.

  As the part of a column that no multiple of the other explains, which loses
  no digits where the two are close.
  """
  y = _on_grid(x, range_, spec)
  length = jnp.sum(weight * y * y, axis=0)
  factor = jnp.sum(weight * x * y, axis=0) / jnp.where(length > 0, length, 1)
  return jnp.sum(weight * (x - factor[None] * y) ** 2, axis=0)


def _shrunken(
  rows: Array,
  weight: Array,
  spec: base.IntSpec,
  method: Callable[..., Array],
  measure: Callable[..., Array] = _squared,
) -> Range:
  """The min-max range times the factor that a search finds for each row."""
  lo, hi = minmax(rows, weight, spec)

  def best(x, w, ends):
    def error(factor):
      return measure(x, w, Range(*(factor[None] * ends)), spec)

    return method(error, jnp.ones(x.shape[1:], x.dtype))

  x = jnp.where(weight.T > 0, rows.T, 0)
  constant = jax.lax.stop_gradient(
    (x, _relative(weight).T, jnp.stack((lo, hi)))
  )
  factor = numerics.by_columns(best, *constant)
  return Range(lo * factor, hi * factor)


@base.interned
def by_gradient(
  estimator: base.Estimator, *, steps: int = 100, learning_rate: float = 0.05
) -> base.Estimator:
  """Tunes a symmetric range by Adam on the weighted squared error.

  The integer codes count as locally constant, which gives the derivative

    d|Q(x) - x|^2 / ds = 2 * sum_i (Q(x_i) - x_i) * code_i,   code_i clamped,

  with respect to the step s. The trained variable is the range `r = s * hi`.

  Args:
    estimator: where to start, and where a row without weight stays. It sees
      whole rows: what has no weight counts once.
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

  def tuned(rows, weight, spec):
    if not spec.symmetric:
      raise ValueError(f"by_gradient needs a symmetric spec, got {spec}")
    rows = jax.lax.stop_gradient(rows)  # the result counts as a constant
    start = estimator(rows, jnp.maximum(weight, weight == 0), spec).hi
    adam = optax.adam(learning_rate)
    weight = _relative(weight)
    # Outside the part stands a 0: it has code 0 and no gradient.
    x = jnp.where(weight.T > 0, rows.T, 0)
    # In units of its size a row's rate is relative, and nothing underflows.
    total = jnp.sum(weight.T, axis=0)
    size = jnp.sqrt(jnp.sum(weight.T * x**2, axis=0) / jnp.maximum(total, 1))
    size = jnp.where(size > 0, size, 1)
    floor = float(jnp.finfo(rows.dtype).eps)

    def optimized(x, r, *w):
      def step(_, carry):
        r, state = carry
        update, state = adam.update(range_gradient(x, r, spec, *w), state)
        return jnp.maximum(r + update, floor), state

      return jax.lax.fori_loop(0, steps, step, (r, adam.init(r)))[0]

    counts = () if weight.dtype == bool else (weight.T,)
    r = jnp.maximum(start / size, floor)
    r = numerics.by_columns(optimized, x / size[None], r, *counts)
    r = jnp.where(total > 0, r * size, start)
    return Range(-r, r)

  return tuned


def range_gradient(
  columns: Array, r: Array, spec: base.IntSpec, weight: Array | float = 1.0
) -> Array:
  """The derivative of each column's squared error with respect to its range.

  Args:
    columns: `[E, R]` values.
    r: `[R]` ranges; the step is `r / spec.absmax_code`.
    spec: symmetric codes.
    weight: `[E, R]`, of each squared error.

  Returns:
    `[R]`.
  """
  scale = (r / spec.absmax_code)[None]
  codes = jnp.clip(jnp.round(columns * (1 / scale)), spec.lo, spec.hi)
  error = codes * scale - columns
  return 2 / spec.absmax_code * jnp.sum(weight * error * codes, axis=0)


def _relative(weight: Array) -> Array:
  """Weights over the row's largest, so that no product of them underflows."""
  if weight.dtype == bool:
    return weight
  most = jnp.max(weight, axis=1, keepdims=True)
  return weight / jnp.where(most > 0, most, 1)


def guard(lo: Array, hi: Array) -> Range:
  """The range between extremes, or (0, 0) where a row has none."""
  empty = lo > hi
  empty |= ~jnp.isfinite(lo)
  return Range(jnp.where(empty, 0, lo), jnp.where(empty, 0, hi))
