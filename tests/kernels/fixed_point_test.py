import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import base, grids, qtensor
from quantlab.kernels import fixed_point as fixed
from quantlab.transforms import rounding
from tests import draws

rescale = jax.jit(fixed.rescale)
EVERY = np.arange(-(2**15), 2**15)  # all there is in 16 bits


def _int32(*values):
  return [jnp.asarray(value, jnp.int32) for value in values]


def _limit(shift):
  return 2 ** (15 + min(shift, 12)) - 1


@hypothesis.settings(max_examples=200)
@hypothesis.given(
  mantissa=st.integers(2**14, 2**15 - 1),
  shift=st.integers(0, 60),
  part=st.floats(-1, 1),
)
def test_rescale_is_exact(mantissa, shift, part):
  acc, mantissa32, shift32 = _int32(
    round(part * _limit(shift)), mantissa, shift
  )
  expected = (int(acc) * mantissa * 2 + 2**shift) >> (shift + 1)
  by = fixed.Multiplier(mantissa32, shift32)
  assert int(rescale(acc, by)) == expected


def test_rescale_at_the_ends():
  shifts = np.arange(0, 61)
  limits = np.array([_limit(int(s)) for s in shifts])
  # Half-way cases, the ends, and what is past them, which saturates.
  accs = [np.full(61, value) for value in (-4097, -4096, -1, 0, 1, 4095, 4096)]
  accs += [limits, -limits, limits + 1, -limits - 1]
  accs += [np.full(61, value) for value in (2**31 - 1, -(2**31))]
  accs = np.stack(accs)
  for mantissa in (2**14, 2**14 + 1, 24567, 2**15 - 1):
    m, s = _int32(np.full((1, 61), mantissa), shifts[None])
    out = np.asarray(rescale(*_int32(accs), fixed.Multiplier(m, s)))
    exact = np.clip(accs, -limits, limits).astype(object) * mantissa
    expected = (exact * 2 + 2 ** shifts.astype(object)) // 2 ** (
      shifts.astype(object) + 1
    )
    np.testing.assert_array_equal(out, expected.astype(np.int64))
    assert np.abs(out).max() < 2**30


def test_multiplier_is_the_nearest():
  ratios = 2.0 ** np.random.default_rng(0).uniform(-40, 14.99, 999)
  ratios = np.append(ratios, [1, 2.0**-13, 1 - 2.0**-20, 2.0**15 - 1])
  mantissa, shift = map(np.asarray, fixed.multiplier(ratios))
  assert np.all((mantissa >= 2**14) & (mantissa < 2**15) & (shift >= 0))
  made = mantissa * 2.0**-shift
  np.testing.assert_array_less(np.abs(made / ratios - 1), 2.0**-15 + 1e-12)


@pytest.mark.parametrize("ratio", [0.0, -1.0, 2.0**15, math.nan, math.inf])
def test_multiplier_refuses(ratio):
  with pytest.raises(ValueError, match="above 0 and below"):
    fixed.multiplier([0.5, ratio])


@pytest.mark.parametrize(
  ("table", "function", "error"),
  [
    (fixed.sigmoid, lambda x: 1 / (1 + np.exp(-x)), 1.25),
    (fixed.tanh, np.tanh, 3.77),
  ],
)
def test_tables(table, function, error):
  # 65536 arguments, and some past the ends.
  ends = [-(2**31), -(2**20), 2**15, 2**20, 2**31 - 1]
  q15 = np.asarray(jax.jit(table)(*_int32([*EVERY, *ends])))
  inside, (*below, at, above, most) = q15[: EVERY.size], q15[EVERY.size :]
  measured = np.abs(inside - function(EVERY / 2**12) * 2**15).max()
  assert round(float(measured), 2) == error  # as the docstring says
  assert np.all(np.diff(inside) >= 0)
  assert np.abs(q15).max() < 2**15
  assert [*below, at, above, most] == [inside[0]] * 2 + [at] * 3
  # Odd, or the complement to 1.
  sums = inside[1:] + inside[:0:-1]
  middle = 2 * function(0.0) * 2**15
  np.testing.assert_array_equal(sums, middle)


def test_quantize_is_the_grid():
  x = 3 * draws.normal((4, 50))
  scale = jnp.float32(2 / 127)
  spec = base.IntSpec(8, symmetric=True, narrow=False)
  grid = grids.Affine(scale[None, None], jnp.zeros((1, 1)), spec)
  q = qtensor.QTensor(grid.encode(x), grid, x.dtype)
  rounded, _ = rounding.nearest().apply(q, base.State())
  np.testing.assert_array_equal(fixed.quantize(x, scale), rounded.codes)


def test_q7_has_no_one():
  codes = fixed.quantize(jnp.array([-2.0, -1.0, 0.5 / 128, 1.0]), 1 / 128)
  assert codes.dtype == jnp.int8
  assert codes.tolist() == [-128, -128, 0, 127]
