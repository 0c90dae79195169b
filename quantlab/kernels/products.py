"""Products with weights of which kernels take a part at least.

Shape letters: M rows of activations, K contraction, N output.
"""

import functools
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp

from quantlab.core import qtensor, sparse
from quantlab.kernels import backends, form

Array = jax.Array

FEWEST = 2**12
"""A weight of fewer elements is decoded, whole, before it is multiplied."""


def packed(
  x: Array,
  w: Any,
  dimension_numbers: Any,
  dtype: Any = None,
  preferred_element_type: Any = None,
) -> Array | None:
  """`kernels.ops.dot_general` where a kernel takes w or a term of it.

  Values are not rounded to the type of w on the way, and are added up in
  float32.

  Args:
    x: an activation.
    w: a quantized weight.
    dimension_numbers: as in `jax.lax.dot_general`.
    dtype: to compute in; by default the promoted type of `x` and `w`.
    preferred_element_type: of the result; by default `dtype`.

  Returns:
    The product, or None where no kernel takes any of it.
  """
  (inner, contract), batch = dimension_numbers
  dtype = jnp.dtype(dtype or jnp.promote_types(x.dtype, w.dtype))
  if any(batch) or dtype not in backends.DTYPES:
    return None
  order = sorted(range(len(contract)), key=lambda i: contract[i] % w.ndim)
  inner = [inner[i] % x.ndim for i in order]
  contract = tuple(contract[i] % w.ndim for i in order)
  outer = [i for i in range(x.ndim) if i not in inner]
  columns = [n for i, n in enumerate(w.shape) if i not in contract]
  lead = [x.shape[i] for i in outer]
  rows = x.transpose(*outer, *inner).astype(dtype)
  rows = rows.reshape(math.prod(lead), -1)
  total = _sum(rows, terms(w), contract)
  if total is None:
    return None
  total = total.reshape(*lead, *columns)
  return total.astype(preferred_element_type or dtype)


def terms(w: Any) -> list[Any]:
  """What adds up to a tensor, sums within sums resolved."""
  if not isinstance(w, qtensor.Sum):
    return [w]
  return [term for part in w.parts for term in terms(part)]


def _sum(rows: Array, terms: list[Any], contract: Any) -> Array | None:
  """The sum of the products `[M, N]` with terms, if kernels take any."""
  found, left = [], []
  for term in terms:
    try:
      found.append(_by_kernel(rows, term, contract))
    except NotImplementedError as reason:
      left.append(term)
      _log(rows.shape, term.shape, f"XLA ({reason})")
  if not found:
    return None
  for term in left:
    product = _sparse if isinstance(term, sparse.Sparse) else _decoded
    found.append(product(rows, term, contract))
  return functools.reduce(jnp.add, found)


def _by_kernel(rows: Array, w: Any, contract: tuple[int, ...]) -> Array:
  size = math.prod(w.shape)
  if size < FEWEST:
    raise NotImplementedError(f"{size} weights are too few for a kernel")
  kernel = form.matrix(w, contract)
  short = kernel.shape[0] - rows.shape[1]
  y = backends.matmul(jnp.pad(rows, ((0, 0), (0, short))), kernel)
  grid = type(kernel.grid).__name__
  _log(rows.shape, w.shape, f"packed, {kernel.codes.bits}-bit {grid}")
  return y


def _decoded(rows: Array, w: Any, contract: tuple[int, ...]) -> Array:
  dense = jnp.moveaxis(w.dequantize(), contract, range(len(contract)))
  dense = dense.reshape(rows.shape[1], -1).astype(rows.dtype)
  return jnp.dot(rows, dense, preferred_element_type=jnp.float32)


def _sparse(rows: Array, w: sparse.Sparse, contract: tuple[int, ...]) -> Array:
  """Adds up the products of few values, without the dense tensor."""
  at = w.places()
  outer = tuple(i for i in range(len(w.shape)) if i not in contract)

  def place(axes):
    dims = tuple(w.shape[i] for i in axes)
    return jnp.ravel_multi_index([at[i] for i in axes], dims, mode="clip")

  values = w.values.astype(jnp.float32)[:, None]
  products = rows.astype(jnp.float32).T[place(contract)] * values
  # Rows of the result lie side by side, so each term is added to one place.
  size = math.prod(w.shape[i] for i in outer)
  y = jnp.zeros((size, rows.shape[0]), jnp.float32)
  return y.at[place(outer)].add(products).T


@functools.lru_cache(maxsize=1024)
def _log(x_shape: Any, w_shape: Any, path: str) -> None:
  """Says once which way a product goes."""
  logging.getLogger(__name__).info("%s @ %s: %s", x_shape, w_shape, path)
