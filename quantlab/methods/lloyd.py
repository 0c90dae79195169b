"""Lloyd-Max tables: the levels of each row are its own 1-D k-means."""

import jax
import jax.numpy as jnp

from quantlab.core import base, numerics
from quantlab.transforms import fit, levels, plan, rounding


@base.interned
def lloyd(
  bits: int,
  *,
  granularity: base.Granularity = numerics.per_output,
  fitter: base.LevelFitter | None = None,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> base.Quantizer:
  """Rounds to the nearest of `2**bits` fitted levels.

  Args:
    bits: of a code, 2 to 8.
    granularity: which elements share a table; by default each output channel
      of a kernel `[..., K, N]` has its own.
    fitter: places the levels; `kmeans()` by default.
    dtype: what the tables are stored in.

  Returns:
    A quantizer.

  Raises:
    ValueError: `bits` is outside 2..8.

  Example:
    >>> import quantlab as ql
    >>> w = jnp.array([[-1.0], [-0.5], [0.25], [0.25], [2.0], [0.75]])
    >>> print(ql.dequantize(ql.quantize(lloyd(2), w)).ravel())
    [-0.75 -0.75  0.25  0.25  2.    0.75]

  References:
    Lloyd 1957; Max 1960, "Quantizing for minimum distortion".
  """
  if not 2 <= bits <= 8:
    raise ValueError(f"lloyd takes 2 to 8 bits, got {bits=}")
  tables = fit.tables(fitter or levels.kmeans(), bits, granularity, dtype=dtype)
  return plan.chain(tables, rounding.nearest())
