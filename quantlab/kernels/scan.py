"""Products with packed weights on CPUs, in plain XLA: a scan over the words.

A step reads a few rows of words and decodes them in registers. The bits of a
code go to the top of a float's mantissa, which costs a shift, an and and an or:
the float is `1 + code / 2**bits`, exactly. For uniform grids, scale, zero and
the 1 are taken care of outside of the loop over codes.

With one or two rows of activations a step is one fused loop over the outputs.
With more it is small matrix products, whose right sides stay in cache; with
many, one product with a whole block.

Shape letters: M rows of activations, K contraction, N output, B codes of a
block, S runs of a block, C word rows of a step, G grid cells along K.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.core import bits as layout
from quantlab.core import grids, qtensor
from quantlab.kernels import form, planes

Array = jax.Array

LOOP_ROWS = 2
"""Up to so many rows of activations a step is one loop without products."""

RUN_ROWS = {True: 64, False: 16}
"""Up to so many rows a step makes a product per run, beyond one per block.

By whether the grid is uniform: other codes take longer to decode run by run.
"""

FEWEST = 2**18
"""Of many rows, a smaller weight is left to XLA: a cache holds it, decoded."""

BESIDE = 4
"""So is one that is, decoded, no more than so many times the activations."""

_LOOP_TERMS = 64
"""Codes that a step decodes for one output, at most, where it is one loop."""

_SELECTED = 16
"""Up to so many levels, a table is looked up by the bits of a code."""


@jax.jit
def matmul(x: Array, w: qtensor.QTensor) -> Array:
  """`x @ w` with a packed weight that is never whole in memory.

  Args:
    x: `[M, K]` float32.
    w: `[K, N]` in kernel form; see `quantlab.kernels.form`.

  Returns:
    `[M, N]` float32.

  Raises:
    NotImplementedError: grid cells have an odd number of codes along K; or,
      for many rows, the decoded weight is small beside the activations, or fits
      in a cache: then decoding it first is faster.
  """
  rows, (length, width) = x.shape[0], w.shape
  small = w.size < FEWEST or w.size <= BESIDE * rows * (length + width)
  if rows > RUN_ROWS[isinstance(w.grid, grids.Affine)] and small:
    raise NotImplementedError(f"{w.size} weights are few for {rows} rows")
  plan = _plan(x.shape[0], w)
  w = dataclasses.replace(w, grid=_for_lookup(w.grid, w.codes.bits))
  body = functools.partial(_step, w=w, words=_words(w, plan), plan=plan)
  start = jnp.zeros((x.shape[0], w.shape[1]), jnp.float32)
  total, _ = jax.lax.scan(body, start, (_places(plan), _in_steps(x, plan)))
  return _affine(total, x, w) if isinstance(w.grid, grids.Affine) else total


class _Plan(NamedTuple):
  """How a product is cut into steps.

  Attributes:
    runs: of a block; equally long.
    block: B.
    blocks: how many there are.
    rows: C; as many word rows of every run make a step.
    cell: codes of a grid cell along K.
    label_bits: of a label; 0 without labels.
    label_rows: word rows of a block of labels.
    product: how a step multiplies: `_in_loop`, `_by_run` or `_by_block`.
  """

  runs: tuple[planes.Run, ...]
  block: int
  blocks: int
  rows: int
  cell: int
  label_bits: int
  label_rows: int
  product: Callable[[list[Any]], Array]


def _plan(num_rows: int, w: qtensor.QTensor) -> _Plan:
  block = layout.block_size(w.shape[0])
  runs = planes.runs(block, w.codes.bits)
  cell = w.shape[0] // form.num_cells(w.grid)
  if cell % 2:
    raise NotImplementedError(f"grid cells of {cell} codes along K")
  rows = math.gcd(runs[0].words, cell // 2)
  label_bits, label_rows = 0, block
  if isinstance(w.grid, grids.Labelled):
    label_bits = w.grid.labels.bits
    label_rows = layout.num_words(block, label_bits)
    rows = math.gcd(rows, label_rows)
  uniform = isinstance(w.grid, grids.Affine)
  product = _by_run if num_rows <= RUN_ROWS[uniform] else _by_block
  if num_rows <= LOOP_ROWS:
    product = _in_loop
    while rows % 2 == 0 and 2 * rows * len(runs) > _LOOP_TERMS:
      rows //= 2
  blocks = w.shape[0] // block
  return _Plan(runs, block, blocks, rows, cell, label_bits, label_rows, product)


class _Levels(NamedTuple):
  """A `Codebook` as a step reads it, `[G, levels, N]`: columns lie together."""

  values: Array


def _for_lookup(grid: Any, bits: int) -> Any:
  if isinstance(grid, grids.Labelled):
    parts = tuple(_for_lookup(part, bits) for part in grid.grids)
    return grids.Labelled(grid.labels, parts)
  if not isinstance(grid, grids.Codebook) or 2**bits > _SELECTED:
    return grid
  levels = jnp.moveaxis(grid.levels, -1, 1)
  missing = 2**bits - levels.shape[1]
  return _Levels(jnp.pad(levels, ((0, 0), (0, missing), (0, 0)), mode="edge"))


class _Place(NamedTuple):
  """Where a step reads: numbers known before the program runs.

  Attributes:
    block: which block.
    row: the first word row, within each run.
    label_row: the first row of labels, beyond that of the run.
    label_shift: how far up the labels' bits are, beyond those of the run.
    cells: `[S]`, the grid cell of each run's codes.
  """

  block: Any
  row: Any
  label_row: Any
  label_shift: Any
  cells: Any


def _places(plan: _Plan) -> _Place:
  """The places of all steps, one after the other."""
  chunks = plan.runs[0].words // plan.rows
  block, chunk = np.divmod(np.arange(plan.blocks * chunks), chunks)
  row = chunk * plan.rows
  above, label_row = np.divmod(row, plan.label_rows)
  starts = np.array([run.start for run in plan.runs])
  cells = (block * plan.block + 2 * row)[:, None] + starts[None]
  places = _Place(
    block, row, label_row, above * plan.label_bits, cells // plan.cell
  )
  return _Place(*(a.astype(np.int32) for a in places))


def _in_steps(x: Array, plan: _Plan) -> Array:
  """Activations as `[steps, M, S, C, 2]`."""
  chunks = plan.runs[0].words // plan.rows
  shape = (plan.blocks, len(plan.runs), chunks, plan.rows, 2)
  x = x.reshape(x.shape[0], *shape).transpose(1, 3, 0, 2, 4, 5)
  return x.reshape(-1, *x.shape[2:])


def _words(w: qtensor.QTensor, plan: _Plan) -> tuple[Array, Any]:
  """`[blocks, words, N]` of the codes and, if there are any, of the labels."""
  shape = (plan.blocks, -1, w.shape[1])
  codes = w.codes.words.reshape(shape)
  if not plan.label_bits:
    return codes, None
  return codes, w.grid.labels.words.reshape(shape)


class _Decoded(NamedTuple):
  """The codes of one run that a step takes.

  Attributes:
    x: `[M, C, 2]` activations.
    values: `[C, N]` for each half of the words.
    scale: what to multiply the values by.
  """

  x: Array
  values: list[Array]
  scale: Any


def _step(total, place_and_x, *, w, words, plan):
  """Adds what the codes of one step amount to."""
  place, x = place_and_x
  decoded = [
    _Decoded(x[:, s], *_decode(w, words, place, s, plan))
    for s in range(len(plan.runs))
  ]
  return total + plan.product(decoded), None


def _decode(w, words, place, s, plan):
  """`values` and `scale` of the codes of run s."""
  run = plan.runs[s]
  codes, labels = words
  rows = [
    _rows(codes, place.block, place.row + piece.word, plan.rows)
    for piece in run.pieces
  ]
  values = [_fractions(rows, run, half) for half in range(2)]
  cell = functools.partial(_cell, at=place.cells[s])
  if isinstance(w.grid, grids.Affine):
    return values, cell(w.grid.scale)
  levels = np.float32(2**run.bits)
  codes = [value * levels - levels for value in values]
  parts = (w.grid,) if labels is None else w.grid.grids
  parts = jax.tree.map(cell, parts)
  found = [
    [_value(part, codes[half], _bits(rows, run, half)) for part in parts]
    for half in range(2)
  ]
  if labels is None:
    return [only for (only,) in found], 1
  marks = _labels(labels, place, run, plan)
  return [grids.select(*each) for each in zip(marks, found, strict=True)], 1


def _value(part, codes, bits):
  """`[C, N]` values of codes, given as numbers and as bits."""
  if not isinstance(part, _Levels):
    return part.decode(codes)
  found = [part.values[:, i] for i in range(part.values.shape[1])]
  for bit in bits:  # half of those that are left
    found = [
      jnp.where(bit, odd, even)
      for even, odd in zip(found[::2], found[1::2], strict=True)
    ]
  return found[0]


def _bits(rows, run, half):
  """The bits `[C, N]` of codes in one half of the words, the lowest first."""
  return [
    (words & np.uint32(1 << (piece.shift + 16 * half + i))) != 0
    for piece, words in zip(run.pieces, rows, strict=True)
    for i in range(piece.width)
  ]


def _rows(words, block, row, count):
  shape = (1, count, words.shape[-1])
  return jax.lax.dynamic_slice(words, (block, row, 0), shape)[0]


def _fractions(rows, run, half):
  """`[C, N]`, `1 + code / 2**bits` of the codes in one half of the words."""
  place = 23 - run.bits
  out = np.uint32(0x3F800000)
  for piece, words in zip(run.pieces, rows, strict=True):
    up = place - piece.shift - 16 * half
    words = words << np.uint32(up) if up > 0 else words >> np.uint32(-up)
    out = (words & np.uint32((2**piece.width - 1) << place)) | out
    place += piece.width
  return jax.lax.bitcast_convert_type(out, jnp.float32)


def _labels(words, place, run, plan):
  """`[C, N]` labels for each half of the words."""
  above, row = divmod(run.start // 2, plan.label_rows)
  rows = _rows(words, place.block, row + place.label_row, plan.rows)
  rows = rows >> place.label_shift.astype(jnp.uint32)
  return [
    (rows >> np.uint32(above * plan.label_bits + 16 * half))
    & np.uint32(2**plan.label_bits - 1)
    for half in range(2)
  ]


def _cell(table, *, at):
  """The row of a table `[G, ...]` for codes of one cell."""
  if table.shape[0] == 1:
    return table
  return jax.lax.dynamic_slice_in_dim(table, at, 1)


def _in_loop(decoded):
  """The sum of all products as one expression, which XLA makes one loop."""
  return _sum(
    each.scale
    * _sum(
      each.x[:, c, half, None] * values[c : c + 1]
      for half, values in enumerate(each.values)
      for c in range(values.shape[0])
    )
    for each in decoded
  )


def _by_run(decoded):
  return _sum(
    each.scale
    * _sum(each.x[:, :, half] @ each.values[half] for half in range(2))
    for each in decoded
  )


def _by_block(decoded):
  x = [each.x[:, :, half] for each in decoded for half in range(2)]
  values = [each.scale * v for each in decoded for v in each.values]
  return jnp.concatenate(x, 1) @ jnp.concatenate(values, 0)


def _sum(terms):
  return functools.reduce(jnp.add, terms)


def _affine(total, x, w):
  """Takes off what `1 + code / 2**bits` has beyond `code - zero`."""
  scale, levels = w.grid.scale, 2**w.codes.bits
  extra = (levels + w.grid.zero) * scale
  sums = x.reshape(x.shape[0], scale.shape[0], -1).sum(-1)
  return total * levels - jnp.dot(
    sums, extra, precision=jax.lax.Precision.HIGHEST
  )
