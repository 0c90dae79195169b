"""Scores under bit errors, and their bound."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.experiments.faults import bit_errors
from tests import draws


def _read(tree):
  """A classifier of 40 examples that are the rows of its weights."""
  return bit_errors.classes(tree["w"].dequantize())


def _params():
  w = draws.normal((40, 8))
  return {"w": ql.quantize(ql.rtn(8), w)}, jnp.argmax(w, axis=1)


def test_evaluation():
  params, labels = _params()
  labels = labels.at[0].add(-1)  # one the clean network does not know
  rates = [0.0, 0.01, 0.1, 0.5]
  found = bit_errors.evaluate(
    _read, params, labels, rates, patterns=12, protect=("grid",)
  )
  assert found.clean == 1 / 40
  for spread in (found.alone, found.either):
    assert spread.mean[0] == pytest.approx(1 / 40)
    assert spread.highest[0] == 1 / 40
    assert spread.deviation[0] == pytest.approx(0, abs=1e-8)
    assert np.all(np.diff(spread.mean) > 0)
    assert np.all(spread.lowest <= spread.mean + 1e-9)
    assert np.all(spread.mean <= spread.highest + 1e-9)
  assert np.all(found.either.mean >= found.alone.mean - 1e-9)
  assert np.all(found.either.lowest >= found.clean)
  # At one half codes are uniform.
  assert found.alone.mean[-1] == pytest.approx(7 / 8, abs=0.06)
  again = bit_errors.evaluate(
    _read, params, labels, rates, patterns=12, protect=("grid",)
  )
  np.testing.assert_array_equal(again.alone.mean, found.alone.mean)


def test_both_definitions():
  clean, labels = np.array([0, 1, 1]), np.array([0, 1, 0])
  # The last pattern gets right what the clean network does not.
  found = np.array([[[0, 1, 1], [1, 1, 1], [0, 1, 0]]])
  result = bit_errors.robustness(clean, found, labels, [0.1])
  assert result.clean == pytest.approx(1 / 3)
  assert result.alone.mean == pytest.approx([1 / 3])
  assert result.alone.lowest == pytest.approx([0])
  assert result.alone.highest == pytest.approx([2 / 3])
  assert result.alone.deviation == pytest.approx([math.sqrt(2 / 3) / 3])
  assert result.either.mean == pytest.approx([4 / 9])
  assert result.either.lowest == pytest.approx([1 / 3])


def test_what_is_not_finite_is_wrong():
  logits = jnp.array([[0.0, 1.0], [jnp.nan, 1.0], [jnp.inf, 0.0]])
  assert bit_errors.classes(logits).tolist() == [1, -1, -1]


def test_refuses_bad_input():
  params, labels = _params()
  for rates in ([1.5], [0.1, -0.1], []):
    with pytest.raises(ValueError, match="rate"):
      bit_errors.evaluate(_read, params, labels, rates)
  with pytest.raises(ValueError, match="pattern"):
    bit_errors.evaluate(_read, params, labels, [0.1], patterns=0)
  with pytest.raises(ValueError, match=r"shape \(40,\) for labels.shape=\(7,"):
    bit_errors.robustness(np.zeros(40), np.zeros((1, 1, 40)), labels[:7], [0.1])


def test_bound_is_the_papers():
  assert bit_errors.excess(10**4, 10**6) == pytest.approx(0.04089, abs=5e-6)
  assert bit_errors.excess(10**4, 50) == pytest.approx(0.563, abs=5e-4)
  assert bit_errors.excess(10**4, 50, 0.1) < bit_errors.excess(10**4, 50)
  for bad in ((0, 1, 0.1), (1, 0, 0.1), (1, 1, 0.0)):
    with pytest.raises(ValueError, match="delta=0"):
      bit_errors.excess(*bad)
