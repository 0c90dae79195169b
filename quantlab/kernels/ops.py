"""Products of activations with weights in any stored form.

One entry per product. A weight is an array or anything with `dequantize()`:
`QTensor`, `Sum`. Each function matches the `jax.lax` or `jax.numpy` one it is
named after.

A matrix product with packed codes runs in a kernel of `quantlab.kernels`, which
decodes them on the way. What has no kernel takes XLA's path: the weight is
decoded, then multiplied. One line of the log (level INFO) per shape says which.

Shape letters: M rows of activations, K contraction, N output.
"""

from collections.abc import Sequence
import string
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantlab.core import grids, qtensor, stored
from quantlab.kernels import products

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
  if qtensor.is_quantized(w):
    y = products.packed(x, w, dimension_numbers, dtype, preferred_element_type)
    if y is not None:
      return y
  return jax.lax.dot_general(
    *_promote(x, w, dtype),
    dimension_numbers,
    precision=precision,
    preferred_element_type=preferred_element_type,
  )


def conv(
  x: Array,
  w: Any,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  *,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  dtype: Any = None,
  **kwargs: Any,
) -> Array:
  """`jax.lax.conv_general_dilated` with a kernel in any stored form.

  A part that is stored as a window of the kernel, such as the centre tap that
  CFWS splits off, runs as a convolution of that size: a 1x1 kernel in place of
  3x3 takes a ninth of the products.

  Args:
    x: an activation.
    w: a kernel.
    window_strides: as in `jax.lax`, and so the next three.
    padding: `"SAME"`, `"VALID"` or pairs.
    rhs_dilation: of the kernel.
    dimension_numbers: which axis is what.
    dtype: to compute in; by default the promoted type of `x` and `w`.
    **kwargs: as in `jax.lax`.

  Returns:
    The convolution.
  """
  numbers = jax.lax.conv_dimension_numbers(x.shape, w.shape, dimension_numbers)
  space = numbers.rhs_spec[2:]
  dilation = tuple(rhs_dilation or (1,) * len(space))
  if isinstance(padding, str):
    reach = [
      (w.shape[i] - 1) * d + 1 for i, d in zip(space, dilation, strict=True)
    ]
    sides = [x.shape[i] for i in numbers.lhs_spec[2:]]
    padding = jax.lax.padtype_to_pads(sides, reach, window_strides, padding)

  def one(kernel, start):
    """Convolves with a kernel that begins at `start` of the whole one."""
    ends = [
      (lo - start[i] * d, hi - (w.shape[i] - start[i] - kernel.shape[i]) * d)
      for (lo, hi), i, d in zip(padding, space, dilation, strict=True)
    ]
    y = _pointwise(x, kernel, window_strides, ends, numbers, dtype, kwargs)
    if y is not None:
      return y
    return jax.lax.conv_general_dilated(
      *_promote(x, kernel, dtype),
      window_strides,
      ends,
      rhs_dilation=dilation,
      dimension_numbers=numbers,
      **kwargs,
    )

  whole, windows = _windows(w, space)
  origin = (0,) * len(w.shape)
  terms = [one(window.part, window.start) for window in windows]
  if whole is not None:
    terms.append(one(whole, origin))
  total, *rest = terms
  return sum(rest, total)


def _pointwise(x, w, strides, ends, numbers, dtype, options) -> Array | None:
  """A 1x1 convolution as a product of matrices, if it is one with a kernel."""
  inputs, kernel, outputs = numbers
  size = [w.shape[i] for i in kernel[2:]]
  plain = {key for key, value in options.items() if value is not None}
  if (
    not qtensor.is_quantized(w)
    or any(n != 1 for n in size)
    or any(end != (0, 0) for end in ends)
    or plain - {"precision"}
  ):
    return None
  every = [slice(None)] * x.ndim
  for axis, stride in zip(inputs[2:], strides, strict=True):
    every[axis] = slice(None, None, stride)
  x = x[tuple(every)].reshape(*x[tuple(every)].shape, *size)
  ones = range(x.ndim - len(size), x.ndim)
  inner = ((inputs[1], *ones), (kernel[1], *kernel[2:]))
  y = products.packed(x, w, (inner, ((), ())), dtype)
  if y is None:
    return None
  # What is left of x in its order, then the channels.
  order = [axis for axis in sorted(inputs) if axis != inputs[1]]
  places = {
    outputs[0]: inputs[0],
    **dict(zip(outputs[2:], inputs[2:], strict=True)),
  }
  return y.transpose(
    [
      y.ndim - 1 if axis == outputs[1] else order.index(places[axis])
      for axis in range(y.ndim)
    ]
  )


def _windows(w: Any, space: Sequence[int]) -> tuple[Any, list[qtensor.Window]]:
  """What is stored of a whole kernel, if anything, and of windows in space."""

  def windowed(part):
    return isinstance(part, qtensor.Window) and all(
      n == size or axis in space
      for axis, (n, size) in enumerate(
        zip(part.shape, part.part.shape, strict=True)
      )
    )

  parts = products.terms(w)
  windows = [part for part in parts if windowed(part)]
  whole = tuple(part for part in parts if not windowed(part))
  if not windows:
    return w, []
  return qtensor.Sum(whole) if whole else None, windows


def einsum(
  equation: str, x: Array, w: Any, *, dtype: Any = None, **kwargs: Any
) -> Array:
  """`jax.numpy.einsum` of an activation and a weight in any stored form."""
  found = _contraction(equation, x.ndim) if qtensor.is_quantized(w) else None
  if found is not None:
    y = products.packed(x, w, (found.inner, ((), ())), dtype)
    if y is not None:
      return y.transpose(found.order)
  return jnp.einsum(equation, *_promote(x, w, dtype), **kwargs)


class _Contraction(NamedTuple):
  """An equation as a product of matrices.

  Attributes:
    inner: the contracted axes of x, and of w.
    order: how to transpose the other axes of x, then of w, into the result.
  """

  inner: tuple[tuple[int, ...], tuple[int, ...]]
  order: tuple[int, ...]


def _contraction(equation: str, rank: int) -> _Contraction | None:
  """Reads an equation such as `"...k,kn->...n"`; None if it is another kind."""
  left, arrow, out = equation.replace(" ", "").partition("->")
  if not arrow or left.count(",") != 1:
    return None
  x, w = left.split(",")
  if "..." in x and "..." not in w:
    free = [c for c in string.ascii_letters if c not in equation]
    rest = "".join(free[: rank - len(x) + 3])
    x, out = x.replace("...", rest), out.replace("...", rest)
  shared = [c for c in x if c in w]
  outer = [c for c in x + w if c not in shared]
  letters = len(set(x)) == len(x) == rank and len(set(w)) == len(w)
  if not letters or sorted(outer) != sorted(out) or "." in w:
    return None
  inner = tuple(tuple(s.index(c) for c in shared) for s in (x, w))
  return _Contraction((inner[0], inner[1]), tuple(map(outer.index, out)))


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
