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
