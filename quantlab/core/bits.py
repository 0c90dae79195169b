"""Exact n-bit storage: codes of 1 to 8 or 16 bits in uint32 words.

The layout is one formula. K codes of b bits along one axis are cut into blocks
of B codes (`block_size`), and each block into W words. With

  f = 16 // b            fields in each 16-bit half of a word,
  s = 16 - f * b         spare bits left over in each half,
  u = b / gcd(b, 16)     words whose spare bits together hold whole codes,
  m = W // u,            e = u * s // b,

code k of a block sits

  k = 2W t + 2i + h,         t < f:  in word i, bits b*t + 16*h and up;
  k = 2W f + 2m t + 2c + h,  t < e:  in the spare stream of (c, h), bits b*t.

The spare stream of (c, h) is the concatenation over j < u of the s bits at
f*b + 16*h of words j*m + c. So the two halves of a word always hold adjacent
codes: `(word >> b*t) & mask` is a pair of neighbours, which a GPU turns into
two bf16 numbers with one instruction. For 2, 4 and 8 bits there is no spare
stream; for 3 bits the 15th bits of three words make the 32nd pair, and storage
is 3.000 bits per code.

Shape letters: K codes, W words.
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

BLOCKS = (256, 128)
"""Block sizes, best first. A length that none divides is one block."""


def block_size(length: int) -> int:
  """Codes per block for an axis of `length` codes."""
  return next((b for b in BLOCKS if length % b == 0), length)


def num_words(length: int, bits: int) -> int:
  """Words that `length` codes of `bits` bits take along one axis.

  Example:
    >>> num_words(1024, 3) * 32 / 1024
    3.0
  """
  if bits not in (*range(1, 9), 16):
    raise ValueError(f"codes are stored in 1 to 8 or in 16 bits, got {bits=}")
  block = block_size(length)
  return length // block * _words(block, bits) if length else 0


@functools.partial(jax.jit, static_argnames=("bits", "axis"))
def pack(codes: Array, bits: int, axis: int = -1) -> Array:
  """Packs unsigned codes along one axis.

  Args:
    codes: integers in `[0, 2**bits)`, K along `axis`.
    bits: 1 to 8, or 16.
    axis: the axis to pack.

  Returns:
    uint32 words; the axis is now `num_words(K, bits)` long.

  Example:
    >>> words = pack(jnp.arange(32) % 8, bits=3)
    >>> words.shape, unpack(words, 3, 32).tolist()[:9]
    ((3,), [0, 1, 2, 3, 4, 5, 6, 7, 0])
  """
  axis %= codes.ndim
  length, after = codes.shape[axis], math.prod(codes.shape[axis + 1 :])
  words = num_words(length, bits)
  out_shape = (*codes.shape[:axis], words, *codes.shape[axis + 1 :])
  if not math.prod(out_shape):
    return jnp.zeros(out_shape, jnp.uint32)
  block = block_size(length)
  width = _words(block, bits)
  fields, spare, unit, m, extra = geometry(width, bits)
  x = codes.reshape(-1, block, after).astype(jnp.uint32)
  capacity = 2 * (width * fields + m * extra)
  x = jnp.pad(x, ((0, 0), (0, capacity - block), (0, 0)))
  main, rest = jnp.split(x, [2 * width * fields], axis=1)
  main = _pairs(main.reshape(-1, fields, width, 2, after))
  out = _or([main[:, t] << (bits * t) for t in range(fields)])
  if extra:
    rest = _pairs(rest.reshape(-1, extra, m, 2, after))
    stream = _or([rest[:, t] << (bits * t) for t in range(extra)])
    pieces = [
      ((stream >> (spare * j)) & _both(spare)) << (fields * bits)
      for j in range(unit)
    ]
    top = jnp.concatenate(pieces, axis=1)
    out |= jnp.pad(top, ((0, 0), (0, width - unit * m), (0, 0)))
  return out.reshape(out_shape)


@functools.partial(jax.jit, static_argnames=("bits", "length", "axis"))
def unpack(words: Array, bits: int, length: int, axis: int = -1) -> Array:
  """The inverse of `pack`.

  Args:
    words: uint32, packed along `axis`.
    bits: 1 to 8, or 16.
    length: K, the number of codes along the axis.
    axis: the packed axis.

  Returns:
    uint8 codes, uint16 where they have 16 bits.
  """
  axis %= words.ndim
  after = math.prod(words.shape[axis + 1 :])
  out_shape = (*words.shape[:axis], length, *words.shape[axis + 1 :])
  dtype = jnp.uint8 if bits <= 8 else jnp.uint16
  if not math.prod(out_shape):
    return jnp.zeros(out_shape, dtype)
  block = block_size(length)
  width = _words(block, bits)
  fields, spare, unit, m, extra = geometry(width, bits)
  w = words.reshape(-1, width, after)
  pairs = [(w >> (bits * t)) & _both(bits) for t in range(fields)]
  if extra:
    top = (w[:, : unit * m] >> (fields * bits)) & _both(spare)
    top = top.reshape(-1, unit, m, after)
    stream = _or([top[:, j] << (spare * j) for j in range(unit)])
    pairs += [(stream >> (bits * t)) & _both(bits) for t in range(extra)]
  pair = jnp.concatenate(pairs, axis=1)
  codes = jnp.stack([pair & 0xFFFF, pair >> 16], axis=2).astype(dtype)
  codes = codes.reshape(w.shape[0], -1, after)[:, :block]
  return codes.reshape(out_shape)


def _words(block: int, bits: int) -> int:
  """The fewest words whose fields and spare streams hold a block."""
  width = -(-block * bits // 32)
  while True:
    fields, _, _, m, extra = geometry(width, bits)
    if 2 * (width * fields + m * extra) >= block:
      return width
    width += 1


def geometry(width: int, bits: int) -> tuple[int, int, int, int, int]:
  """f, s, u, m and e of a block of W words, as in the module's docstring."""
  fields = 16 // bits
  spare = 16 - fields * bits
  unit = bits // math.gcd(bits, 16)
  m = width // unit
  return fields, spare, unit, m, unit * spare // bits if m else 0


def _both(bits: int) -> np.uint32:
  """A mask of the low `bits` bits of both halves of a word."""
  return np.uint32((2**bits - 1) * 0x10001)


def _pairs(x: Array) -> Array:
  """Joins neighbours `[..., 2, after]` into the halves of one word."""
  return x[..., 0, :] | (x[..., 1, :] << 16)


def _or(fields: list[Array]) -> Array:
  return functools.reduce(operator.or_, fields)
