"""Products with packed weights on TPUs: a Pallas kernel for Mosaic.

A program multiplies a tile of activations with a tile of words and adds up
along K. It decodes 256 rows of the weight at a time, a step, which stay in
registers. The halves of a word hold neighbouring codes, so a register of words
whose halves are made bfloat16 numbers is a register of twice as many rows.

- On a uniform grid a code becomes the top of the fraction of a number in
  [1, 2): three instructions for two codes, and exact. Scales and zeros are
  applied to the float32 products of a group.
- On any other grid, or with labels on any grids, label and code index a table
  of values, which the grid's own `decode` makes. A TPU looks 8 of them up at
  once, each lane in its own table.

Never run on a TPU so far. It compiles for v5e and v6e, and `interpret=True`
runs the same operations elsewhere.

Shape letters: M rows of activations, K contraction, N output, W words, G groups
along K, S values of a table, R rows, E codes of a row.
"""

import dataclasses
import functools
import math
import operator
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from quantlab.core import bits as layout
from quantlab.core import grids, qtensor, stored
from quantlab.kernels import form, planes

Array = jax.Array
Ref = Any

STEP = 256
"""Codes along K that are decoded together: whole blocks, whole registers."""

MAX_VALUES = 64
"""The longest table. Each 8 values take one more look-up per code."""

_SUBLANES = 8


@dataclasses.dataclass(frozen=True)
class Config:
  """The most that a program takes of each axis.

  Attributes:
    block_m: rows of activations, a multiple of 16.
    block_n: outputs, a multiple of 128.
    block_k: codes along K, a multiple of 256.
  """

  block_m: int = 256
  block_n: int = 512
  block_k: int = 2048

  def __post_init__(self):
    for name, unit in [("block_m", 16), ("block_n", 128), ("block_k", STEP)]:
      value = getattr(self, name)
      if value < unit or value % unit:
        raise ValueError(f"{name} must be a multiple of {unit}, got {value}")


def matmul(
  x: Array,
  w: qtensor.QTensor,
  *,
  config: Config | None = None,
  terms: int = 1,
  interpret: Any = False,
) -> Array:
  """`x @ w.dequantize()`, accumulated in float32.

  Args:
    x: `[M, K]` bfloat16.
    w: `[K, N]` in kernel form (`quantlab.kernels.form`). The codes of a group
      are a multiple of 128 or divide it; where the grid is not `Affine`, they
      are at least 16, and labels and codes select one of at most 64 values.
    config: sizes of the tiles.
    terms: how many bfloat16 numbers a value is rounded to the sum of, where
      the grid is not `Affine`: 1 to 3; 3 keep float32. The codes of an `Affine`
      are exact.
    interpret: runs anywhere; `True`, or `pltpu.InterpretParams`.

  Returns:
    `[M, N]` float32.

  Raises:
    ValueError: `x` and `w` do not fit, or `terms` is out of range.
    NotImplementedError: the kernel cannot read such a weight.

  Example:
    >>> from quantlab.core import base
    >>> packed = stored.Packed.pack(jnp.full((256, 1), 3), 2, 0, (-2,))
    >>> ones = jnp.ones((1, 1))
    >>> w = qtensor.QTensor(
    ...   packed, grids.Affine(ones, ones, base.UINT2), jnp.float32
    ... )
    >>> matmul(jnp.ones((1, 256), jnp.bfloat16), w, interpret=True)
    Array([[512.]], dtype=float32)
  """
  if x.ndim != 2 or len(w.shape) != 2 or x.shape[1] != w.shape[0]:
    raise ValueError(f"expected [M, K] and [K, N], got {x.shape=}, {w.shape=}")
  if x.dtype != jnp.bfloat16:
    raise ValueError(f"activations must be bfloat16, got {x.dtype=}")
  if terms not in (1, 2, 3):
    raise ValueError(f"terms must be 1, 2 or 3, got {terms=}")
  _check(w)
  return _matmul(x, w, config or Config(), terms, interpret)


