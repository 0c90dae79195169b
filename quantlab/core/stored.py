"""Stored forms of integer planes.

Each is a small pytree with `unpack()`. Axes are counted from the end, so the
same value can gain leading axes (`vmap`, stacked layers) or lose them (`scan`).

Shape letters: K packed codes, W words, M digits per word.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.core import base, bits, numerics

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


def _unsigned(codes: Array, lo: int) -> Array:
  # Integral floats (a rounding stage's output) and integers alike.
  return (codes.astype(jnp.int32) - lo).astype(jnp.uint32)
