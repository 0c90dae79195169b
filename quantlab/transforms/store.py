"""Storage stages: the same values in fewer bits."""

from typing import Any

import jax

from quantlab.core import base, grids, numerics, qtensor, stored
from quantlab.transforms import compose

Array = jax.Array


def pack() -> base.Quantizer:
  """Stores integer codes in exactly as many bits as the grid's bounds need.

  Axes that share a grid cell are packed together where that leaves no padding;
  see `quantlab.core.stored.packing_axes`. What is packed already, or has no
  integer codes, passes.
  """
  return compose.stage(lambda q: _per_part(_pack, q))


def gap_code(bits: int = 6) -> base.Quantizer:
  """Stores the positions of labelled elements in the gap code.

  Args:
    bits: of a symbol, 1 to 8.
  """
  if not 1 <= bits <= 8:
    raise ValueError(f"gap symbols have 1 to 8 bits, got {bits=}")
  return compose.stage(lambda q: _per_part(lambda p: _gap_code(p, bits), q))


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
  return function(q)


def _pack(q):
  if not isinstance(q, qtensor.QTensor) or isinstance(q.codes, stored.Packed):
    return q
  if isinstance(q.grid, grids.Raw):
    return q
  lo, hi = q.grid.bounds
  bits = (hi - lo).bit_length()
  axes = stored.packing_axes(q.shape, bits, _row_axes(q.grid, q.shape))
  codes = stored.Packed.pack(q.codes, bits, lo, axes)
  return qtensor.QTensor(codes, q.grid, q.dtype)


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


def _gap_code(q, bits):
  grid = getattr(q, "grid", None)
  if not isinstance(grid, grids.Labelled):
    return q
  if not isinstance(grid.labels, stored.Marks):
    return q
  labels = stored.GapCoded.encode(grid.labels, bits)
  return qtensor.QTensor(q.codes, grids.Labelled(labels, grid.grids), q.dtype)


def _compact(q):
  if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(q)):
    return q
  if isinstance(q, qtensor.QTensor) and isinstance(q.grid, grids.Raw):
    if not q.grid.mask.ndim:
      return q
    return stored.Sparse.from_dense(q.codes.astype(q.dtype), q.grid.mask)
  if isinstance(q, qtensor.QTensor) and isinstance(q.grid, grids.Labelled):
    labels = q.grid.labels
    if isinstance(labels, stored.GapCoded):
      grid = grids.Labelled(labels.trim(), q.grid.grids)
      return qtensor.QTensor(q.codes, grid, q.dtype)
  return q
