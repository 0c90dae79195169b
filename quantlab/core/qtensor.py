"""Quantized tensors: codes with the grid that gives them meaning, and sums."""

import abc
import math
from typing import Any

import jax
import jax.numpy as jnp

from quantlab.core import base, grids, numerics

Array = jax.Array
PyTree = Any


class _Tensor(abc.ABC):
  """What follows from the shape."""

  @property
  @abc.abstractmethod
  def shape(self) -> tuple[int, ...]:
    """Shape of the tensor."""

  @property
  def ndim(self) -> int:
    """Rank of the tensor."""
    return len(self.shape)

  @property
  def size(self) -> int:
    """Elements of the tensor."""
    return math.prod(self.shape)


@base.pytree
class QTensor(_Tensor):
  """Codes plus a grid: `dequantize()` is always defined.

  Attributes:
    codes: an array of codes (real-valued before a rounding stage), or
      `stored.Packed`.
    grid: what the codes mean; see `quantlab.core.grids`.
    dtype: type of the dequantized tensor.

  Example:
    >>> import quantlab as ql
    >>> q = ql.quantize(ql.rtn(4), jnp.arange(16.0).reshape(16, 1))
    >>> q.shape, q.codes.bits, q.dequantize()[-1].item()
    ((16, 1), 4, 15.0)
  """

  codes: Any
  grid: Any
  dtype: Any = base.static()

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the tensor."""
    return self.codes.shape

  @jax.jit
  def dequantize(self) -> Array:
    """The tensor as floats."""
    codes = grids.plain(self.codes)
    if not jnp.issubdtype(codes.dtype, jnp.floating):
      codes = codes.astype(wide(self.dtype))
    return self.grid.decode(codes).astype(self.dtype)


@base.pytree
class Sum(_Tensor):
  """A tensor stored as parts that add up.

  Attributes:
    parts: `QTensor`, `Sum`, `Sparse` or anything with `dequantize()`.
  """

  parts: tuple[Any, ...]

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the tensor."""
    return self.parts[0].shape

  @property
  def dtype(self) -> Any:
    """Type of the dequantized tensor."""
    return self.parts[0].dtype

  @jax.jit
  def dequantize(self) -> Array:
    """The tensor as floats."""
    total, *rest = [
      numerics.uncontracted(part.dequantize()) for part in self.parts
    ]
    for part in rest:
      total = total + part
    return total


@base.pytree
class Window(_Tensor):
  """A tensor that is 0 outside a window, such as the centre of a kernel.

  Attributes:
    part: the window: `QTensor`, `Sum` or anything with `dequantize()`.
    start: where the window begins, along each of the last axes.
    dims: shape of the whole tensor along those; a stack has more before them.
  """

  part: Any
  start: tuple[int, ...] = base.static()
  dims: tuple[int, ...] = base.static()

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the whole tensor."""
    return (*self.part.shape[: -len(self.dims)], *self.dims)

  @property
  def dtype(self) -> Any:
    """Type of the dequantized tensor."""
    return self.part.dtype

  @jax.jit
  def dequantize(self) -> Array:
    """The whole tensor as floats."""
    part = self.part.dequantize()
    sizes = part.shape[-len(self.dims) :]
    ends = [
      (i, n - i - size)
      for i, n, size in zip(self.start, self.dims, sizes, strict=True)
    ]
    return jnp.pad(part, [(0, 0)] * (part.ndim - len(ends)) + ends)


def lift(x: Any) -> Any:
  """Turns a float array into the trivial `QTensor`; others pass unchanged.

  Raises:
    TypeError: `x` is not a float array.
  """
  if isinstance(x, (QTensor, Sum, Window)):
    return x
  if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
    what = getattr(x, "dtype", type(x).__name__)
    raise TypeError(f"only float arrays can be quantized, got {what}")
  return QTensor(jnp.asarray(x), grids.Raw(), x.dtype)


def lower(q: Any) -> Any:
  """The inverse of `lift`: what nothing quantized is an array again."""
  whole = isinstance(q, QTensor) and isinstance(q.grid, grids.Raw)
  return q.codes if whole and not q.grid.mask.ndim else q


def values(q: Any) -> tuple[Array, grids.Raw]:
  """What a grid stage sees: the values, and which of them are its part."""
  q = lift(q)
  if isinstance(q, QTensor) and isinstance(q.grid, grids.Raw):
    return q.codes.astype(wide(q.dtype)), q.grid
  return q.dequantize().astype(wide(q.dtype)), grids.Raw()


def wide(dtype: Any) -> Any:
  """The type to compute in: float32 for the 16-bit types."""
  return jnp.promote_types(dtype, jnp.float32)


def is_quantized(x: Any) -> bool:
  """Whether `x` is one leaf of a quantized tree: it has `dequantize()`."""
  return hasattr(x, "dequantize")


def dequantize(tree: PyTree) -> PyTree:
  """Replaces every quantized leaf of a tree by its floats.

  Args:
    tree: any pytree; plain arrays pass unchanged.

  Returns:
    The same tree of arrays.
  """
  return jax.tree.map(
    lambda x: x.dequantize() if is_quantized(x) else x,
    tree,
    is_leaf=is_quantized,
  )


def nbits(tree: PyTree) -> int:
  """Every stored bit of a tree: codes, index code, scales, tables, floats.

  Counts the arrays themselves, so it equals 8 times the bytes that a
  checkpoint's arrays take. Shapes alone (`jax.eval_shape`) will do.

  Example:
    >>> nbits({"w": jnp.zeros((4, 4)), "b": jnp.zeros(4, jnp.bfloat16)})
    576
  """
  return sum(
    math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize * 8
    for leaf in jax.tree.leaves(tree)
  )


def bits_per_weight(tree: PyTree) -> float:
  """Stored bits per element of the dequantized tree.

  Example:
    >>> import quantlab as ql
    >>> w = jax.random.normal(jax.random.key(0), (4096, 64))
    >>> bits_per_weight(ql.quantize(ql.rtn(3), w))
    3.015625
  """
  leaves = jax.tree.leaves(tree, is_leaf=is_quantized)
  return nbits(tree) / max(1, sum(math.prod(leaf.shape) for leaf in leaves))
