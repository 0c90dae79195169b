"""Level fitters: where the entries of a codebook go.

Written for one row and vectorised over the others.

Shape letters: E elements of a row, C levels, B break points.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from quantlab.core import base, numerics

Array = jax.Array


@base.interned
def kmeans(*, breaks: int = 64, iterations: int = 100) -> base.LevelFitter:
  """Weighted 1-D k-means of every row.

  Clusters on a line are intervals of the sorted row, so prefix sums give the
  weight, mean and error of any interval. The start is the best way to cut the
  row at `breaks` candidate points, found by dynamic programming; from there
  Lloyd's iteration runs on the elements themselves until nothing moves.

  Rows of up to `breaks` elements get the global optimum from the start, and a
  row with no more distinct values than levels gets exactly those. More than
  `breaks / 4` levels start evenly in the measure that candidates are spaced by.

  Args:
    breaks: candidate points, B.
    iterations: Lloyd's steps, at most.

  Returns:
    A fitter of ascending tables.

  Example:
    >>> x = jnp.array([0.0, 0.1, 5.0, 5.2, 9.0, 9.0])
    >>> print(kmeans()(x[None], jnp.ones((1, 6)), 3).round(2))
    [[0.05 5.1  9.  ]]

  References:
    Lloyd 1957, "Least squares quantization in PCM". The start is ours.
  """

  def fitter(rows, weight, levels):
    row = functools.partial(
      _kmeans, levels=levels, breaks=breaks, iterations=iterations
    )
    every_row = jax.vmap(row, in_axes=1, out_axes=1)
    return numerics.by_columns(every_row, rows.T, weight.T).T

  return fitter


def _kmeans(
  x: Array, w: Array, *, levels: int, breaks: int, iterations: int
) -> Array:
  # Elements without weight go to the end, where no interval needs them.
  x, w = jax.lax.sort((jnp.where(w > 0, x, jnp.inf), w), num_keys=1)
  x = jnp.where(w > 0, x, jnp.max(jnp.where(w > 0, x, -jnp.inf)))
  x, w = jax.tree.map(lambda v: jnp.where(jnp.any(w > 0), v, 0), (x, w))
  sums = _Sums.of(x, w)
  gaps = jnp.diff(x, prepend=x[:1])
  # A row of few distinct values needs no search: each is its own interval.
  distinct = jnp.cumsum(gaps > 0)
  few = distinct[-1] < levels
  each = jnp.searchsorted(distinct, jnp.arange(1, levels))
  if 4 * levels > breaks and x.size > breaks:
    cuts = _places(gaps, w, levels)[1:-1]  # as good a start with many levels
  else:
    cuts = _best_cuts(sums, _places(gaps, w, breaks), levels)

  def moving(carry):
    i, _, moved = carry
    return (i < iterations) & moved

  def step(carry):
    i, cuts, _ = carry
    centres = sums.centres(cuts)
    new = jnp.searchsorted(x, (centres[1:] + centres[:-1]) / 2)
    return i + 1, new, jnp.any(new != cuts)

  start = (0, jnp.where(few, each, cuts), ~few)
  _, cuts, _ = jax.lax.while_loop(moving, step, start)
  return _means(x, w, cuts)


class _Sums(NamedTuple):
  """Prefix sums `[E + 1]` of weight, first and second moment."""

  w: Array
  wx: Array
  wxx: Array

  @classmethod
  def of(cls, x: Array, w: Array) -> "_Sums":
    sums = jnp.cumsum(jnp.stack([w, w * x, w * x * x]), axis=1)
    return cls(*jnp.pad(sums, ((0, 0), (1, 0))))

  def at(self, index: Array) -> "_Sums":
    return _Sums(*(v[index] for v in self))

  def centres(self, cuts: Array) -> Array:
    """Means `[C]` of the intervals between `[C - 1]` cuts."""
    at = self.at(_ends(cuts, self.w.size - 1))
    w, wx = jnp.diff(at.w), jnp.diff(at.wx)
    mean = jnp.where(w > 0, wx / jnp.where(w > 0, w, 1), -jnp.inf)
    # An empty interval stands where its neighbour does.
    return jax.lax.cummax(mean)


def _ends(cuts: Array, size: int) -> Array:
  """Cuts with the two ends of the row, `[C + 1]`."""
  return jnp.pad(cuts, (1, 1)).at[-1].set(size)


def _means(x: Array, w: Array, cuts: Array) -> Array:
  """Interval means without the cancellation of prefix sums."""
  ends = _ends(cuts, x.size)
  place = jnp.arange(x.size)

  def mean(lo, hi):
    inside = jnp.where((place >= lo) & (place < hi), w, 0)
    # Around an element of the interval, equal elements have an exact mean.
    first = x[jnp.minimum(lo, x.size - 1)]
    weight = jnp.sum(inside)
    offset = jnp.sum(inside * (x - first)) / jnp.where(weight > 0, weight, 1)
    return first + offset

  return jax.vmap(mean)(ends[:-1], ends[1:])


def _places(gaps: Array, w: Array, breaks: int) -> Array:
  """Places `[B + 1]` where intervals may end, from 0 to E.

  Half of them lie evenly in the measure `(w * gap**2)**(1/3)`, in which the
  optimal levels of a smooth density are even (Panter and Dite 1951), half
  evenly among the distinct elements.
  """
  size = gaps.size
  if size <= breaks:
    return jnp.arange(size + 1)
  smooth, even = jnp.cbrt(w * gaps * gaps), (gaps > 0).astype(gaps.dtype)
  reached = jnp.cumsum(smooth / _positive(smooth) + even / _positive(even))
  inner = jnp.arange(1, breaks, dtype=gaps.dtype) / breaks * reached[-1]
  return _ends(jnp.searchsorted(reached, inner), size)


def _positive(x: Array) -> Array:
  total = jnp.sum(x)
  return jnp.where(total > 0, total, 1)


def _best_cuts(sums: _Sums, places: Array, levels: int) -> Array:
  """Cuts `[C - 1]` with the least error among candidate places.

  `best[k, j]` is the least error of the elements before place j in k
  intervals. Fewer intervals are allowed by letting leading ones be empty:
  `best[k, 0]` is 0 for every k.
  """
  at = sums.at(places)
  count = places.size
  order = jnp.arange(count)
  best = jnp.full((levels + 1, count), jnp.inf, sums.w.dtype)
  best = best.at[:, 0].set(0)

  def column(best, j):
    w, wx, wxx = (v[j] - v for v in at)
    cost = jnp.maximum(wxx - wx * wx / jnp.where(w > 0, w, 1), 0)
    total = best[:-1] + jnp.where(order < j, cost, jnp.inf)[None]
    best = best.at[1:, j].set(jnp.min(total, axis=1))
    return best, jnp.argmin(total, axis=1)

  _, starts = jax.lax.scan(column, best, jnp.arange(1, count))
  starts = jnp.pad(starts, ((1, 0), (0, 0)))

  def back(j, k):
    return (starts[j, k],) * 2

  _, cuts = jax.lax.scan(back, count - 1, jnp.arange(levels - 1, 0, -1))
  return places[cuts[::-1]]
