"""Steps of LSTM and GRU in integers alone, as microcontrollers run them.

Inputs, states and kernels are int8; products add up in int32; pre-activations
are Q12 in 16 bits; sigmoid and tanh are tables with values in Q15 (see
`fixed_point`). Nothing is a float between the codes of the input and those of
the output.

Of each gate the input product is first brought into units of its recurrent
product, `s_wh * s_h`, where the bias is added; their sum is brought to Q12.
Units coarser than Q12 round the input product more coarsely: with `s_h = 1/128`
those of a recurrent kernel with weights beyond 4.

Products are shifted right bare where the paper's integer code does it (`>> 18`
and `>> 15` in the LSTM), and else rounded half up.

Shape letters: B batch, D inputs, K units, G gates.

References:
  arXiv 2210.07692. Reconstruction: what `fixed_point` says, where values
  saturate, and the GRU's biases of z and r in units of the recurrent product.
"""

import jax
import jax.numpy as jnp

from quantlab.core import base
from quantlab.kernels import fixed_point as fixed

Array = jax.Array


@base.pytree
class IntegerLSTM:
  """An LSTM layer; its gates are i, f, g, o, one after the other.

  Attributes:
    input: `[D, 4K]` int8, codes of the input kernel.
    recurrent: `[K, 4K]` int8, codes of the recurrent kernel.
    bias: `[1, 4, K]` int32, in units of the recurrent product.
    from_input: `[1, 4, 1]`, units of the input product in these units.
    to_q12: `[1, 4, 1]`, these units in Q12.
    from_cell: a cell's code times a Q15 gate, in Q12.
    to_cell: Q12 in units of a cell's code.
    to_hidden: Q15 in units of a hidden code.
  """

  input: Array
  recurrent: Array
  bias: Array
  from_input: fixed.Multiplier
  to_q12: fixed.Multiplier
  from_cell: fixed.Multiplier
  to_cell: fixed.Multiplier
  to_hidden: fixed.Multiplier

  def start(self, batch: int) -> tuple[Array, Array]:
    """Cell and hidden codes before the first step: `[B, K]` int8 zeros."""
    zeros = jnp.zeros((batch, self.recurrent.shape[0]), jnp.int8)
    return zeros, zeros

  def step(
    self, state: tuple[Array, Array], x: Array
  ) -> tuple[tuple[Array, Array], Array]:
    """One step.

    Args:
      state: codes of the cell and of the hidden state, `[B, K]` int8.
      x: `[B, D]` int8, codes of the input.

    Returns:
      `((c, h), h)`, the new codes.

    Raises:
      ValueError: x is not `[B, D]` int8.
    """
    c, h = state
    acc = fixed.rescale(_product(x, self.input, 4), self.from_input)
    acc += _product(h, self.recurrent, 4) + self.bias
    pre = fixed.saturate(fixed.rescale(acc, self.to_q12), 16)
    i, f, g, o = jnp.unstack(pre, axis=1)
    i, f, o = fixed.sigmoid(i), fixed.sigmoid(f), fixed.sigmoid(o)
    g = fixed.tanh(g)
    cell = fixed.rescale(c * f, self.from_cell) + (g * i >> 18)  # Q12
    hidden = o * fixed.tanh(cell) >> 15  # Q15
    c = fixed.saturate(fixed.rescale(cell, self.to_cell), 8).astype(jnp.int8)
    h = fixed.rescale(hidden, self.to_hidden)
    h = fixed.saturate(h, 8).astype(jnp.int8)
    return (c, h), h


@base.pytree
class IntegerGRU:
  """A GRU layer; its gates are z, r, n, one after the other.

  The reset gate works after the recurrent product:
  `n = tanh(W x + b + r * (R h + c))`, `h' = (1 - z) * n + z * h`. The hidden
  state is Q7, so +1 is 127/128. The term that the reset gate multiplies
  saturates at 64 and not at 8: it is no pre-activation.

  Attributes:
    input: `[D, 3K]` int8, codes of the input kernel.
    recurrent: `[K, 3K]` int8, codes of the recurrent kernel.
    input_bias: `[1, 3, K]` int32, b in units of the recurrent product.
    recurrent_bias: `[1, 3, K]` int32, c in the same units.
    from_input: `[1, 3, 1]`, units of the input product in these units.
    to_q12: `[1, 3, 1]`, these units in Q12.
  """

  input: Array
  recurrent: Array
  input_bias: Array
  recurrent_bias: Array
  from_input: fixed.Multiplier
  to_q12: fixed.Multiplier

  def start(self, batch: int) -> Array:
    """Hidden codes before the first step: `[B, K]` int8 zeros."""
    return jnp.zeros((batch, self.recurrent.shape[0]), jnp.int8)

  def step(self, state: Array, x: Array) -> tuple[Array, Array]:
    """One step.

    Args:
      state: `[B, K]` int8, codes of the hidden state.
      x: `[B, D]` int8, codes of the input.

    Returns:
      `(h, h)`, the new codes.

    Raises:
      ValueError: x is not `[B, D]` int8.
    """
    of_x = fixed.rescale(_product(x, self.input, 3), self.from_input)
    of_x += self.input_bias
    of_h = _product(state, self.recurrent, 3) + self.recurrent_bias
    # The candidate's two terms meet in Q12, behind the reset gate.
    split = jnp.array([False, False, True])[None, :, None]
    acc = jnp.where(split, of_x, of_x + of_h)
    z, r, n = jnp.unstack(fixed.rescale(acc, self.to_q12), axis=1)
    term = fixed.rescale(of_h, self.to_q12)[:, 2]
    z, r = (_q12(fixed.sigmoid(fixed.saturate(pre, 16))) for pre in (z, r))
    n += fixed.round_shift(r * fixed.saturate(term, 19), 12)
    n = _q12(fixed.tanh(fixed.saturate(n, 16)))
    h = (2**12 - z) * n + z * (state.astype(jnp.int32) << 5)  # Q24
    h = fixed.saturate(fixed.round_shift(h, 17), 8).astype(jnp.int8)
    return h, h


def _product(codes: Array, kernel: Array, gates: int) -> Array:
  """`[B, G, K]` int32."""
  if codes.dtype != jnp.int8 or codes.shape[1:] != kernel.shape[:1]:
    raise ValueError(
      f"codes are int8 of shape [batch, {kernel.shape[0]}], got"
      f" {codes.dtype} of shape {codes.shape}"
    )
  acc = jnp.dot(codes, kernel, preferred_element_type=jnp.int32)
  return acc.reshape(codes.shape[0], gates, -1)


def _q12(gate: Array) -> Array:
  """Q12 of Q15."""
  return fixed.round_shift(gate, 3)
