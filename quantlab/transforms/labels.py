"""Labelers: which part of a decomposition each element belongs to.

Shape letters: D elements of a row, P outliers of a row.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from quantlab.core import base, gaps, grids, numerics, qtensor, sparse, topk
from quantlab.transforms import compose, levels

Array = jax.Array


@base.interned
def outliers(
  ratio: float, granularity: base.Granularity = numerics.per_output
) -> base.Labeler:
  """Labels the largest magnitudes of each row 1: a fixed count, by rank.

  Args:
    ratio: fraction of each row, in [0, 1]; `round(ratio * D)` elements.
    granularity: what a row is. The default takes the output channels of a
      kernel `[..., K, N]`.

  Returns:
    A labeler. Of equal magnitudes the first is taken.

  Raises:
    ValueError: `ratio` is outside [0, 1].

  References:
    ICQuant, arXiv 2505.00850, step 1. The rounding of the count is
    reconstruction.
  """
  if not 0 <= ratio <= 1:
    raise ValueError(f"outliers take a ratio in [0, 1], got {ratio=}")

  def labeler(x, mask):
    axes = numerics.reduced_axes(x.shape, granularity(x.shape))
    axes = axes or (-2,) * (x.ndim > 1) or (-1,)
    magnitude = jnp.where(mask, jnp.abs(x), -1)
    columns = jnp.moveaxis(numerics.fold(magnitude, axes), -1, 0)
    count = gaps.num_marks(ratio, columns.shape[0])
    positions = topk.positions(topk.largest(columns, count), count)
    dims = tuple(x.shape[axis] for axis in axes)
    return sparse.Marks(positions, axes, dims)

  return labeler


@base.interned
def clusters(
  count: int = 3, granularity: base.Granularity = numerics.per_tensor
) -> base.Labeler:
  """Labels the clusters of values, from the lowest to the highest.

  The clusters are those of 1-D k-means. An element halfway between two centres
  belongs to the outer cluster; in a tensor of one value all are in the lowest.

  Args:
    count: k, at least 2.
    granularity: which elements are clustered together.

  Returns:
    A labeler.

  Raises:
    ValueError: `count` is below 2.

  References:
    SplitQuant, arXiv 2501.12428. The deterministic start of `levels.kmeans`
    and disjoint clusters of degenerate tensors are reconstruction.
  """
  if count < 2:
    raise ValueError(f"there are at least two clusters, got {count=}")
  fitter = functools.partial(levels.kmeans(), levels=count)

  def labeler(x, mask):
    cells = granularity(x.shape)
    weight = jnp.broadcast_to(mask, x.shape).astype(x.dtype)
    constant = jax.lax.stop_gradient(x)
    rows = (numerics.columns(a, cells) for a in (constant, weight))
    centres = numerics.each_row(fitter, *rows)
    borders = (centres[..., 1:] + centres[..., :-1]) / 2
    borders = [
      numerics.expand(b, x.shape) for b in jnp.moveaxis(borders, -1, 0)
    ]
    label = sum((x > b).astype(jnp.uint8) for b in borders)
    # The last border belongs to the highest cluster, the others to the lower.
    above = [x > b for b in borders[:-1]]
    several = jnp.array(count > 2)  # two clusters: all of one value are below
    on_last = (x == borders[-1]) & functools.reduce(
      jnp.logical_and, above, several
    )
    return label + on_last.astype(jnp.uint8)

  return labeler


@base.interned
def tails() -> base.Quantizer:
  """Tells grids that the elements are outliers of both signs.

  A uniform grid then gives each sign half of its codes; see `fit`.
  """

  def apply(q):
    if not isinstance(q, qtensor.QTensor) or not isinstance(q.grid, grids.Raw):
      return q
    grid = dataclasses.replace(q.grid, tails=True)
    return dataclasses.replace(q, grid=grid)

  return compose.stage(apply)


@base.interned
def beyond(sigmas: float) -> base.Labeler:
  """Labels 1 what lies `sigmas` or more standard deviations from the mean.

  Mean and (biased) standard deviation are those of the whole tensor.

  Args:
    sigmas: n, at least 0.

  Returns:
    A labeler.

  Raises:
    ValueError: `sigmas` is negative.

  References:
    EasyQuant, arXiv 2403.02775, eq. 3 (printed with the variance; the reported
    fractions fit the standard deviation: reconstruction).
  """
  if not sigmas >= 0:
    raise ValueError(f"beyond takes sigmas >= 0, got {sigmas=}")

  def labeler(x, mask):
    mask = jnp.broadcast_to(mask, x.shape)
    mean = jnp.mean(x, where=mask)
    far = jnp.abs(x - mean) >= sigmas * jnp.std(x, where=mask)
    # Elements that are all equal have no outliers, though 0 >= 0.
    return far & (x != mean)

  return labeler
