"""Recurrent layers in which every value that is kept has a name.

What all frames need of the input is one product over all of them; only the
recurrent product is done frame by frame. The gates' kernels lie side by side:
`[D, G*K]`, gate after gate.

Shape letters: B batch, T frames, D inputs, K units, G gates.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

# State of activations' quantizers is one for all frames; see `ql.apply`.
over_time = functools.partial(
  nn.scan,
  variable_broadcast="params",
  variable_carry="acts",
  split_rngs={"params": False, "acts": True},
  in_axes=1,
  out_axes=1,
)
"""`nn.scan` over the second axis of arrays `[B, T, ...]`."""


class Value(nn.Module):
  """The identity, which gives a value inside a module the name of a site."""

  def __call__(self, x: Array) -> Array:
    """Returns x."""
    return x


class _LSTMStep(nn.Module):
  features: int

  @nn.compact
  def __call__(self, carry, a):
    c, h = carry
    a += nn.Dense(4 * self.features, use_bias=False, name="recurrent")(h)
    i, f, g, o = jnp.split(Value(name="gates")(a), 4, axis=-1)
    c = nn.sigmoid(f) * c + nn.sigmoid(i) * nn.tanh(g)
    h = Value(name="hidden")(nn.sigmoid(o) * nn.tanh(c))
    return (Value(name="cell")(c), h), h


class _GRUStep(nn.Module):
  features: int

  @nn.compact
  def __call__(self, carry, a):
    (h,) = carry
    b = nn.Dense(3 * self.features, name="recurrent")(h)
    *input_gates, input_candidate = jnp.split(a, 3, axis=-1)
    *gates, candidate = jnp.split(b, 3, axis=-1)
    gates = jnp.concatenate(input_gates, -1) + jnp.concatenate(gates, -1)
    z, r = jnp.split(nn.sigmoid(Value(name="gates")(gates)), 2, axis=-1)
    n = nn.tanh(Value(name="candidate")(input_candidate + r * candidate))
    h = Value(name="hidden")((1 - z) * n + z * h)
    return (h,), h


class _Layer(nn.Module):
  """A step over all frames.

  Attributes:
    features: K.
  """

  features: int

  def start(self, batch: int) -> tuple[Array, ...]:
    """The carry before the first frame."""
    zeros = jnp.zeros((batch, self.features))
    return (zeros,) * self._carried

  @nn.compact
  def __call__(
    self, carry: tuple[Array, ...], x: Array
  ) -> tuple[tuple[Array, ...], Array]:
    """Runs over frames.

    Args:
      carry: from `start`, or from the frames before.
      x: `[B, T, D]`.

    Returns:
      The carry, and the hidden states `[B, T, K]`.
    """
    a = nn.Dense(self.gates * self.features, name="input")(x)
    step: Any = over_time(self._step)
    return step(self.features, name="step")(carry, a)


class LSTM(_Layer):
  """Long short-term memory; gates i, f, g, o.

  `c' = f*c + i*g`, `h' = o*tanh(c')`, where i, f, o are sigmoids and g is the
  tanh of `x @ input + h @ recurrent + bias`. The carry is (c, h).

  Sites, below the layer's path: `in`; `step/gates/out`, before sigmoid and
  tanh; `step/cell/out` and `step/hidden/out`, as they are kept. The tanh sees
  the cell state before it is kept.

  Attributes:
    features: K.

  Example:
    >>> layer = LSTM(4)
    >>> x = jnp.ones((2, 3, 5))
    >>> variables = layer.init(jax.random.key(0), layer.start(2), x)
    >>> (c, h), y = layer.apply(variables, layer.start(2), x)
    >>> y.shape, bool((y[:, -1] == h).all())
    ((2, 3, 4), True)
  """

  gates, _carried, _step = 4, 2, _LSTMStep


class GRU(_Layer):
  """Gated recurrent unit; gates z, r, n, the reset after the product.

  `n = tanh(x @ input + r * (h @ recurrent + bias))`, `h' = (1-z)*n + z*h`, as
  in PyTorch, and in ONNX with `linear_before_reset`. The carry is (h,).

  Sites, below the layer's path: `in`; `step/gates/out` of z and r and
  `step/candidate/out`, before sigmoid and tanh; `step/hidden/out`.

  Attributes:
    features: K.
  """

  gates, _carried, _step = 3, 1, _GRUStep


LAYERS: dict[str, type[LSTM] | type[GRU]] = {"lstm": LSTM, "gru": GRU}
