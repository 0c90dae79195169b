"""Searches over one factor."""

import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.transforms import search

BEST = jnp.array([0.015, 0.3, 0.77, 1.0])


def _valley(factor):
  return (jnp.log(factor) - jnp.log(BEST)) ** 2


def test_golden_finds_one_minimum():
  found = search.golden(_valley, jnp.ones(4), steps=20, smallest=0.01)
  np.testing.assert_allclose(found, BEST, rtol=1e-3)


def test_golden_narrows_by_its_ratio():
  for steps in (0, 4, 8):
    found = search.golden(_valley, jnp.ones(4), steps=steps, smallest=0.01)
    width = np.log(100) * search.GOLDEN ** (steps + 1)
    assert np.max(np.abs(np.log(found / BEST))) <= width


def test_golden_is_never_worse_than_the_whole_range():
  def valleys(factor):  # the deeper one is at 1
    return jnp.minimum((factor - 0.3) ** 2 + 0.01, jnp.abs(factor - 1))

  found = search.golden(valleys, jnp.ones(4), steps=16, smallest=0.01)
  np.testing.assert_array_equal(found, 1)


@pytest.mark.parametrize("candidates", [1, 11])
def test_grid_takes_the_largest_of_equal_factors(candidates):
  settings = {"candidates": candidates, "smallest": 0.5}
  found = search.grid(lambda f: 0 * f, jnp.ones(4), **settings)
  np.testing.assert_array_equal(found, 1)
  found = search.grid(_valley, jnp.ones(4), **settings)
  want = [0.5, 0.5, 0.75, 1.0] if candidates > 1 else 1
  np.testing.assert_allclose(found, want, rtol=1e-6)
