"""Grids: what codes mean.

A grid maps values to real-valued codes (`encode`) and codes back to values
(`decode`); integers within `bounds` are the levels. `encode` is monotone within
a row and linear between levels, so that rounding a code rounds the value, and
one rounding stage serves every grid.

A grid's array has the tensor's rank, and each of its dimensions divides the
tensor's: that is its granularity.

Shape letters: C levels of a codebook; G the shape of a grid.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from quantlab.core import base, numerics

Array = jax.Array


class Grid(Protocol):
  """What every grid offers."""

  @property
  def bounds(self) -> tuple[int, int]:
    """The smallest and the largest code."""
    ...

  def encode(self, x: Array) -> Array:
    """Real-valued codes of `x`, not clipped."""
    ...

  def decode(self, codes: Array) -> Array:
    """Values of codes."""
    ...


@base.pytree
class Raw:
  """The trivial grid: the codes are the values.

  Attributes:
    mask: which elements belong to this part of a decomposition; of the
      tensor's shape, or a scalar. An element outside is 0 in this part, but its
      value stays in the codes, for estimators that look at the whole row.
    weight: what the squared error of each element counts, at least 0; of the
      tensor's shape, or a scalar.
    tails: the elements are two tails around an empty middle, so a uniform grid
      does best to give each side a half of the codes.
  """

  mask: Array = dataclasses.field(default_factory=lambda: jnp.ones((), bool))
  weight: Array = dataclasses.field(default_factory=lambda: jnp.ones(()))
  tails: bool = base.static(default=False)

  def decode(self, codes: Array) -> Array:
    """The values of this part."""
    return jnp.where(self.mask, codes, 0)


@base.pytree
class Affine:
  """A uniform grid: `value = (code - zero) * scale`.

  This form has no sum of products that a compiler may contract, so the values
  are the same bits in every context.

  Attributes:
    scale: G float, the step, above 0.
    zero: G or all-ones shape, the (real-valued) code of 0.
    spec: the codes.
  """

  scale: Array
  zero: Array
  spec: base.IntSpec = base.static()

  @property
  def bounds(self) -> tuple[int, int]:
    """The smallest and the largest code."""
    return self.spec.lo, self.spec.hi

  def encode(self, x: Array) -> Array:
    """Real-valued codes of `x`."""
    return x / self._over(self.scale, x) + self._over(self.zero, x)

  def decode(self, codes: Array) -> Array:
    """Values of codes."""
    return (codes - self._over(self.zero, codes)) * self._over(
      self.scale, codes
    )

  def _over(self, a: Array, x: Array) -> Array:
    return numerics.expand(a.astype(x.dtype), x.shape)


@base.pytree
class Bounded:
  """A uniform grid that no code leaves: values are clamped into the range.

  `value = clip((code - middle + steps) * scale + lo, lo, hi)`. The outer codes
  are `2**(bits - 1) - 1` to each side of the middle one, the ends of the range
  `steps`, 1.001 times less: they round to the outer codes, whose values are cut
  to them, and come back exactly. The lowest code of all is never encoded; it is
  lo too.

  Its codes have derivatives in units of values, as those of a `Codebook`, and
  the range has none.

  Attributes:
    lo: G float, the smallest value.
    hi: G float, the largest. Where it is lo, every code is lo.
    spec: the codes, of at least 2 bits, signed or not.

  References:
    RQuant, arXiv 2006.13977. Reconstruction: constant tensors.
  """

  lo: Array
  hi: Array
  spec: base.IntSpec = base.static()

  @property
  def bounds(self) -> tuple[int, int]:
    """The smallest and the largest code."""
    return self.spec.lo, self.spec.hi

  @property
  def scale(self) -> Array:
    """The step, `1.001 * (hi - lo) / (2**bits - 2)`; 1 where that is 0."""
    step = (self.hi / 2 - self.lo / 2) / self._steps
    return jnp.where(step > 0, step, 1)

  def encode(self, x: Array) -> Array:
    """Real-valued codes of `x`."""
    lo, _, scale = self._over(x)
    codes = (x - lo) / scale - self._steps + self._middle
    return jax.lax.stop_gradient(codes) + (x - jax.lax.stop_gradient(x))

  def decode(self, codes: Array) -> Array:
    """Values of codes, within the range."""
    lo, hi, scale = self._over(codes)
    fixed = jax.lax.stop_gradient(codes)
    place = fixed - self._middle + self._steps
    above = numerics.uncontracted(place * scale)
    value = jax.lax.clamp(lo, lo + above, hi)
    return jax.lax.stop_gradient(value) + (codes - fixed)

  @property
  def _steps(self) -> float:
    """From the middle of the range to an end."""
    return (2 ** (self.spec.bits - 1) - 1) / 1.001

  @property
  def _middle(self) -> int:
    return self.spec.lo + 2 ** (self.spec.bits - 1)

  def _over(self, x: Array) -> list[Array]:
    return [
      numerics.expand(a.astype(x.dtype), x.shape)
      for a in (self.lo, self.hi, self.scale)
    ]


@base.pytree
class Codebook:
  """A table of levels per grid cell.

  Its codes have derivatives in units of values, so that what passes straight
  through a rounding stage has slope 1 however the levels are spaced.

  Attributes:
    levels: `[*G, C]` float, ascending.
  """

  levels: Array

  @property
  def bounds(self) -> tuple[int, int]:
    """The smallest and the largest code."""
    return 0, self.levels.shape[-1] - 1

  def encode(self, x: Array) -> Array:
    """The place of `x` among the levels, linear in between."""

    def step(carry, level):
      codes, below = carry
      width = level - below
      part = (x - below) / jnp.where(width > 0, width, 1)
      # Of equal levels the first is used: a value on them stays below.
      codes += jnp.where(width > 0, jnp.clip(part, 0, 1), x > below)
      return codes, level

    first = numerics.expand(self.levels[..., 0].astype(x.dtype), x.shape)
    codes, _ = self._each(step, (jnp.zeros_like(x), first), x)
    return jax.lax.stop_gradient(codes) + (x - jax.lax.stop_gradient(x))

  def decode(self, codes: Array) -> Array:
    """Levels of codes; between two codes, the straight line."""

    def step(carry, level):
      lower, upper, j = carry
      lower = jnp.where(codes >= j, level, lower)
      upper = jnp.where(codes > j - 1, level, upper)
      return lower, upper, j + 1

    first = numerics.expand(
      self.levels[..., 0].astype(codes.dtype), codes.shape
    )
    one = jnp.ones((), codes.dtype)
    lower, upper, _ = self._each(step, (first, first, one), codes)
    fixed = jax.lax.stop_gradient(codes)
    value = lower + (fixed - jnp.floor(fixed)) * (upper - lower)
    return value + (codes - fixed)

  def _each(self, step: Any, carry: Any, x: Array) -> Any:
    """Steps through the levels above the first, 16 to one fused loop."""
    levels = jnp.moveaxis(self.levels[..., 1:], -1, 0).astype(x.dtype)

    def body(carry, level):
      return step(carry, numerics.expand(level, x.shape)), None

    return jax.lax.scan(body, carry, levels, unroll=16)[0]


@base.pytree
class Tails:
  """Two uniform grids side by side: the first bit of a code is the sign.

  Attributes:
    lower: the grid of negative values, unsigned with one bit less than `spec`.
    upper: the grid of the others, likewise.
    spec: the codes; the lower half belongs to `lower`.
  """

  lower: Affine
  upper: Affine
  spec: base.IntSpec = base.static()

  @property
  def bounds(self) -> tuple[int, int]:
    """The smallest and the largest code."""
    lo = -(2 ** (self.spec.bits - 1)) if self.spec.signed else 0
    return lo, lo + 2**self.spec.bits - 1

  def encode(self, x: Array) -> Array:
    """Real-valued codes, clipped to the half that the sign selects."""
    half, lo = self._half, self.bounds[0]
    lower = jnp.clip(self.lower.encode(x), 0, half - 1)
    upper = jnp.clip(self.upper.encode(x), 0, half - 1)
    return jnp.where(x < 0, lower, upper + half) + lo

  def decode(self, codes: Array) -> Array:
    """Values of codes."""
    half = self._half
    codes = codes - self.bounds[0]
    return jnp.where(
      codes < half, self.lower.decode(codes), self.upper.decode(codes - half)
    )

  @property
  def _half(self) -> int:
    return 2 ** (self.spec.bits - 1)


@base.pytree
class Labelled:
  """One plane of codes, several grids: a label says which one decodes a code.

  Attributes:
    labels: a plane of small integers of the tensor's shape, or a stored form
      of one (see `quantlab.core.stored` and `quantlab.core.sparse`).
    grids: the grid of each label.
  """

  labels: Any
  grids: tuple[Any, ...]

  @property
  def bounds(self) -> tuple[int, int]:
    """The smallest and the largest code of any label."""
    lo, hi = zip(*(grid.bounds for grid in self.grids), strict=True)
    return min(lo), max(hi)

  def encode(self, x: Array) -> Array:
    """Real-valued codes, each on the grid of its label."""
    return self._select([grid.encode(x) for grid in self.grids])

  def decode(self, codes: Array) -> Array:
    """Values of codes."""
    return self._select([grid.decode(codes) for grid in self.grids])

  def _select(self, planes: list[Array]) -> Array:
    return select(plain(self.labels), planes)


def plain(stored: Any) -> Array:
  """An integer plane from any of its stored forms."""
  return stored.unpack() if hasattr(stored, "unpack") else stored


def select(labels: Array, planes: list[Array]) -> Array:
  """Takes each element from the plane that its label names."""
  out = planes[0]
  for j, plane in enumerate(planes[1:], start=1):
    out = jnp.where(labels == j, plane, out)
  return out
