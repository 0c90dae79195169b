import functools
import itertools
import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import gaps
from tests import draws

# ICQuant: index-code golden vectors, flag = 0.
GOLDEN = [
  (6, [0], [1]),
  (6, [62], [63]),
  (6, [63], [0, 1]),
  (6, [125], [0, 63]),
  (6, [126], [0, 0, 1]),
  (6, [4095], [0] * 65 + [1]),
  (5, [30], [31]),
  (5, [31], [0, 1]),
  (5, [0, 31, 62, 63, 200], [1, 31, 31, 1, 0, 0, 0, 0, 13]),
  (3, [0, 7, 14, 15, 29], [1, 7, 7, 1, 0, 7]),
  (2, [0, 3, 4, 10], [1, 3, 1, 0, 3]),
  (1, [3], [0, 0, 0, 1]),
]


@pytest.mark.parametrize(("bits", "columns", "symbols"), GOLDEN)
def test_golden_vectors(bits, columns, symbols):
  stream = gaps.encode(jnp.array([columns]), 4096, bits)
  assert stream[: len(symbols)].tolist() == symbols
  assert not stream[len(symbols) :].any()
  back = gaps.decode(jnp.array(symbols, jnp.uint8), 1, len(columns), bits)
  assert back.tolist() == [columns]


@hypothesis.given(
  bits=st.integers(1, 8),
  dim=st.integers(1, 300),
  rows=st.integers(1, 5),
  data=st.data(),
)
def test_roundtrip(bits, dim, rows, data):
  marks = data.draw(st.integers(0, dim))
  rng = np.random.default_rng(data.draw(st.integers(0, 99)))
  positions = np.array(
    [np.sort(rng.permutation(dim)[:marks]) for _ in range(rows)], np.int32
  ).reshape(rows, marks)
  stream = gaps.encode(jnp.asarray(positions), dim, bits)
  assert stream.size == rows * gaps.capacity(dim, marks, bits)
  back = gaps.decode(stream, rows, marks, bits)
  np.testing.assert_array_equal(back, positions)


@pytest.mark.parametrize("columns", [[], [0], [299], list(range(300))])
def test_roundtrip_of_extremes(columns):
  positions = jnp.array([columns, columns], jnp.int32).reshape(2, -1)
  stream = gaps.encode(positions, 300, 3)
  back = gaps.decode(stream, 2, len(columns), 3)
  np.testing.assert_array_equal(back, positions)


@pytest.mark.parametrize(
  ("dim", "marks", "bits", "expected"),
  [
    (8, 2, 2, 39 / 56),
    (10, 3, 2, 0.795),
    (12, 2, 3, 19 / 33),
    (6, 6, 2, 2.0),
  ],
)
def test_exact_overhead_equals_enumeration(dim, marks, bits, expected):
  reach = 2**bits - 1
  total = 0
  for columns in itertools.combinations(range(dim), marks):
    steps = np.diff([-1, *columns])
    total += bits * sum((g - 1) // reach + 1 for g in steps)
  mean = total / math.comb(dim, marks) / dim
  exact = gaps.expected_bits(marks / dim, bits, dim)
  assert exact == pytest.approx(mean, abs=1e-12)
  assert exact == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
  ("ratio", "bits", "bound", "exact"),
  [
    (0.01, 8, 0.0868, 0.0861),
    (0.02, 7, 0.1520, 0.1512),
    (0.04, 6, 0.2610, 0.2596),
    (0.05, 6, 0.3134, 0.3123),
    (0.0825, 5, 0.4472, 0.4429),
    (0.10, 4, 0.5149, 0.5034),
  ],
)
def test_best_symbol_width_and_its_cost(ratio, bits, bound, exact):
  assert gaps.best_bits(ratio) == bits
  assert gaps.expected_bits(ratio, bits) == pytest.approx(bound, abs=1e-4)
  assert gaps.expected_bits(ratio, bits, 4096) == pytest.approx(exact, abs=1e-4)


def test_bound_holds_at_the_rounded_ratio():
  for bits, ratio in itertools.product(range(3, 9), (0.01, 0.05, 0.0825)):
    marks = gaps.num_marks(ratio, 4096)
    exact = gaps.expected_bits(ratio, bits, 4096)
    assert exact <= gaps.expected_bits(marks / 4096, bits)


def _drawn(key, rows, dim, marks, weight=None):
  """Positions of `marks` of `dim` columns per row, without replacement."""
  noise = jax.random.gumbel(key, (rows, dim))
  noise = noise if weight is None else noise + jnp.log(weight)[None]
  return jnp.sort(jax.lax.top_k(noise, marks)[1], axis=1)


