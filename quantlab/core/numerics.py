"""Rows, granularities and the arithmetic of uniform grids.

Only this module knows about axes. Estimators and fitters see rows `[R, E]`: one
row per grid cell, its E elements flattened.

Shape letters: G shape of the grid, R = prod(G) rows, E elements per row,
K contraction, N output.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from quantlab.core import base

Array = jax.Array
Shape = tuple[int, ...]


def per_tensor(shape: Shape | None = None) -> Any:
  """One grid cell for the whole tensor.

  A granularity by itself; `per_tensor()`, written like the others, is the same.

  Example:
    >>> per_tensor((64, 32)), per_tensor()((64, 32))
    ((1, 1), (1, 1))
  """
  return per_tensor if shape is None else (1,) * len(shape)


@base.interned
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


@base.interned
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


@base.interned
def chunks(axis: int, count: int) -> base.Granularity:
  """One grid cell per chunk, of `count` equal ones along `axis`.

  The other axes share them.

  Example:
    >>> chunks(-1, 3)((8, 96))
    (1, 3)
  """

  def granularity(shape: Shape) -> Shape:
    i = _axis(axis, shape, "chunks")
    if count < 1 or shape[i] % count:
      raise ValueError(
        f"chunks: axis {axis} of shape {shape} has {shape[i]} elements, which "
        f"{count} chunks do not divide"
      )
    return tuple(count if j == i else 1 for j in range(len(shape)))

  return granularity


def _axis(axis: int, shape: Shape, name: str) -> int:
  if not -len(shape) <= axis < len(shape):
    raise ValueError(f"{name}: axis {axis} is not an axis of shape {shape}")
  return axis % len(shape)


def columns(x: Array, grid: Shape) -> Array:
  """The elements of each grid cell along a new first axis.

  A kernel `[K, N]` with a row per output is not moved at all in this order.

  Args:
    x: a tensor.
    grid: its grid's shape: same rank, each dimension divides the tensor's.

  Returns:
    `[E, *G]`.

  Example:
    >>> columns(jnp.arange(6).reshape(3, 2), (1, 2)).tolist()
    [[[0, 1]], [[2, 3]], [[4, 5]]]
  """
  sizes = [n // g for n, g in zip(x.shape, grid, strict=True)]
  x = x.reshape(_interleave(grid, sizes))
  rank = len(grid)
  x = x.transpose(*range(1, 2 * rank, 2), *range(0, 2 * rank, 2))
  return x.reshape(-1, *grid)


def each_row(function: Callable[..., Any], *columns: Array) -> Any:
  """Applies a function of rows `[R, E]` to columns `[E, *G]`.

  Args:
    function: takes an array `[R, E]` for each of `columns`; treats each row on
      its own; returns a pytree of `[R, ...]`.
    *columns: `[E, *G]` each.

  Returns:
    The pytree with `[*G, ...]`.
  """
  size, *cells = columns[0].shape
  # Axes of size 1 would only keep XLA from making good loops, and to merge the
  # others in a reshape would gather a sharded one. Batch axes do neither.
  wide = [n for n in cells if n > 1] or [1]

  def rows(*columns):
    return function(*(c.T for c in columns))

  for _ in wide[:-1]:
    rows = jax.vmap(rows, in_axes=1)
  y = rows(*(c.reshape(size, *wide) for c in columns))
  return jax.tree.map(lambda a: a.reshape(*cells, *a.shape[len(wide) :]), y)


def _may_be_sharded(x: Array) -> bool:
  return not jax.typeof(x).sharding.mesh.empty


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


CACHED_ELEMENTS = 2**18
"""Elements of a group of columns: 1 MB of float32, half a core's cache."""


