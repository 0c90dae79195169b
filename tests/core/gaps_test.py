import itertools
import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import gaps

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
