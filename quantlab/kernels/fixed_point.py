"""Fixed-point arithmetic in 32-bit integers, as microcontrollers have it.

Qn is an integer in units of `2**-n`: Q12 in 16 bits covers [-8, 8), Q15 covers
[-1, 1). A value shifted right is rounded half up: half a unit is added, the
shift drops the rest.

Reconstruction: the width of mantissas, the size of tables and what saturates
where; the literature on integer recurrent layers says only Q12 and Q15.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

MANTISSA_BITS = 15
"""Of a multiplier, so that it times 16 bits fits 32."""


class Multiplier(NamedTuple):
  """A positive real factor, `mantissa * 2**-shift`.

  Attributes:
    mantissa: int32 in `[2**14, 2**15)`.
    shift: int32, at least 0.
  """

  mantissa: Array
  shift: Array


def multiplier(ratio: jax.typing.ArrayLike) -> Multiplier:
  """The factor nearest to a ratio: off by a part of `2**-15` at most.

  Args:
    ratio: positive floats below `2**15`, of any shape. Concrete: the factors
      are found on the host, in float64.

  Returns:
    The factors, in the ratios' shape.

  Raises:
    ValueError: a ratio is out of range.

  Example:
    >>> mantissa, shift = multiplier(0.3)
    >>> mantissa.item(), shift.item(), 19661 / 2**16
    (19661, 16, 0.3000030517578125)
  """
  ratio = np.asarray(ratio, np.float64)
  if not np.all((ratio > 0) & (ratio < 2**MANTISSA_BITS - 0.5)):
    raise ValueError(
      f"a multiplier is above 0 and below 2**{MANTISSA_BITS}, got {ratio=}"
    )
  fraction, exponent = np.frexp(ratio)
  mantissa = np.round(fraction * 2**MANTISSA_BITS).astype(np.int32)
  shift = MANTISSA_BITS - exponent.astype(np.int32)
  full = mantissa >> MANTISSA_BITS  # it was rounded up to a power of two
  return Multiplier(jnp.asarray(mantissa >> full), jnp.asarray(shift - full))


def rescale(acc: Array, by: Multiplier) -> Array:
  """`floor(acc * mantissa / 2**shift + 1/2)`, without a 64-bit product.

  Exact where `|acc| < 2**(15 + min(shift, 12))`: 2**27 for factors below 8,
  2**23 for factors from 64 to 128. An accumulator beyond that saturates there.
  The result is below `2**30` in magnitude, so few of them can be added.

  Args:
    acc: int32.
    by: factors that broadcast against `acc`.

  Returns:
    int32.

  Example:
    >>> rescale(jnp.array([-5, 5, 2**26]), multiplier(0.5)).tolist()
    [-2, 3, 33554432]
  """
  mantissa, shift = by
  cut = jnp.minimum(shift, 12)
  most = (1 << (15 + cut)) - 1
  acc = jnp.clip(acc, -most, most)
  high, low = acc >> 12, acc & 0xFFF
  # Half a unit of a shift beyond 12 is a multiple of 2**12, as is the high
  # product: the 12 bits that the low product loses first do not matter then.
  half = jnp.where(shift > 12, 0, (1 << cut) >> 1)
  product = (high * mantissa << (12 - cut)) + ((low * mantissa + half) >> cut)
  twice = product >> jnp.clip(shift - 13, 0, 31)
  return jnp.where(shift > 12, (twice + 1) >> 1, product)


def round_shift(x: Array, bits: int) -> Array:
  """`x / 2**bits`, rounded half up; `bits` is at least 1.

  Example:
    >>> round_shift(jnp.array([-3, -2, 2, 3]), 2).tolist()
    [-1, 0, 1, 1]
  """
  return (x + (1 << (bits - 1))) >> bits


def saturate(x: Array, bits: int) -> Array:
  """Clips to the range of signed integers of `bits` bits; still int32."""
  return jnp.clip(x, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def quantize(x: Array, scale: jax.typing.ArrayLike) -> Array:
  """The nearest int8 codes, -128 to 127, of floats; half rounds to even.

  Args:
    x: float.
    scale: the step, one for the tensor.

  Returns:
    int8, of x's shape.

  Example:
    >>> quantize(jnp.array([-9.0, -1.0, 0.0, 1.0]), 1 / 128).tolist()
    [-128, -128, 0, 127]
  """
  return jnp.round(jnp.clip(x / scale, -128, 127)).astype(jnp.int8)


def sigmoid(x: Array) -> Array:
  """The logistic function of Q12 integers, in Q15.

  Straight lines between the 257 values at multiples of 1/32 in [0, 8]; the
  complement to 1 for negative x; what is beyond 8 counts as 8. Over [-8, 8) it
  is at most 1.25 of 2**15 off.

  Args:
    x: int32, Q12.

  Returns:
    int32, Q15 in `[11, 32757]`.

  Example:
    >>> sigmoid(jnp.array([-(2**15), 0, 2**12])).tolist()
    [11, 16384, 23955]
  """
  y = _interpolate(_SIGMOID, x)
  return jnp.where(x < 0, 2**15 - y, y)


def tanh(x: Array) -> Array:
  """The hyperbolic tangent of Q12 integers, in Q15.

  As `sigmoid`, but odd. Over [-8, 8) it is at most 3.77 of 2**15 off.

  Args:
    x: int32, Q12.

  Returns:
    int32, Q15 in `[-32767, 32767]`.

  Example:
    >>> tanh(jnp.array([-(2**15), 0, 2**12])).tolist()
    [-32767, 0, 24956]
  """
  y = _interpolate(_TANH, x)
  return jnp.where(x < 0, -y, y)


def _table(function):
  """Q15 values at multiples of 1/32 in [0, 8], within 16 bits."""
  values = np.round(function(np.arange(257) / 32) * 2**15)
  return np.minimum(values, 2**15 - 1).astype(np.int32)


_SIGMOID = _table(lambda x: 1 / (1 + np.exp(-x)))
_TANH = _table(np.tanh)


def _interpolate(table: np.ndarray, x: Array) -> Array:
  size = jnp.abs(jnp.clip(x, -(2**15), 2**15))  # 2**15 is 8 in Q12
  place, part = size >> 7, size & 127
  values = jnp.asarray(table)
  low, high = values[place], values[jnp.minimum(place + 1, 256)]
  return low + round_shift((high - low) * part, 7)
