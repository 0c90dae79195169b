"""Packed codes as bf16 numbers in registers of an NVIDIA GPU.

Words are taken apart in fields that hold two neighbours, one in each half, so
that an instruction works on two codes. Codes of a uniform grid become
`2**bits + code`: the code is put on top of a bf16 number's mantissa, which is
one `lop3`. Other grids are looked up: `prmt` is a table of 8 bytes with four
answers, and a table of values is two of bytes.

Uniform codes of 8 bits, more than a mantissa has, pass through float32.

Shape letters: N rows of a tile, U words of a unit, E entries of a table.
"""

import functools
import math
import operator
from typing import NamedTuple

import jax
from jax.experimental.pallas import triton as pltriton
import jax.numpy as jnp
import numpy as np

from quantlab.kernels import planes

Array = jax.Array

UNITS = 4
"""Units that share a word of selectors, a nibble for each."""


class Field(NamedTuple):
  """Bits of the codes of a unit.

  Attributes:
    plane: 0 for codes, 1 for labels.
    word: the first of the unit's words within the plane's block.
    shift: where the bits begin in each half of a word.
    width: how many there are.
    at: which bit of the code, or of the selector, is the first of them.
  """

  plane: int
  word: int
  shift: int
  width: int
  at: int


class Unit(NamedTuple):
  """`2 * words` consecutive codes, the operand of one product.

  Attributes:
    start: k of the first code within the block.
    fields: where their bits are.
  """

  start: int
  fields: tuple[Field, ...]


@functools.lru_cache(maxsize=64)
def units(
  block: int, bits: tuple[int, ...], most: int = 32
) -> tuple[int, tuple[Unit, ...]]:
  """Cuts a block into units.

  Args:
    block: B, codes of a block.
    bits: of a code, and of a label if there are labels.
    most: words that a unit has at most.

  Returns:
    How many words a unit has, a power of two, and the units in order.

  Example:
    >>> words, parts = units(256, (2,))
    >>> words, len(parts), parts[1].fields
    (16, 8, (Field(plane=0, word=0, shift=2, width=2, at=0),))
  """
  found = [planes.runs(block, b) for b in bits]
  sizes = [run.words for runs in found for run in runs]
  words = math.gcd(*sizes, 1 << (most.bit_length() - 1))
  parts = []
  for start in range(0, block, 2 * words):
    fields, at = [], 0
    for plane, runs in enumerate(found):
      run = next(r for r in reversed(runs) if r.start <= start)
      for piece in run.pieces:
        word = piece.word + (start - run.start) // 2
        fields.append(Field(plane, word, piece.shift, piece.width, at))
        at += piece.width
    parts.append(Unit(start, tuple(fields)))
  return words, tuple(parts)


def together(bits: int, parts: tuple[Unit, ...]) -> list[list[Unit]]:
  """Fours of units; those of 2 bits have fields a nibble apart in one word.

  Example:
    >>> [
    ...   [unit.start for unit in four]
    ...   for four in together(2, units(256, (2,))[1])
    ... ]
    [[0, 64, 128, 192], [32, 96, 160, 224]]
  """
  apart = len(parts) // UNITS if bits == 2 else 1
  order = [parts[i::apart] for i in range(apart)]
  flat = [unit for units in order for unit in units]
  return [flat[i : i + UNITS] for i in range(0, len(flat), UNITS)]


def integers(words: dict, unit: Unit, bits: int, interpret: bool) -> Array:
  """A unit of uniform codes.

  Args:
    words: `[N, U]` int32 by plane and first word.
    unit: which codes.
    bits: of a code.
    interpret: whether to do without assembly.

  Returns:
    `[N, 2U]` bf16, `bias(bits)` plus the codes.
  """
  if bits > 7:
    pair = _gather(words, [(field, 0) for field in unit.fields])
    return _join(_convert(pair & 0xFF), _convert(_right(pair, 16)))
  *first, last = [(field, 7 - bits) for field in unit.fields]
  one = np.uint32((127 + bits) << 7)
  top = int(one * np.uint32(0x10001))
  if interpret:
    pair = _gather(words, [last]) | top
  else:
    field, up = last
    mask = _both(((1 << field.width) - 1) << field.at + up)
    moved = _move(words[field.plane, field.word], field.shift - field.at - up)
    # Compilers take two instructions for what has two constants.
    pair = _asm(f"lop3.b32 $0, $1, {mask}, {top}, 0xEA;", moved)
  if first:
    pair |= _gather(words, first)
  return _halves(pair)


def bias(bits: int) -> int:
  """What `integers` adds to the codes."""
  return 0 if bits > 7 else 2**bits


def lookup(
  words: dict, four: list[Unit], tables: list[Array], interpret: bool
) -> list[Array]:
  """Four units of codes that are looked up.

  Args:
    words: as for `integers`.
    four: which codes.
    tables: of `packed_tables`, each `[N, 1]`.
    interpret: whether to do without assembly.

  Returns:
    Of each unit `[N, 2U]` bf16.
  """
  fields = [(field, 4 * j) for j, u in enumerate(four) for field in u.fields]
  nibbles = _gather(words, fields)
  tables = [jnp.broadcast_to(table, nibbles.shape) for table in tables]
  permute = functools.partial(_prmt, interpret=interpret)
  # Nibbles of units 0 and 1 of both halves below, those of 2 and 3 above.
  nibbles = permute(nibbles, nibbles, 0x3120)
  pairs = []
  for half in (nibbles, _right(nibbles, 16)):
    low, high = _entries(tables, half, permute)
    pairs += [permute(low, high, 0x6240), permute(low, high, 0x7351)]
  return [_halves(pair) for pair in pairs]


