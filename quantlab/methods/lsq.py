"""Learned steps: LSQ (arXiv 1902.08153) and LSQ+ (arXiv 2004.09576).

Both train the network together with the grids it is rounded to. LSQ learns a
step; LSQ+ learns an offset too, for activations such as Swish whose small
negative part is worth a few codes but not half of them.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from quantlab.core import base, numerics, parameterization
from quantlab.transforms import estimate, learn, plan, rounding

Array = jax.Array
Range = base.Range


@base.interned
def lsq(
  bits: int,
  *,
  signed: bool = True,
  granularity: base.Granularity = numerics.per_tensor,
  start: base.Estimator | None = None,
  gradient_scale: Callable[[int, base.IntSpec], float] | None = None,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> base.Quantizer:
  """Rounds to a grid around 0 whose step is learned.

  With `start=three_sigma` it is what LSQ+ does to weights.

  Args:
    bits: of a code, 1 to 8; signed ones at least 2.
    signed: codes are `-2**(bits - 1)` to `2**(bits - 1) - 1`; unsigned ones 0
      to `2**bits - 1`, for what is never negative.
    granularity: which elements share a step; the paper has one per tensor.
    start: the first range, of which the step is an even part; by default
      `mean_magnitude`, the paper's.
    gradient_scale: `(elements per step, spec)` to the factor of the step's
      gradient; by default `balanced`, the paper's. It makes no difference to
      Adam, which divides constant factors out.
    dtype: what steps are learned and stored in.

  Returns:
    A quantizer whose `State.learned` holds the steps.

  Raises:
    ValueError: `bits` is out of range.

  Example:
    >>> import quantlab as ql
    >>> w = jnp.array([[-1.0], [0.1], [0.4], [0.9]])
    >>> ql.quantize(lsq(3), w).grid.scale.tolist()  # 2 * 0.6 / sqrt(3)
    [[0.692820...]]

  References:
    arXiv 1902.08153, eq. 1 to 3 and Section 2.2. How many elements share a
    step counts the batch of activations too, as reference implementations do.
  """
  spec = _spec("lsq", bits, signed, symmetric=True)
  grid = learn.learned(
    parameterization.step,
    spec,
    granularity,
    start=start or mean_magnitude,
    gradient_scale=gradient_scale or balanced,
    dtype=dtype,
  )
  return plan.chain(grid, rounding.nearest())


@base.interned
def lsq_plus(
  bits: int,
  *,
  signed: bool = True,
  offset: bool = True,
  granularity: base.Granularity = numerics.per_tensor,
  start: base.Estimator | None = None,
  gradient_scale: Callable[[int, base.IntSpec], float] | None = None,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> base.Quantizer:
  """Rounds activations to a grid whose step and offset are learned.

  | configuration | `signed` | `offset` |
  |---|---|---|
  | 1 | False | False |
  | 2 | True | False |
  | 3, LSQ+ | True | True |
  | 4, LSQ+ | False | True |

  The last two are one set of grids, said by other offsets, and train apart.

  Args:
    bits: of a code, 1 to 8; signed ones at least 2.
    signed: codes are `-2**(bits - 1)` to `2**(bits - 1) - 1`, not 0 to
      `2**bits - 1`.
    offset: learns the value of the code 0 too, a float.
    granularity: which elements share a step; the paper has one per tensor.
    start: the first range; by default the one of least squared error,
      `mse_ends` with an offset and `mse` without.
    gradient_scale: as in `lsq`; of step and offset alike.
    dtype: what steps and offsets are learned and stored in.

  Returns:
    A quantizer whose `State.learned` holds steps and offsets. Weights take
    `lsq(bits, start=three_sigma)`: an offset of weights would cost a product
    with every input, one of activations folds into the bias.

  Raises:
    ValueError: `bits` is out of range.

  Example:
    >>> import quantlab as ql
    >>> x = jax.nn.swish(jnp.linspace(-4, 4, 200)).reshape(200, 1)
    >>> error = {
    ...   plus: jnp.mean((ql.dequantize(ql.quantize(q, x)) - x) ** 2).item()
    ...   for plus, q in {False: ql.lsq(3), True: lsq_plus(3)}.items()
    ... }
    >>> error[False] > 4 * error[True]
    True

  References:
    arXiv 2004.09576. Reconstruction: a search in place of gradient descent for
    the start, and that the offset's gradient is scaled too.
  """
  spec = _spec("lsq_plus", bits, signed, symmetric=not offset)
  if start is None:
    start = estimate.mse_ends() if offset else estimate.mse
  grid = learn.learned(
    parameterization.scale_offset if offset else parameterization.step,
    spec,
    granularity,
    start=start,
    gradient_scale=gradient_scale or balanced,
    dtype=dtype,
  )
  return plan.chain(grid, rounding.nearest())


def _spec(name: str, bits: int, signed: bool, symmetric: bool) -> base.IntSpec:
  if not 1 + signed <= bits <= 8:
    raise ValueError(
      f"{name} takes {1 + signed} to 8 bits where {signed=}, got {bits=}"
    )
  return base.IntSpec(bits, signed=signed, symmetric=symmetric, narrow=False)


def balanced(count: int, spec: base.IntSpec) -> float:
  """The factor of a step's gradient: `1 / sqrt(count * largest code)`.

  With it a step moves about as much, for its size, as the weights do, whatever
  the number of bits.

  Example:
    >>> balanced(25, base.IntSpec(3))  # the largest code is 3
    0.1154...

  References:
    LSQ, arXiv 1902.08153, Section 2.2.
  """
  return 1 / math.sqrt(count * spec.hi)


def mean_magnitude(rows: Array, weight: Array, spec: base.IntSpec) -> Range:
  """The range whose step is `2 * mean(|x|) / sqrt(largest code)`.

  References:
    LSQ, arXiv 1902.08153, Section 2.1.
  """
  mean, _ = _moments(jnp.abs(rows), weight)
  return _around_zero(2 * mean / math.sqrt(spec.hi), spec)


def three_sigma(rows: Array, weight: Array, spec: base.IntSpec) -> Range:
  """The range whose step is `max(|mean -+ 3 deviations|) / 2**(bits - 1)`.

  References:
    LSQ+, arXiv 2004.09576, Section 3.2, for weights.
  """
  mean, deviation = _moments(rows, weight)
  reach = jnp.abs(mean) + 3 * deviation
  return _around_zero(reach / 2 ** (spec.bits - 1), spec)


def unit_step(rows: Array, weight: Array, spec: base.IntSpec) -> Range:
  """The range whose step is 1 and whose code 0 is 0, whatever the tensor.

  References:
    LSQ+, arXiv 2004.09576, compares starts of activations.
  """
  del weight
  full = jnp.ones(rows.shape[0], rows.dtype)
  return Range(spec.lo * full, spec.hi * full)


def _moments(rows: Array, weight: Array) -> tuple[Array, Array]:
  """Weighted mean and standard deviation of each row."""
  count = jnp.sum(weight, axis=1)
  count = jnp.where(count > 0, count, 1)
  mean = jnp.sum(weight * rows, axis=1) / count
  square = jnp.sum(weight * (rows - mean[:, None]) ** 2, axis=1) / count
  return mean, jnp.sqrt(square)


def _around_zero(step: Array, spec: base.IntSpec) -> Range:
  end = step * spec.absmax_code
  return Range(-end, end)
