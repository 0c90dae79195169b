"""Numbers of EasyQuant: arXiv 2403.02775 and what follows from it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import base
from quantlab.transforms import estimate
from tests import draws

SIGMA = 0.02


@functools.cache
def _weights(channels=64):
  return SIGMA * draws.normal((4096, channels))


@functools.cache
def _result(bits, steps, rate, sigmas=3.0):
  q = ql.easyquant(bits, sigmas=sigmas, steps=steps, learning_rate=rate)
  grid, exact = ql.quantize(q, _weights()).parts
  ranges = grid.grid.scale * (2 ** (bits - 1) - 1)
  w = _weights()
  kept = exact.dequantize() != 0
  error = jnp.where(kept, 0, grid.dequantize() - w) ** 2
  mse = jnp.sum(error) / jnp.sum(~kept) / SIGMA**2
  return float(jnp.mean(ranges)), float(mse)


def test_gradient_golden_vector():
  x = jnp.array([0.1, 0.5, -0.9, 1.3, 3.5])
  spec = base.IntSpec(4, symmetric=True)
  gradient = estimate.range_gradient(x, jnp.array(0.4 * 7), spec)
  assert float(gradient) == pytest.approx(-1.5714286, rel=1e-5)

  def loss(r):
    # jnp.round has derivative 0: the codes are held constant by themselves.
    codes = jnp.clip(jnp.round(x / (r / 7)), -7, 7)
    return jnp.sum((codes * (r / 7) - x) ** 2)

  assert float(loss(2.8)) == pytest.approx(0.53, rel=1e-5)
  assert float(jax.jit(jax.grad(loss))(2.8)) == pytest.approx(-11 / 7, rel=1e-5)


@pytest.mark.parametrize(
  ("rate", "steps", "end", "tolerance"),
  [
    (0.05, 0, 0.0765, 0.001),  # absmax, outliers included
    (0.05, 200, 0.0466, 0.0003),
    (0.005, 200, 0.058, 0.001),
    (0.005, 500, 0.047, 0.001),
  ],
)
def test_trajectory_ends(rate, steps, end, tolerance):
  mean, _ = _result(4, steps, rate)
  assert mean == pytest.approx(end, abs=tolerance)


def test_final_error():
  assert _result(4, 200, 0.05)[1] == pytest.approx(0.0105, rel=0.02)


@pytest.mark.parametrize(
  ("bits", "r", "mse"),
  [(2, 1.21, 0.1784), (3, 1.89, 0.0417), (4, 2.33, 0.0106)],
)
def test_optimal_ranges(bits, r, mse):
  mean, error = _result(bits, 200, 0.05)
  assert mean / SIGMA == pytest.approx(r, abs=0.03)
  assert error == pytest.approx(mse, rel=0.02)


@pytest.mark.parametrize(
  ("bits", "mse"), [(2, 0.648), (3, 0.0832), (4, 0.0153), (8, 4.6e-5)]
)
def test_error_at_three_sigma(bits, mse):
  # The part under 3 sigma on a grid of exactly that range.
  fixed = ql.fit(
    lambda rows, mask, spec: ql.Range(
      jnp.full(rows.shape[:-1], -3 * SIGMA),
      jnp.full(rows.shape[:-1], 3 * SIGMA),
    ),
    base.IntSpec(bits, symmetric=True),
    ql.per_channel(-1),
  )
  w = _weights()
  out = ql.dequantize(ql.quantize(ql.chain(fixed, ql.nearest()), w))
  inside = jnp.abs(w) < 3 * SIGMA
  error = jnp.mean((out - w) ** 2, where=inside) / SIGMA**2
  assert float(error) == pytest.approx(mse, rel=0.02)


def test_better_than_absmax():
  w = _weights(256)
  out = ql.dequantize(ql.quantize(ql.rtn(4, symmetric=True), w))
  absmax = float(jnp.mean((out - w) ** 2)) / SIGMA**2
  assert absmax == pytest.approx(0.0247, rel=0.04)
  assert absmax / _result(4, 200, 0.05)[1] == pytest.approx(2.3, rel=0.05)


@pytest.mark.parametrize(
  ("sigmas", "fraction"), [(1, 0.3173), (2, 0.0455), (2.5, 0.0124), (3, 0.0027)]
)
def test_outlier_fractions(sigmas, fraction):
  w = _weights(256)
  found = float(jnp.mean(ql.beyond(sigmas)(w, jnp.array(True))))
  error = np.sqrt(fraction * (1 - fraction) / w.size)
  assert found == pytest.approx(fraction, abs=4 * error)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_outliers_are_bit_identical_and_the_rest_on_the_grid(dtype):
  w = _weights().astype(dtype)
  q = ql.quantize(ql.easyquant(4, steps=10), w)
  grid, exact = q.parts
  kept = exact.index
  assert exact.values.dtype == dtype
  np.testing.assert_array_equal(q.dequantize().ravel()[kept], w.ravel()[kept])
  assert not grid.dequantize().ravel()[kept].any()
  rest = np.delete(np.asarray(grid.codes.unpack()).ravel(), np.asarray(kept))
  assert rest.min() == -7
  assert rest.max() == 7


def test_no_outliers_and_no_steps_is_absmax_rtn():
  w = _weights()
  easy = ql.quantize(ql.easyquant(4, sigmas=100.0, steps=0), w)
  plain = ql.quantize(ql.rtn(4, symmetric=True), w)
  np.testing.assert_allclose(easy.dequantize(), plain.dequantize(), rtol=1e-6)


def test_scale_of_the_weights_does_not_matter():
  one = ql.quantize(ql.easyquant(4, steps=20), _weights())
  big = ql.quantize(ql.easyquant(4, steps=20), 1024 * _weights())
  np.testing.assert_array_equal(
    1024 * one.parts[0].grid.scale, big.parts[0].grid.scale
  )


def test_by_gradient_refuses_an_asymmetric_spec():
  q = ql.fit(ql.by_gradient(ql.absmax), ql.INT4, ql.per_tensor)
  with pytest.raises(ValueError, match="symmetric spec"):
    ql.quantize(q, jnp.ones((8, 8)))


@pytest.mark.parametrize("sigmas", [-1.0, float("nan")])
def test_refuses_negative_sigmas(sigmas):
  with pytest.raises(ValueError, match="sigmas"):
    ql.easyquant(4, sigmas=sigmas)
