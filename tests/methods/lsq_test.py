"""Starts, steps and configurations of LSQ and LSQ+."""

import functools
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.methods import lsq
from tests import draws

NORMAL = statistics.NormalDist()


@functools.cache
def _quantiles(count=50_000):
  """Points of equal probability of a normal density, as one column."""
  at = (np.arange(count) + 0.5) / count
  x = np.array([NORMAL.inv_cdf(p) for p in at])
  return x[:, None]


@functools.cache
def _swish():
  z = _quantiles()
  return jnp.asarray(z / (1 + np.exp(-z)), jnp.float32)


@functools.cache
def _normal():
  return jnp.asarray(_quantiles(), jnp.float32)


def _start(quantizer, x):
  """The learned numbers before training, and the error they make."""
  (learned, _), _ = jax.jit(quantizer.init)(x)
  out = ql.dequantize(ql.quantize(quantizer, x))
  error = float(np.mean((np.asarray(out) - np.asarray(x)) ** 2))
  return {k: v.item() for k, v in learned.values.items()}, error


@pytest.mark.parametrize(
  ("bits", "start", "step", "error"),
  [
    (2, None, 1.5958, 0.22099),
    (4, None, 0.60314, 0.03032),
    (2, ql.three_sigma, 1.5, 0.20030),
    (4, ql.three_sigma, 0.375, 0.01264),
  ],
)
def test_starts_of_gaussian_weights(bits, start, step, error):
  found, measured = _start(ql.lsq(bits, start=start), _normal())
  assert found["scale"] == pytest.approx(step, rel=2e-3)
  assert measured == pytest.approx(error, rel=2e-3)


@pytest.mark.parametrize(
  ("bits", "best"), [(2, (1.0484, 0.14943)), (4, (0.33861, 0.01186))]
)
def test_least_squares_start_is_the_optimum(bits, best):
  start = ql.mse(candidates=400, smallest=0.1)
  found, measured = _start(ql.lsq(bits, start=start), _normal())
  assert found["scale"] == pytest.approx(best[0], rel=0.03)
  assert measured == pytest.approx(best[1], rel=0.01)


# Configuration to its least error at 3 and 4 bits.
SWISH = {
  (False, False): (0.02768, 0.02356),
  (True, False): (0.04117, 0.00933),
  (False, True): (0.009545, 0.003021),
  (True, True): (0.009545, 0.003021),
}


@pytest.mark.parametrize(
  ("signed", "offset"),
  [
    (False, False),
    (True, False),
    (False, True),
    pytest.param(True, True, marks=pytest.mark.study),  # the same range
  ],
)
@pytest.mark.parametrize("bits", [3, pytest.param(4, marks=pytest.mark.study)])
def test_starts_of_swish(signed, offset, bits):
  start = None if offset else ql.mse(candidates=400, smallest=0.05)
  quantizer = ql.lsq_plus(bits, signed=signed, offset=offset, start=start)
  found, measured = _start(quantizer, _swish())
  assert measured == pytest.approx(SWISH[signed, offset][bits - 3], rel=0.03)
  if offset:
    step, lowest = {3: (0.3460, -0.2189), 4: (0.1923, -0.2459)}[bits]
    offset_of_lowest = found["offset"] - signed * 2 ** (bits - 1) * step
    assert found["scale"] == pytest.approx(step, rel=0.03)
    assert offset_of_lowest == pytest.approx(lowest, abs=0.02)


def test_the_start_is_found_with_a_one_sided_outlier():
  # Shrinking both ends together cannot cut it off.
  x = np.array(draws.normal((2000, 1)))
  x[0] = 40.0
  x = jnp.asarray(x)
  both, apart = (
    _start(ql.lsq_plus(4, start=start), x)[1]
    for start in (ql.mse, ql.mse_ends())
  )
  _, plain = _start(ql.lsq_plus(4, start=ql.minmax), x)
  assert apart < both <= plain


