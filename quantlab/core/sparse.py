"""Stored forms of what is at few places: marks, their gap code, exact values.

Axes are counted from the end, as in `quantlab.core.stored`.

Shape letters: P marks per row, D row length, S symbols.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.core import base, bits, gaps, numerics, stored

Array = jax.Array
Shape = tuple[int, ...]


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
  def pack(self, axes: Shape) -> stored.Packed:
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
    return stored.Packed(words, 1, 0, axes, dims)


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

  symbols: stored.Packed
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
    packed = stored.Packed.pack(symbols, bits_, 0, (-1,))
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
  def pack(self, axes: Shape) -> stored.Packed:
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

  def places(self) -> tuple[Array, ...]:
    """Where the values are on each axis, `[P]` int32 each.

    Example:
      >>> x = Sparse.from_dense(jnp.eye(3), jnp.eye(3) > 0)
      >>> [place.tolist() for place in x.places()]
      [[0, 1, 2], [0, 1, 2]]
    """
    # Not jnp.unravel_index: its strides are int32, and end at 2**31 elements.
    found, rest = [], self.index
    for dim in reversed(self.dims):
      rest, place = jnp.divmod(rest, jnp.uint32(dim))
      found.append(place.astype(jnp.int32))
    return tuple(reversed(found))

  @property
  def shape(self) -> Shape:
    """Shape of the dense tensor."""
    return self.dims

  @property
  def dtype(self) -> jnp.dtype:
    """Type of the values."""
    return self.values.dtype


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
def _pack(symbols: Array, bits_: int) -> stored.Packed:
  return stored.Packed.pack(symbols, bits_, 0, (-1,))
