"""Products of activations with weights in any stored form.

One entry per product. A weight is an array or anything with `dequantize()`:
`QTensor`, `Sum`. Each function matches the `jax.lax` or `jax.numpy` one it is
named after. The path here is XLA's: decode the weight, then multiply; compilers
fuse the decoding where they can.

Shape letters: M rows of activations, K contraction, N output.
"""

from typing import Any

import jax
import jax.numpy as jnp

from quantlab.core import grids, qtensor, stored

Array = jax.Array


def dot(x: Array, w: Any, *, precision: Any = None) -> Array:
  """`x @ w`.

  Args:
    x: `[..., K]` float.
    w: `[K, N]`, an array or quantized.
    precision: as in `jax.lax.dot_general`.

  Returns:
    `[..., N]`, in the promoted type of `x` and `w`.

  Raises:
    ValueError: the contraction sizes differ.

  Example:
    >>> import quantlab as ql
    >>> w = ql.quantize(ql.rtn(4), jnp.eye(32))
    >>> dot(jnp.ones((2, 32)), w).shape
    (2, 32)
  """
  if x.shape[-1] != w.shape[0]:
    raise ValueError(f"dot: {x.shape=} and {w.shape=} differ in K")
  contract = (((x.ndim - 1,), (0,)), ((), ()))
  return dot_general(x, w, contract, precision=precision)


def dot_general(
  x: Array,
  w: Any,
  dimension_numbers: Any,
  *,
  precision: Any = None,
  preferred_element_type: Any = None,
  dtype: Any = None,
) -> Array:
  """`jax.lax.dot_general` with a weight in any stored form.

  Args:
    x: an activation.
    w: a weight.
    dimension_numbers: as in `jax.lax`, and so the next two.
    precision: of the product.
    preferred_element_type: of the result.
    dtype: to compute in; by default the promoted type of `x` and `w`.

  Returns:
    The product.
  """
  return jax.lax.dot_general(
    *_promote(x, w, dtype),
    dimension_numbers,
    precision=precision,
    preferred_element_type=preferred_element_type,
  )


def conv(
  x: Array, w: Any, *args: Any, dtype: Any = None, **kwargs: Any
) -> Array:
  """`jax.lax.conv_general_dilated` with a kernel in any stored form."""
  x, w = _promote(x, w, dtype)
  return jax.lax.conv_general_dilated(x, w, *args, **kwargs)


def einsum(
  equation: str, x: Array, w: Any, *, dtype: Any = None, **kwargs: Any
) -> Array:
  """`jax.numpy.einsum` of an activation and a weight in any stored form."""
  return jnp.einsum(equation, *_promote(x, w, dtype), **kwargs)


def take(w: Any, index: Array) -> Array:
  """Rows `w[index]` of a table, reading only what those rows need.

  Args:
    w: `[V, D]`, an array or quantized.
    index: integers, any shape. Past the end the result is NaN, as in flax.

  Returns:
    `[*index.shape, D]`.
  """
  if not qtensor.is_quantized(w):
    return jnp.take(w, index, axis=0)
  rows = _take_rows(w, index.reshape(-1))
  if rows is None:
    return jnp.take(w.dequantize(), index, axis=0)
  return rows.reshape(*index.shape, -1)


def _take_rows(w: Any, index: Array) -> Array | None:
  """Rows of a table that is packed and gridded row by row."""
  if not isinstance(w, qtensor.QTensor) or len(w.shape) != 2:
    return None
  packed = isinstance(w.codes, stored.Packed) and w.codes.axes == (-1,)
  if not packed or not isinstance(w.grid, (grids.Affine, grids.Codebook)):
    return None

  size = w.shape[0]
  index = jnp.where(index < 0, index + size, index)

  def rows(a):
    return a if a.shape[0] == 1 else jnp.take(a, index, axis=0, mode="clip")

  part = jax.tree.map(rows, w)
  valid = (index >= 0) & (index < size)
  return jnp.where(valid[:, None], part.dequantize(), jnp.nan)


def _promote(x: Array, w: Any, dtype: Any) -> tuple[Array, Array]:
  w = w.dequantize() if qtensor.is_quantized(w) else w
  dtype = dtype or jnp.promote_types(x.dtype, w.dtype)
  return x.astype(dtype), w.astype(dtype)
