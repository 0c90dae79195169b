"""Round to nearest on a uniform grid over each row's range.

The baseline of every paper here, and the inner quantizer of most.
"""

import jax
import jax.numpy as jnp

from quantlab.core import base, numerics, parameterization
from quantlab.transforms import estimate, fit, learn, observe, plan, rounding


@base.interned
def rtn(
  bits: int,
  *,
  symmetric: bool = False,
  narrow: bool = True,
  tight: bool = False,
  exact_zero: bool = False,
  granularity: base.Granularity = numerics.per_output,
  estimator: base.Estimator | None = None,
  observer: base.Observer | None = None,
  hindsight: bool = True,
  learned: parameterization.Parameterization | None = None,
  stochastic: bool = False,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> base.Quantizer:
  """Rounds to the nearest of `2**bits` evenly spaced levels.

  Args:
    bits: of a code, 2 to 8, or 16.
    symmetric: the grid is symmetric around 0 and has a level there. Without
      it the ends of the range are levels, and 0 in general is not, unless
      `exact_zero`.
    exact_zero: asymmetric codes have an integer zero point, so that 0 is a
      level, and ranges are extended to hold it. Where a row has an outlier,
      many weights are near 0, and an error that they share does not average
      out in a product.
    narrow: symmetric codes leave out the lowest one (step absmax / 7 at 4
      bits); with `False` they are all used (step absmax / 7.5).
    tight: of codes that are all used, the step lets both ends of the range be
      levels (step max(hi / 7, -lo / 8)).
    granularity: which elements share a grid; by default each output channel
      of a kernel `[..., K, N]` has its own.
    estimator: of the range; `minmax`, or `absmax` where symmetric.
    observer: takes the range from earlier tensors in place of this one, as
      static activation quantization does; see `tracked`. It has an estimator
      of its own.
    hindsight: of an observer: its range is from earlier tensors alone.
    learned: the range is moved by an optimizer, in these numbers; see
      `learned`. It starts where the estimator says.
    stochastic: rounds up or down at random, without bias, as gradients want;
      needs a key.
    dtype: what scales and zero points are stored in.

  Returns:
    A quantizer.

  Raises:
    ValueError: `bits` is not among 2..8 and 16, codes are tight that are not
      symmetric and wide, or an observer is given together with
      an estimator or with numbers to learn.

  Example:
    >>> import quantlab as ql
    >>> w = jnp.array([[-1.0], [0.1], [0.3], [2.0]])
    >>> ql.dequantize(ql.quantize(rtn(2), w)).ravel().tolist()
    [-1.0, 0.0, 0.0, 2.0]
  """
  if not (2 <= bits <= 8 or bits == 16):
    raise ValueError(f"rtn takes 2 to 8 or 16 bits, got {bits=}")
  spec = base.IntSpec(
    bits,
    signed=symmetric,
    symmetric=symmetric,
    narrow=narrow,
    tight=tight,
    exact_zero=exact_zero,
  )
  if observer is not None:
    if estimator is not None or learned is not None:
      raise ValueError(
        "rtn takes an estimator or an observer, not both: an observer has an "
        "estimator of its own, and nothing to learn"
      )
    grid = observe.tracked(
      observer, spec, granularity, hindsight=hindsight, dtype=dtype
    )
  else:
    if estimator is None:
      estimator = estimate.absmax if symmetric else estimate.minmax
    if learned is None:
      grid = fit.fit(estimator, spec, granularity, dtype=dtype)
    else:
      grid = learn.learned(
        learned, spec, granularity, start=estimator, dtype=dtype
      )
  round_ = rounding.stochastic() if stochastic else rounding.nearest()
  return plan.chain(grid, round_)
