import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.kernels import integer_rnn
from tests import draws

B, D, K = 2, 7, 6
X = jnp.zeros((B, D), jnp.int8)
SCALES = {"x_scale": 3 / 127, "h_scale": 1 / 127, "c_scale": 1 / 8}

step = jax.jit(lambda layer, state, x: layer.step(state, x))


def _quantizer(gates):
  return ql.rtn(8, symmetric=True, granularity=ql.chunks(-1, gates))


def _kernel(rows, gates):
  kernel = 1e-3 * draws.normal((rows, gates * K), rows)
  return ql.quantize(_quantizer(gates), kernel)


def _lstm(**changes):
  given = {"input": _kernel(D, 4), "recurrent": _kernel(K, 4)}
  given |= {"bias": np.zeros(4 * K), **SCALES, **changes}
  return integer_rnn.lstm(**given)


def _gru(z, r, n):
  bias = np.repeat([z, r, n], K)
  kernels = _kernel(D, 3), _kernel(K, 3)
  return integer_rnn.gru(*kernels, bias, 0 * bias, x_scale=1 / 128)


def test_cells_are_not_bounded_by_one():
  # Every gate open and the candidate 1: the cell counts the steps.
  layer = _lstm(bias=np.full(4 * K, 7.9))
  state = layer.start(B)
  cells = []
  for _ in range(18):
    state, h = step(layer, state, X)
    cells.append(int(state[0][0, 0]))
  # Up to the end of its own codes, and not to 1.
  assert cells == [min(8 * t, 127) for t in range(1, 19)]
  np.testing.assert_array_equal(h, 127)


def test_q7_saturates_at_127():
  for n, code in [(7.9, 127), (100.0, 127), (-100.0, -128)]:
    layer = _gru(-100.0, 0.0, n)
    _, h = step(layer, layer.start(B), X)
    np.testing.assert_array_equal(h, code)


def test_layers_hold_integers_only():
  for leaf in jax.tree.leaves((_lstm(), _gru(0.0, 0.0, 0.0))):
    assert jnp.issubdtype(leaf.dtype, jnp.integer)


def test_refuses_other_kernels():
  w = draws.normal((D, 4 * K))
  chunks = ql.chunks(-1, 4)
  int8 = _quantizer(4)
  with pytest.raises(ValueError, match="input kernel: expected a QTensor"):
    _lstm(input=w)
  with pytest.raises(ValueError, match=r"-127\.\.127, got IntSpec\(bits=4"):
    _lstm(input=ql.quantize(ql.rtn(4, symmetric=True, granularity=chunks), w))
  with pytest.raises(ValueError, match="symmetric=False"):
    _lstm(input=ql.quantize(ql.rtn(8, granularity=chunks), w))
  with pytest.raises(ValueError, match=r"per gate, \(1, 4\).*\(1, 1\)"):
    _lstm(
      recurrent=ql.quantize(
        ql.rtn(8, symmetric=True, granularity=ql.per_tensor), w
      )
    )
  with pytest.raises(ValueError, match=r"recurrent kernel: 4 gates of 7 units"):
    _lstm(recurrent=ql.quantize(int8, w))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["x_scale", "h_scale", "c_scale"])
def test_refuses_scales(name, scale):
  with pytest.raises(ValueError, match=f"{name} must be one positive number"):
    _lstm(**{name: scale})


def test_refuses_biases_and_codes():
  with pytest.raises(ValueError, match=r"bias: expected 24 finite floats"):
    _lstm(bias=np.zeros(23))
  with pytest.raises(ValueError, match="bias: expected 24 finite floats"):
    _lstm(bias=np.full(24, np.nan))
  layer = _lstm()
  with pytest.raises(ValueError, match=r"\[batch, 7\], got int32"):
    layer.step(layer.start(B), jnp.zeros((B, D), jnp.int32))
  with pytest.raises(ValueError, match=r"\[batch, 7\].*\(2, 8\)"):
    layer.step(layer.start(B), jnp.zeros((B, 8), jnp.int8))
  with pytest.raises(ValueError, match=r"\[batch, time, inputs\]"):
    integer_rnn.run(layer, X)
