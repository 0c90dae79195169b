import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql


def test_asymmetric_golden_vector():
  w = jnp.array([[-1.0], [-0.6], [0.1], [0.9], [2.0]])
  q = ql.quantize(ql.rtn(2), w)
  assert q.codes.unpack()[:, 0].tolist() == [0, 0, 1, 2, 3]
  np.testing.assert_allclose(q.dequantize()[:, 0], [-1, -1, 0, 1, 2], atol=1e-6)


def test_symmetric_conventions():
  w = jnp.array([[-1.5], [0.4], [0.75]])
  narrow = ql.quantize(ql.rtn(3, symmetric=True), w)
  assert narrow.codes.unpack()[:, 0].tolist() == [-3, 1, 2]  # step 0.5
  full = ql.quantize(ql.rtn(3, symmetric=True, narrow=False), w)
  assert full.codes.unpack()[:, 0].tolist() == [-4, 1, 2]  # step 1.5 / 3.5


def test_zero_stays_zero_where_symmetric():
  w = jnp.array([[0.0], [0.31], [-2.0]])
  out = ql.dequantize(ql.quantize(ql.rtn(2, symmetric=True), w))
  assert out[0, 0] == 0


@pytest.mark.parametrize("bits", [1, 9])
@pytest.mark.parametrize("method", [ql.rtn, ql.lloyd, ql.easyquant])
def test_refuses_bits_out_of_range(method, bits):
  with pytest.raises(ValueError, match=f"2 to 8 bits, got bits={bits}"):
    method(bits)


def test_an_observer_takes_the_range_of_earlier_tensors():
  quantizer = ql.rtn(8, granularity=ql.per_tensor, observer=ql.extremes())
  x = jnp.linspace(-1, 2, 40).reshape(4, 10)
  state = quantizer.init(x)
  first, stats = quantizer.apply(x, state)
  later, _ = quantizer.apply(3 * x, state._replace(stats=stats))
  np.testing.assert_allclose(first.dequantize(), x, atol=1.5 / 255 + 1e-6)
  clipped = jnp.clip(3 * x, -1, 2)
  np.testing.assert_allclose(later.dequantize(), clipped, atol=1.5 / 255 + 1e-6)


def test_refuses_an_estimator_beside_an_observer():
  with pytest.raises(ValueError, match="an estimator or an observer, not both"):
    ql.rtn(8, estimator=ql.mse, observer=ql.ema())
