"""RQuant and weight clipping, for weights in faulty memory (arXiv 2006.13977).

How much harm a flipped bit does is up to the quantizer: to its range, to the
way it rounds, and to what it makes of codes that no weight has. Clipping the
weights during training does not make errors smaller, since the range shrinks
too, but makes the network use more weights for the same logits.

Training with errors is `transforms.noise.bit_errors` in a loss; the paper's
step, which averages two gradients, is in `experiments.train`.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from quantlab.core import base, grids, numerics, qtensor
from quantlab.transforms import compose, estimate, fit, plan
from quantlab.transforms import rounding as rounding_

Array = jax.Array
PyTree = Any
Range = base.Range

# With a margin without end no weight is so far out that its gradient stops.
_NEAREST = rounding_.nearest(margin=math.inf)


@base.interned
def rquant(
  bits: int,
  *,
  symmetric: bool = False,
  signed: bool = False,
  rounding: bool = True,
  q_max: float | None = None,
  granularity: base.Granularity = numerics.per_tensor,
) -> base.Quantizer:
  """Rounds to a grid over the range of the tensor, which no bit error leaves.

  | scheme of the paper | arguments |
  |---|---|
  | RQuant | |
  | without rounding | `rounding=False` |
  | asymmetric, signed | `signed=True, rounding=False` |
  | per tensor, symmetric | `symmetric=True, signed=True, rounding=False` |
  | one range for all | the same with `q_max=1.0` |

  The gradient of the weights passes unchanged, also where they are clipped, and
  the range has none.

  Args:
    bits: of a code, 2 to 8.
    symmetric: the range is symmetric around 0, and the code of 0 decodes to
      exactly that: a plain uniform grid, whose codes are not clamped.
    signed: codes are two's complement. What a flip does is the same, what
      truncation does is not: it goes towards 0 or towards the smallest value.
    rounding: to the nearest code; without it fractions are cut off, as a cast
      to integers does.
    q_max: the range is `[-q_max, q_max]`, whatever the tensor; None takes it
      from the tensor, at its extremes (symmetric: 0.001 beyond).
    granularity: which elements share a range; the paper has one per tensor.

  Returns:
    A quantizer. The ranges of the paper have no errors: see `protect` of
    `ql.flip_bits`.

  Raises:
    ValueError: `bits` is outside 2..8, or `q_max` is not above 0.

  Example:
    >>> import quantlab as ql
    >>> w = jnp.array([-0.5, -0.21, 0.02, 0.13, 0.33, 0.7])
    >>> q = ql.quantize(rquant(8), w)
    >>> q.codes.unpack().tolist()
    [1, 62, 111, 134, 177, 255]
    >>> print(q.dequantize().round(4))
    [-0.5    -0.2121  0.0196  0.1284  0.3317  0.7   ]

  References:
    arXiv 2006.13977, Section 4.1, and its authors' code. Reconstruction:
    constant tensors, and a `q_max` that is not symmetric.
  """
  if not 2 <= bits <= 8:
    raise ValueError(f"rquant takes 2 to 8 bits, got {bits=}")
  if q_max is not None and not 0 < q_max < math.inf:
    raise ValueError(f"rquant takes a finite q_max above 0, got {q_max=}")
  estimator = _beyond if symmetric else estimate.minmax
  if q_max is not None:
    estimator = functools.partial(_given, q_max)
  grid = functools.partial(
    _gridded,
    estimator=estimator,
    make=_symmetric if symmetric else grids.Bounded,
    spec=base.IntSpec(bits, signed=signed),
    granularity=granularity,
  )
  integers = _NEAREST if rounding else rounding_.truncate()
  return plan.chain(compose.stage(grid), integers)


def _gridded(
  q: qtensor.QTensor,
  estimator: base.Estimator,
  make: Callable[[Array, Array, base.IntSpec], Any],
  spec: base.IntSpec,
  granularity: base.Granularity,
) -> qtensor.QTensor:
  """Gives a tensor a grid over an estimated range, which has no gradient."""
  x, raw = qtensor.values(q)
  cells = granularity(x.shape)
  range_ = numerics.each_row(
    functools.partial(estimator, spec=spec),
    numerics.columns(jax.lax.stop_gradient(x), cells),
    numerics.columns(fit.weights(x, raw), cells),
  )
  grid = make(range_.lo, range_.hi, spec)
  return qtensor.QTensor(grid.encode(raw.decode(x)), grid, q.dtype)


def _beyond(rows: Array, weight: Array, spec: base.IntSpec) -> Range:
  """Symmetric around 0, out to 0.001 past the largest magnitude."""
  hi = estimate.absmax(rows, weight, spec).hi + 0.001
  return Range(-hi, hi)


def _given(
  q_max: float, rows: Array, weight: Array, spec: base.IntSpec
) -> Range:
  del weight, spec
  hi = jnp.full(rows.shape[0], q_max, rows.dtype)
  return Range(-hi, hi)


def _symmetric(lo: Array, hi: Array, spec: base.IntSpec) -> grids.Affine:
  half = 2 ** (spec.bits - 1)
  dtype = jnp.int8 if spec.signed else jnp.uint8
  zero = jnp.full((1,) * lo.ndim, spec.lo + half, dtype)
  return grids.Affine(hi / (half - 1), zero, spec)


def clip(params: PyTree, w_max: float) -> PyTree:
  """The nearest params that are all within `[-w_max, w_max]`.

  To be applied before every forward pass, to all that is trained, biases and
  scales of norms too. A norm whose scale is 1 at the start has to be written as
  `(1 + a) * x + b`, or a `w_max` below 1 changes what it does.

  Args:
    params: a tree of float arrays.
    w_max: above 0; the paper has 0.01 to 1.

  Returns:
    The tree.

  Raises:
    ValueError: `w_max` is not above 0.

  Example:
    >>> clip({"bias": jnp.array([-0.5, 0.05])}, 0.1)["bias"].tolist()
    [-0.1000..., 0.0500...]

  References:
    arXiv 2006.13977, Section 4.2.
  """
  if not w_max > 0:
    raise ValueError(f"weights are clipped to a w_max above 0, got {w_max=}")
  return jax.tree.map(lambda x: jnp.clip(x, -w_max, w_max), params)