def packed_tables(values: Array) -> Array:
  """Tables for `lookup`.

  Args:
    values: `[E, N]` bf16, E at most 16.

  Returns:
    `[4, N]` int32, 8 entries or `[8, N]`, 16: low bytes, then high bytes.
  """
  room = 8 if values.shape[0] <= 8 else 16
  values = jnp.pad(values, ((0, room - values.shape[0]), (0, 0)))
  raw = jax.lax.bitcast_convert_type(values, jnp.uint16).astype(jnp.uint32)
  both = jnp.stack([raw & 0xFF, raw >> 8]).reshape(-1, 4, values.shape[1])
  shifts = jnp.arange(0, 32, 8, dtype=jnp.uint32)[None, :, None]
  packed = jnp.sum(both << shifts, axis=1, dtype=jnp.uint32)
  return jax.lax.bitcast_convert_type(packed, jnp.int32)


def _entries(tables, nibbles, permute):
  """Low and high bytes of the entries that four nibbles name."""
  half = len(tables) // 2
  if half == 2:
    return [permute(*tables[i : i + 2], nibbles) for i in (0, 2)]
  below = nibbles & 0x77777777
  bit = _right(nibbles, 3) & 0x11111111
  upper = permute(jnp.full_like(bit, 0xFF00), bit, bit)
  found = [permute(*tables[i : i + 2], below) for i in (0, 2, 4, 6)]
  return [(a & ~upper) | (b & upper) for a, b in (found[:2], found[2:])]


def _gather(words, fields):
  """Ors fields, each moved up; one mask for fields that move together."""
  masks = {}
  for field, up in fields:
    at = field.at + up
    key = (field.plane, field.word, field.shift - at)
    masks[key] = masks.get(key, 0) | ((1 << field.width) - 1) << at
  terms = [
    _move(words[plane, word], by) & _both(mask)
    for (plane, word, by), mask in masks.items()
  ]
  return functools.reduce(operator.or_, terms)


def _both(mask: int) -> int:
  """A mask of both halves, as int32."""
  return int(np.uint32(mask * 0x10001).astype(np.int32))


def _move(word: Array, by: int) -> Array:
  return _right(word, by) if by >= 0 else word << -by


def _right(word: Array, by: int) -> Array:
  if not by:
    return word
  return jax.lax.shift_right_logical(word, jnp.full_like(word, by))


def _halves(pair: Array) -> Array:
  """`[N, 2U]` bf16 from both halves of `[N, U]`."""
  low, high = (
    jax.lax.bitcast_convert_type(half.astype(jnp.uint16), jnp.bfloat16)
    for half in (pair, _right(pair, 16))
  )
  return _join(low, high)


def _join(low: Array, high: Array) -> Array:
  return jnp.stack([low, high], axis=-1).reshape(low.shape[0], -1)


def concatenate(parts: list[Array]) -> Array:
  """Joins a power of two of `[N, ..]` along the last axis."""
  while len(parts) > 1:
    parts = [
      jnp.stack(pair, axis=-1).swapaxes(1, 2).reshape(pair[0].shape[0], -1)
      for pair in zip(parts[::2], parts[1::2], strict=True)
    ]
  return parts[0]


def fma(a: Array, b: Array, c: Array, interpret: bool) -> Array:
  """`a * b + c`, broadcast, in one instruction where it is not interpreted."""
  a, b = (jnp.broadcast_to(x, c.shape) for x in (a, b))
  if interpret:
    return a * b + c
  return _asm("fma.rn.f32 $0, $1, $2, $3;", a, b, c, kind="f")


def _convert(code: Array) -> Array:
  """bf16 of integers below 256: a float32's mantissa, less its leading one."""
  one = jax.lax.bitcast_convert_type(code | 0x4B000000, jnp.float32)
  return (one - 2.0**23).astype(jnp.bfloat16)


def _prmt(a: Array, b: Array, selector: Array | int, interpret: bool) -> Array:
  """Four bytes of b and a, each named by a nibble of the selector."""
  if not interpret:
    if isinstance(selector, int):
      return _asm(f"prmt.b32 $0, $1, $2, {selector};", a, b)
    return _asm("prmt.b32 $0, $1, $2, $3;", a, b, selector)
  selector = jnp.broadcast_to(jnp.asarray(selector, jnp.int32), a.shape)
  out = jnp.zeros_like(a)
  for i in range(4):
    place = _right(selector, 4 * i)
    source = jnp.where(place & 4 == 0, a, b)
    byte = jax.lax.shift_right_logical(source, 8 * (place & 3)) & 0xFF
    out |= byte << 8 * i
  return out


def _asm(code: str, *args: Array, kind: str = "r") -> Array:
  # int32 in and out: a uint32 result passes lowering, but does not compile.
  [out] = pltriton.elementwise_inline_asm(
    code,
    args=args,
    constraints=",".join([f"={kind}", *(kind for _ in args)]),
    pack=1,
    result_shape_dtypes=[jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)],
  )
  return out
