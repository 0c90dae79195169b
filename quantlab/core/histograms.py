"""Histograms of rows, over ranges that grow with what is added.

Shape letters: R rows, E elements per row, B bins.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from quantlab.core import base

Array = jax.Array


def counts(index: Array, weight: Array, bins: int) -> Array:
  """Adds up weights by bin.

  Args:
    index: `[R, E]` floats or integers; what is outside the bins goes to the
      first or the last.
    weight: `[R, E]` bool or float.
    bins: B.

  Returns:
    `[R, B]`: int32 for bools, which count exactly, else of the weight's type.

  Example:
    >>> index = jnp.array([[0, 2, 2, 7]])
    >>> print(counts(index, jnp.ones((1, 4), bool), 3))
    [[1 0 3]]
  """
  if weight.dtype == bool:
    weight = weight.astype(jnp.int32)
  index = jnp.clip(index, 0, bins - 1).astype(jnp.int32)

  def row(index, weight):
    return jnp.zeros(bins, weight.dtype).at[index].add(weight)

  return jax.vmap(row)(index, weight)


class Histogram(NamedTuple):
  """Weights by bin, row by row. Zeros are apart: after a ReLU they are many.

  Attributes:
    counts: `[R, B]`, of elements that are not 0.
    zeros: `[R]`, of elements that are.
    origin: `[R]`, where the first bin begins.
    width: `[R]`, of a bin; 0 before the first element.
    extremes: of the elements that are not 0; `(inf, -inf)` before the first.
  """

  counts: Array
  zeros: Array
  origin: Array
  width: Array
  extremes: base.Range

  @classmethod
  def empty(
    cls, num_rows: int, bins: int, dtype: jax.typing.DTypeLike
  ) -> "Histogram":
    """Without elements."""
    none = jnp.zeros(num_rows, dtype)
    ends = base.Range(none + jnp.inf, none - jnp.inf)
    return cls(jnp.zeros((num_rows, bins), dtype), none, none, none, ends)

  def add(self, rows: Array, weight: Array) -> "Histogram":
    """With the elements of rows `[R, E]` that have weight."""
    part = (weight > 0) & (rows != 0)
    lo = jnp.min(jnp.where(part, rows, jnp.inf), axis=1)
    hi = jnp.max(jnp.where(part, rows, -jnp.inf), axis=1)
    ends = base.Range(
      jnp.minimum(lo, self.extremes.lo), jnp.maximum(hi, self.extremes.hi)
    )
    grown = self._replace(extremes=ends)._cover()
    width = jnp.where(grown.width > 0, grown.width, 1)[:, None]
    index = jnp.floor((rows - grown.origin[:, None]) / width)
    new = counts(
      index, jnp.where(part, weight, 0).astype(rows.dtype), self.bins
    )
    zeros = jnp.sum(jnp.where(rows == 0, weight, 0), axis=1)
    return grown._replace(counts=grown.counts + new, zeros=self.zeros + zeros)

  def _cover(self) -> "Histogram":
    """With bins that reach the extremes.

    The first elements lie between the ends of the first and the last bin. Later
    ones make bins `2**k` times as wide, with the least k that suffices, from a
    bin's edge on: every new bin is a sum of old ones, and at least half of the
    bins lie between the extremes.
    """
    some = self.extremes.lo <= self.extremes.hi
    lo, hi = (jnp.where(some, end, 0) for end in self.extremes)
    absmax = jnp.maximum(jnp.abs(lo), jnp.abs(hi))
    info = jnp.finfo(lo.dtype)
    width = jnp.maximum((hi - lo) / self.bins, absmax * float(info.eps))
    width = jnp.maximum(width, float(info.tiny))
    fresh = self.width == 0
    width = jnp.where(fresh, width, self.width)
    origin = jnp.where(fresh, lo, self.origin)
    # Half a bin of grace for what rounding makes of the two ends.
    top = (hi - origin) / width - 0.5
    fits = (lo >= origin - width / 2) & (top <= self.bins)
    start = jnp.where(fits, 0, jnp.floor((lo - origin) / width))
    part, k = jnp.frexp((top - start) / self.bins)
    k = jnp.where(fits, 0, jnp.maximum(k - (part == 0.5), 0))
    place = jnp.arange(self.bins)[None] - start[:, None]
    index = jnp.floor(jnp.ldexp(place, -k[:, None]))
    return self._replace(
      counts=counts(index, self.counts, self.bins),
      origin=origin + start * width,
      width=jnp.where(some, jnp.ldexp(width, k), 0),
    )

  @property
  def bins(self) -> int:
    """B."""
    return self.counts.shape[1]

  def elements(self) -> tuple[Array, Array]:
    """The histogram as rows and weights `[R, B + 1]`: bin centres, and 0."""
    place = jnp.arange(self.bins, dtype=self.counts.dtype) + 0.5
    centres = self.origin[:, None] + place[None] * self.width[:, None]
    lo, hi = (end[:, None] for end in self.extremes)
    centres = jnp.where(lo <= hi, jnp.clip(centres, lo, hi), 0)
    rows = jnp.pad(centres, ((0, 0), (0, 1)))
    return rows, jnp.append(self.counts, self.zeros[:, None], axis=1)
