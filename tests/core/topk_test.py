import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import topk


def _reference(x, count):
  """First of equals: a stable sort by falling magnitude."""
  order = np.argsort(-x, axis=0, kind="stable")[:count]
  mask = np.zeros(x.shape, bool)
  np.put_along_axis(mask, order, True, axis=0)
  return mask


@functools.partial(jax.jit, static_argnums=1)
def _marked(x, count):
  mask = topk.largest(x, count)
  return mask, topk.positions(mask, count)


@hypothesis.given(
  dim=st.sampled_from([1, 31, 32, 100]),
  ties=st.booleans(),
  data=st.data(),
)
def test_marks_what_a_stable_sort_does(dim, ties, data):
  count = data.draw(st.integers(0, dim))
  rng = np.random.default_rng(data.draw(st.integers(0, 99)))
  x = np.abs(rng.standard_t(2, (dim, 4))).astype(np.float32)
  if ties:
    x = np.round(x)
  mask, where = _marked(x, count)
  np.testing.assert_array_equal(mask, _reference(x, count))
  expected = [np.flatnonzero(column) for column in _reference(x, count).T]
  np.testing.assert_array_equal(where, np.array(expected).reshape(4, count))


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e30])
def test_any_scale(scale):
  x = np.abs(np.random.default_rng(0).normal(size=(64, 3))) * scale
  x = x.astype(np.float32)
  mask, _ = _marked(x, 7)
  np.testing.assert_array_equal(mask, _reference(x, 7))


def test_minus_one_comes_last():
  x = jnp.array([-1.0, 0.0, -1.0, 0.0])
  assert topk.largest(x, 2).tolist() == [False, True, False, True]
