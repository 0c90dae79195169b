"""Integer layers against int64 arithmetic and against fake quantization.

Shape letters: B batch, T time, D inputs, K units, G gates.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.kernels import integer_rnn
from tests import draws

B, T, D, K = 2, 120, 7, 6
MANY = 256  # states to take one step from
X_SCALE, H_SCALE, C_SCALE = 3 / 127, 1 / 127, 4 / 127
GATES = {"lstm": 4, "gru": 3}
BOTH = pytest.mark.parametrize("cell", GATES)

step = jax.jit(lambda layer, state, x: layer.step(state, x))


# Layers, made alike for every test.


def _kernels(cell, gain=1.0, seed=0):
  gates = GATES[cell]
  rng = np.random.default_rng(seed)
  # Gates of very different ranges: each has its own scale.
  spread = np.repeat([0.5, 1.0, 1.5, 0.8][:gates], K)
  int8 = ql.rtn(8, symmetric=True, granularity=ql.chunks(-1, gates))
  kernels = [
    ql.quantize(
      int8,
      jnp.asarray(
        rng.standard_normal((rows, gates * K)) * gain * spread / rows**0.5,
        jnp.float32,
      ),
    )
    for rows in (D, K)
  ]
  biases = 0.3 * rng.standard_normal((2, gates * K)).astype(np.float32)
  return *kernels, *biases


def _layer(cell, parts, x_scale=X_SCALE, c_scale=C_SCALE):
  w, r, b, c = parts
  if cell == "gru":
    return integer_rnn.gru(w, r, b, c, x_scale=x_scale)
  return integer_rnn.lstm(
    w, r, b, x_scale=x_scale, h_scale=H_SCALE, c_scale=c_scale
  )


def _codes(shape, seed, lo=-128):
  return draws.integers(shape, lo, 128, seed).astype(jnp.int8)


def _states(cell, seed):
  states = [_codes((MANY, K), [seed, i]) for i in range(2)]
  return tuple(states) if cell == "lstm" else states[0]


# The arithmetic in int64, from the formulas.


def _times(acc, ratio):
  shift = 14 - math.floor(math.log2(ratio))
  mantissa = round(ratio * 2**shift)
  if mantissa == 2**15:
    mantissa, shift = 2**14, shift - 1
  return (2 * acc * mantissa + 2**shift) >> (shift + 1)


def _per_gate(acc, ratios):
  parts = np.split(acc, len(ratios), axis=1)
  return [_times(part, r) for part, r in zip(parts, ratios, strict=True)]


def _table(function, q12):
  knots = np.minimum(np.round(function(np.arange(258) / 32) * 2**15), 32767)
  knots = knots.astype(np.int64)
  at, part = divmod(np.minimum(np.abs(q12), 2**15), 128)
  return knots[at] + ((knots[at + 1] - knots[at]) * part * 2 + 128) // 256


def _sigmoid(q12):
  y = _table(lambda x: 1 / (1 + np.exp(-x)), q12)
  return np.where(q12 < 0, 2**15 - y, y)


def _tanh(q12):
  return np.sign(q12) * _table(np.tanh, q12)


def _int(x, bits):
  return np.clip(x, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _terms(parts, x, h, x_scale, h_scale):
  """Products and biases in units of the recurrent product, and the units."""
  w, r, b, c = parts
  s_w, s_r = (np.asarray(k.grid.scale, np.float64)[0] for k in (w, r))
  units = s_r * h_scale
  w, r = (np.asarray(k.codes.unpack(), np.int64) for k in (w, r))
  each = np.repeat(units, K)
  b, c = (np.round(bias / each).astype(np.int64) for bias in (b, c))
  ratios = s_w * x_scale / units
  of_x = np.concatenate(_per_gate(x.astype(np.int64) @ w, ratios), axis=1)
  return of_x + b, h.astype(np.int64) @ r, c, units


def _lstm_int64(parts, state, x, x_scale=X_SCALE, c_scale=C_SCALE):
  c, h = (np.asarray(code, np.int64) for code in state)
  of_x, of_h, _, units = _terms(parts, x, h, x_scale, H_SCALE)
  i, f, g, o = (_int(a, 16) for a in _per_gate(of_x + of_h, units * 2**12))
  i, f, o, g = _sigmoid(i), _sigmoid(f), _sigmoid(o), _tanh(g)
  cell = _times(c * f, c_scale * 2**12 / 2**15) + (g * i >> 18)
  hidden = o * _tanh(cell) >> 15
  h = _int(_times(hidden, 2**-15 / H_SCALE), 8)
  return (_int(_times(cell, 2**-12 / c_scale), 8), h), h


def _gru_int64(parts, state, x, x_scale=X_SCALE):
  h = np.asarray(state, np.int64)
  of_x, of_h, c, units = _terms(parts, x, h, x_scale, 2.0**-7)
  of_h = of_h + c
  z, r, _ = _per_gate(of_x + of_h, units * 2**12)
  n, term = (_per_gate(a, units * 2**12)[2] for a in (of_x, of_h))
  z, r = ((_sigmoid(_int(a, 16)) + 4) >> 3 for a in (z, r))
  n = _int(n + ((r * term + 2**11) >> 12), 16)
  n = (_tanh(n) + 4) >> 3
  h = _int(((2**12 - z) * n + z * h * 2**5 + 2**16) >> 17, 8)
  return h, h


INT64 = {"lstm": _lstm_int64, "gru": _gru_int64}


# Fake quantization: floats on the same grids.


def _round(x, scale):
  codes = np.clip(np.round(x / np.float32(scale)), -128, 127)
  return codes.astype(np.int64)


def _floats(codes, scale):
  return np.asarray(codes, np.float32) * np.float32(scale)


def _q12(x):
  return np.clip(np.round(x * 4096), -(2**15), 2**15 - 1) / np.float32(4096)


def _logistic(x):
  return 1 / (1 + np.exp(-x))


def _lstm_fake(parts, state, x, c_scale=C_SCALE):
  w, r, b, _ = (np.asarray(part) for part in ql.dequantize(parts))
  c, h = (_floats(a, s) for a, s in zip(state, (c_scale, H_SCALE), strict=True))
  acc = _floats(x, X_SCALE) @ w + h @ r + b
  i, f, g, o = np.split(_q12(acc), 4, axis=1)
  c = _logistic(f) * c + _logistic(i) * np.tanh(g)
  h = _round(_logistic(o) * np.tanh(c), H_SCALE)
  return (_round(c, c_scale), h), h


def _gru_fake(parts, state, x):
  w, r, b, c = (np.asarray(part) for part in ql.dequantize(parts))
  h = _floats(state, 1 / 128)
  of_x = np.split(_floats(x, X_SCALE) @ w + b, 3, axis=1)
  of_h = np.split(h @ r + c, 3, axis=1)
  z, r = (_logistic(_q12(of_x[j] + of_h[j])) for j in (0, 1))
  n = np.tanh(_q12(of_x[2] + r * of_h[2]))
  h = _round((1 - z) * n + z * h, 1 / 128)
  return h, h


FAKE = {"lstm": _lstm_fake, "gru": _gru_fake}


def _zeros(cell):
  h = np.zeros((B, K), np.int64)
  return (h, h) if cell == "lstm" else h


def _loop(one, state, x):
  """States before the first step and after each; hidden codes `[B, T, K]`."""
  states, hidden = [state], []
  for t in range(x.shape[1]):
    state, h = one(states[-1], np.asarray(x[:, t]))
    states.append(state)
    hidden.append(h)
  return states, np.stack(hidden, axis=1)


# The tests.


@BOTH
@pytest.mark.parametrize("x_scale", [0.12, X_SCALE, 2e-4])
def test_step_is_the_integer_arithmetic(cell, x_scale):
  for seed, gain in enumerate([0.2, 1.0, 6.0]):  # the last one saturates
    parts = _kernels(cell, gain, seed)
    state, x = _states(cell, seed), _codes((MANY, D), [seed, 9])
    out = step(_layer(cell, parts, x_scale), state, x)
    expected = INT64[cell](parts, state, np.asarray(x), x_scale)
    jax.tree.map(np.testing.assert_array_equal, out, expected)
    assert all(a.dtype == jnp.int8 for a in jax.tree.leaves(out))


@BOTH
def test_run_is_a_loop_of_steps(cell):
  parts, x = _kernels(cell), _codes((B, T, D), 5)
  layer = _layer(cell, parts)
  out = integer_rnn.run(layer, x)
  assert out.dtype == jnp.int8
  int64 = functools.partial(INT64[cell], parts)
  np.testing.assert_array_equal(out, _loop(int64, _zeros(cell), x)[1])
  own = functools.partial(step, layer)
  few = _loop(own, layer.start(B), x[:, :9])[1]
  np.testing.assert_array_equal(out[:, :9], few)
  assert np.ptp(np.asarray(out, np.int64)) > 100  # the states do move


@BOTH
def test_step_is_fake_quantization_up_to_the_last_bit(cell):
  apart = []
  for seed in range(12):
    parts = _kernels(cell, [0.5, 1.0, 2.0, 4.0][seed % 4], seed)
    state, x = _states(cell, seed), _codes((MANY, D), [seed, 9])
    out = step(_layer(cell, parts), state, x)
    fake = FAKE[cell](parts, state, np.asarray(x))
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(fake), strict=True):
      apart.append(np.abs(np.asarray(a, np.int64) - b))
  assert np.max(apart) == 1
  assert np.mean(apart) < 0.012  # 0.5 to 1 %: no systematic offset


@BOTH
def test_whole_sequences_stay_near_fake_quantization(cell):
  # Of a network that forgets: one that amplifies (a gain of 2 and more) also
  # takes fake quantization away from itself, once a single code differs.
  own, fake = [], []
  for seed in range(8):
    parts, x = _kernels(cell, 0.5, seed), _codes((B, T, D), seed, lo=0)
    layer = _layer(cell, parts)
    start = layer.start(B)
    own += _loop(functools.partial(step, layer), start, x)[0]
    fake += _loop(functools.partial(FAKE[cell], parts), _zeros(cell), x)[0]
  *cells, hidden = np.moveaxis(np.abs(_stack(own) - _stack(fake)), 1, 0)
  assert np.mean(hidden) < 0.04
  if cell == "gru":
    assert hidden.max() == 1
  else:
    assert cells[0].max() == 1
    # One code of the cell is worth C_SCALE / H_SCALE of the hidden state.
    assert hidden.max() <= 1 + C_SCALE / H_SCALE


def _stack(states):
  """`[steps, 1 or 2, B, K]`: the cell if there is one, the hidden state."""
  return np.array([jax.tree.leaves(s) for s in states], np.int64)
