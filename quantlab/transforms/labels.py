"""Labelers: which part of a decomposition each element belongs to.

Shape letters: D elements of a row, P outliers of a row.
"""

import jax
import jax.numpy as jnp

from quantlab.core import base, gaps, numerics, stored, topk

Array = jax.Array


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
    return stored.Marks(positions, axes, dims)

  return labeler


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