def _check(w: qtensor.QTensor) -> None:
  """Refuses what the kernel cannot read."""
  for plane in (w.codes, *_labels(w)):
    if not isinstance(plane, stored.Packed):
      raise NotImplementedError(f"no kernel for {type(plane).__name__}")
    if plane.axes != (-2,) or plane.lo or plane.bits > 8:
      raise NotImplementedError(
        f"no kernel for {plane.axes=}, {plane.lo=}, {plane.bits=}"
      )
  for part in _parts(w):
    if not isinstance(part, (grids.Affine, grids.Codebook, grids.Tails)):
      raise NotImplementedError(f"no kernel for {type(part).__name__}")
  uniform, size = isinstance(w.grid, grids.Affine), w.shape[0]
  group = size // form.num_cells(w.grid)
  unequal = group % 128 and 128 % group
  if size % 128 or unequal or (group < 16 and not uniform):
    raise NotImplementedError(f"no kernel for groups of {group} of K={size}")
  label_bits = _label_bits(w)
  values = 2 ** (w.codes.bits + label_bits)
  if label_bits > w.codes.bits or (values > MAX_VALUES and not uniform):
    raise NotImplementedError(
      f"no kernel for a table of {values} values, with {label_bits=}"
    )


def _parts(w: qtensor.QTensor) -> tuple[Any, ...]:
  """The grids that labels choose from, or the one grid."""
  return w.grid.grids if isinstance(w.grid, grids.Labelled) else (w.grid,)


def _labels(w: qtensor.QTensor) -> tuple[Any, ...]:
  """The plane of labels, if there is one."""
  return (w.grid.labels,) if isinstance(w.grid, grids.Labelled) else ()


