from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.models import recurrent
from tests import draws

B, T, D, K = 2, 5, 3, 4


def _layer(cell):
  layer = recurrent.LAYERS[cell](K)
  x = draws.normal((B, T, D))
  shapes = jax.eval_shape(layer.init, jax.random.key(0), layer.start(B), x)
  return layer, draws.like(shapes, 0.7, seed=1), x


def _gates(kernel, count):
  return np.split(np.asarray(kernel), count, axis=-1)


def test_an_lstm_is_that_of_flax():
  layer, variables, x = _layer("lstm")
  params = variables["params"]
  theirs = {}
  inputs = _gates(params["input"]["kernel"], 4)
  biases = _gates(params["input"]["bias"], 4)
  hidden = _gates(params["step"]["recurrent"]["kernel"], 4)
  for name, w, b, r in zip("ifgo", inputs, biases, hidden, strict=True):
    theirs[f"i{name}"] = {"kernel": w}
    theirs[f"h{name}"] = {"kernel": r, "bias": b}
  (c, h), found = layer.apply(variables, layer.start(B), x)
  cell = nn.RNN(nn.OptimizedLSTMCell(K, parent=None), return_carry=True)
  (c_, h_), expected = cell.apply({"params": {"cell": theirs}}, x)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_allclose(c, c_, atol=1e-6)
  np.testing.assert_allclose(h, h_, atol=1e-6)


def test_a_gru_resets_after_the_product():
  layer, variables, x = _layer("gru")
  params = variables["params"]
  w, b = params["input"]["kernel"], params["input"]["bias"]
  r, c = (params["step"]["recurrent"][name] for name in ("kernel", "bias"))

  def sigmoid(a):
    return 1 / (1 + np.exp(-a))

  h = np.zeros((B, K))
  for t in range(T):
    ax = np.split(np.asarray(x[:, t] @ w + b[None]), 3, axis=-1)
    ah = np.split(np.asarray(h @ r + c[None]), 3, axis=-1)
    z, reset = sigmoid(ax[0] + ah[0]), sigmoid(ax[1] + ah[1])
    h = (1 - z) * np.tanh(ax[2] + reset * ah[2]) + z * h
  (last,), found = layer.apply(variables, layer.start(B), x)
  np.testing.assert_allclose(last, h, atol=1e-6)
  np.testing.assert_array_equal(found[:, -1], last)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_carry_goes_on_where_it_was(cell):
  layer, variables, x = _layer(cell)
  _, whole = layer.apply(variables, layer.start(B), x)
  carry, first = layer.apply(variables, layer.start(B), x[:, :2])
  _, rest = layer.apply(variables, carry, x[:, 2:])
  np.testing.assert_allclose(
    jnp.concatenate([first, rest], axis=1), whole, atol=1e-6
  )