def _mean_bits(positions, dim, bits):
  steps = jnp.diff(positions, axis=1, prepend=-1)
  symbols = jnp.sum((steps - 1) // (2**bits - 1) + 1, axis=1)
  return float(jnp.mean(symbols)) * bits / dim


def test_simulated_overhead():
  positions = _drawn(jax.random.key(0), 1000, 4096, 205)
  exact = gaps.expected_bits(0.05, 6, 4096)
  assert _mean_bits(positions, 4096, 6) == pytest.approx(exact, rel=3e-3)


def test_clustered_positions_cost_more_until_permuted():
  weight = jnp.ones(4096).at[:205].set(20.0)
  positions = _drawn(jax.random.key(1), 400, 4096, 205, weight)
  assert _mean_bits(positions, 4096, 6) == pytest.approx(0.330, abs=2e-3)
  order = jax.random.permutation(jax.random.key(2), 4096)
  spread = jnp.sort(order[positions], axis=1)
  assert _mean_bits(spread, 4096, 6) == pytest.approx(0.3125, abs=2e-3)


def test_damaged_stream_decodes_without_error():
  stream = gaps.encode(jnp.array([[3, 9], [0, 5]]), 16, 3)
  for i in range(stream.size):
    positions = gaps.decode(stream.at[i].add(1), 2, 2, 3)
    assert positions.shape == (2, 2)


@pytest.mark.parametrize("bits", [0, 9])
def test_refuses_other_widths(bits):
  with pytest.raises(ValueError, match=f"bits={bits}"):
    gaps.encode(jnp.array([[1]]), 8, bits)


def test_shuffle_is_one_fixed_permutation():
  # Checkpoints hold shuffled positions: this order can never change.
  golden = [0, 86, 124, 170, 258, 289, 333, 487, 726, 766]
  assert gaps.shuffle(jnp.arange(10), 1000).tolist() == golden
  every = np.ravel(gaps.shuffle(jnp.arange(300)[:, None], 300))
  assert sorted(every) == list(range(300))
  assert np.mean(np.abs(every - np.arange(300))) > 75  # far apart


@functools.partial(jax.jit, static_argnums=1)
def _there_and_back(positions, dim):
  moved = gaps.shuffle(positions, dim)
  return moved, jnp.sort(gaps.unshuffle(moved, dim), axis=-1)


@hypothesis.given(dim=st.integers(1, 300), data=st.data())
def test_unshuffle_is_the_inverse(dim, data):
  marks = data.draw(st.integers(0, dim))
  rng = np.random.default_rng(data.draw(st.integers(0, 99)))
  positions = np.array(
    [np.sort(rng.permutation(dim)[:marks]) for _ in range(3)], np.int32
  ).reshape(3, marks)
  moved, back = _there_and_back(positions, dim)
  assert np.all(np.diff(moved, axis=1) > 0)
  assert np.all((moved >= 0) & (moved < dim))
  np.testing.assert_array_equal(back, positions)


def test_unshuffle_leaves_damaged_positions_outside():
  at = jnp.array([-9, -1, 3, 16, 2**30])
  out = gaps.unshuffle(at, 16)
  assert out[jnp.array([0, 1, 3, 4])].tolist() == [-9, -1, 16, 2**30]
  assert 0 <= out[2] < 16


def _with_counts(counts, dim):
  """Positions with given counts in the groups of columns."""
  starts = np.flatnonzero(np.diff(np.arange(dim) * 16 // dim, prepend=-1))
  rows = [
    np.concatenate([s + np.arange(n) for s, n in zip(starts, row, strict=True)])
    for row in counts
  ]
  return np.array(rows, np.int32)


def test_chi_square_golden_vector():
  # 32 columns in 16 pairs, 16 marks: one is expected in each.
  at = _with_counts([[2, 0] + [1] * 14, [1] * 16, [2, 0] * 8], 32)
  found = gaps.chi_square(jnp.asarray(at), 32)
  np.testing.assert_allclose(found, np.array([2, 0, 16]) * 31 / 16, rtol=1e-6)


@pytest.mark.parametrize("dim", [4096, 1000, 33])
def test_mean_of_chi_square_is_its_freedom(dim):
  rng = np.random.default_rng(0)
  sizes = np.bincount(np.arange(dim) * 16 // dim)
  counts = rng.multivariate_hypergeometric(sizes, dim // 5, 4000)
  found = gaps.chi_square(jnp.asarray(_with_counts(counts, dim)), dim)
  error = float(jnp.std(found)) / 4000**0.5
  assert float(jnp.mean(found)) == pytest.approx(15, abs=4 * error)


def test_level_of_the_uniformity_test():
  # The 95 % point of chi-square with 15 degrees of freedom.
  critical, dim, marks = 24.996, 4096, 205
  rng = np.random.default_rng(1)
  counts = rng.multivariate_hypergeometric([256] * 16, marks, 20000)
  found = gaps.chi_square(jnp.asarray(_with_counts(counts, dim)), dim)
  plain = found * (dim - marks) / (dim - 1)
  assert 0.029 <= float(jnp.mean(plain > critical)) <= 0.040
  # Of 20 000 rows: four standard errors.
  assert float(jnp.mean(found > critical)) == pytest.approx(0.05, abs=0.0062)


@pytest.mark.parametrize(
  ("dim", "marks", "rows", "most"),
  [(4096, 205, 1, 0.02), (1024, 80, 16, 0.02), (96, 13, 20, 0.02)],
)
def test_uniform_positions_are_seldom_called_uneven(dim, marks, rows, most):
  rng = np.random.default_rng(2)
  sizes = np.bincount(np.arange(dim) * 16 // dim)
  counts = rng.multivariate_hypergeometric(sizes, marks, (1000 * rows))
  at = jnp.asarray(_with_counts(counts, dim)).reshape(1000, rows, marks)
  found = np.asarray(jax.jit(jax.vmap(lambda p: gaps.uneven(p, dim)))(at))
  assert found.dtype == bool
  # A level of 1 %, and four standard errors of 1000 draws.
  assert np.mean(found) < 0.01 + 4 * 0.0032
  assert most == 0.02


_uneven = jax.jit(gaps.uneven, static_argnums=1)


def test_clumped_positions_are_called_uneven():
  weight = jnp.ones(4096).at[:205].set(20.0)
  positions = _drawn(jax.random.key(1), 8, 4096, 205, weight)
  assert _uneven(positions, 4096)
  assert not _uneven(gaps.shuffle(positions, 4096), 4096)
  # Each row alone would hardly tell, together they do.
  weight = jnp.ones(4096).at[:256].set(1.4)
  positions = _drawn(jax.random.key(1), 256, 4096, 205, weight)
  alone = [bool(_uneven(row[None], 4096)) for row in positions[:16]]
  assert _uneven(positions, 4096)
  assert np.mean(alone) < 0.5


@pytest.mark.parametrize(
  ("dim", "marks"), [(4096, 0), (64, 64), (31, 5), (1, 1), (2, 1)]
)
def test_nothing_to_test_is_not_uneven(dim, marks):
  positions = jnp.broadcast_to(jnp.arange(marks), (3, marks))
  assert not _uneven(positions, dim)


def test_the_fixed_permutation_restores_the_cost():
  weight = jnp.ones(4096).at[:205].set(20.0)
  positions = _drawn(jax.random.key(1), 400, 4096, 205, weight)
  assert _mean_bits(positions, 4096, 6) == pytest.approx(0.330, abs=2e-3)
  spread = gaps.shuffle(positions, 4096)
  assert _mean_bits(spread, 4096, 6) == pytest.approx(0.3125, abs=2e-3)


def test_best_bits_of_a_row_is_the_cheapest():
  for ratio, dim in itertools.product((0.02, 0.1, 0.3), (96, 1024)):
    best = gaps.best_bits(ratio, dim)
    cost = [gaps.expected_bits(ratio, bits, dim) for bits in range(1, 9)]
    assert cost[best - 1] == min(cost)


@pytest.mark.parametrize("dim", [1024, 4096, 16384])
def test_best_ratio_is_within_the_papers_settings(dim):
  assert 0.05 <= gaps.best_ratio(dim) <= 0.0825


def _bits_saved(w, ratio, bits):
  """Bits that a ratio saves on the rows of w, its own cost taken off."""

  def error(quantizer):
    out = ql.dequantize(ql.quantize(quantizer, w))
    return float(np.mean((np.asarray(out) - np.asarray(w)) ** 2))

  ours = error(ql.icquant(ql.rtn(bits), ratio=ratio, shuffle=False))
  gain = math.log2(error(ql.rtn(bits)) / ours) / 2
  width = gaps.best_bits(ratio)
  return gain - gaps.expected_bits(ratio, width, w.shape[0])


@pytest.mark.study
def test_best_ratio_is_best_on_gaussian_rows():
  w = draws.normal((2048, 64))
  best = gaps.best_ratio(2048)
  saved = {
    ratio: _bits_saved(w, ratio, 4)
    for ratio in (best / 3, best / 1.6, best, best * 1.6, best * 3)
  }
  # Flat around the optimum.
  assert saved[best] > max(saved.values()) - 0.02
  assert saved[best] > saved[best / 3] + 0.02
  assert saved[best] > saved[best * 3] + 0.02


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 16, 40])
def test_short_rows_have_a_ratio_too(dim):
  ratio = gaps.best_ratio(dim)
  assert 0 < ratio <= 0.3
  assert 0 <= gaps.num_marks(ratio, dim) <= dim
