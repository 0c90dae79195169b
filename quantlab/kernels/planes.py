"""The layout of packed codes as kernels see it.

A block of B codes in W words is a sequence of runs. The codes of a run lie at
the same bit of consecutive words, two to a word: those of even k in the low
half, those of odd k in the high half. See `quantlab.core.bits`.

Shape letters: B codes of a block, W words of a block.
"""

import functools
from typing import NamedTuple

from quantlab.core import bits as layout


class Piece(NamedTuple):
  """Bits of a code that lie together.

  Attributes:
    word: the first of the run's words within the block.
    shift: where the bits begin in each half of a word.
    width: how many there are.
  """

  word: int
  shift: int
  width: int


class Run(NamedTuple):
  """Consecutive codes of a block.

  Attributes:
    start: k of the first code; even.
    words: how many words hold them; `2 * words` codes, the last of which may
      lie beyond the block.
    pieces: where the bits of a code are, the low ones first. One piece, but
      for the codes whose bits are spread over spare bits.
  """

  start: int
  words: int
  pieces: tuple[Piece, ...]

  @property
  def bits(self) -> int:
    """Of a code."""
    return sum(piece.width for piece in self.pieces)


@functools.lru_cache(maxsize=64)
def runs(block: int, bits: int) -> tuple[Run, ...]:
  """The runs of a block; equally long ones, if it has 128 or 256 codes.

  Args:
    block: B, codes of a block.
    bits: of a code, 1 to 8.

  Example:
    >>> [(run.start, run.words, run.pieces[0].shift) for run in runs(64, 4)]
    [(0, 8, 0), (16, 8, 4), (32, 8, 8), (48, 8, 12)]
    >>> runs(128, 3)[-1].pieces
    (Piece(word=0, shift=15, width=1), Piece(word=4, shift=15, width=1), \
Piece(word=8, shift=15, width=1))
  """
  width = layout.num_words(block, bits)
  fields, spare, unit, m, extra = layout.geometry(width, bits)
  # Where spare bits are used, all runs are as short as theirs.
  parts = unit if extra and width == unit * m else 1
  size = width // parts
  found = [
    Run(2 * (width * t + size * j), size, (Piece(size * j, bits * t, bits),))
    for t in range(fields)
    for j in range(parts)
  ]
  base = 2 * width * fields
  for t in range(extra):
    pieces = []
    at, left = bits * t, bits
    while left:
      j, offset = divmod(at, spare)
      taken = min(left, spare - offset)
      pieces.append(Piece(j * m, fields * bits + offset, taken))
      at, left = at + taken, left - taken
    found.append(Run(base + 2 * m * t, m, tuple(pieces)))
  return tuple(run for run in found if run.start < block)
