"""Stored forms of integer planes and of sparse values.

Each is a small pytree with `unpack()`. Axes are counted from the end, so the
same value can gain leading axes (`vmap`, stacked layers) or lose them (`scan`).

Shape letters: K packed codes, W words, R rows, P marks per row, D row length,
S symbols, M digits per word.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.core import base, bits, gaps, numerics

Array = jax.Array
Shape = tuple[int, ...]


@base.pytree
class Packed:
  """Integers of n bits in uint32 words, in the layout of `quantlab.core.bits`.

  Attributes:
    words: uint32; `axes` folded into one axis of W words, which stands where
      the last of them stood.
    bits: n.
    lo: the integer that is stored as 0.
    axes: the folded axes, ascending, counted from the end.
    dims: their sizes; K is the product.
  """

  words: Array
  bits: int = base.static()
  lo: int = base.static()
  axes: Shape = base.static()
  dims: Shape = base.static()

  @classmethod
  @functools.partial(jax.jit, static_argnames=("cls", "bits_", "lo", "axes"))
  def pack(cls, codes: Array, bits_: int, lo: int, axes: Shape) -> "Packed":
    """Packs integers in `[lo, lo + 2**bits)` along `axes`."""
    dims = tuple(codes.shape[axis] for axis in axes)
    place = axes[-1]
    folded = jnp.moveaxis(numerics.fold(codes, axes), -1, place)
    words = bits.pack(_unsigned(folded, lo), bits_, place)
    return cls(words, bits_, lo, axes, dims)

  @jax.jit
  def unpack(self) -> Array:
    """The integers: uint8 where `lo` is 0, else int8; wider if need be."""
    place, count = self.axes[-1], math.prod(self.dims)
    if -place > self.words.ndim or self.words.shape[place] != bits.num_words(
      count, self.bits
    ):
      raise ValueError(
        f"words of shape {self.words.shape} do not hold {count} codes of "
        f"{self.bits} bits along axis {place}; was a packed tensor sliced "
        "along an axis that is packed?"
      )
    codes = bits.unpack(self.words, self.bits, count, place)
    if self.lo:
      hi = self.lo + 2**self.bits - 1
      dtype = next(
        kind
        for kind in (jnp.int8, jnp.int16, jnp.int32)
        if jnp.iinfo(kind).min <= self.lo and hi <= jnp.iinfo(kind).max
      )
      codes = codes.astype(dtype) + self.lo
    return numerics.unfold(jnp.moveaxis(codes, place, -1), self.axes, self.dims)

  @property
  def shape(self) -> Shape:
    """Shape of the integers."""
    return jax.eval_shape(self.unpack).shape


def packing_axes(shape: Shape, bits_: int, reduced: Shape) -> Shape:
  """The axes to pack so that words hold no padding, where that is possible.

  In order of preference: the axes that share a grid cell (rows stay apart,
  which keeps shardings intact), all but the last, all from the first shared one
  (stacked layers stay apart), all.
  """
  every = tuple(range(-len(shape), 0))
  some = reduced if len(reduced) < len(shape) else ()
  for axes in [some, every[:-1], every[min(some, default=0) :], every]:
    size = math.prod(tuple(shape[axis] for axis in axes))
    if axes and size * bits_ == 32 * bits.num_words(size, bits_):
      return axes
  return every


@base.pytree
class Digits:
  """Integers below any base as the digits of uint32 words.

  Labels of three parts take 1.6 bits each, 20 to a word; a power of two takes
  what `Packed` does. Digit m of word w is element `m * W + w`, so unpacking
  moves nothing.

  Attributes:
    words: uint32; `axes` folded into one axis of W words, which stands where
      the last of them stood.
    radix: the base, 2 to 256.
    axes: the folded axes, ascending, counted from the end.
    dims: their sizes; K is the product.
  """

  words: Array
  radix: int = base.static()
  axes: Shape = base.static()
  dims: Shape = base.static()

  @classmethod
  @functools.partial(jax.jit, static_argnames=("cls", "radix", "axes"))
  def pack(cls, labels: Array, radix: int, axes: Shape) -> "Digits":
    """Packs integers in `[0, radix)` along `axes`.

    Example:
      >>> labels = jnp.arange(40).reshape(40, 1) % 3
      >>> Digits.pack(labels, 3, (-2,)).words.shape
      (2, 1)
    """
    dims = tuple(labels.shape[axis] for axis in axes)
    folded = jnp.moveaxis(numerics.fold(labels, axes), -1, 0)
    per_word = _digits(radix)
    fill = [(0, -folded.shape[0] % per_word)] + [(0, 0)] * (folded.ndim - 1)
    digits = jnp.pad(folded.astype(jnp.uint32), fill)
    digits = digits.reshape(per_word, -1, *folded.shape[1:])
    words = sum(
      (digits[i] * jnp.uint32(radix**i) for i in range(1, per_word)), digits[0]
    )
    return cls(jnp.moveaxis(words, 0, axes[-1]), radix, axes, dims)

  @jax.jit
  def unpack(self) -> Array:
    """The integers, uint8."""
    place, count = self.axes[-1], math.prod(self.dims)
    per_word, radix = _digits(self.radix), np.uint32(self.radix)
    if -place > self.words.ndim or self.words.shape[place] != -(
      -count // per_word
    ):
      raise ValueError(
        f"words of shape {self.words.shape} do not hold {count} digits of base "
        f"{radix} along axis {place}; was a packed tensor sliced along an axis "
        "that is packed?"
      )
    words = jnp.moveaxis(self.words, place, 0)
    digits = jnp.stack(
      [words // radix**i % radix for i in range(per_word)]
    ).astype(jnp.uint8)
    labels = digits.reshape(-1, *words.shape[1:])[:count]
    return numerics.unfold(jnp.moveaxis(labels, 0, -1), self.axes, self.dims)

  @property
  def shape(self) -> Shape:
    """Shape of the integers."""
    return jax.eval_shape(self.unpack).shape


def _digits(radix: int) -> int:
  """How many digits a uint32 holds."""
  if not 2 <= radix <= 256:
    raise ValueError(f"labels have a base of 2 to 256, got {radix=}")
  return next(m for m in range(32, 0, -1) if radix**m <= 2**32)


@base.pytree
class Pair:
  """Labels of labels: the plane `first * count + second`.

  Attributes:
    first: the labels of the outer parts, in any stored form.
    second: those within each part.
    count: labels of `second`.
  """

  first: Any
  second: Any
  count: int = base.static()

  @property
  def axes(self) -> Shape:
    """The axes that a row spans."""
    return self.first.axes

  @jax.jit
  def unpack(self) -> Array:
    """The plane, uint8."""
    first, second = (
      x.unpack() if hasattr(x, "unpack") else x
      for x in (self.first, self.second)
    )
    return first.astype(jnp.uint8) * self.count + second.astype(jnp.uint8)


@base.pytree
class Marks:
  """A label plane of 0 and 1 with the same number of ones in every row.

  Attributes:
    positions: `[..., P]` int32, ascending; the leading axes are those that do
      not belong to a row.
    axes: the axes that a row spans, ascending, counted from the end.
    dims: their sizes; D is the product.
  """

  positions: Array
  axes: Shape = base.static()
  dims: Shape = base.static()

  @jax.jit
  def unpack(self) -> Array:
    """The bool plane. Positions outside the row are dropped."""
    dim = math.prod(self.dims)
    *outer, count = self.positions.shape
    at = jnp.where(self.positions < 0, dim, self.positions)
    at = at.reshape(math.prod(outer), count)
    row = jnp.broadcast_to(jnp.arange(at.shape[0])[:, None], at.shape)
    # Rows become columns, as kernels lie in memory: nothing is transposed.
    plane = (
      jnp.zeros((dim, at.shape[0]), bool).at[at, row].set(True, mode="drop")
    )
    plane = jnp.moveaxis(plane.reshape(dim, *outer), 0, -1)
    return numerics.unfold(plane, self.axes, self.dims)

  @functools.partial(jax.jit, static_argnames="axes")
  def pack(self, axes: Shape) -> Packed:
    """`Packed.pack(self.unpack(), 1, 0, axes)` without the plane.

    Positions of a row differ, so a word is the sum of its bits.

    Example:
      >>> marks = Marks(jnp.array([[0, 1, 4]]), (-2,), (32,))
      >>> [f"{word:b}" for word in marks.pack((-2,)).words.ravel().tolist()]
      ['10000000000000101']
    """
    *outer, _ = self.positions.shape
    inside = (self.positions >= 0) & (self.positions < math.prod(self.dims))
    inner = jnp.unravel_index(jnp.where(inside, self.positions, 0), self.dims)
    rows = [
      jax.lax.broadcasted_iota(jnp.int32, inside.shape, i)
      for i in range(len(outer))
    ]
    every = range(-len(outer) - len(self.dims), 0)
    order = [*(axis for axis in every if axis not in self.axes), *self.axes]
    at = dict(zip(order, [*rows, *inner], strict=True))
    size = dict(zip(order, [*outer, *self.dims], strict=True))
    dims = tuple(size[axis] for axis in axes)
    k = jnp.ravel_multi_index([at[axis] for axis in axes], dims, mode="clip")
    word, bit = _bit_of(k, math.prod(dims))
    # One axis of words stands for all, where the last of them stood.
    at[axes[-1]], size[axes[-1]] = word, bits.num_words(math.prod(dims), 1)
    left = [axis for axis in every if axis not in axes[:-1]]
    words = jnp.zeros([size[axis] for axis in left], jnp.uint32)
    values = inside.astype(jnp.uint32) << bit.astype(jnp.uint32)
    words = words.at[tuple(at[axis] for axis in left)].add(values)
    return Packed(words, 1, 0, axes, dims)


STREAM_ROWS = 128
"""Rows that share one stream of gap symbols, if nothing else is asked for."""


@base.pytree
class GapCoded:
  """`Marks` in the gap code of `quantlab.core.gaps`.

  Streams of 128 rows keep the padding to the longest stream well under 1 %,
  can be decoded side by side and sharded. Fewer rows bound what a wrong bit in
  a stream can move.

  Attributes:
    symbols: `[..., streams, S]` integers, packed.
    shuffled: bool scalar: the symbols are of `gaps.shuffle`d positions.
    outer: shape of the axes that do not belong to a row.
    marks: P.
    bits: b, of one symbol.
    axes: the axes that a row spans, ascending, counted from the end.
    dims: their sizes.
    stream_rows: rows that share a stream, where they divide the rows.
  """

  symbols: Packed
  shuffled: Array
  outer: Shape = base.static()
  marks: int = base.static()
  bits: int = base.static()
  axes: Shape = base.static()
  dims: Shape = base.static()
  stream_rows: int = base.static(default=STREAM_ROWS)

  @classmethod
  @functools.partial(jax.jit, static_argnames=("cls", "bits_", "stream_rows"))
  def encode(
    cls,
    marks: Marks,
    bits_: int,
    shuffled: Any = None,
    stream_rows: int = STREAM_ROWS,
  ) -> "GapCoded":
    """Encodes marks, with room for the longest possible streams.

    Args:
      marks: what to encode.
      bits_: of a symbol.
      shuffled: whether to shuffle positions; None lets `gaps.uneven` decide.
      stream_rows: rows that share a stream, where they divide the rows.
    """
    *outer, count = marks.positions.shape
    dim = math.prod(marks.dims)
    positions = marks.positions
    if shuffled is None:
      shuffled = gaps.uneven(positions, dim)
    shuffled = jnp.asarray(shuffled)
    positions = _where(shuffled, lambda at: gaps.shuffle(at, dim), positions)
    streams = _streams(tuple(outer), stream_rows)
    symbols = gaps.encode(positions.reshape(*streams, count), dim, bits_)
    packed = Packed.pack(symbols, bits_, 0, (-1,))
    return cls(
      packed,
      shuffled,
      tuple(outer),
      count,
      bits_,
      marks.axes,
      marks.dims,
      stream_rows,
    )

  @jax.jit
  def decode(self) -> Marks:
    """The marks."""
    marks = self._unordered()
    positions = jnp.sort(marks.positions, axis=-1)
    return dataclasses.replace(marks, positions=positions)

  def _unordered(self) -> Marks:
    """The marks, their positions in the order of the symbols."""
    symbols = self.symbols.unpack()
    num_rows = _streams(self.outer, self.stream_rows)[1]
    positions = gaps.decode(symbols, num_rows, self.marks, self.bits)
    batch = symbols.shape[:-2]
    positions = positions.reshape(*batch, *self.outer, self.marks)
    dim = math.prod(self.dims)
    # Looking all up takes less than a branch, for which a GPU's host waits.
    moved = gaps.unshuffle(positions, dim)
    positions = jnp.where(_like(self.shuffled, positions), moved, positions)
    return Marks(positions, self.axes, self.dims)

  @jax.jit
  def unpack(self) -> Array:
    """The bool plane."""
    return self._unordered().unpack()

  @functools.partial(jax.jit, static_argnames="axes")
  def pack(self, axes: Shape) -> Packed:
    """The plane in words of one bit for each element; see `Marks.pack`."""
    return self._unordered().pack(axes)

  def trim(self) -> "GapCoded":
    """Drops the flags that end every stream. Needs concrete values."""
    # On the host, where a size that depends on the data compiles nothing.
    symbols = np.asarray(self.symbols.unpack())
    used = np.flatnonzero(symbols.any(axis=tuple(range(symbols.ndim - 1))))
    size = int(used[-1]) + 1 if used.size else 0
    packed = _pack(symbols[..., :size], self.bits)
    return dataclasses.replace(self, symbols=packed)


@base.pytree
class Sparse:
  """Exact values at few positions, zero elsewhere.

  Attributes:
    index: `[P]` uint32 positions in the flattened tensor, ascending.
    values: `[P]`.
    dims: the tensor's shape.
  """

  index: Array
  values: Array
  dims: Shape = base.static()

  @classmethod
  def from_dense(cls, x: Array, mask: Array) -> "Sparse":
    """Collects the values under a concrete mask."""
    # On the host: numpy's search is many times as fast as XLA's, and a size
    # that depends on the data compiles nothing.
    index = np.flatnonzero(np.asarray(mask))
    values = np.asarray(x).reshape(-1)[index]
    index = jnp.asarray(index.astype(np.uint32))
    return cls(index, jnp.asarray(values), x.shape)

  @jax.jit
  def dequantize(self) -> Array:
    """The dense tensor."""
    flat = jnp.zeros(math.prod(self.dims), self.values.dtype)
    return flat.at[self.index].set(self.values).reshape(self.dims)

  @property
  def shape(self) -> Shape:
    """Shape of the dense tensor."""
    return self.dims

  @property
  def dtype(self) -> jnp.dtype:
    """Type of the values."""
    return self.values.dtype


def _unsigned(codes: Array, lo: int) -> Array:
  # Integral floats (a rounding stage's output) and integers alike.
  return (codes.astype(jnp.int32) - lo).astype(jnp.uint32)


def _where(flag: Array, function: Any, x: Array) -> Array:
  """`function(x)` where the flag, one per leading axes of x, is set."""
  if not flag.ndim:
    return jax.lax.cond(flag, function, lambda x: x, x)
  return jnp.where(_like(flag, x), function(x), x)


def _like(flag: Array, x: Array) -> Array:
  """The flag, one per leading axes of x, with as many axes as x."""
  return flag.reshape(flag.shape + (1,) * (x.ndim - flag.ndim))


def _bit_of(k: Array, length: int) -> tuple[Array, Array]:
  """The word that holds code k of so many of one bit, and where in it."""
  block = bits.block_size(length)
  width = bits.num_words(block, 1)
  number, k = jnp.divmod(k, block)
  above, k = jnp.divmod(k, 2 * width)
  return number * width + k // 2, above + 16 * (k % 2)


def _streams(outer: Shape, stream_rows: int) -> Shape:
  total = math.prod(outer)
  num_rows = total if total % stream_rows else stream_rows
  return (total // num_rows if num_rows else 0, num_rows)


@functools.partial(jax.jit, static_argnums=1)
def _pack(symbols: Array, bits_: int) -> Packed:
  return Packed.pack(symbols, bits_, 0, (-1,))