@pytest.mark.parametrize(
  "bits", [2, pytest.param(3, marks=pytest.mark.study), 8]
)
def test_ends_are_never_worse_than_the_extremes(bits):
  x = jnp.concatenate([draws.student_t((200, 5), 2.0), draws.normal((200, 5))])
  errors = []
  for estimator in (ql.mse_ends(), ql.minmax):
    fitted = ql.fit(estimator, ql.IntSpec(bits), ql.per_output)
    out = ql.dequantize(ql.quantize(ql.chain(fitted, ql.nearest()), x))
    errors.append(np.mean((np.asarray(out) - np.asarray(x)) ** 2, axis=0))
  assert np.all(errors[0] <= errors[1] * (1 + 1e-6))


def test_the_gradient_is_balanced_over_bits():
  # Relative size of the step's gradient over that of the weights', averaged
  # over gradients that come from above.
  w = 0.05 * np.asarray(draws.normal((36_864, 1)))
  expected = {
    None: {2: 36.7, 3: 55.4, 4: 73.6, 8: 312.0},
    lsq.balanced: {2: 0.191, 3: 0.167, 4: 0.145, 8: 0.144},
  }
  above = np.random.default_rng(1).standard_normal((500, w.size))
  for scale, ratios in expected.items():
    for bits, ratio in ratios.items():
      quantizer = ql.lsq(bits, gradient_scale=scale or (lambda n, spec: 1.0))
      found = _ratio(quantizer, w, above)
      assert found == pytest.approx(ratio, rel=0.12)


def _ratio(quantizer, w, above):
  state = jax.jit(quantizer.init)(jnp.asarray(w))
  learned = state.learned

  def out(step):
    (numbers, rest) = learned
    moved = jax.tree.map(lambda _: step, numbers)
    q, _ = quantizer.apply(jnp.asarray(w), ql.State((moved, rest), state.stats))
    return q.dequantize()

  step = learned[0].values["scale"]
  _, slope = jax.jit(lambda step: jax.jvp(out, (step,), (step / step,)))(step)
  slope, step = np.asarray(slope).ravel(), float(step.item())
  high, low = (2 ** (learned[0].spec.bits - 1) - i for i in (1, 0))
  inside = (w.ravel() / step > -low) & (w.ravel() / step < high)
  of_step = np.abs(above @ slope) / step
  of_weights = np.linalg.norm(above * inside, axis=1) / np.linalg.norm(w)
  return float(np.mean(of_step / of_weights))


@pytest.mark.parametrize(
  "bits", [2, *(pytest.param(n, marks=pytest.mark.study) for n in (4, 8))]
)
@pytest.mark.parametrize("method", [ql.lsq, ql.lsq_plus])
def test_codes_fill_their_range(method, bits):
  x = draws.student_t((400, 6), 3.0)
  for signed in (True, False):
    q = ql.quantize(method(bits, signed=signed), jnp.abs(x))
    assert q.codes.bits == bits
    lo, hi = q.grid.bounds
    assert hi - lo == 2**bits - 1
    assert lo == -signed * 2 ** (bits - 1)


def test_weights_have_no_zero_point_to_store():
  w = draws.normal((64, 8))
  q = ql.quantize(ql.lsq(4, start=ql.three_sigma), w)
  assert ql.nbits(q) == 4 * 64 * 8 + 32 + 8
  rows = ql.quantize(ql.lsq(4, granularity=ql.per_output), w)
  assert ql.nbits(rows) == 4 * 64 * 8 + 8 * 32 + 8


def test_a_channel_of_zeros_stays_zero():
  w = np.array(draws.normal((64, 3)))
  w[:, 1] = 0.0
  for start in (None, ql.three_sigma):
    quantizer = ql.lsq(4, granularity=ql.per_output, start=start)
    out = np.asarray(ql.dequantize(ql.quantize(quantizer, jnp.asarray(w))))
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out[:, 1], 0)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: ql.lsq(1), "lsq takes 2 to 8 bits where signed=True, got bits=1"),
    (lambda: ql.lsq(9, signed=False), "lsq takes 1 to 8 bits"),
    (lambda: ql.lsq_plus(1), "lsq_plus takes 2 to 8 bits"),
  ],
)
def test_refuses_bits(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_the_factor_is_the_papers():
  spec = ql.IntSpec(4, symmetric=True, narrow=False)
  assert lsq.balanced(100, spec) == pytest.approx(1 / math.sqrt(100 * 7))
