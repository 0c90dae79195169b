"""Range estimators: weights, closed forms, and every kind of tensor."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import base, numerics
from quantlab.transforms import divergence, estimate
from tests import draws

INT4 = base.IntSpec(4, symmetric=True)
SPECS = {
  "symmetric": INT4,
  "asymmetric": ql.INT4,
  "exact_zero": base.IntSpec(4, signed=False, exact_zero=True),
}
ESTIMATORS = {
  "minmax": estimate.minmax,
  "absmax": estimate.absmax,
  "percentile": estimate.percentile(95.0),
  "mse": estimate.mse,
  "mse_golden": estimate.mse_golden(),
  "mse_ends": estimate.mse_ends(),
  "cosine": estimate.cosine(),
  "by_gradient": estimate.by_gradient(estimate.absmax, steps=150),
  "kl": divergence.kl(bins=256),
  "kl_improved": divergence.kl_improved(bins=256),
}
ALL = pytest.mark.parametrize("name", ESTIMATORS)


@functools.cache
def _rows(dist="normal", shape=(6, 500), seed=0):
  rng = np.random.default_rng(seed)
  kinds = {
    "normal": rng.standard_normal,
    "laplace": functools.partial(rng.laplace, 0, 1),
    "uniform": rng.random,
    "t": functools.partial(rng.standard_t, 3.0),
  }
  return jnp.asarray(kinds[dist](size=shape), jnp.float32)


@functools.cache
def _program(name, spec):
  return jax.jit(functools.partial(ESTIMATORS[name], spec=spec))


def _run(name, rows, weight, spec=INT4):
  range_ = _program(name, spec)(rows, weight)
  assert [end.shape for end in range_] == 2 * [rows.shape[:1]]
  return np.stack(range_)


def _padded(rows):
  """To the shape that the other tests have compiled, with zeros."""
  rows = np.asarray(rows, np.float32)
  return jnp.asarray(np.pad(rows, ((0, 0), (0, 500 - rows.shape[1]))))


@ALL
def test_a_weight_counts_like_repetitions(name):
  rows = np.asarray(_rows(shape=(6, 60)))
  times = np.tile([1, 3, 2, 1, 5], 12)
  repeated = np.repeat(rows, times, axis=1)
  want = _run(name, _padded(repeated), _padded(np.ones(repeated.shape)))
  weight = _padded(np.broadcast_to(times, rows.shape))
  # Ranges that give the same codes have the same cosine: a tie.
  rtol = 0.05 if name == "cosine" else 1e-4
  np.testing.assert_allclose(_run(name, _padded(rows), weight), want, rtol=rtol)


@ALL
def test_bool_and_float_weights_agree(name):
  rows = _rows(seed=2)
  mask = jnp.abs(rows) < 2
  flags, ones = (_run(name, rows, w) for w in (mask, mask.astype(rows.dtype)))
  np.testing.assert_allclose(flags, ones, rtol=1e-5)


@ALL
def test_what_has_no_weight_is_not_covered(name):
  rows = _rows(seed=2)
  mask = jnp.abs(rows) < 2
  other = jnp.where(mask, rows, 1.5 * rows)
  want = _run(name, rows, mask)
  if name == "by_gradient":  # starts from the whole row, and ends alike
    np.testing.assert_allclose(_run(name, other, mask), want, rtol=0.02)
  else:
    np.testing.assert_array_equal(_run(name, other, mask), want)
  assert np.max(np.abs(want)) <= 2


@ALL
@pytest.mark.parametrize("kind", [bool, float])
def test_a_row_without_weight(name, kind):
  rows = _rows()
  weight = jnp.ones(rows.shape, kind).at[2].set(kind(0))
  found = _run(name, rows, weight)
  assert np.isfinite(found).all()
  if name != "by_gradient":  # stays where it starts
    np.testing.assert_array_equal(found[:, 2], 0)
  want = _run(name, rows, jnp.ones(rows.shape, kind))
  others = [0, 1, 3, 4, 5]
  np.testing.assert_allclose(found[:, others], want[:, others], rtol=1e-5)


@ALL
def test_the_unit_of_weights_does_not_matter(name):
  rows = _rows()
  weight = 0.1 + _rows("uniform", seed=1)
  tiny = _run(name, rows, weight * 1e-30)
  np.testing.assert_allclose(tiny, _run(name, rows, weight * 1e-3), rtol=1e-4)


@ALL
@pytest.mark.parametrize("value", [0.0, -1.5])
def test_a_constant_row(name, value):
  rows = jnp.full((6, 500), value, jnp.float32)
  lo, hi = _run(name, rows, jnp.ones(rows.shape, bool))
  absmax = np.maximum(np.abs(lo), np.abs(hi))
  np.testing.assert_allclose(absmax, abs(value), rtol=0.2, atol=1e-6)


@hypothesis.given(
  st.integers(1, 40), st.floats(0.5, 100), st.integers(0, 2**20)
)
def test_percentile_of_bools_is_nanpercentile(size, p, seed):
  rng = np.random.default_rng(seed)
  rows = rng.normal(size=(3, 40)).astype(np.float32).round(1)
  mask = rng.permuted(np.arange(40) < size)[None].repeat(3, 0)
  found = estimate.percentile(p)(jnp.asarray(rows), jnp.asarray(mask), INT4)
  cut = (100 - p) / 2
  want = np.nanpercentile(np.where(mask, rows, np.nan), [cut, 100 - cut], 1)
  np.testing.assert_allclose(np.stack(found), want, rtol=1e-4, atol=1e-5)


@hypothesis.given(
  st.lists(st.integers(0, 6), min_size=12, max_size=12).filter(any),
  st.floats(0.5, 100),
)
def test_percentile_of_counts_is_that_of_repetitions(times, p):
  row = np.linspace(-1, 1, 12) ** 3
  weight = jnp.asarray(times, jnp.float32)[None]
  found = estimate.percentile(p)(jnp.asarray(row[None]), weight, INT4)
  cut = (100 - p) / 2
  want = np.percentile(np.repeat(row, times), [cut, 100 - cut])
  np.testing.assert_allclose(np.stack(found)[:, 0], want, atol=1e-5)


@pytest.mark.parametrize("p", [0, -1, 100.5, float("nan")])
def test_percentile_refuses(p):
  with pytest.raises(ValueError, match=r"\(0, 100\] percent"):
    estimate.percentile(p)


@functools.cache
def _gaussian():
  """The density itself, as weighted elements."""
  x = jnp.linspace(-8, 8, 16_001)
  return x[None], jnp.exp(-(x**2) / 2)[None]


def _error(rows, weight, range_, spec):
  ends = base.Range(*(end[:, None] for end in range_))
  scale, zero = numerics.affine_from_range(ends, spec, rows.dtype)
  codes = jnp.clip(jnp.round(rows / scale + zero), spec.lo, spec.hi)
  square = weight * ((codes - zero) * scale - rows) ** 2
  return np.asarray(jnp.sum(square, axis=1) / jnp.sum(weight, axis=1))


@pytest.mark.parametrize(
  ("bits", "best", "error"),
  [(2, 1.225, 0.1902), (3, 1.95, 0.0469), (4, 2.47, 0.0129), (8, 3.92, 8.8e-5)],
)
@pytest.mark.parametrize(
  "estimator",
  [
    estimate.mse(candidates=400, smallest=0.05),
    estimate.mse_golden(),
    estimate.by_gradient(estimate.absmax, steps=300),
  ],
  ids=["grid", "golden", "gradient"],
)
def test_optimal_ranges_of_a_gaussian(estimator, bits, best, error):
  x, density = _gaussian()
  spec = base.IntSpec(bits, symmetric=True)
  range_ = estimator(x, density, spec)
  # The error is flat there: steps of Adam wander about the best range.
  assert float(range_.hi[0]) == pytest.approx(best, rel=0.02)
  found = _error(x, density, range_, spec)[0]
  assert found == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("dist", ["normal", "laplace", "uniform", "t"])
@pytest.mark.parametrize("kind", SPECS)
def test_golden_section_is_as_good_as_the_grid(dist, kind):
  rows, spec = _rows(dist, (16, 2000)), SPECS[kind]
  weight = jnp.ones(rows.shape)
  grid, golden, minmax = (
    _error(rows, weight, _run(name, rows, weight, spec), spec)
    for name in ("mse", "mse_golden", "minmax")
  )
  assert np.all(golden <= 1.02 * grid)
  assert np.all(golden <= minmax)
  assert np.mean(grid) <= np.mean(minmax)


def test_mse_weighs_the_errors():
  rows = jnp.array([[0.03, 0.11, 0.26, 0.38, 0.52, 10.0]])
  weight = jnp.array([[1.0, 1, 1, 1, 1, 0.0]])
  for heavy in (1e-6, 1e6):
    range_ = estimate.mse(rows, weight.at[0, -1].set(heavy), INT4)
    cut = float(range_.hi[0]) < 5
    assert cut == (heavy < 1)


@pytest.mark.parametrize("smallest", [0, 1, -1])
def test_golden_refuses(smallest):
  with pytest.raises(ValueError, match=r"in \(0, 1\)"):
    estimate.mse_golden(smallest=smallest)


GRANULARITIES = {
  "tensor": (ql.per_tensor, (1, 1)),
  "channel": (ql.per_channel(-1), (1, 24)),
  "block": (ql.per_block(0, 64), (3, 24)),
}
TENSORS = {
  "weights": draws.student_t((192, 24), 5.0, 2),
  "activations": jax.nn.relu(draws.normal((192, 24))),
}


# Rows are rows to an estimator: each sees one of the three kinds of them.
CELLS = [
  pytest.param(
    *(name, granularity, tensor),
    marks=[pytest.mark.study] * (tensor == "activations" or i % 3 != j),
  )
  for i, name in enumerate(ESTIMATORS)
  for j, granularity in enumerate(GRANULARITIES)
  for tensor in TENSORS
]


@pytest.mark.parametrize(("name", "granularity", "tensor"), CELLS)
def test_on_every_tensor_and_granularity(name, granularity, tensor):
  x = TENSORS[tensor]
  cells, shape = GRANULARITIES[granularity]
  spec = base.IntSpec(6, symmetric=True)
  q = ql.chain(ql.fit(ESTIMATORS[name], spec, cells), ql.nearest())
  out = ql.quantize(q, x)
  assert out.grid.scale.shape == shape
  error, x = np.asarray(out.dequantize()) - x, np.asarray(x)
  sqnr = 10 * np.log10(np.mean(x**2) / np.mean(error**2))
  assert sqnr > 12


def test_a_fixed_range_sees_nothing_of_the_rows():
  rows = draws.normal((3, 4))
  range_ = estimate.fixed(-1, 0.5)(rows, jnp.ones((3, 4), bool), ql.INT4)
  assert range_.lo.tolist() == [-1] * 3
  assert range_.hi.tolist() == [0.5] * 3
  with pytest.raises(ValueError, match="needs lo < hi, got lo=2 and hi=2"):
    estimate.fixed(2, 2)
