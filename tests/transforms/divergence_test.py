"""Thresholds by divergence: the metric's golden values, and what they find."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import base
from quantlab.transforms import divergence
from tests import draws

INT8 = base.IntSpec(8, symmetric=True)
SAMPLES = 200_000


@pytest.mark.parametrize(
  ("p", "textbook", "exchanged"),
  [
    ([4.0, 0, 2, 4], 0.0987440, 0.4557737),
    ([4.0, 0, 2, 2], 0.1732868, 0.1732868),  # the same mass as q
  ],
)
def test_metric_golden_values(p, textbook, exchanged):
  p, q = jnp.array(p), jnp.array([2.0, 2, 0, 4])
  found = divergence.divergence(p, q)
  assert float(found) == pytest.approx(textbook, abs=1e-6)
  found = divergence.divergence(p, q, exchanged=True)
  assert float(found) == pytest.approx(exchanged, abs=1e-6)


def test_exchanging_the_normalizer_adds_twice_its_logarithm():
  p, q = jnp.array([4.0, 0, 2, 4]), jnp.array([2.0, 2, 0, 4])
  change = divergence.divergence(p, q, exchanged=True) - divergence.divergence(
    p, q
  )
  assert float(change) == pytest.approx(2 * 0.8 * np.log(1.25), abs=1e-6)


@functools.partial(jax.jit, static_argnames=("exchanged",))
def _divergence(p, q, total, exchanged):
  return divergence.divergence(p, q, total=total, exchanged=exchanged)


def _one_threshold(counts, kept, levels, fold):
  """The two histograms of one threshold, as they are defined."""
  p, q = np.zeros_like(counts), np.zeros_like(counts)
  p[:kept] = counts[:kept]
  for level in range(levels):
    part = slice(level * kept // levels, (level + 1) * kept // levels)
    full = counts[part] > 0
    if full.any():
      q[part] = np.where(full, counts[part].sum() / full.sum(), 0)
  if fold:
    p[kept - 1] += counts[kept:].sum()
  return p, q


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("exchanged", [True, False])
@pytest.mark.parametrize("levels", [1, 5, 7])
def test_all_thresholds_equal_the_definition(fold, exchanged, levels):
  counts = np.random.default_rng(0).poisson(3, 40).astype(np.float32)
  found = divergence.divergences(
    jnp.asarray(counts),
    jnp.array(levels),
    most=7,
    first=4,
    fold=fold,
    exchanged=exchanged,
  )
  assert found.shape == (37,)
  for kept, value in zip(range(4, 41), found, strict=True):
    if kept < levels or (fold and counts[kept - 1] == 0):
      assert value == jnp.inf
      continue
    p, q = _one_threshold(counts, kept, levels, fold)
    # What is not folded into p still counts in P.
    want = _divergence(p, q, counts.sum(), exchanged)
    assert float(value) == pytest.approx(float(want), abs=2e-6)


@functools.cache
def _relu():
  x = draws.normal((SAMPLES,)) - 1
  return x, jnp.maximum(x, 0)


def _relative_error(y, threshold):
  y, step = np.asarray(y), threshold / 127
  out = np.clip(np.round(y / step), 0, 127) * step
  return float(np.mean((out - y) ** 2) / np.mean(y**2))


def _best_error(y):
  ends = np.linspace(0.05, 1, 200) * float(jnp.max(y))
  return min(_relative_error(y, end) for end in ends)


def _threshold(estimator, x):
  run = jax.jit(estimator, static_argnums=2)
  range_ = run(x[None], np.ones((1, x.size), bool), INT8)
  return max(-float(range_.lo[0]), float(range_.hi[0]))


# Where the scan begins with as many bins as levels: what it can do at worst.
ALL = {"start": 127 / 2048}


@pytest.mark.parametrize(
  ("estimator", "relu", "ends", "errors"),
  [
    (divergence.kl(**ALL), False, (5.0, 5.45), (2.5e-4, 3.3e-4)),
    (divergence.kl(**ALL), True, (0.40, 0.50), (0.30, 0.40)),
    (
      divergence.kl(**ALL, positive=True, fold=False),
      True,
      (0.26, 0.30),
      (0.50, 0.55),
    ),
    (divergence.kl(), True, (1.8, 2.3), (1e-3, 5e-3)),
    pytest.param(
      divergence.kl_improved(),
      *(True, (2.8, 3.6), (1.0e-4, 1.7e-4)),
      marks=pytest.mark.study,
    ),
    (divergence.kl_improved(**ALL), True, (2.8, 3.6), (1.0e-4, 1.7e-4)),
  ],
  ids=[
    "magnitudes before the relu",
    "zero spike",
    "textbook, not folded",
    "zero spike, half of the bins",
    "improved",
    "improved, from the levels on",
  ],
)
def test_thresholds_of_what_passes_a_relu(estimator, relu, ends, errors):
  x, y = _relu()
  threshold = _threshold(estimator, y if relu else x)
  assert ends[0] <= threshold <= ends[1]
  assert errors[0] <= _relative_error(y, threshold) <= errors[1]


def test_a_zero_spike_makes_plain_kl_collapse():
  _, y = _relu()
  best = _best_error(y)
  assert best == pytest.approx(1.2e-4, rel=0.35)
  plain = _relative_error(y, _threshold(divergence.kl(**ALL), y))
  improved = _relative_error(y, _threshold(divergence.kl_improved(**ALL), y))
  assert plain > 0.2
  assert improved < 1.5 * best


def test_an_asymmetric_spec_gives_each_side_its_share():
  x = draws.normal((1, 50_000), 2)
  everything = jnp.ones(x.shape, bool)
  kl = jax.jit(divergence.kl(), static_argnums=2)
  both = kl(x, everything, ql.INT8)
  narrow = kl(x, everything, INT8)
  # About as many levels on either side as a symmetric grid of the same bits.
  assert float(both.hi[0]) == pytest.approx(float(narrow.hi[0]), rel=0.1)
  one = kl(jnp.abs(x), everything, ql.UINT8)
  nine = kl(jnp.abs(x), everything, base.IntSpec(9, symmetric=True))
  assert float(one.hi[0]) == float(nine.hi[0])
  assert float(one.lo[0]) == float(jnp.min(jnp.abs(x)))


def test_many_rows_equal_each_alone():
  x = draws.student_t((512, 600), 5.0, 2)
  everything = jnp.ones(x.shape, bool)
  estimator = jax.jit(divergence.kl(bins=128, start=0.1), static_argnums=2)
  spec = base.IntSpec(4, symmetric=True)
  many = estimator(x, everything, spec)
  for i in (0, 300, 511):
    alone = estimator(x[i : i + 1], everything[:1], spec)
    assert float(many.hi[i]) == float(alone.hi[0])
  assert jnp.mean(many.hi < jnp.max(jnp.abs(x), axis=1)) > 0.5


def test_of_equal_divergences_the_largest_threshold_wins():
  # More levels than distinct values: nothing is lost wherever it clips.
  x = jnp.array([[0.1, 0.25, 0.5, 1.0]])
  for estimator in (divergence.kl(), divergence.kl_improved()):
    run = jax.jit(estimator, static_argnums=2)
    range_ = run(x, np.ones(x.shape, bool), ql.UINT8)
    assert float(range_.hi[0]) == 1.0


@pytest.mark.parametrize("settings", [{"bins": 0}, {"start": 1.5}])
def test_refuses_settings(settings):
  with pytest.raises(ValueError, match=r"kl takes bins >= 1 and start in \["):
    divergence.kl(**settings)
