"""Grid stages that are computed from the tensor itself."""

import functools

import jax
import jax.numpy as jnp

from quantlab.core import base, grids, numerics, qtensor
from quantlab.transforms import compose, estimate

Array = jax.Array


@base.interned
def fit(
  estimator: base.Estimator,
  spec: base.IntSpec,
  granularity: base.Granularity,
  *,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> base.Quantizer:
  """Gives the tensor a uniform grid over estimated ranges.

  Of two tails around an empty middle (`label` makes them of outliers) each
  gets half of the codes, its grid running from its smallest to its largest
  magnitude whatever the estimator.

  Args:
    estimator: chooses each row's range.
    spec: the codes.
    granularity: tensor shape to grid shape.
    dtype: what scales and zero points are stored in.

  Returns:
    A quantizer; its codes are not yet rounded.

  Example:
    >>> import quantlab as ql
    >>> q4 = ql.chain(
    ...   ql.fit(ql.minmax, ql.INT4, ql.per_block(0, 128)), ql.nearest()
    ... )
    >>> ql.bits_per_weight(ql.quantize(q4, jnp.ones((256, 64))))
    4.5
  """

  def apply(q):
    x, raw = qtensor.values(q)
    cells = granularity(x.shape)
    columns = numerics.columns(x, cells)

    def affine(estimator, weight, spec):
      weight = numerics.columns(weight, cells)
      estimate = functools.partial(estimator, spec=spec)
      range_ = numerics.each_row(estimate, columns, weight)
      scale, zero = numerics.affine_from_range(range_, spec, dtype)
      return grids.Affine(scale, zero, spec)

    if raw.tails:
      half = base.IntSpec(spec.bits - 1, signed=False)
      lower = affine(estimate.minmax, raw.mask & (x < 0), half)
      upper = affine(estimate.minmax, raw.mask & (x >= 0), half)
      grid = grids.Tails(lower, upper, spec)
    else:
      grid = affine(estimator, weights(x, raw), spec)
    return qtensor.QTensor(grid.encode(raw.decode(x)), grid, q.dtype)

  return compose.stage(apply)


def weights(x: Array, raw: grids.Raw) -> Array:
  """What each element counts to an estimator: bool where all count alike."""
  mask = jnp.broadcast_to(raw.mask, x.shape)
  if not raw.weight.ndim:
    return mask
  # Each counts a little, so that no range leaves one out.
  floor = 1e-6 * jnp.mean(raw.weight)
  return jnp.where(mask, raw.weight.astype(x.dtype) + floor, 0)


@base.interned
def tables(
  fitter: base.LevelFitter,
  bits: int,
  granularity: base.Granularity,
  *,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> base.Quantizer:
  """Gives the tensor a codebook of fitted levels per row.

  Args:
    fitter: places the levels of each row.
    bits: of a code; a table has `2**bits` levels.
    granularity: tensor shape to grid shape.
    dtype: what the levels are stored in.

  Returns:
    A quantizer; its codes are not yet rounded.

  References:
    SqueezeLLM, arXiv 2306.07629: with a sensitivity, in a row where nothing
    counts all elements do.
  """

  def apply(q):
    x, raw = qtensor.values(q)
    cells = granularity(x.shape)
    # The levels count as constants: a search for them has no gradient.
    columns = numerics.columns(jax.lax.stop_gradient(x), cells)
    mask = jnp.broadcast_to(raw.mask, x.shape).astype(x.dtype)
    mask = weight = numerics.columns(mask, cells)
    if raw.weight.ndim:
      weight = mask * numerics.columns(raw.weight.astype(x.dtype), cells)
      weight = jnp.where(jnp.any(weight > 0, axis=0)[None], weight, mask)
    fit_row = functools.partial(fitter, levels=2**bits)
    levels = numerics.each_row(fit_row, columns, weight)
    grid = grids.Codebook(levels.astype(dtype))
    return qtensor.QTensor(grid.encode(raw.decode(x)), grid, q.dtype)

  return compose.stage(apply)
