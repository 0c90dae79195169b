"""Rounding stages: real-valued codes to integers within the grid's bounds."""

import jax
import jax.numpy as jnp

from quantlab.core import base, numerics, qtensor
from quantlab.transforms import compose

Array = jax.Array


@base.interned
def nearest(*, margin: float = 0.0) -> base.Quantizer:
  """Clips, then rounds half to even; the gradient passes straight through.

  The order matters: rounded first, every saturated code would sit on the clip
  bound, where the derivative of a clip is not defined.

  Args:
    margin: how far past the smallest and the largest code, in codes, a value
      still counts as inside the range, where its gradient passes. It does not
      change what is rounded to. LSQ has none. With 0.5 inside is what rounds to
      a code, as the gradients of arXiv 2404.16898 have it.

  Example:
    >>> import quantlab as ql
    >>> q = ql.chain(ql.fit(ql.absmax, ql.INT4, ql.per_tensor), ql.nearest())
    >>> x = jnp.array([-1.0, 0.0, 0.1, 1.0])
    >>> print(ql.dequantize(ql.quantize(q, x)).round(3))
    [-1.    -0.067  0.067  1.   ]
  """
  return compose.stage(lambda q: _rounded(q, numerics.ste_round, margin))


@base.interned
def truncate() -> base.Quantizer:
  """Clips, then cuts fractions off, towards the code 0.

  The gradient passes straight through, also of what is clipped.

  Example:
    >>> import quantlab as ql
    >>> q = ql.chain(ql.fit(ql.absmax, ql.INT4, ql.per_tensor), truncate())
    >>> print(ql.dequantize(ql.quantize(q, jnp.array([-7.5, -0.9, 0.9, 7.5]))))
    [-7.5 -0.5  0.5  7.5]
  """

  def cut(q):
    lo, hi = map(float, q.grid.bounds)
    fixed = jax.lax.stop_gradient(q.codes)
    codes = jnp.trunc(jax.lax.clamp(lo, fixed, hi))
    return qtensor.QTensor(codes + (q.codes - fixed), q.grid, q.dtype)

  return compose.stage(cut)


@base.interned
def stochastic() -> base.Quantizer:
  """Clips, then rounds up with the probability of the fractional part.

  Unbiased within the range. Needs a key.

  Raises:
    ValueError: (when applied) there is no key.
  """

  def apply(q, state, key=None):
    if key is None:
      raise ValueError("stochastic rounding needs a PRNG key, got key=None")

    def rounding(codes):
      noise = jax.random.uniform(key, codes.shape, codes.dtype)
      up = jnp.floor(jax.lax.stop_gradient(codes) + noise)
      return codes + jax.lax.stop_gradient(up - codes)

    return _rounded(qtensor.lift(q), rounding), ()

  return base.Quantizer(init=base.Stateless(), apply=apply)


def _rounded(q, rounding, margin=0.0):
  lo, hi = map(float, q.grid.bounds)
  codes = rounding(jax.lax.clamp(lo - margin, q.codes, hi + margin))
  if margin:  # it may round past the ends
    past = jax.lax.stop_gradient(jax.lax.clamp(lo, codes, hi) - codes)
    codes = codes + past
  return qtensor.QTensor(codes, q.grid, q.dtype)
