"""Packed codes as bfloat16 numbers in registers of a TPU.

A program decodes 256 rows of the weight at a time, a step. The halves of a word
hold neighbouring codes, so a register of words whose halves are made bfloat16
numbers is a register of twice as many rows. Codes of a uniform grid become the
fraction of a number in [1, 2); other grids are looked up.

Shape letters: N output, S values of a table, R rows.
"""

import functools
import operator
from typing import Any

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from quantlab.core import bits as layout
from quantlab.kernels import planes

Array = jax.Array
Ref = Any

STEP = 256
"""Codes along K that are decoded together: whole blocks, whole registers."""

SUBLANES = 8
"""Rows of a register, and values that one look-up chooses from."""

Field = tuple[Array, int]
"""Some words, and the bit of their halves from which codes begin."""


def fields(words: Ref, start: int, bits: int, size: int) -> list[Field]:
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
) -> Field:
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


def labelled(
  codes: list[Field], bits: int, labels: list[Field], label_bits: int
) -> list[Field]:
  """Fields of codes with their labels above them.

  Every other field of a word at once, into the room of two: what they share the
  compiler computes once.
  """
  places = range(0, 17 - bits - label_bits, 2 * bits)
  code_mask = _mask(bits, places)
  label_mask = _mask(label_bits, [place + bits for place in places])
  found = []
  for (code, at), (label, label_at) in zip(codes, labels, strict=True):
    place = at // (2 * bits) * (2 * bits)
    place = place if place in places else 0
    code = _moved(code, place - at) & code_mask
    label = _moved(label, place + bits - label_at) & label_mask
    found.append((code | label, place))
  return found


def numbers(fields: list[Field], bits: int) -> tuple[Array, float, float]:
  """A step's codes as numbers `first + by * code`: `[256, N]` bfloat16."""
  if bits == 8:  # more than the fraction holds
    low, high = (
      jax.lax.bitcast_convert_type(half.astype(jnp.float32), jnp.uint32)
      for half in halves(fields, bits)
    )
    return rows((low >> 16) | high), 0.0, 1.0
  place = 7 - bits
  mask = _mask(bits, [place])
  pairs = [_moved(words, place - at) & mask for words, at in fields]
  return rows(jnp.concatenate(pairs) | _mask(7, [7])), 1.0, 2.0**-bits


def halves(fields: list[Field], bits: int) -> list[Array]:
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


def rows(pairs: Array) -> Array:
  """The halves of words as rows: `[R, N]` to `[2 * R, N]` bfloat16."""
  return pltpu.bitcast(pairs, jnp.bfloat16)


def look_up(values: Array, index: Array) -> Array:
  """Of values `[S, N]` those at an index for each column, `[R, N]`."""

  def register(index):
    found, *others = (
      jnp.take_along_axis(
        values[first : first + SUBLANES],
        index & (SUBLANES - 1),
        axis=0,
        mode="promise_in_bounds",
      )
      for first in range(0, values.shape[0], SUBLANES)
    )
    for i, other in enumerate(others, start=1):
      found = jnp.where(index < i * SUBLANES, found, other)
    return found

  starts = range(0, index.shape[0], SUBLANES)
  return jnp.concatenate([register(index[i : i + SUBLANES]) for i in starts])
