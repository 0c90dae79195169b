"""The largest elements of each column, by rank and without a sort.

A threshold is found by counting, and positions are read off a bit mask. Both
are elementwise but for sums, so columns may be sharded and nothing is gathered
(a `top_k` gathers), and the cost hardly depends on the count.

Shape letters: D elements of a column, P of them marked, W words of 32 elements.
"""

import functools

import jax
import jax.numpy as jnp

from quantlab.core import numerics

Array = jax.Array


@functools.partial(jax.jit, static_argnames="count")
def largest(magnitude: Array, count: int) -> Array:
  """Marks exactly `count` elements of each column, ties from the top.

  Args:
    magnitude: `[D, ...]` float, none below 0 but for -1, which comes last.
    count: P, 0 to D.

  Returns:
    `[D, ...]` bool.

  Example:
    >>> largest(jnp.array([3.0, 1.0, 3.0, 3.0]), 2).tolist()
    [True, False, True, False]
  """
  size = magnitude.shape[0]
  if count in (0, size):
    return jnp.full(magnitude.shape, bool(count))
  keys = _ordered(jax.lax.stop_gradient(magnitude)).reshape(size, -1)
  found = numerics.by_columns(lambda keys: _largest(keys, count), keys)
  return found.reshape(magnitude.shape)


def _largest(keys: Array, count: int) -> Array:
  # Invariant: at least `count` elements reach `lo`, fewer reach `hi`.
  lo = jnp.zeros(keys.shape[1:], keys.dtype)
  hi = jnp.max(keys, axis=0) + 1
  above = jnp.full(lo.shape, keys.shape[0], jnp.int32)

  def unsettled(carry):
    lo, hi, above, _ = carry
    return jnp.any((above != count) & (hi - lo > 1))

  def step(carry):
    lo, hi, above, i = carry
    # Bits of floats are close to a logarithm, in which counts fall steeply:
    # halve the interval of values and that of bits in turns.
    middle = jnp.where(i % 2 == 0, _half_value(lo, hi), lo + (hi - lo) // 2)
    found = jnp.sum(keys >= middle[None], axis=0, dtype=jnp.int32)
    up = (found >= count) & (above != count)
    down = found < count
    lo, above = jnp.where(up, middle, lo), jnp.where(up, found, above)
    return lo, jnp.where(down, middle, hi), above, i + 1

  lo, _, above, _ = jax.lax.while_loop(unsettled, step, (lo, hi, above, 0))
  return jax.lax.cond(
    jnp.any(above > count),
    lambda: _first_ties(keys, lo, count),
    lambda: keys >= lo[None],
  )


def _first_ties(keys: Array, threshold: Array, count: int) -> Array:
  over = keys > threshold[None]
  ties = keys == threshold[None]
  room = count - jnp.sum(over, axis=0, dtype=jnp.int32)
  place = jnp.cumsum(ties, axis=0, dtype=jnp.int32)
  return over | (ties & (place <= room[None]))


def _ordered(magnitude: Array) -> Array:
  """Integers in the order of the magnitudes; -1 becomes 0."""
  wide = jnp.promote_types(magnitude.dtype, jnp.float32)
  bits = _bits(jnp.abs(magnitude).astype(wide))
  return jnp.where(magnitude < 0, 0, bits + 1)


def _half_value(lo: Array, hi: Array) -> Array:
  """The key halfway between two keys' values, strictly inside."""
  kind = jnp.float32 if lo.dtype == jnp.uint32 else jnp.float64
  low, high = (
    jax.lax.bitcast_convert_type(jnp.maximum(v, 1) - 1, kind) for v in (lo, hi)
  )
  return jnp.clip(_bits(low / 2 + high / 2) + 1, lo + 1, hi - 1)


def _bits(x: Array) -> Array:
  kind = jnp.uint32 if x.dtype == jnp.float32 else jnp.uint64
  return jax.lax.bitcast_convert_type(x, kind)


@functools.partial(jax.jit, static_argnames="count")
def positions(marks: Array, count: int) -> Array:
  """Where the marked elements of each column are.

  Args:
    marks: `[D, ...]` bool, `count` of them set in each column.
    count: P.

  Returns:
    `[..., P]` int32, ascending.

  Example:
    >>> positions(jnp.array([True, False, True]), 2).tolist()
    [0, 2]
  """
  size = marks.shape[0]
  marks = jnp.pad(marks, ((0, -size % 32),) + ((0, 0),) * (marks.ndim - 1))
  marks = marks.reshape(-1, 32, *marks.shape[1:])
  weight = jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32)
  weight = weight.reshape(1, 32, *(1,) * (marks.ndim - 2))
  words = jnp.sum(jnp.where(marks, weight, 0), axis=1, dtype=jnp.uint32)
  words = jnp.moveaxis(words, 0, -1)
  until = jnp.cumsum(_ones(words), axis=-1, dtype=jnp.int32)
  rank = jnp.arange(count, dtype=jnp.int32)

  def column(words, until):
    word = jnp.searchsorted(until, rank, side="right")
    word = jnp.minimum(word, words.size - 1)
    before = until[word] - _ones(words[word])
    return 32 * word + _select(words[word], rank - before)

  column = jnp.vectorize(column, signature="(w),(w)->(p)")
  return column(words, until).astype(jnp.int32)


def _select(word: Array, rank: Array) -> Array:
  """The place of the set bit number `rank` of a word."""
  place = jnp.zeros_like(rank)
  for width in (16, 8, 4, 2, 1):
    low = _ones(word & jnp.uint32(2**width - 1))
    up = rank >= low
    rank = jnp.where(up, rank - low, rank)
    word = jnp.where(up, word >> width, word)
    place = jnp.where(up, place + width, place)
  return place


def _ones(words: Array) -> Array:
  return jax.lax.population_count(words).astype(jnp.int32)
