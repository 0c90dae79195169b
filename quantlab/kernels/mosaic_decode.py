"""From packed words to the left side of `wgmma`, within registers.

The tensor cores of Hopper GPUs take their left side, bfloat16, from registers:
a register holds two neighbours in k. So do the two halves of a packed word
(`quantlab.core.bits`), and `(word & mask) | 0x43004300` is two bfloat16 numbers
`128 + code * 2**low`, where `low` is the lowest bit of the mask. A fused
multiply-add makes them the codes, exactly. Nothing moves between threads.

Shape letters: M rows of activations, W words, N output, K codes.
"""

import functools
import inspect
import itertools
import operator
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm, vector
import numpy as np

from quantlab.kernels import planes

Array = jax.Array
Ref = Any

WORDS = plgpu.Layout.TILED(
  plgpu.Tiling(((4, 64), (4, 16), (4, 8), (1,))), (-6,), (-2, -3), -1
)
"""Which thread holds a word of `[W, N]`: the one that `wgmma` wants both codes
of a pair in."""

# Before jax 0.11 a load has to be told that it means all of a reference.
_index = inspect.signature(plgpu.load).parameters.get("idx")
_ALL = () if _index is None or _index.default is None else (...,)


def cut(block: int, bits: int, size: int) -> list[list[planes.Run]]:
  """The runs of a block, cut where one of its groups of codes ends.

  Args:
    block: codes of the block.
    bits: of a code.
    size: codes of a group; divides the block, or is more than it.

  Returns:
    The runs of each group.

  Example:
    >>> [[run.start for run in runs] for runs in cut(256, 4, 128)]
    [[0, 64], [128, 192]]
  """
  size = min(size, block)
  groups: list[list[planes.Run]] = [[] for _ in range(block // size)]
  for run in planes.runs(block, bits):
    stop = run.start + 2 * run.words
    cuts = range(run.start // size * size + size, stop, size)
    for start, end in itertools.pairwise((run.start, *cuts, stop)):
      skip = (start - run.start) // 2
      pieces = tuple(p._replace(word=p.word + skip) for p in run.pieces)
      part = planes.Run(start, (end - start) // 2, pieces)
      groups[start // size].append(part)
  return groups


def product(
  shape: Any, runs: Any, words: Any, x: Ref, interpret: bool
) -> Array:
  """Codes times activations, summed over runs of a block.

  Args:
    shape: N and M.
    runs: of the block.
    words: of each piece of each run, `[W, N]`, loaded as `WORDS`.
    x: `[M, K]` bfloat16 of the block, in shared memory.
    interpret: does without tensor cores, on any platform.

  Returns:
    `[N, M]` float32.
  """
  parts = [
    (x.at[:, run.start : run.start + 2 * run.words], run, loaded)
    for run, loaded in zip(runs, words, strict=True)
  ]

  def add(acc):
    for part, run, loaded in parts:
      plgpu.wgmma(acc, codes(run, loaded), part.transpose((1, 0)))
    return acc[...]

  if not interpret:
    return pl.run_scoped(add, plgpu.ACC(shape, jnp.float32))
  total = jnp.zeros(shape, jnp.float32)
  for part, run, loaded in parts:
    left = codes(run, loaded, interpret=True)
    total += jnp.dot(left, part[...].T, preferred_element_type=jnp.float32)
  return total


def load(ref: Ref, as_: Any, interpret: bool) -> Array:
  """Reads shared memory into the registers of a layout."""
  if interpret:
    return ref[...]
  return plgpu.load(ref, *_ALL, layout=as_, optimized=False)


def codes(
  run: planes.Run, loaded: list[Array], *, interpret: bool = False
) -> Array:
  """The codes of a run of a block.

  Args:
    run: where they are.
    loaded: the words of each of its pieces, `[W, N]` uint32.
    interpret: does without PTX, on any platform.

  Returns:
    `[N, 2 * W]` bfloat16.
  """
  decode = _decode_plain if interpret else _decode
  parts: list[Array] = []
  place = 0
  for piece, words in zip(run.pieces, loaded, strict=True):
    # Seven bits of a bfloat16 are exact, and so are sums of pieces.
    width = piece.width if piece.width < 8 else 4
    for low in range(piece.shift, piece.shift + piece.width, width):
      # As many pieces as fit share a shift.
      base = low - low % (width * (7 // width))
      mask = (2**width - 1) << (low - base)
      power = place - (low - base)
      parts.append(decode(words >> np.uint32(base), mask, power))
      place += width
  return functools.reduce(operator.add, parts)


def _both(half: int) -> np.uint32:
  """A word of two equal halves."""
  return np.uint32(half * 0x10001)


def _pair(value: float) -> np.uint32:
  """A word of two equal bfloat16 numbers."""
  return _both(int(np.asarray(value, jnp.bfloat16).view(np.uint16)))


def _decode_plain(words: Array, mask: int, power: int) -> Array:
  """`(word & mask) * 2**power` of both halves: `[W, N]` to `[N, 2 W]`."""
  bits = (words & _both(mask)) | _pair(128)
  halves = jax.lax.bitcast_convert_type(bits, jnp.bfloat16)
  halves = (halves - jnp.bfloat16(128)) * jnp.bfloat16(2.0**power)
  return halves.swapaxes(0, 1).reshape(words.shape[1], -1)


def _decode(words: Array, mask: int, power: int) -> Array:
  """`_decode_plain` in two instructions."""
  width, n = words.shape
  scale, shift = _pair(2.0**power), _pair(-128 * 2.0**power)
  ptx = f"""{{ .reg .b32 pair, scale, shift;
    lop3.b32 pair, $1, {_both(mask)}, {_pair(128)}, 0xEA;
    mov.b32 scale, {scale};
    mov.b32 shift, {shift};
    fma.rn.bf16x2 $0, pair, scale, shift; }}"""

  @plgpu.inline_mgpu(
    arg_types=(WORDS,),
    return_type=plgpu.ShapeDtypeStruct(
      (n, 2 * width), jnp.bfloat16, layout=plgpu.Layout.WGMMA
    ),
  )
  def decode(_, words):
    i32 = ir.IntegerType.get_signless(32)
    word = ir.VectorType.get((1,), i32)
    pair = ir.VectorType.get((2,), ir.BF16Type.get())
    codes = np.empty(words.registers.shape, object)
    for i, register in np.ndenumerate(words.registers):
      value = llvm.inline_asm(i32, [llvm.bitcast(i32, register)], ptx, "=r,r")
      assert isinstance(value, ir.Value)
      codes[i] = vector.bitcast(pair, vector.broadcast(word, value))
    return mgpu.FragmentedArray(
      _registers=reorder(codes), _layout=mgpu.WGMMA_LAYOUT, _is_signed=None
    )

  return decode(words)


def reorder(registers: np.ndarray) -> np.ndarray:
  """Registers of words in the order that `wgmma` has for their codes.

  Tiles of 4 words by 64 outputs become tiles of 64 outputs by 8 codes.
  """
  tiles, columns = registers.shape[:2]
  moved = registers.reshape(tiles, columns, 2).swapaxes(0, 1)
  shape = mgpu.WGMMA_LAYOUT.registers_shape((64 * columns, 8 * tiles))
  return moved.reshape(shape)
