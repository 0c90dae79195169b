"""Rows, granularities and the arithmetic of uniform grids.

Only this module knows about axes. Estimators and fitters see rows `[*G, E]`:
one row per grid cell, its E elements flattened. The grid's own axes stay apart,
so that a sharding along one of them survives.

Shape letters: G shape of the grid, E elements per cell, K contraction,
N output.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp

from quantlab.core import base

Array = jax.Array
Shape = tuple[int, ...]


def per_tensor(shape: Shape) -> Shape:
  """One grid cell for the whole tensor.

  Example:
    >>> per_tensor((64, 32))
    (1, 1)
  """
  return (1,) * len(shape)


def per_channel(*axes: int) -> base.Granularity:
  """One grid cell per index of `axes`; the other axes share it.

  `per_channel(-1)` gives a `[K, N]` kernel one row per output channel, and
  `per_channel(0, -1)` a stack `[L, K, N]` one per layer and output.

  Example:
    >>> per_channel(-1)((64, 32))
    (1, 32)
  """

  def granularity(shape: Shape) -> Shape:
    kept = {_axis(axis, shape, "per_channel") for axis in axes}
    return tuple(n if i in kept else 1 for i, n in enumerate(shape))

  return granularity


per_output = per_channel(-1)
"""One grid cell per output channel of a kernel `[..., K, N]`."""


def per_block(axis: int, size: int) -> base.Granularity:
  """One grid cell per block of `size` consecutive elements along `axis`.

  Example:
    >>> per_block(0, 32)((64, 10))
    (2, 10)
  """

  def granularity(shape: Shape) -> Shape:
    i = _axis(axis, shape, "per_block")
    if size < 1 or shape[i] % size:
      raise ValueError(
        f"per_block: axis {axis} of shape {shape} has {shape[i]} elements, "
        f"which blocks of {size} do not divide"
      )
    return (*shape[:i], shape[i] // size, *shape[i + 1 :])

  return granularity


def _axis(axis: int, shape: Shape, name: str) -> int:
  if not -len(shape) <= axis < len(shape):
    raise ValueError(f"{name}: axis {axis} is not an axis of shape {shape}")
  return axis % len(shape)


def rows(x: Array, grid: Shape) -> Array:
  """The elements of each grid cell as a row.

  Args:
    x: a tensor.
    grid: its grid's shape: same rank, each dimension divides the tensor's.

  Returns:
    `[*G, E]`.

  Example:
    >>> rows(jnp.arange(6).reshape(3, 2), (1, 2)).tolist()
    [[[0, 2, 4], [1, 3, 5]]]
  """
  x = x.reshape(
    _interleave(grid, [n // g for n, g in zip(x.shape, grid, strict=True)])
  )
  rank = len(grid)
  x = x.transpose(*range(0, 2 * rank, 2), *range(1, 2 * rank, 2))
  return x.reshape(*grid, -1)


def expand(a: Array, shape: Shape) -> Array:
  """Repeats a grid's array over the elements of its cells, up to `shape`."""
  if a.shape == shape:
    return a
  size = [n // g for n, g in zip(shape, a.shape, strict=True)]
  a = a.reshape(_interleave(a.shape, [1] * a.ndim))
  return jnp.broadcast_to(a, _interleave(a.shape[::2], size)).reshape(shape)


def _interleave(a: Sequence[int], b: Sequence[int]) -> Shape:
  return tuple(n for pair in zip(a, b, strict=True) for n in pair)


def reduced_axes(shape: Shape, grid: Shape) -> Shape:
  """The axes along which grid cells span elements, counted from the end."""
  return tuple(
    i - len(shape)
    for i, (n, g) in enumerate(zip(shape, grid, strict=True))
    if n != g
  )


def fold(x: Array, axes: Shape) -> Array:
  """Flattens `axes` (counted from the end) into one last axis."""
  x = jnp.moveaxis(x, axes, range(-len(axes), 0))
  return x.reshape(*x.shape[: -len(axes)], -1)


def unfold(y: Array, axes: Shape, dims: Shape) -> Array:
  """The inverse of `fold`; `dims` are the sizes of `axes`."""
  y = y.reshape(*y.shape[:-1], *dims)
  return jnp.moveaxis(y, range(-len(axes), 0), axes)


@functools.partial(jax.jit, static_argnames="size")
def scatter(index: Array, values: Array, size: int) -> Array:
  """Writes `values` at `index` along the last axis of zeros.

  Args:
    index: `[..., P]` int, at least 0; what is past the end is dropped.
    values: `[..., P]`.
    size: of the last axis of the result.

  Returns:
    `[..., size]`. Leading axes are batch axes: shardings along them survive.
  """

  def one(index, values):
    return jnp.zeros(size, values.dtype).at[index].set(values, mode="drop")

  return jnp.vectorize(one, signature="(p),(p)->(n)")(index, values)


def affine_from_range(
  range_: base.Range, spec: base.IntSpec, dtype: jax.typing.DTypeLike
) -> tuple[Array, Array]:
  """Step and zero point of the uniform grid that covers a range.

  Asymmetric: both ends of the range are levels (`zero` is real-valued).
  Symmetric: `zero` is 0 and the step is `max(|lo|, |hi|) / absmax_code`.

  A row of one constant value keeps it exactly. The step is never finer than
  what `dtype` resolves at the far end of the range, so `zero` stays a number
  that `dtype` holds.

  Args:
    range_: `lo` and `hi`, one per grid cell, in the grid's shape.
    spec: the codes.
    dtype: what step and zero point are stored in.

  Returns:
    `(scale, zero)`, both in `dtype` (a symmetric zero is one int8).
  """
  lo, hi = range_
  absmax = jnp.maximum(jnp.abs(lo), jnp.abs(hi))
  info = jnp.finfo(dtype)
  if spec.symmetric:
    scale = absmax / spec.absmax_code
    scale = jnp.where(absmax > 0, jnp.maximum(scale, float(info.tiny)), 1)
    return scale.astype(dtype), jnp.zeros((1,) * lo.ndim, jnp.int8)
  step = (hi - lo) / (spec.hi - spec.lo)
  scale = jnp.maximum(step, absmax * float(info.eps))
  # A constant row: one step away from zero is the constant itself.
  scale = jnp.where(hi > lo, scale, absmax)
  scale = jnp.where(absmax > 0, jnp.maximum(scale, float(info.tiny)), 1)
  scale = scale.astype(dtype)
  zero = spec.lo - lo / scale.astype(lo.dtype)
  return scale, zero.astype(dtype)


@jax.custom_jvp
def ste_round(x: Array) -> Array:
  """Rounds half to even; its derivative is 1 (straight through).

  Example:
    >>> jax.grad(ste_round)(0.3).item()
    1.0
  """
  return jnp.round(x)


@ste_round.defjvp
def _ste_round_jvp(primals, tangents):
  return ste_round(*primals), *tangents
