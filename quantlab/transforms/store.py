"""Storage stages: the same values in fewer bits."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from quantlab.core import base, gaps, grids, numerics, qtensor, sparse, stored
from quantlab.transforms import compose

Array = jax.Array


@base.interned
def pack() -> base.Quantizer:
  """Stores integer codes in exactly as many bits as the grid's bounds need.

  Axes that share a grid cell are packed together where that leaves no padding;
  see `quantlab.core.stored.packing_axes`. Planes of labels become digits: of
  three labels, 20 share a word. What is packed already, or has no integer
  codes, passes.
  """
  return compose.stage(lambda q: _per_part(_pack, q))


def cast(dtype: jax.typing.DTypeLike) -> base.Quantizer:
  """Stores the values in another floating-point type.

  An activation goes on in its own type, holding the rounded values, so that a
  product which reads it adds up in that type. What is too large becomes Inf.

  Args:
    dtype: such as `jnp.float16`.

  Raises:
    ValueError: it is no floating-point type.

  Example:
    >>> import jax.numpy as jnp
    >>> import quantlab as ql
    >>> half = ql.quantize(cast(jnp.float16), jnp.array([1 / 3]))
    >>> half.dtype.name, ql.nbits(half)
    ('float16', 16)
  """
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"cast takes a type of floats, got {dtype=}")
  return _cast(jnp.dtype(dtype))


@base.interned
def _cast(dtype: Any) -> base.Quantizer:
  def rounded(q):
    x, raw = qtensor.values(q)
    return qtensor.QTensor(x.astype(dtype), raw, q.dtype)

  return compose.stage(rounded)


@base.interned
def gap_code(
  bits: int | None = None,
  *,
  shuffle: bool | None = None,
  stream_rows: int = sparse.STREAM_ROWS,
) -> base.Quantizer:
  """Stores the positions of labelled elements in the gap code.

  Args:
    bits: of a symbol, 1 to 8; None takes what costs least for uniform
      positions (`core.gaps.best_bits`).
    shuffle: whether one fixed permutation goes before it; None lets a test
      decide whether positions are uniform (`core.gaps.uneven`).
    stream_rows: rows that share a stream, where they divide the rows.

  Raises:
    ValueError: a number is out of range.
  """
  if bits is not None and not 1 <= bits <= 8:
    raise ValueError(f"gap symbols have 1 to 8 bits, got {bits=}")
  if stream_rows < 1:
    raise ValueError(f"a stream has at least one row, got {stream_rows=}")

  def coded(labels, count):
    del count
    if not isinstance(labels, sparse.Marks):
      return labels
    ratio = labels.positions.shape[-1] / math.prod(labels.dims)
    return sparse.GapCoded.encode(
      labels, bits or gaps.best_bits(ratio), shuffle, stream_rows
    )

  return compose.stage(lambda q: _per_part(lambda p: _relabel(p, coded), q))


def compact(tree: Any) -> Any:
  """Gives concrete tensors the size that their contents need.

  Under `jit` a size cannot depend on the data: gap-code streams have room for
  the worst case, and exact parts are dense. This drops the room, and stores
  exact parts sparsely. Traced tensors pass unchanged.
  """
  return jax.tree.map(
    lambda q: _per_part(_compact, q) if qtensor.is_quantized(q) else q,
    tree,
    is_leaf=qtensor.is_quantized,
  )


def _per_part(function, q):
  if isinstance(q, qtensor.Sum):
    return qtensor.Sum(tuple(_per_part(function, part) for part in q.parts))
  if isinstance(q, qtensor.Window):
    return dataclasses.replace(q, part=_per_part(function, q.part))
  return function(q)


def _relabel(q, function):
  """Replaces each plane of labels by `function(plane, number of labels)`."""
  grid = getattr(q, "grid", None)
  if not isinstance(grid, grids.Labelled):
    return q

  def each(labels, count):
    if not isinstance(labels, stored.Pair):
      return function(labels, count)
    first = each(labels.first, count // labels.count)
    second = each(labels.second, labels.count)
    return stored.Pair(first, second, labels.count)

  labels = each(grid.labels, len(grid.grids))
  return dataclasses.replace(q, grid=grids.Labelled(labels, grid.grids))


def _pack(q):
  if not isinstance(q, qtensor.QTensor) or isinstance(q.codes, stored.Packed):
    return q
  if isinstance(q.grid, grids.Raw):
    return q
  lo, hi = q.grid.bounds
  bits = (hi - lo).bit_length()
  axes = stored.packing_axes(q.shape, bits, _row_axes(q.grid, q.shape))
  codes = stored.Packed.pack(q.codes, bits, lo, axes)

  def packed(labels, count):
    plain = isinstance(labels, jax.Array)
    return stored.Digits.pack(labels, count, axes) if plain else labels

  return _relabel(dataclasses.replace(q, codes=codes), packed)


def _row_axes(grid, shape):
  """The axes that a row of the grid spans."""
  if isinstance(grid, grids.Labelled):
    if hasattr(grid.labels, "axes"):
      return grid.labels.axes
    return _row_axes(grid.grids[0], shape)
  if isinstance(grid, grids.Tails):
    return _row_axes(grid.lower, shape)
  if isinstance(grid, grids.Codebook):
    return numerics.reduced_axes(shape, grid.levels.shape[:-1])
  return numerics.reduced_axes(shape, grid.scale.shape)


def _compact(q):
  if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(q)):
    return q
  if isinstance(q, qtensor.QTensor) and isinstance(q.grid, grids.Raw):
    codes = q.codes.astype(q.dtype)
    return sparse.Sparse.from_dense(codes, q.grid.mask & (codes != 0))
  return _relabel(q, _trimmed)


def _trimmed(labels, count):
  del count
  return labels.trim() if isinstance(labels, sparse.GapCoded) else labels
