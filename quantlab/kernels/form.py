"""The form in which kernels read a weight, and how stored weights get there.

A weight in *kernel form* is a `QTensor` `[K, N]` with

- codes packed along K in 1 to 8 bits, the smallest stored as 0, and K a
  multiple of 128;
- an `Affine`, `Tails` or `Codebook` grid whose tables are float32
  `[G, N, ...]`, G a divisor of K; or `Labelled` with several such grids and
  labels packed along K in 1, 2, 4 or 8 bits.

Shape letters: K contraction, N output, G grid cells along K.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from quantlab.core import base, bits, grids, numerics, qtensor, sparse, stored

Array = jax.Array


@jax.jit
def prepare(tree: Any) -> Any:
  """Turns labels into planes of bits, which kernels can read in place.

  A checkpoint keeps the positions of outliers as gaps, which have to be decoded
  one after the other, and labels of three parts as digits. Both are decoded
  once, when a model is loaded: one bit per weight where there are two labels.
  The values stay the same, and everything else passes.

  Args:
    tree: any pytree of quantized tensors and arrays.

  Returns:
    The same tree; `ql.apply` and `kernels.ops` take it in place of the other.

  Example:
    >>> import quantlab as ql
    >>> w = jax.random.normal(jax.random.key(0), (256, 8))
    >>> q = ql.quantize(ql.icquant(ql.rtn(2)), w)
    >>> ready = prepare(q)
    >>> type(q.grid.labels).__name__, type(ready.grid.labels).__name__
    ('GapCoded', 'Packed')
    >>> bool((ready.dequantize() == q.dequantize()).all())
    True
  """
  return jax.tree.map(_prepared, tree, is_leaf=qtensor.is_quantized)


def _prepared(q: Any) -> Any:
  if isinstance(q, qtensor.Sum):
    return qtensor.Sum(tuple(_prepared(part) for part in q.parts))
  if isinstance(q, qtensor.Window):
    return dataclasses.replace(q, part=_prepared(q.part))
  if not isinstance(q, qtensor.QTensor):
    return q
  labelled = isinstance(q.grid, grids.Labelled)
  if not labelled or not isinstance(q.codes, stored.Packed):
    return q
  if isinstance(q.grid.labels, stored.Packed):
    return q
  if isinstance(q.grid.labels, (sparse.Marks, sparse.GapCoded)):
    packed = q.grid.labels.pack(q.codes.axes)
    return dataclasses.replace(q, grid=grids.Labelled(packed, q.grid.grids))
  # A width that divides 32: no label is spread over words.
  width = (len(q.grid.grids) - 1).bit_length()
  width = next(n for n in (1, 2, 4, 8) if n >= width)
  labels = grids.plain(q.grid.labels)
  packed = stored.Packed.pack(labels, width, 0, q.codes.axes)
  return dataclasses.replace(q, grid=grids.Labelled(packed, q.grid.grids))


def matrix(w: Any, contract: tuple[int, ...]) -> qtensor.QTensor:
  """A weight in kernel form.

  Args:
    w: a `QTensor`.
    contract: its contraction axes, ascending.

  Returns:
    `[K, N]`; contracted and other axes are folded in their order. Zeros are
    added to K up to a multiple of 128.

  Raises:
    NotImplementedError: it has no such form, and why.
  """
  if not isinstance(w, qtensor.QTensor):
    raise NotImplementedError(f"no kernel for {type(w).__name__}")
  axes = tuple(axis - w.ndim for axis in contract)
  fold = functools.partial(_fold_words, axes=axes, rank=w.ndim)
  codes = fold(w.codes, "codes")
  if codes.bits > 8:
    raise NotImplementedError(f"codes of {codes.bits} bits")
  tables = functools.partial(_table, shape=w.shape, axes=axes)
  if isinstance(w.grid, grids.Labelled):
    labels = fold(w.grid.labels, "labels")
    if labels.bits not in (1, 2, 4, 8):
      raise NotImplementedError(f"labels of {labels.bits} bits")
    parts = tuple(_plain_grid(g, w.codes.lo, tables) for g in w.grid.grids)
    grid = grids.Labelled(labels, parts)
  else:
    grid = _plain_grid(w.grid, w.codes.lo, tables)
  kernel = qtensor.QTensor(codes, grid, jnp.float32)
  sizes = {leaf.shape[0] for leaf in jax.tree.leaves(tables_of(grid))} - {1}
  if len(sizes) > 1:
    raise NotImplementedError(f"grids of {sorted(sizes)} cells along K")
  return _padded(kernel)


def tables_of(grid: Any) -> Any:
  """A grid without labels: the grids that they choose from, or itself."""
  return grid.grids if isinstance(grid, grids.Labelled) else grid


def planes(w: qtensor.QTensor) -> list[Any]:
  """The codes and, if there are any, the labels of a weight."""
  labels = [w.grid.labels] if isinstance(w.grid, grids.Labelled) else []
  return [w.codes, *labels]


def check(x: Array, w: Any) -> None:
  """Refuses operands that are not of the form that kernels multiply.

  What a kernel takes of that form is its own affair, grids in particular.

  Args:
    x: `[M, K]` bfloat16.
    w: `[K, N]`, codes and labels packed along K from 0.

  Raises:
    ValueError: shapes do not fit, or x is not bfloat16.
    NotImplementedError: w is something else, or packed otherwise.
  """
  if not isinstance(w, qtensor.QTensor):
    raise NotImplementedError(f"no kernel for {type(w).__name__}")
  if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0]:
    raise ValueError(f"expected [M, K] and [K, N], got {x.shape=}, {w.shape=}")
  if x.dtype != jnp.bfloat16:
    raise ValueError(f"activations must be bfloat16, got {x.dtype=}")
  for plane in planes(w):
    if not isinstance(plane, stored.Packed):
      raise NotImplementedError(f"no kernel for {type(plane).__name__}")
    if plane.axes != (-2,) or plane.lo:
      raise NotImplementedError(
        f"codes are not packed along K from 0: {plane.axes=}, {plane.lo=}"
      )


def num_cells(grid: Any) -> int:
  """G, the grid cells along K, of a grid in kernel form."""
  return max(leaf.shape[0] for leaf in jax.tree.leaves(tables_of(grid)))


def _fold_words(packed: Any, name: str, *, axes, rank) -> stored.Packed:
  """Words `[W, N]` of codes that are packed along the contraction."""
  if not isinstance(packed, stored.Packed):
    raise NotImplementedError(
      f"{name} are {type(packed).__name__}, not packed in words"
    )
  if packed.axes != axes:
    raise NotImplementedError(
      f"{name} are packed along {packed.axes}, contracted along {axes}"
    )
  words = jnp.moveaxis(packed.words, axes[-1], 0)
  words = words.reshape(words.shape[0], -1)
  return stored.Packed(words, packed.bits, 0, (-2,), (math.prod(packed.dims),))


def _plain_grid(grid: Any, lo: int, table: Any) -> Any:
  """A grid whose codes begin at 0, with float32 tables `[G, N, ...]`."""
  if isinstance(grid, grids.Affine):
    zero = grid.zero.astype(jnp.float32) - lo
    spec = base.IntSpec(grid.spec.bits, signed=False)
    scale, zero = jnp.broadcast_arrays(grid.scale.astype(jnp.float32), zero)
    return grids.Affine(table(scale), table(zero), spec)
  if isinstance(grid, grids.Codebook):
    return grids.Codebook(table(grid.levels.astype(jnp.float32)))
  if isinstance(grid, grids.Tails) and grid.bounds[0] == lo:
    lower, upper = (
      _plain_grid(part, 0, table) for part in (grid.lower, grid.upper)
    )
    spec = base.IntSpec(grid.spec.bits, signed=False)
    return grids.Tails(lower, upper, spec)
  raise NotImplementedError(f"no kernel for codes on {type(grid).__name__}")


def _table(a: Array, *, shape, axes) -> Array:
  """Turns a grid's array into `[G, N, ...]`."""
  rank = len(shape)
  inner = [axis % rank for axis in axes]
  outer = [axis for axis in range(rank) if axis not in inner]
  cells = [a.shape[axis] for axis in inner]
  # Cells are runs of K if only one axis is divided, and none before it shared.
  split = [i for i, axis in enumerate(inner) if a.shape[axis] != shape[axis]]
  if split and math.prod(cells[split[0] + 1 :]) != 1:
    raise NotImplementedError(f"a grid of {a.shape} over {shape}")
  full = tuple(
    a.shape[axis] if axis in inner else shape[axis] for axis in range(rank)
  )
  rest = a.shape[rank:]
  a = numerics.expand(a, full + rest)
  a = a.transpose(*inner, *outer, *range(rank, a.ndim))
  return a.reshape(math.prod(cells), -1, *rest)


def _padded(w: qtensor.QTensor) -> qtensor.QTensor:
  """Adds codes up to a multiple of 128."""
  length = w.shape[0]
  extra = -length % bits.BLOCKS[-1]
  if not extra:
    return w
  if num_cells(w.grid) > 1:
    raise NotImplementedError(f"grid cells within {length} codes along K")

  def longer(packed):
    codes = jnp.pad(packed.unpack(), ((0, extra), (0, 0)))
    return stored.Packed.pack(codes, packed.bits, 0, (-2,))

  grid = w.grid
  if isinstance(grid, grids.Labelled):
    grid = grids.Labelled(longer(grid.labels), grid.grids)
  return qtensor.QTensor(longer(w.codes), grid, w.dtype)
