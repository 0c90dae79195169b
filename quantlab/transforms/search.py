"""Searches for the best factor in (0, 1], for all columns at once.

Each takes `error`, a function of `[R]` factors that returns `[R]` errors.

Shape letters: R columns.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

Array = jax.Array
Error = Callable[[Array], Array]

GOLDEN = (math.sqrt(5) - 1) / 2
"""What a step of a golden-section search leaves of its interval."""


def grid(
  error: Error, one: Array, *, candidates: int, smallest: float
) -> Array:
  """Tries evenly spaced factors, from 1 down.

  Args:
    error: of factors.
    one: `[R]` ones, in the type of the factors.
    candidates: factors tried.
    smallest: the smallest factor.

  Returns:
    `[R]`; of equal errors, the largest factor's.
  """

  def better(i, best):
    factor = 1 - (1 - smallest) * i / max(1, candidates - 1)
    now = error(factor * one)
    wins = now < best[1]
    return jnp.where(wins, factor, best[0]), jnp.where(wins, now, best[1])

  return jax.lax.fori_loop(0, candidates, better, (one, jnp.inf * one))[0]


def golden(error: Error, one: Array, *, steps: int, smallest: float) -> Array:
  """Golden-section search in the logarithm of the factor.

  Args:
    error: of factors, with one minimum; of several it finds some local one.
    one: `[R]` ones, in the type of the factors.
    steps: each evaluates one factor and narrows the interval by 1.618. Three
      more factors are evaluated.
    smallest: the smallest factor.

  Returns:
    `[R]`, with errors no larger than that of the factor 1.

  References:
    Kiefer 1953, "Sequential minimax search for a maximum".
  """

  def at(place):
    return place, error(jnp.exp(place))

  def step(_, carry):
    # The minimum lies between a and b; c and d part the interval in between.
    a, b, c, d = carry
    below = c[1] < d[1]
    a, b = jnp.where(below, a, c[0]), jnp.where(below, d[0], b)
    new = at(jnp.where(below, b - GOLDEN * (b - a), a + GOLDEN * (b - a)))
    return a, b, _either(below, new, d), _either(below, c, new)

  a, b = math.log(smallest) * one, 0 * one
  c, d = at(b - GOLDEN * (b - a)), at(a + GOLDEN * (b - a))
  _, _, c, d = jax.lax.fori_loop(0, steps, step, (a, b, c, d))
  inner = _either(c[1] < d[1], c, d)
  place, _ = _either(inner[1] < error(one), inner, (b, b))
  return jnp.exp(place)


def _either(condition: Array, x: tuple, y: tuple) -> tuple:
  pairs = zip(x, y, strict=True)
  return tuple(jnp.where(condition, *pair) for pair in pairs)
