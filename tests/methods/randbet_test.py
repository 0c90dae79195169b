"""Goldens and closed forms of RQuant, and the projection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import base, flips, grids
from quantlab.methods import randbet
from tests import draws

W = np.array([-0.5, -0.21, 0.02, 0.13, 0.33, 0.7], np.float32)

# Bits and rounding to codes and values.
CLEAN = {
  (8, True): (
    [1, 62, 111, 134, 177, 255],
    [-0.5, -0.212123, 0.019605, 0.128375, 0.331728, 0.7],
  ),
  (8, False): (
    [1, 62, 111, 134, 176, 254],
    [-0.5, -0.212123, 0.019605, 0.128375, 0.326998, 0.695871],
  ),
  (4, True): (
    [1, 4, 7, 8, 11, 15],
    [-0.5, -0.2432, 0.0142, 0.1, 0.3574, 0.7],
  ),
  (4, False): (
    [1, 4, 7, 8, 10, 14],
    [-0.5, -0.2432, 0.0142, 0.1, 0.2716, 0.6148],
  ),
}

# Bits and mask to values.
FLIPPED = {
  (8, 128): [0.104729, 0.393206, 0.624934, -0.476954, -0.273602, 0.095271],
  (8, 1): [-0.5, -0.207394, 0.014876, 0.133104, 0.326998, 0.695871],
  (4, 8): [0.1858, 0.4432, 0.7, -0.5, -0.329, 0.0142],
  (4, 1): [-0.5, -0.1574, -0.0716, 0.1858, 0.2716, 0.6148],
}


@jax.jit
def _decoded(grid, codes):
  return grid.decode(codes.astype(jnp.float32))


@pytest.mark.parametrize(("bits", "rounding"), CLEAN)
def test_goldens(bits, rounding):
  codes, values = CLEAN[bits, rounding]
  q = ql.quantize(randbet.rquant(bits, rounding=rounding), jnp.asarray(W))
  np.testing.assert_array_equal(q.codes.unpack(), codes)
  np.testing.assert_allclose(q.dequantize(), values, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("bits", "mask"), FLIPPED)
def test_goldens_of_flipped_codes(bits, mask):
  q = ql.quantize(randbet.rquant(bits), jnp.asarray(W))
  found = _decoded(q.grid, q.codes.unpack() ^ mask)
  np.testing.assert_allclose(found, FLIPPED[bits, mask], rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_every_code_decodes_into_the_range(bits, signed):
  lo, hi = jnp.array([[-0.3]]), jnp.array([[1.7]])
  spec = base.IntSpec(bits, signed=signed)
  grid = grids.Bounded(lo, hi, spec)
  codes = jnp.arange(spec.lo, spec.hi + 1).reshape(-1, 1)
  values = np.asarray(_decoded(grid, codes))
  assert values.min() == lo
  assert values.max() == hi
  steps = np.diff(values[:, 0])
  step = 1.001 * 2.0 / (2**bits - 2)
  np.testing.assert_allclose(grid.scale, [[step]], rtol=1e-6)
  # The unused code and the first are both lo, and the ends are cut short.
  assert steps[0] == 0
  np.testing.assert_allclose(steps[2:-1], step, rtol=2e-4)
  cut = step - 0.0005 * 2.0 * (2 if bits == 2 else 1)
  np.testing.assert_allclose(steps[[1, -1]], cut, rtol=2e-3)
  again = np.asarray(jnp.round(grid.encode(jnp.asarray(values))))
  np.testing.assert_array_equal(again[1:], codes[1:])


def test_a_bit_moves_a_weight_by_its_steps():
  grid = grids.Bounded(jnp.array([0.0]), jnp.array([1.0]), ql.UINT8)
  code, step = jnp.array([1 + 2 + 4 + 8 + 16 + 32]), 1.001 / 254
  for k in range(8):
    moved = _decoded(grid, code ^ 2**k) - _decoded(grid, code)
    expected = step * 2**k * (1 if k > 5 else -1)
    np.testing.assert_allclose(moved, [expected], rtol=1e-4)
  assert step * 128 == pytest.approx(0.504, abs=1e-3)


def test_the_round_trip_errs_by_half_a_step_and_keeps_the_ends():
  w = draws.normal((300, 40))
  q = ql.quantize(randbet.rquant(8), w)
  error = np.abs(np.asarray(q.dequantize()) - np.asarray(w))
  assert np.max(error) <= 0.5001 * q.grid.scale
  assert np.max(error) > 0.49 * q.grid.scale
  for end in (np.argmin, np.argmax):
    at = end(w)
    assert q.dequantize().ravel()[at] == w.ravel()[at]
  assert ql.nbits(q) == 8 * w.size + 64


@pytest.mark.parametrize(("rate", "rms"), [(0.001, 0.01842), (0.01, 0.05825)])
def test_rms_error_of_flips(rate, rms):
  w = draws.normal((1000, 200))
  q = ql.quantize(randbet.rquant(8), w)
  bad = flips.flip_bits(q, rate, jax.random.key(1), protect=("grid",))
  error = np.asarray(bad.dequantize()) - np.asarray(q.dequantize())
  found = np.sqrt(np.mean(error**2)) / (q.grid.hi - q.grid.lo).item()
  assert found == pytest.approx(rms, rel=0.03)
  first_order = (rate * (4**8 - 1) / 3) ** 0.5 * 1.001 / 254
  assert first_order == pytest.approx(rms, abs=1e-5)
  assert q.grid.lo <= np.min(bad.dequantize())
  assert np.max(bad.dequantize()) <= q.grid.hi


def test_schemes_of_the_paper():
  w = jnp.asarray(W)
  # 127 steps of the range, 0.001 wider; fractions are cut towards 0.
  plain = {"symmetric": True, "signed": True, "rounding": False}
  q = ql.quantize(randbet.rquant(8, **plain), w)
  codes = np.trunc(W / (0.701 / 127))
  np.testing.assert_array_equal(q.codes.unpack(), codes)
  np.testing.assert_allclose(q.dequantize(), codes * 0.701 / 127, rtol=1e-6)
  # One range for all: what is outside is clipped.
  q = ql.quantize(randbet.rquant(8, **plain, q_max=0.5), w)
  codes = np.clip(np.trunc(W / (0.5 / 127)), -128, 127)
  np.testing.assert_array_equal(q.codes.unpack(), codes)
  # Signed codes are truncated towards the middle of the range.
  q = ql.quantize(randbet.rquant(8, signed=True, rounding=False), w)
  assert q.codes.unpack().tolist() == [-126, -65, -16, 6, 48, 126]
  q = ql.quantize(randbet.rquant(8, symmetric=True), w)
  assert q.codes.unpack().tolist() == (128 + np.round(W * 127 / 0.701)).tolist()


def test_constant_tensors():
  for value in (0.0, -1.5):
    w = jnp.full((3, 5), value)
    q = ql.quantize(randbet.rquant(4), w)
    np.testing.assert_array_equal(q.dequantize(), w)
    every = _decoded(q.grid, jnp.arange(16).reshape(-1, 1))
    np.testing.assert_array_equal(every, jnp.full((16, 1), value))


@pytest.mark.parametrize(
  "kwargs",
  [
    {},
    {"rounding": False},
    {"symmetric": True, "signed": True, "rounding": False, "q_max": 0.5},
  ],
  ids=["rquant", "truncated", "global"],
)
def test_the_gradient_passes_unchanged(kwargs):
  quantizer = randbet.rquant(4, **kwargs)

  @jax.jit
  @jax.grad
  def slope(w):
    q, _ = quantizer.apply(w, quantizer.init(w))
    return jnp.sum(q.dequantize() * jnp.arange(6.0))

  # At the ends of the range, and beyond them, too.
  np.testing.assert_allclose(slope(jnp.asarray(W)), np.arange(6.0), rtol=1e-6)


def test_rows_of_their_own():
  w = draws.normal((64, 8)) * jnp.arange(1.0, 9.0)[None]
  q = ql.quantize(randbet.rquant(4, granularity=ql.per_output), w)
  assert q.grid.lo.shape == (1, 8)
  np.testing.assert_array_equal(q.grid.hi, np.max(w, axis=0, keepdims=True))
  assert ql.nbits(q) == 4 * w.size + 8 * 64


def test_clip():
  params = {"kernel": draws.normal((8, 4)), "bias": draws.normal((4,))}
  for name, x in randbet.clip(params, 0.3).items():
    np.testing.assert_array_equal(x, np.clip(params[name], -0.3, 0.3))
    assert x.dtype == jnp.float32


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: randbet.rquant(1), "rquant takes 2 to 8 bits, got bits=1"),
    (lambda: randbet.rquant(8, q_max=0.0), "q_max above 0, got q_max=0.0"),
    (lambda: randbet.clip({}, -1), "a w_max above 0, got w_max=-1"),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()
