"""EasyQuant: exact outliers and a tuned range, without data (arXiv 2403.02775).

The few weights far from the matrix mean stay in floating point. For the others
each output channel's range is tuned by Adam on the plain reconstruction error.
Both halves are needed, says the paper: a tuned range alone lowers the weight
error but raises perplexity.
"""

import jax
import jax.numpy as jnp

from quantlab.core import base, numerics
from quantlab.methods import rtn
from quantlab.transforms import estimate, labels, partition


@base.interned
def easyquant(
  bits: int,
  *,
  sigmas: float = 3.0,
  steps: int = 100,
  learning_rate: float = 0.05,
  granularity: base.Granularity = numerics.per_output,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> base.Quantizer:
  """Keeps outliers exact and tunes each row's symmetric range.

  Args:
    bits: of a code, 2 to 8. The paper uses 4.
    sigmas: outliers lie this many standard deviations of the matrix from its
      mean. The paper takes 2.5 to 3, so that under 1 % are outliers.
    steps: of Adam. The paper takes 100 (BLOOM) or 500 (LLaMA).
    learning_rate: of Adam, in units of each row's root mean square; 0.05 is
      the paper's 1e-3 (BLOOM) for weights with sigma = 0.02, and 0.005 its
      1e-4 (LLaMA).
    granularity: which elements share a range; by default each output channel
      of a kernel `[..., K, N]`.
    dtype: what scales are stored in.

  Returns:
    A quantizer whose result is a `Sum` of a grid part and an exact part.

  Raises:
    ValueError: `bits` is outside 2..8.

  Example:
    >>> import quantlab as ql
    >>> w = 0.02 * jax.random.normal(jax.random.key(0), (1024, 64))
    >>> grid, exact = ql.quantize(easyquant(4), w).parts
    >>> 0.002 < exact.values.size / w.size < 0.004
    True

  References:
    arXiv 2403.02775, eq. 1 to 4. Reconstruction: the standard deviation for the
    printed variance, codes -7..7, the step absmax / 7, what
    `transforms.estimate.by_gradient` lists, and indices of 32 bits.
  """
  if not 2 <= bits <= 8:
    raise ValueError(f"easyquant takes 2 to 8 bits, got {bits=}")
  tuned = estimate.by_gradient(
    estimate.absmax, steps=steps, learning_rate=learning_rate
  )
  inner = rtn.rtn(
    bits,
    symmetric=True,
    granularity=granularity,
    estimator=tuned,
    dtype=dtype,
  )
  return exact_outliers(inner, sigmas=sigmas)


@base.interned
def exact_outliers(
  inner: base.Quantizer, *, sigmas: float = 3.0
) -> base.Quantizer:
  """Keeps outliers exact, and quantizes the others with any quantizer.

  Args:
    inner: quantizes what is not an outlier.
    sigmas: outliers lie this many standard deviations of the matrix from its
      mean.

  Returns:
    A quantizer whose result is a `Sum` of that of `inner` and an exact part.

  Example:
    >>> import quantlab as ql
    >>> w = jax.random.t(jax.random.key(0), 3.0, (512, 64))
    >>> q = ql.quantize(exact_outliers(ql.icquant(ql.rtn(3))), w)
    >>> [type(part).__name__ for part in q.parts]
    ['QTensor', 'Sparse']

  References:
    EasyQuant, arXiv 2403.02775, eq. 3 and 4.
  """
  return partition.exact(labels.beyond(sigmas), inner)
