"""Histograms whose range grows."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from quantlab.core import histograms

BINS = 16


@jax.jit
def _add(histogram, rows, weight):
  return histogram.add(rows, weight)


def _of(*batches, bins=BINS):
  """The histogram of one row."""
  empty = histograms.Histogram.empty(1, bins, jnp.float32)
  return functools.reduce(
    lambda h, b: _add(h, b[None], jnp.ones((1, b.size))),
    (jnp.asarray(batch, jnp.float32) for batch in batches),
    empty,
  )


def _edges(h):
  place = np.arange(h.bins + 1)
  return float(h.origin[0]) + place * float(h.width[0])


def test_first_batch_is_an_ordinary_histogram():
  x = np.random.default_rng(0).normal(size=400).astype(np.float32)
  want, edges = np.histogram(x, BINS)
  h = _of(x)
  np.testing.assert_allclose(_edges(h), edges, atol=1e-6)
  assert np.abs(np.asarray(h.counts[0]) - want).max() <= 1  # on an edge
  assert h.counts.sum() == 400


def test_growth_adds_up_pairs():
  one = np.arange(1, 17) + 0.5  # a bin each, but for the last
  h = _of([1.0, 17.0], one)
  np.testing.assert_array_equal(h.counts[0], [2, *(14 * [1]), 2])
  twice = _of([1.0, 17.0], one, [30.0])
  assert (float(twice.origin[0]), float(twice.width[0])) == (1, 2)
  pairs = np.asarray(h.counts[0]).reshape(-1, 2).sum(axis=1)
  np.testing.assert_array_equal(twice.counts[0][:8], pairs)
  assert twice.counts[0][(30 - 1) // 2] == 1
  below = _of([1.0, 17.0], one, [-15.0])
  assert (float(below.origin[0]), float(below.width[0])) == (-15, 2)
  np.testing.assert_array_equal(below.counts[0][8:], pairs)
  far = _of([1.0, 17.0], one, [1000.0])
  assert float(far.width[0]) == 64
  np.testing.assert_array_equal(far.counts[0], [18, *(14 * [0]), 1])


def test_a_free_end_moves_without_merging():
  h = _of([1.0, 17.0], [30.0], [-0.5])
  assert (float(h.origin[0]), float(h.width[0])) == (-1, 2)
  assert h.counts.sum() == 4


@hypothesis.given(
  st.lists(
    st.tuples(st.integers(-20, 20), st.floats(-30, 30), st.integers(1, 30)),
    min_size=1,
    max_size=5,
  ),
  st.integers(0, 2**20),
)
def test_what_always_holds(batches, seed):
  rng = np.random.default_rng(seed)
  data = [
    (2.0**k * (rng.normal(size=32) + shift)).astype(np.float32)
    for k, shift, _ in batches
  ]
  h, x = _of(*data), np.concatenate(data)
  x, width = x[x != 0], float(h.width[0])
  assert h.counts.sum() == x.size
  assert tuple(float(end[0]) for end in h.extremes) == (x.min(), x.max())
  # The bins reach the extremes, and at least half of them lie between.
  slack = 0.51 * width + 1e-6 * np.abs(x).max()
  edges = _edges(h)
  assert edges[0] - slack <= x.min()
  assert x.max() <= edges[-1] + slack
  assert width <= 2.1 * (x.max() - x.min()) / (BINS - 2) + 2e-7 * abs(x).max()
  # Each element is in the bin that it would be in from the start; the two at
  # the ends take what is just outside.
  inside = np.clip(x, edges[0], edges[-1])
  counts = np.histogram(inside, edges)[0].cumsum()
  found = np.asarray(h.counts[0]).cumsum()
  near = np.abs(x[:, None] - edges[None, 1:]) <= slack - 0.5 * width
  assert np.all(np.abs(counts - found) <= near.sum(axis=0) + 2)


def test_zeros_are_apart():
  h = _of(np.zeros(5), [0.0, 0.25, 0.5])
  assert (float(h.zeros[0]), float(h.counts.sum())) == (6, 2)
  rows, weight = h.elements()
  assert (float(rows[0, -1]), float(weight[0, -1])) == (0, 6)
  assert float(rows[0, :-1].min()) >= 0.25


def test_nothing_but_zeros_and_nothing_at_all():
  for h in (_of(), _of(np.zeros(4))):
    rows, weight = h.elements()
    np.testing.assert_array_equal(rows, 0)
    assert weight.sum() == h.zeros.sum()
    assert float(h.width[0]) == 0


def test_one_value_is_kept_and_later_spread():
  rows, weight = _of(np.full(4, 0.7)).elements()
  np.testing.assert_allclose(rows[weight > 0], 0.7, rtol=1e-6)
  rows, weight = _of(np.full(4, 0.7), [-1.0]).elements()
  assert weight.sum() == 5
  np.testing.assert_allclose(rows[weight == 4], 0.7, atol=1.7 / 8)


def test_weights_and_rows_of_their_own():
  x = jnp.array([[1.0, 2.0, 3.0], [-10.0, 20.0, 7.0]])
  weight = jnp.array([[0.5, 0.0, 2.0], [1.0, 1.0, 0.0]])
  h = _add(histograms.Histogram.empty(2, 4, x.dtype), x, weight)
  np.testing.assert_array_equal(h.counts, [[0.5, 0, 0, 2], [1, 0, 0, 1]])
  np.testing.assert_array_equal(h.extremes.hi, [3, 20])


def test_bools_count_exactly():
  found = histograms.counts(jnp.zeros((1, 9)), jnp.ones((1, 9), bool), 2)
  assert found.dtype == jnp.int32
  np.testing.assert_array_equal(found, [[9, 0]])