def by_columns(
  function: Callable[..., Array], x: Array, *per_column: Array
) -> Array:
  """`function(x, *per_column)`, for a function that works column by column.

  A function that goes over its columns many times is several times as fast on a
  CPU when they stay in its cache, so there it gets them group by group. Columns
  that may be sharded stay together: a loop over groups would gather them.

  Args:
    function: takes `[E, R]` and `[..., R]` arrays; returns `[..., R]`.
    x: `[E, R]`.
    *per_column: `[..., R]` each.

  Returns:
    `[..., R]`.
  """
  count = x.shape[1]
  most = CACHED_ELEMENTS // max(1, x.shape[0])
  size = next((n for n in range(min(most, count), 0, -1) if count % n == 0), 0)
  cached = jax.default_backend() == "cpu" and not _may_be_sharded(x)
  if not cached or size < 16 or size == count:
    return function(x, *per_column)

  def group(i):
    parts = (
      jax.lax.dynamic_slice_in_dim(a, i * size, size, axis=a.ndim - 1)
      for a in (x, *per_column)
    )
    return function(*parts)

  y = jnp.moveaxis(jax.lax.map(group, jnp.arange(count // size)), 0, -2)
  return y.reshape(*y.shape[:-2], count)


def affine_from_range(
  range_: base.Range, spec: base.IntSpec, dtype: jax.typing.DTypeLike
) -> tuple[Array, Array]:
  """Step and zero point of the uniform grid that covers a range.

  Asymmetric: both ends of the range are levels (`zero` is real-valued).
  With an exact zero: the range is extended to hold 0, `zero` is an integer.
  Symmetric: `zero` is 0 and the step is `max(|lo|, |hi|) / absmax_code`, or,
  if the codes are tight, `max(hi / 127, lo / -128)` at 8 bits.

  A row of one constant value keeps it exactly. The step is never finer than
  what `dtype` resolves at the far end of the range, so `zero` stays a number
  that `dtype` holds.

  Args:
    range_: `lo` and `hi`, one per grid cell, in the grid's shape.
    spec: the codes.
    dtype: what step and zero point are stored in.

  Returns:
    `(scale, zero)`, both in `dtype`. A symmetric zero is one int8, an exact
    one an integer of as many bytes as a code takes.
  """
  lo, hi = range_
  absmax = jnp.maximum(jnp.abs(lo), jnp.abs(hi))
  info = jnp.finfo(dtype)
  if spec.symmetric:
    scale = absmax / spec.absmax_code
    if spec.tight:
      scale = jnp.maximum(hi / spec.hi, lo / spec.lo)
    scale = jnp.where(absmax > 0, jnp.maximum(scale, float(info.tiny)), 1)
    return scale.astype(dtype), jnp.zeros((1,) * lo.ndim, jnp.int8)
  if spec.exact_zero:
    lo, hi = jnp.minimum(lo, 0), jnp.maximum(hi, 0)
  step = (hi - lo) / (spec.hi - spec.lo)
  scale = jnp.maximum(step, absmax * float(info.eps))
  # A constant row: one step away from zero is the constant itself.
  scale = jnp.where(hi > lo, scale, absmax)
  scale = jnp.where(absmax > 0, jnp.maximum(scale, float(info.tiny)), 1)
  scale = scale.astype(dtype)
  zero = spec.lo - lo / scale.astype(lo.dtype)
  if spec.exact_zero:
    integer = jnp.dtype(f"{'' if spec.signed else 'u'}int{_bytes(spec) * 8}")
    zero = jnp.clip(jnp.round(zero), spec.lo, spec.hi)
    return scale, jax.lax.stop_gradient(zero).astype(integer)
  return scale, zero.astype(dtype)


def _bytes(spec: base.IntSpec) -> int:
  return 1 if spec.bits <= 8 else 2


def uncontracted(x: Array) -> Array:
  """The same values, to be added to others.

  A compiler may contract the product that made `x` and the sum that uses it
  into one operation with one rounding, and then the same tensor has other bits
  in another program. A clamp to all finite values stands between them.
  """
  most = jnp.finfo(x.dtype).max
  return jax.lax.clamp(-most, x, most)


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
