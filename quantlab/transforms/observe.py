"""Observers: ranges from what has been seen in many tensors.

They work on rows `[R, E]` like estimators, and keep statistics of each row on
its own. What is not finite, and a row without weight, leaves statistics as they
were.

Shape letters: R rows, E elements per row.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from quantlab.core import base, grids, histograms, numerics, qtensor
from quantlab.transforms import estimate, fit

Array = jax.Array
Observer = base.Observer
PyTree = base.PyTree
Range = base.Range


@base.interned
def ema(
  estimator: base.Estimator = estimate.minmax, *, decay: float = 0.9
) -> Observer:
  """Exponential moving average of the ranges of single tensors.

  The first range counts in full: `range = decay * range + (1 - decay) * new`
  starts from it, not from 0.

  Args:
    estimator: of the range of one tensor.
    decay: what an old range keeps, in [0, 1).

  Returns:
    An observer.

  Raises:
    ValueError: `decay` is not in [0, 1).

  References:
    Fournarakis and Nagel, arXiv 2105.04246, whose momentum it is. The value
    0.9 and the first range are reconstruction.
  """
  if not 0 <= decay < 1:
    raise ValueError(f"ema takes a decay in [0, 1), got {decay=}")

  def update(stats, rows, weight, spec):
    new = estimator(rows, weight, spec)
    first = stats.lo > stats.hi
    ends = zip(new, stats, strict=True)
    return Range(
      *(jnp.where(first, n, decay * s + (1 - decay) * n) for n, s in ends)
    )

  return _observer(_no_range, update, _range)


@base.interned
def extremes() -> Observer:
  """The smallest and the largest element of all tensors."""

  def update(stats, rows, weight, spec):
    new = estimate.minmax(rows, weight, spec)
    return Range(jnp.minimum(stats.lo, new.lo), jnp.maximum(stats.hi, new.hi))

  return _observer(_no_range, update, _range)


@base.interned
def deviations(k: float = 3.0) -> Observer:
  """`mean - k*std` to `mean + k*std`, where both are means over tensors.

  Each tensor has a mean and a standard deviation of its own, and counts alike.
  So the deviation is not that of all elements together, which is larger when
  the means differ; and the range may reach beyond what was seen, or cut it.

  Args:
    k: standard deviations on either side.

  Returns:
    An observer.

  Raises:
    ValueError: `k` is not positive.

  References:
    Rusci et al., arXiv 2210.07692, as `std3`: the tensor there is one frame.

  Example:
    >>> import quantlab as ql
    >>> frames = jnp.array([[-1.0, 1.0], [-1.0, 5.0]])  # means 0, 2; stds 1, 3
    >>> weight = jnp.ones((1, 2), bool)
    >>> observer = deviations(3)
    >>> stats = observer.init(1, jnp.float32)
    >>> for frame in frames:
    ...   stats = observer.update(stats, frame[None], weight, ql.INT8)
    >>> [end.item() for end in observer.range(stats, ql.INT8)]
    [-5.0, 7.0]
  """
  if not k > 0:
    raise ValueError(f"deviations takes a positive k, got {k=}")

  def init(num_rows, dtype):
    return base.Moments(
      jnp.zeros(num_rows, jnp.int32), *jnp.zeros((2, num_rows), dtype)
    )

  def update(stats, rows, weight, spec):
    del spec
    count = stats.count + 1
    total = jnp.sum(weight, axis=1)
    mean = jnp.sum(weight * rows, axis=1) / total
    square = jnp.sum(weight * (rows - mean[:, None]) ** 2, axis=1) / total
    share = 1 / count.astype(mean.dtype)
    return base.Moments(
      count,
      stats.mean + (mean - stats.mean) * share,
      stats.std + (jnp.sqrt(square) - stats.std) * share,
    )

  def range_(stats, spec):
    del spec
    reach = k * stats.std
    return estimate.guard(stats.mean - reach, stats.mean + reach)

  return _observer(init, update, range_)


@base.interned
def histogram(
  estimator: base.Estimator = estimate.minmax, *, bins: int = 2048
) -> Observer:
  """The range that an estimator finds in a histogram of all tensors.

  Bins are added up in pairs when the range grows, so nothing is ever counted
  anew; between half and all of them lie within the extremes. Zeros are counted
  apart.

  Args:
    estimator: of bin centres, each with the weight of its bin.
    bins: of each row's histogram.

  Returns:
    An observer.

  Raises:
    ValueError: `bins` is not positive.
  """
  if bins < 1:
    raise ValueError(f"a histogram has at least one bin, got {bins=}")

  def init(num_rows, dtype):
    return histograms.Histogram.empty(num_rows, bins, dtype)

  def update(stats, rows, weight, spec):
    del spec
    return stats.add(rows, weight)

  def range_(stats, spec):
    centres, counts = stats.elements()
    return estimator(centres, counts, spec)

  return _observer(init, update, range_)


@base.interned
def periodic(estimator: base.Estimator, *, every: int = 100) -> Observer:
  """The range of one tensor, estimated anew every so often.

  Args:
    estimator: of the range of one tensor, such as a search that would take too
      long for each.
    every: tensors between two estimates, at least 1. The first is estimated.

  Returns:
    An observer.

  Raises:
    ValueError: `every` is below 1.

  References:
    DSGC, arXiv 1912.12607, estimates so with `cosine`; 100 is reconstruction.
  """
  if every < 1:
    raise ValueError(f"periodic takes every of at least 1, got {every=}")

  def init(num_rows, dtype):
    return base.Since(
      jnp.zeros(num_rows, jnp.int32), _no_range(num_rows, dtype)
    )

  def update(stats, rows, weight, spec):
    due = stats.steps % every == 0
    new = jax.lax.cond(
      jnp.any(due),
      lambda: estimator(rows, weight, spec),
      lambda: stats.range,
    )
    ends = zip(new, stats.range, strict=True)
    range_ = Range(*(jnp.where(due, n, s) for n, s in ends))
    return base.Since(stats.steps + 1, range_)

  return _observer(init, update, lambda stats, spec: _range(stats.range, spec))


def _no_range(num_rows: int, dtype: jax.typing.DTypeLike) -> Range:
  none = jnp.full(num_rows, jnp.inf, dtype)
  return Range(none, -none)


def _range(stats: Range, spec: base.IntSpec) -> Range:
  del spec
  return estimate.guard(*stats)


def _observer(
  init: Callable[..., PyTree],
  update: Callable[..., PyTree],
  range_: Callable[..., Range],
) -> Observer:
  """An observer that skips what is not finite and rows without weight."""

  def careful(stats, rows, weight, spec):
    rows = jax.lax.stop_gradient(rows)
    seen = (jnp.sum(weight, axis=1) > 0) & _finite(rows, weight)
    new = update(stats, rows, weight, spec)

    def choose(new, old):
      shape = (-1,) + (1,) * (new.ndim - 1)
      return jnp.where(seen.reshape(shape), new, old)

    return jax.tree.map(choose, new, stats)

  return Observer(init, careful, range_)


def _finite(rows: Array, weight: Array) -> Array:
  return jnp.all(jnp.isfinite(jnp.where(weight > 0, rows, 0)))


@base.interned
def tracked(
  observer: Observer,
  spec: base.IntSpec,
  granularity: base.Granularity,
  *,
  hindsight: bool = True,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> base.Quantizer:
  """Gives a tensor a uniform grid over the range of earlier tensors.

  `apply` reads the statistics before it updates them: the grid never depends on
  the tensor itself, but for the first one, when nothing has been seen. To keep
  the range as it is, drop the statistics that `apply` returns. Ranges have no
  gradient.

  Of the estimators that arXiv 2105.04246 compares, `tracked(ema(), ...)` is
  in-hindsight; with `hindsight=False` it is running, which is one step ahead;
  `fit(minmax, ...)` is current; and `tracked(periodic(cosine), ...,
  hindsight=False)` is DSGC (arXiv 1912.12607).

  Args:
    observer: keeps the statistics of each row.
    spec: the codes.
    granularity: tensor shape to grid shape. The grid must have as many cells at
      each call: none along axes that vary, such as the batch.
    hindsight: reads the statistics before this tensor; otherwise after it,
      which has to be in memory for that.
    dtype: what scales and zero points are stored in.

  Returns:
    A quantizer whose statistics are a `Seen`; its codes are not yet rounded.

  Raises:
    ValueError: (when used) the number of grid cells is not that of the
      statistics, or the elements are two tails, whose grid `fit` makes.

  Example:
    >>> import quantlab as ql
    >>> x = jnp.array([[-1.0, 2.0]])
    >>> q = tracked(extremes(), ql.INT8, ql.per_tensor)
    >>> _, stats = q.apply(x, q.init(x))
    >>> out, stats = q.apply(3 * x, ql.State(stats=stats))
    >>> print((255 * out.grid.scale).round())  # still from -1 to 2
    [[3.]]
    >>> stats.count.item(), [end.item() for end in stats.stats]
    (2, [-3.0, 6.0])
  """

  def init(q):
    x, _ = qtensor.values(q)
    num_rows = math.prod(granularity(x.shape))
    none = observer.init(num_rows, x.dtype)
    return base.State(stats=base.Seen(jnp.zeros((), jnp.int32), none))

  def apply(q, state, key=None):
    del key
    q = qtensor.lift(q)
    x, raw = qtensor.values(q)
    if raw.tails:
      raise ValueError("tracked: two tails have no range of their own; use fit")
    cells, (count, stats) = granularity(x.shape), state.stats
    _check_rows(stats, x.shape, cells)
    rows, weight = _rows(x, cells), _rows(fit.weights(x, raw), cells)

    def updated():
      return observer.update(stats, rows, weight, spec)

    read = updated()
    if hindsight:  # static from the second tensor on
      read = jax.lax.cond(count == 0, updated, lambda: stats)
    range_ = Range(*(end.reshape(cells) for end in observer.range(read, spec)))
    grid = grids.Affine(*numerics.affine_from_range(range_, spec, dtype), spec)
    some = (jnp.sum(weight) > 0) & _finite(rows, weight)
    out = qtensor.QTensor(grid.encode(raw.decode(x)), grid, q.dtype)
    return out, base.Seen(count + some, updated())

  return base.Quantizer(init, apply)


def _rows(x: Array, cells: tuple[int, ...]) -> Array:
  columns = numerics.columns(jax.lax.stop_gradient(x), cells)
  return columns.reshape(-1, math.prod(cells)).T


def _check_rows(
  stats: PyTree, shape: tuple[int, ...], cells: tuple[int, ...]
) -> None:
  num_rows = jax.tree.leaves(stats)[0].shape[0]
  if num_rows != math.prod(cells):
    raise ValueError(
      f"tracked: the statistics are of {num_rows} rows, but a tensor of "
      f"{shape=} has a grid of {cells}; a granularity with cells along an axis "
      "that varies, such as the batch, cannot be tracked"
    )
