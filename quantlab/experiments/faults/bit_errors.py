"""A network whose stored bits are wrong here and there: what is left of it.

A memory at a low voltage saves energy and flips bits of the stored weights.
Weights are quantized once; then each pattern of wrong bits gives a network of
its own, which is scored.

Shape letters: R rates, P patterns, N examples, C classes.

References:
  Stutz et al., arXiv 2006.13977: the error model and the patterns.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.core import base, flips

Array = jax.Array
PyTree = Any

Damage = Callable[[PyTree, Array, Array], PyTree]
"""`damage(tree, rate, seed)` gives the tree with wrong bits; pure."""


class Spread(NamedTuple):
  """Test errors over patterns, as fractions.

  Attributes:
    mean: `[R]`.
    deviation: `[R]`, the standard deviation.
    lowest: `[R]`.
    highest: `[R]`.
  """

  mean: np.ndarray
  deviation: np.ndarray
  lowest: np.ndarray
  highest: np.ndarray


class Robustness(NamedTuple):
  """Test errors under bit errors.

  Attributes:
    rates: `[R]` probabilities that a bit is wrong.
    clean: test error without wrong bits.
    alone: of the perturbed network by itself.
    either: an example counts as wrong if the perturbed or the clean network
      errs, so it is never below `clean`.
  """

  rates: np.ndarray
  clean: float
  alone: Spread
  either: Spread


def evaluate(
  predict: Callable[[PyTree], Array],
  params: PyTree,
  labels: Array | np.ndarray,
  rates: Sequence[float],
  *,
  patterns: int = 50,
  first_seed: int = 100,
  protect: Sequence[str] = (),
) -> Robustness:
  """Scores quantized params under random bit errors.

  The patterns are the same for all rates: what is wrong at a rate is wrong at
  every higher one.

  Args:
    predict: from params to the classes `[N]` of all test examples; compiled
      once for all patterns. See `classes` for outputs that are not finite.
    params: quantized once; all patterns are of these.
    labels: `[N]` int.
    rates: R probabilities that a stored bit is wrong.
    patterns: P.
    first_seed: of the patterns; the others follow.
    protect: parts that have no errors; see `core.flips`.

  Raises:
    ValueError: a rate is no probability, or there is nothing to do.

  Example:
    >>> import quantlab as ql
    >>> w = ql.quantize(ql.rtn(8), jnp.eye(4))
    >>> found = evaluate(
    ...   lambda w: classes(w.dequantize()), w, jnp.arange(4), [0.0], patterns=2
    ... )
    >>> found.clean, found.alone.mean.tolist()
    (0.0, [0.0])

  References:
    arXiv 2006.13977, the authors' evaluation: 50 patterns, seeds 100 to 149.
    Their curves are of `either`.
  """
  damage = random(tuple(protect))
  seeds = range(first_seed, first_seed + patterns)
  clean, found = under(damage, predict, params, rates, seeds)
  return robustness(clean, found, labels, rates)


@base.interned
def random(protect: tuple[str, ...] = ()) -> Damage:
  """Each bit is wrong by itself, with the same probability.

  Args:
    protect: parts that have no errors; see `core.flips`.
  """

  def damage(tree, rate, seed):
    return flips.flip_bits(tree, rate, jax.random.key(seed), protect=protect)

  return damage


def under(
  damage: Damage,
  function: Callable[[PyTree], PyTree],
  params: PyTree,
  rates: Sequence[float],
  seeds: Sequence[int],
) -> tuple[PyTree, PyTree]:
  """A function of clean params, and of damaged ones for all rates and seeds.

  Args:
    damage: done to the params.
    function: pure; compiled together with the damage.
    params: clean.
    rates: R probabilities that a stored bit is wrong.
    seeds: of P patterns.

  Returns:
    What the function gives, and the same with axes `[R, P, ...]` in front, as
    numpy arrays.

  Raises:
    ValueError: a rate is no probability, or there is none, or no seed.
  """
  check(rates)
  if not len(seeds):
    raise ValueError(f"at least one pattern is needed, got {seeds=}")
  found = _under(
    damage,
    function,
    params,
    jnp.asarray(rates, jnp.float32),
    jnp.asarray(seeds, jnp.int32),
  )
  return jax.tree.map(np.asarray, (_once(function, params), found))


@functools.partial(jax.jit, static_argnums=0)
def _once(function, params):
  return function(params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _under(damage, function, params, rates, seeds):
  def each(rate):
    return jax.lax.map(lambda s: function(damage(params, rate, s)), seeds)

  return jax.lax.map(each, rates)


def check(rates: Sequence[float]) -> None:
  """Refuses what are no rates: a list of probabilities."""
  if not len(rates):
    raise ValueError(f"at least one rate is needed, got {rates=}")
  flips.check(rates)


def classes(logits: Array) -> Array:
  """The class of the largest logit.

  Where one of them is not finite it is -1, which is no label: such an example
  counts as wrong.

  Args:
    logits: `[N, C]`.

  Returns:
    `[N]` int32.

  Example:
    >>> classes(jnp.array([[0.0, 1.0], [jnp.nan, 0.0]])).tolist()
    [1, -1]
  """
  finite = jnp.isfinite(logits).all(axis=-1)
  best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  return jnp.where(finite, best, -1)


def robustness(
  clean: np.ndarray,
  found: np.ndarray,
  labels: Array | np.ndarray,
  rates: Sequence[float],
) -> Robustness:
  """Counts errors in both definitions.

  Args:
    clean: `[N]` classes without wrong bits.
    found: `[R, P, N]` classes.
    labels: `[N]`.
    rates: R of them.

  Raises:
    ValueError: there is not one class for each label.
  """
  if found.shape[2:] != labels.shape:
    raise ValueError(
      f"predict gave classes of shape {found.shape[2:]} for {labels.shape=}"
    )
  right = np.asarray(labels)
  missed, wrong = clean != right, found != right
  return Robustness(
    np.asarray(rates, float),
    float(missed.mean()),
    _spread(wrong.mean(axis=-1)),
    _spread((wrong | missed).mean(axis=-1)),
  )


def _spread(errors: np.ndarray) -> Spread:
  return Spread(*(f(errors, axis=1) for f in (np.mean, np.std, np.min, np.max)))


def excess(images: int, patterns: int, delta: float = 0.01) -> float:
  """How far the true error may lie above the measured one.

  With probability `1 - delta` over the patterns and test images it is no more.
  At 50 patterns the bound says nothing: their spread is what to look at.

  Args:
    images: n, in the test set.
    patterns: l.
    delta: probability that the bound fails.

  Raises:
    ValueError: there is nothing to count, or `delta` is outside (0, 1).

  Example:
    >>> round(excess(10_000, 10**6), 5), round(excess(10_000, 50), 3)
    (0.04089, 0.563)

  References:
    arXiv 2006.13977, the proposition on the evaluation; `sqrt(ln((n + 1) /
    delta) / n) (sqrt(l) + sqrt(n)) / sqrt(l)`. Reconstruction: the formula is
    recalled, and gives the paper's 4.1 %.
  """
  if images < 1 or patterns < 1 or not 0 < delta < 1:
    raise ValueError(
      "images and patterns are at least 1 and delta is inside (0, 1), got "
      f"{images=}, {patterns=}, {delta=}"
    )
  chance = math.sqrt(math.log((images + 1) / delta) / images)
  return chance * (1 + math.sqrt(images / patterns))
