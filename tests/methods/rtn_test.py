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


@pytest.mark.parametrize(
  ("values", "step", "codes"),
  [
    ([-1.5, 0.4, 0.75], 0.375, [-4, 1, 2]),
    ([-0.4, 0.4, 1.5], 0.5, [-1, 1, 3]),
    ([0.0, 0.4, 1.5], 0.5, [0, 1, 3]),
    ([0.0, 0.0, 0.0], 1.0, [0, 0, 0]),
  ],
)
def test_a_tight_step_reaches_both_ends(values, step, codes):
  tight = ql.rtn(
    3, symmetric=True, narrow=False, tight=True, estimator=ql.minmax
  )
  q = ql.quantize(tight, jnp.array(values)[:, None])
  assert q.grid.scale.item() == step
  assert q.codes.unpack()[:, 0].tolist() == codes


@pytest.mark.parametrize(
  "wrong", [{}, {"symmetric": True}, {"narrow": False}], ids=str
)
def test_only_wide_symmetric_codes_are_tight(wrong):
  with pytest.raises(ValueError, match="only wide signed symmetric codes"):
    ql.rtn(4, tight=True, **wrong)


def test_sixteen_bits_are_stored_in_as_many():
  w = jnp.linspace(-1, 1, 64).reshape(32, 2)
  q = ql.quantize(ql.rtn(16), w)
  assert ql.nbits(q.codes) == 16 * 64
  np.testing.assert_allclose(q.dequantize(), w, atol=2e-5)


def test_zero_stays_zero_where_symmetric():
  w = jnp.array([[0.0], [0.31], [-2.0]])
  out = ql.dequantize(ql.quantize(ql.rtn(2, symmetric=True), w))
  assert out[0, 0] == 0


@pytest.mark.parametrize("bits", [1, 9])
@pytest.mark.parametrize("method", [ql.rtn, ql.lloyd, ql.easyquant])
def test_refuses_bits_out_of_range(method, bits):
  with pytest.raises(
    ValueError, match=f"2 to 8( or 16)? bits, got bits={bits}"
  ):
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
