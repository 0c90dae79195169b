"""CFWS: coarse and fine weight splitting of re-parameterized convolutions.

Merging the branches of a RepVGG block puts the 1x1 and identity weights onto
the centre tap of one 3x3 kernel, which then dictates the scale of its channel.
CFWS (arXiv 2312.10588) splits the kernel: a coarse kernel holds the centre tap
rounded to a grid, which is a 1x1 convolution, and a fine kernel the other taps
and what rounding left of the centre.
"""

import dataclasses

import jax
import jax.numpy as jnp

from quantlab.core import base, numerics
from quantlab.methods import rtn
from quantlab.transforms import compose, estimate, fit, partition


@base.interned
def cfws(
  bits: int = 8,
  *,
  fine: base.Quantizer | None = None,
  coarse_granularity: base.Granularity = numerics.per_output,
  extract: bool = True,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> base.Quantizer:
  """Splits a convolution kernel into a coarse and a fine one.

  Args:
    bits: of a coarse code, 2 to 8, and of a fine one.
    fine: quantizes the fine kernel; by default `rtn(bits, symmetric=True)`, one
      scale per output channel.
    coarse_granularity: which weights share a coarse scale: by default each
      output channel, with `per_tensor` the whole layer.
    extract: only the centre tap is coarse, stored and run as a 1x1 kernel.
      Without it the whole kernel is, and the fine kernel is what rounding left:
      about twice the bits from two kernels.
    dtype: what scales are stored in.

  Returns:
    A quantizer of kernels `[*window, I, O]` whose result is a `Sum` of the
    coarse and the fine part.

  Raises:
    ValueError: `bits` is outside 2..8; or, when used, the tensor is no kernel
      with a centre tap and others around it.

  Example:
    >>> import quantlab as ql
    >>> w = 0.02 * jax.random.normal(jax.random.key(0), (3, 3, 64, 64))
    >>> w = w.at[1, 1].add(jnp.eye(64))
    >>> def sqnr(q):
    ...   error = ql.dequantize(ql.quantize(q, w)) - w
    ...   return 10 * jnp.log10(jnp.mean(w**2) / jnp.mean(error**2))
    >>> bool(sqnr(cfws()) - sqnr(ql.rtn(8, symmetric=True)) > 20)
    True

  References:
    arXiv 2312.10588 and its authors' code, for 8 bits. Reconstruction: the
    coarse part as a 1x1 convolution, other bits, guards.
  """
  coarse = rtn.rtn(
    bits, symmetric=True, granularity=coarse_granularity, dtype=dtype
  )
  fine = fine or rtn.rtn(bits, symmetric=True, dtype=dtype)
  grid = fit.fit(
    estimate.absmax,
    base.IntSpec(bits, symmetric=True),
    coarse_granularity,
    dtype=dtype,
  )
  if extract:
    coarse = compose.window(_centre, coarse)
  return partition.split(rounded_off(grid, extract=extract), coarse, fine)


def rounded_off(grid: base.Quantizer, *, extract: bool) -> partition.Splitter:
  """Splits a kernel into its values on a grid and what rounding left of them.

  Args:
    grid: gives a tensor a uniform grid; its codes are rounded half up.
    extract: only the centre tap is rounded; the other taps are all left.
  """

  def splitter(x, raw):
    start, size = _centre(x.shape)
    # What another part stores is 0 here.
    x, raw = raw.decode(x), dataclasses.replace(raw, mask=jnp.ones((), bool))
    stops = [i + n for i, n in zip(start, size, strict=True)]
    taps = jax.lax.slice(x, start, stops) if extract else x
    q, _ = grid.apply(taps, grid.init(taps))
    coarse = q.grid.decode(jnp.floor(q.codes + 0.5))
    coarse = numerics.uncontracted(jax.lax.stop_gradient(coarse))
    if extract:
      ends = zip(start, x.shape, stops, strict=True)
      coarse = jnp.pad(coarse, [(i, n - j) for i, n, j in ends])
    return [(coarse, raw), (x - coarse, raw)]

  return splitter


def _centre(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Where the centre tap of a kernel starts, and its size."""
  taps = shape[:-2]
  if max(taps, default=1) < 2 or not all(n % 2 for n in taps):
    raise ValueError(
      "cfws splits the centre tap off a convolution kernel [*window, I, O] "
      f"with an odd window of more than one tap, got shape {shape}"
    )
  return (*(n // 2 for n in taps), 0, 0), (*(1 for _ in taps), *shape[-2:])
