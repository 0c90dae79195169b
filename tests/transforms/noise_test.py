"""Bit errors in rounded codes: what they hit, and where gradients are taken."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import flips
from quantlab.methods import randbet
from quantlab.transforms import noise
from tests import draws

KEY = jax.random.key(3)
W = (200, 8)


@functools.cache
def _noisy(rate, **kwargs):
  return ql.chain(randbet.rquant(8, **kwargs), noise.bit_errors(rate))


@functools.partial(jax.jit, static_argnums=0)
def _damaged(quantizer, w, key):
  return quantizer.apply(w, quantizer.init(w), key)[0]


def _values(quantizer, w, key=KEY):
  return np.asarray(_damaged(quantizer, w, key).dequantize())


@functools.partial(jax.jit, static_argnums=0)
def _at(quantizer, w, rate, key):
  q, _ = quantizer.apply(w, quantizer.init(w))
  return noise.flip_codes(q, rate, key)


def test_weights_hit():
  w = draws.normal((1000, 20))
  clean = np.asarray(_at(randbet.rquant(8), w, 0.0, KEY).dequantize())
  np.testing.assert_array_equal(
    clean, ql.quantize(randbet.rquant(8), w).dequantize()
  )
  for rate, share in ((0.001, 0.0079721), (0.01, 0.0772553), (0.05, 0.3365796)):
    hit = _at(randbet.rquant(8), w, rate, KEY).dequantize() != clean
    spread = (share * (1 - share) / hit.size) ** 0.5
    # A flip at an end of the range may be clamped away.
    assert abs(np.mean(hit) - share) < 4 * spread + 1e-3 * share


def test_flips_of_twos_complement_and_offset_binary_do_the_same_harm():
  w = draws.normal(W)
  unsigned, signed = (
    _damaged(_noisy(0.1, signed=signed), w, KEY) for signed in (False, True)
  )
  np.testing.assert_array_equal(unsigned.dequantize(), signed.dequantize())
  clean = _damaged(randbet.rquant(8, signed=True), w, None)
  # The same masks, on the bytes of the signed codes themselves.
  codes, wrong = (
    np.asarray(q.codes).astype(np.int8).view(np.uint8) for q in (clean, signed)
  )
  assert np.any(codes ^ wrong)
  offset = np.asarray(unsigned.codes).astype(np.uint8) ^ (codes ^ 0x80)
  np.testing.assert_array_equal(codes ^ wrong, offset)


@pytest.mark.parametrize(
  "quantizer",
  [
    ql.rtn(4, symmetric=True),
    ql.easyquant(2, sigmas=2.5, steps=1),
  ],
  ids=["narrow", "easyquant"],
)
def test_codes_stay_storable(quantizer):
  w = draws.normal((64, 8))
  noisy = ql.chain(quantizer, noise.bit_errors(0.3))
  key = jax.random.split(jax.random.split(KEY, 1)[0], 2)[0]  # as it goes down
  stored = ql.quantize(noisy, w, key=KEY)
  np.testing.assert_array_equal(
    stored.dequantize(), _damaged(noisy, w, key).dequantize()
  )
  assert np.mean(stored.dequantize() != ql.quantize(quantizer, w)) > 0.5


def test_the_gradient_is_taken_at_the_errors_and_passes_straight_through():
  w = draws.normal(W)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def slope(w):
    value = _damaged(_noisy(0.1), w, KEY).dequantize()
    return jnp.sum(value**3), value

  (_, value), gradient = slope(w)
  assert np.mean(value != _values(randbet.rquant(8), w)) > 0.4
  np.testing.assert_allclose(gradient, 3 * np.asarray(value) ** 2, rtol=1e-6)


def test_each_chip_of_a_batch_has_errors_of_its_own():
  w = draws.normal(W)
  keys = jax.random.split(KEY, 3)
  chips = jax.jit(jax.vmap(lambda key: _damaged(_noisy(0.1), w, key)))(keys)
  codes = np.asarray(chips.codes)
  for i in range(3):
    alone = _damaged(_noisy(0.1), w, keys[i])
    np.testing.assert_array_equal(codes[i], alone.codes)
  assert np.mean(codes[0] != codes[1]) > 0.5


def test_codes_of_a_tree():
  tree = {
    "a": _damaged(randbet.rquant(8), draws.normal(W), None),
    "b": _damaged(randbet.rquant(8), draws.normal(W), None),
    "bias": draws.normal((4,)),
  }
  bad = jax.jit(noise.flip_codes)(tree, 0.1, KEY)
  np.testing.assert_array_equal(bad["bias"], tree["bias"])
  np.testing.assert_array_equal(bad["a"].grid.lo, tree["a"].grid.lo)
  first, second = (
    np.asarray(bad[name].codes) - np.asarray(tree[name].codes) for name in "ab"
  )
  assert np.mean(first != second) > 0.5


def test_needs_a_key_and_a_probability():
  with pytest.raises(ValueError, match="needs a PRNG key"):
    ql.quantize(_noisy(0.1), jnp.ones((4, 4)))
  with pytest.raises(ValueError, match=r"in \[0, 1\], got rate=2"):
    noise.bit_errors(2)


def test_refuses_packed_codes():
  q = ql.quantize(randbet.rquant(8), draws.normal((4, 8)))
  with pytest.raises(ValueError, match=r"shape \(4, 8\) are packed"):
    noise.flip_codes(q, 0.1, KEY)


def test_stored_and_rounded_codes_have_errors_of_the_same_size():
  # Four codes of 8 bits share a word, so the masks differ, not their law.
  w = draws.normal((1000, 20))
  clean = ql.quantize(randbet.rquant(8), w)
  bad = flips.flip_bits(clean, 0.01, KEY, protect=("grid",)).dequantize()
  errors = [
    np.sqrt(np.mean((np.asarray(x) - np.asarray(clean.dequantize())) ** 2))
    for x in (bad, _at(randbet.rquant(8), w, 0.01, KEY).dequantize())
  ]
  assert errors[0] == pytest.approx(errors[1], rel=0.1)