def _label_bits(w: qtensor.QTensor) -> int:
  return sum(plane.bits for plane in _labels(w))


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What a program knows of a weight and of its tile.

  Attributes:
    size: K.
    groups: G.
    bits: of a code.
    label_bits: of a label, 0 where there are none.
    terms: bfloat16 numbers of a value.
    tile: codes of a tile along K.
    align: groups of a tile are fetched alone where this divides them.
  """

  size: int
  groups: int
  bits: int
  label_bits: int
  terms: int
  tile: int
  align: int

  @property
  def group(self) -> int:
    """Codes of a group."""
    return self.size // self.groups

  @property
  def fetched(self) -> int:
    """Groups that a program fetches: those of its tile, or else all."""
    own, rest = divmod(self.tile, self.group)
    return self.groups if rest or own % self.align else min(own, self.groups)

  def row(self, k: Array, code: int) -> Array:
    """Where, of what is fetched, the group of a code of tile k is."""
    if self.fetched == self.groups:
      first, group = 0, jax.lax.div(k * self.tile + code, self.group)
    else:
      first = k * self.fetched
      group = first + code // self.group
    # Past the end any will do: activations are 0 there.
    return jnp.minimum(group, self.groups - 1) - first


@functools.partial(jax.jit, static_argnames=("config", "terms", "interpret"))
def _matmul(
  x: Array, w: qtensor.QTensor, config: Config, terms: int, interpret: Any
) -> Array:
  (rows, size), width = x.shape, w.shape[1]
  tile = _tile(size, config.block_k)
  grid = (
    pl.cdiv(rows, config.block_m),
    pl.cdiv(width, config.block_n),
    pl.cdiv(size, tile),
  )
  block_m = min(config.block_m, _round_up(rows, 16))
  block_n = min(config.block_n, _round_up(width, 128))
  uniform = isinstance(w.grid, grids.Affine)
  plan = _Plan(
    size=size,
    groups=form.num_cells(w.grid),
    bits=w.codes.bits,
    label_bits=_label_bits(w),
    terms=terms,
    tile=tile,
    align=_SUBLANES if uniform else 1,
  )
  if uniform:
    tables = [
      jnp.broadcast_to(a.astype(jnp.float32), (plan.groups, width))
      for a in (w.grid.scale, w.grid.zero)
    ]
  else:
    tables = [_table(w, plan)]
  operands = [
    *((a.words, tile * a.bits // 32) for a in (w.codes, *_labels(w))),
    *((table, plan.fetched) for table in tables),
  ]

  def block(a, rows):
    whole, middle = rows == a.shape[0], a.shape[1:-1]
    return pl.BlockSpec(
      (rows, *middle, block_n),
      lambda i, j, k: (0 if whole else k, *(0 for _ in middle), j),
    )

  # The words past the end hold codes like any others; they count 0 times.
  x = jnp.pad(x, ((0, -rows % 16), (0, grid[2] * tile - size)))
  product = pl.pallas_call(
    functools.partial(_program, _uniform if uniform else _tabled, plan),
    grid=grid,
    in_specs=[
      pl.BlockSpec((block_m, tile), lambda i, j, k: (i, k)),
      *(block(*operand) for operand in operands),
    ],
    out_specs=pl.BlockSpec((block_m, block_n), lambda i, j, k: (i, j)),
    out_shape=jax.ShapeDtypeStruct((x.shape[0], width), jnp.float32),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary")
    ),
    interpret=interpret,
  )(x, *(a for a, _ in operands))
  return product[:rows]


def _round_up(size: int, unit: int) -> int:
  return -(-size // unit) * unit


def _tile(size: int, most: int) -> int:
  """Codes of a tile along K: of those over half the most, the least waste."""
  most = min(most, _round_up(size, STEP))
  tiles = range(most, most // 2, -STEP)
  return min(tiles, key=lambda tile: _round_up(size, tile))


def _table(w: qtensor.QTensor, plan: _Plan) -> Array:
  """Bits of the values of each label and code, `[G, terms * 2 * S, N]`.

  Of each term first where they are a low half of a word, then a high one.
  """
  count, width = 2**plan.bits, w.shape[1]
  codes = jnp.tile(jnp.arange(count, dtype=jnp.float32), plan.groups)
  codes = jnp.broadcast_to(codes[:, None], (codes.size, width))
  values = jnp.concatenate(
    [
      part.decode(codes).reshape(plan.groups, count, width)
      for part in _parts(w)
    ],
    axis=1,
  )
  size = max(2 ** (plan.bits + plan.label_bits), _SUBLANES)
  values = jnp.pad(values, ((0, 0), (0, size - values.shape[1]), (0, 0)))
  halves = []
  for _ in range(plan.terms):
    # A compiler may take a cast to bfloat16 and back for nothing.
    head = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
    high = jax.lax.bitcast_convert_type(head, jnp.uint32)
    halves += [high >> 16, high]
    values -= head
  return jnp.concatenate(halves, axis=1)


def _program(product: Any, plan: _Plan, x: Ref, *refs: Ref) -> None:
  *weights, out = refs
  k = pl.program_id(2)

  @pl.when(k == 0)
  def _():
    out[...] = jnp.zeros_like(out)

  out[...] += product(plan, x, k, *weights)


def _uniform(
  plan: _Plan, x: Ref, k: Array, codes: Ref, scale: Ref, zero: Ref
) -> Array:
  """A tile's product `[M, N]` with codes of a uniform grid."""
  rows = x.shape[0]
  span = math.gcd(plan.group, plan.tile)  # what is scaled together
  unit = math.gcd(max(span, 128), STEP)  # what is multiplied together
  parts = max(1, unit // span)
  total = jnp.zeros((rows, codes.shape[1]), jnp.float32)
  products, sums = 0.0, 0.0
  for step in range(0, plan.tile, STEP):
    fields = _fields(codes, step, plan.bits, plan.size)
    numbers, first, by = _numbers(fields, plan.bits)
    for at in range(0, STEP, unit):
      some = _apart(x[:, step + at : step + at + unit], parts)
      products += _dot(some, numbers[at : at + unit])
      sums += jnp.sum(some.astype(jnp.float32), axis=1, keepdims=True)
      end = step + at + unit
      if end % span:
        continue
      for part in range(parts):
        row = pl.ds(plan.row(k, end + (part - parts) * span), 1)
        own = slice(part * rows, (part + 1) * rows)
        above = products[own] - sums[own] * (first + by * zero[row, :])
        total += above * (scale[row, :] / by)
      products, sums = 0.0, 0.0
  return total


def _apart(x: Array, parts: int) -> Array:
  """Rows for each part along K, 0 outside it: `[M, E]` to `[parts * M, E]`."""
  if parts == 1:
    return x
  column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  part = column // (x.shape[1] // parts)
  zeros = jnp.zeros_like(x)
  return jnp.concatenate([jnp.where(part == i, x, zeros) for i in range(parts)])


def _tabled(
  plan: _Plan, x: Ref, k: Array, codes: Ref, *labels_and_table: Ref
) -> Array:
  """A tile's product `[M, N]` with values from a table."""
  *labels, table = labels_and_table
  unit = math.gcd(plan.group, STEP)
  total = jnp.zeros((x.shape[0], codes.shape[1]), jnp.float32)
  for step in range(0, plan.tile, STEP):
    fields = _fields(codes, step, plan.bits, plan.size)
    for plane in labels:
      above = _fields(plane, step, plan.label_bits, plan.size)
      fields = _labelled(fields, plan.bits, above, plan.label_bits)
    low, high = _halves(fields, plan.bits + plan.label_bits)
    terms = [[] for _ in range(plan.terms)]
    for at in range(0, STEP, unit):
      own = slice(at // 2, (at + unit) // 2)
      values = table[plan.row(k, step + at)]
      values = jnp.split(values, 2 * plan.terms)
      for term, lows, highs in zip(
        terms, values[::2], values[1::2], strict=True
      ):
        term.append(_look_up(lows, low[own]) | _look_up(highs, high[own]))
    some = x[:, step : step + STEP]
    total += sum(_dot(some, _rows(jnp.concatenate(term))) for term in terms)
  return total


def _look_up(values: Array, index: Array) -> Array:
  """Of values `[S, N]` those at an index for each column, `[R, N]`."""

  def register(index):
    found, *others = (
      jnp.take_along_axis(
        values[first : first + _SUBLANES],
        index & (_SUBLANES - 1),
        axis=0,
        mode="promise_in_bounds",
      )
      for first in range(0, values.shape[0], _SUBLANES)
    )
    for i, other in enumerate(others, start=1):
      found = jnp.where(index < i * _SUBLANES, found, other)
    return found

  starts = range(0, index.shape[0], _SUBLANES)
  return jnp.concatenate([register(index[i : i + _SUBLANES]) for i in starts])


# A field is some words, and the bit of their halves from which codes begin.
_Field = tuple[Array, int]


def _fields(words: Ref, start: int, bits: int, size: int) -> list[_Field]:
  """The fields of a step, in the order of the codes, all equally high."""
  block = layout.block_size(size)
  height = block // 32
  return [
    _field(words, first * bits // 32 + at, height, run.pieces)
    for first in range(start, start + STEP, block)
    for run in planes.runs(block, bits)
    for at in range(0, run.words, height)
  ]


def _field(
  words: Ref, start: int, height: int, pieces: tuple[planes.Piece, ...]
) -> _Field:
  """The field of one piece, or the codes of several, brought together."""
  starts = [start + piece.word for piece in pieces]
  some = [words[at : at + height, :] for at in starts]
  if len(pieces) == 1:
    return some[0], pieces[0].shift
  places = np.cumsum([0] + [piece.width for piece in pieces]).tolist()
  moved = [
    _moved(a, place - piece.shift) & _mask(piece.width, [place])
    for a, piece, place in zip(some, pieces, places[:-1], strict=True)
  ]
  return functools.reduce(operator.or_, moved), 0


def _labelled(
  codes: list[_Field], bits: int, labels: list[_Field], label_bits: int
) -> list[_Field]:
  """Fields of codes with their labels above them.

  Every other field of a word at once, into the room of two: what they share the
  compiler computes once.
  """
  places = range(0, 17 - bits - label_bits, 2 * bits)
  code_mask = _mask(bits, places)
  label_mask = _mask(label_bits, [place + bits for place in places])
  fields = []
  for (code, at), (label, label_at) in zip(codes, labels, strict=True):
    place = at // (2 * bits) * (2 * bits)
    place = place if place in places else 0
    code = _moved(code, place - at) & code_mask
    label = _moved(label, place + bits - label_at) & label_mask
    fields.append((code | label, place))
  return fields


def _numbers(fields: list[_Field], bits: int) -> tuple[Array, float, float]:
  """A step's codes as numbers `first + by * code`: `[256, N]` bfloat16."""
  if bits == 8:  # more than the fraction holds
    low, high = (
      jax.lax.bitcast_convert_type(half.astype(jnp.float32), jnp.uint32)
      for half in _halves(fields, bits)
    )
    return _rows((low >> 16) | high), 0.0, 1.0
  place = 7 - bits
  mask = _mask(bits, [place])
  pairs = [_moved(words, place - at) & mask for words, at in fields]
  return _rows(jnp.concatenate(pairs) | _mask(7, [7])), 1.0, 2.0**-bits


def _halves(fields: list[_Field], bits: int) -> list[Array]:
  """A step's codes of even and of odd k, `[128, N]` int32 each."""
  mask = jnp.uint32(2**bits - 1)
  return [
    jnp.concatenate([(a >> (at + half)) & mask for a, at in fields]).astype(
      jnp.int32
    )
    for half in (0, 16)
  ]


def _mask(bits: int, places: Any) -> np.uint32:
  """So many bits from each of some places, in both halves of a word."""
  return np.uint32(sum(0x10001 * (2**bits - 1) << place for place in places))


def _moved(words: Array, by: int) -> Array:
  return words << by if by > 0 else words >> -by


def _rows(pairs: Array) -> Array:
  """The halves of words as rows: `[R, N]` to `[2 * R, N]` bfloat16."""
  return pltpu.bitcast(pairs, jnp.bfloat16)


def _dot(x: Array, w: Array) -> Array:
  return jnp.dot(x, w, preferred_element_type=jnp.float32)
