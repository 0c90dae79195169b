import itertools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from tests import draws

_KMEANS = jax.jit(ql.kmeans(), static_argnums=2)


def _fit(x, w, levels):
  row, weight = np.asarray(x)[None], np.asarray(w)[None]
  return np.asarray(_KMEANS(row, weight, levels))[0]


def _error(x, w, levels):
  nearest = np.min(np.abs(x[:, None] - levels[None]), axis=1)
  return float(np.sum(w * nearest**2))


def _exhaustive(x, w, levels):
  """The least error over all ways to cut the sorted row into intervals."""
  order = np.argsort(x)
  x, w = x[order], w[order]
  best = np.inf
  for cuts in itertools.combinations(range(1, len(x)), levels - 1):
    ends = [0, *cuts, len(x)]
    total = 0.0
    for lo, hi in itertools.pairwise(ends):
      if w[lo:hi].sum() > 0:
        mean = np.average(x[lo:hi], weights=w[lo:hi])
        total += np.sum(w[lo:hi] * (x[lo:hi] - mean) ** 2)
    best = min(best, total)
  return best


@hypothesis.given(seed=st.integers(0, 999), weighted=st.booleans())
def test_short_rows_get_the_global_optimum(seed, weighted):
  rng = np.random.default_rng(seed)
  x = rng.standard_t(2, 12).astype(np.float32)
  w = rng.uniform(0, 1, 12) if weighted else (rng.uniform(0, 1, 12) > 0.2)
  w = w.astype(np.float32)
  levels = _fit(x, w, 4)
  assert np.all(np.diff(levels) >= 0)
  best = _exhaustive(x, w, 4)
  assert _error(x, w, levels) <= best * (1 + 1e-4) + 1e-6


def _lloyd(x, centres, steps=200):
  for _ in range(steps):
    label = np.searchsorted((centres[1:] + centres[:-1]) / 2, x)
    new = [
      x[label == j].mean() if (label == j).any() else centres[j]
      for j in range(len(centres))
    ]
    new = np.sort(new)
    if np.array_equal(new, centres):
      break
    centres = new
  return centres


@pytest.mark.parametrize(
  "levels", [4, pytest.param(16, marks=pytest.mark.study)]
)
@pytest.mark.parametrize("kind", ["gauss", "student", "clusters", "skewed"])
def test_as_good_as_the_best_of_ten_starts(kind, levels):
  rng = np.random.default_rng(3)
  x = {
    "gauss": lambda: rng.normal(size=2000),
    "student": lambda: rng.standard_t(2, 2000),
    "clusters": lambda: (
      rng.choice([-5, 0, 1, 20], 2000) + 0.1 * rng.normal(size=2000)
    ),
    "skewed": lambda: rng.lognormal(0, 1.5, 2000),
  }[kind]().astype(np.float32)
  ones = np.ones_like(x)
  ours = _fit(x, ones, levels)
  peers = []
  for _ in range(10):
    start = [rng.choice(x)]  # k-means++
    while len(start) < levels:
      distance = np.min((x[:, None] - np.array(start)[None]) ** 2, axis=1)
      start.append(rng.choice(x, p=distance / distance.sum()))
    peers.append(_error(x, ones, _lloyd(x, np.sort(start))))
  assert _error(x, ones, ours) <= min(peers) * (1 + 1e-3)


def test_few_distinct_values_are_kept_exactly():
  values = jnp.array([-1e-3, 0.1, 0.1 + 1e-6, 700.0])
  x = values[draws.integers((500, 3), 0, 4)]
  q = ql.quantize(ql.lloyd(2), x)
  np.testing.assert_array_equal(q.dequantize(), x)


def test_weights_move_the_levels():
  x = jnp.linspace(0.0, 1.0, 101)
  even = _fit(x, jnp.ones_like(x), 2)
  np.testing.assert_allclose(even, [0.25, 0.75], atol=0.01)
  right = _fit(x, jnp.where(x > 0.5, 100.0, 1.0), 2)
  assert right[0] > 0.5


def test_row_without_weight_is_finite():
  levels = _fit(np.ones(12, np.float32), np.zeros(12, np.float32), 4)
  assert np.isfinite(levels).all()


def test_eight_bits():
  w = draws.normal((2048, 2))
  out = ql.dequantize(ql.quantize(ql.lloyd(8), w))
  # High-resolution theory for a Gaussian: sqrt(3) pi / 2 / 256**2.
  assert float(jnp.mean((out - w) ** 2)) < 2.721 / 256**2
