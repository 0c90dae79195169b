"""Integer-exact LSTM and GRU layers: from quantized kernels, over sequences.

Fake quantization computes in floats on grids what a microcontroller computes in
integers. These layers are the latter (`integer_cells` has their steps), made
from the same quantized kernels and scales: `codes = quantize(x, x_scale)`,
`run(lstm(...), codes)`, and the value of a code of the result is `h_scale`.

From equal states a step is within one code of fake quantization that rounds
pre-activations to Q12. Over a sequence a code of the cell is worth many of the
hidden state, and a network that amplifies takes the two apart, as one code more
takes fake quantization apart from itself.

Every scale is kept as it is: those of input and state, and of gates, that
nearly agree are not merged, as the paper's integer code does.

Shape letters: B batch, T time, D inputs, K units, G gates.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.core import grids
from quantlab.kernels import fixed_point as fixed
from quantlab.kernels import integer_cells as cells

Array = jax.Array


MOST_BIAS = 2**28
"""Biases saturate here, so that no sum leaves 32 bits."""


class Layer(Protocol):
  """What `run` takes: an `IntegerLSTM`, an `IntegerGRU`."""

  def start(self, batch: int) -> Any:
    """The state before the first step."""
    ...

  def step(self, state: Any, x: Array) -> tuple[Any, Array]:
    """The next state, and the hidden codes `[B, K]`."""
    ...


def lstm(
  input: Any,
  recurrent: Any,
  bias: jax.typing.ArrayLike,
  *,
  x_scale: jax.typing.ArrayLike,
  h_scale: jax.typing.ArrayLike,
  c_scale: jax.typing.ArrayLike,
) -> cells.IntegerLSTM:
  """An integer LSTM layer from quantized kernels and the scales of codes.

  Everything is concrete: the constants are found on the host.

  Args:
    input: `[D, 4K]`, a `QTensor` of codes -127..127 with a scale per gate.
    recurrent: `[K, 4K]`, likewise.
    bias: `[4K]` float.
    x_scale: a float, the value of an input's code 1.
    h_scale: of a hidden code 1; its codes hold +-1 with 1/127.
    c_scale: of a cell's code 1. Cells are not bounded by 1: it is calibrated.

  Returns:
    The layer.

  Raises:
    ValueError: a kernel is not quantized like that, shapes do not fit, or a
      scale is not a positive number.

  Example:
    >>> import quantlab as ql
    >>> int8 = ql.rtn(8, symmetric=True, granularity=ql.chunks(-1, 4))
    >>> w = ql.quantize(int8, jnp.full((3, 8), 0.1))
    >>> r = ql.quantize(int8, jnp.full((2, 8), 0.1))
    >>> layer = lstm(
    ...   w, r, jnp.zeros(8), x_scale=0.01, h_scale=1 / 127, c_scale=1 / 64
    ... )
    >>> x = fixed.quantize(jnp.ones((1, 2, 3)), 0.01)
    >>> run(layer, x).tolist()
    [[[12, 12], [20, 20]]]
  """
  h_scale = _scale("h_scale", h_scale)
  c_scale = _scale("c_scale", c_scale)
  codes, ratios, unit = _kernels(input, recurrent, 4, x_scale, h_scale)
  return cells.IntegerLSTM(
    *codes,
    _bias("bias", bias, unit, codes[1].shape[0]),
    *ratios,
    from_cell=fixed.multiplier(c_scale * 2.0 ** (12 - 15)),
    to_cell=fixed.multiplier(2.0**-12 / c_scale),
    to_hidden=fixed.multiplier(2.0**-15 / h_scale),
  )


def gru(
  input: Any,
  recurrent: Any,
  input_bias: jax.typing.ArrayLike,
  recurrent_bias: jax.typing.ArrayLike,
  *,
  x_scale: jax.typing.ArrayLike,
) -> cells.IntegerGRU:
  """An integer GRU layer from quantized kernels; hidden codes are Q7.

  Args:
    input: `[D, 3K]`, a `QTensor` of codes -127..127 with a scale per gate.
    recurrent: `[K, 3K]`, likewise.
    input_bias: `[3K]` float.
    recurrent_bias: `[3K]` float; the candidate's is behind the reset gate.
    x_scale: a float, the value of an input's code 1.

  Returns:
    The layer.

  Raises:
    ValueError: as of `lstm`.

  Example:
    >>> import quantlab as ql
    >>> int8 = ql.rtn(8, symmetric=True, granularity=ql.chunks(-1, 3))
    >>> w = ql.quantize(int8, jnp.full((3, 6), 0.1))
    >>> r = ql.quantize(int8, jnp.full((2, 6), 0.1))
    >>> layer = gru(w, r, jnp.zeros(6), jnp.zeros(6), x_scale=0.01)
    >>> x = fixed.quantize(jnp.ones((1, 2, 3)), 0.01)
    >>> run(layer, x).tolist()
    [[[16, 16], [26, 26]]]
  """
  codes, ratios, unit = _kernels(input, recurrent, 3, x_scale, 2.0**-7)
  units = codes[1].shape[0]
  return cells.IntegerGRU(
    *codes,
    _bias("input_bias", input_bias, unit, units),
    _bias("recurrent_bias", recurrent_bias, unit, units),
    *ratios,
  )


@jax.jit
def run(layer: Layer, x: Array) -> Array:
  """Every hidden code of a sequence, from states of 0.

  Args:
    layer: from `lstm` or `gru`.
    x: `[B, T, D]` int8, codes of the input.

  Returns:
    `[B, T, K]` int8.

  Raises:
    ValueError: x is not `[B, T, D]` int8.
  """
  if x.ndim != 3:
    raise ValueError(f"a sequence is [batch, time, inputs], got {x.shape=}")
  start = layer.start(x.shape[0])
  _, h = jax.lax.scan(layer.step, start, jnp.moveaxis(x, 1, 0))
  return jnp.moveaxis(h, 0, 1)


def _kernels(input, recurrent, gates, x_scale, h_scale):
  """Codes of both kernels, their multipliers, `[1, G, 1]` recurrent units."""
  w, w_scale = _kernel("input", input, gates)
  r, r_scale = _kernel("recurrent", recurrent, gates)
  units = r.shape[0]
  for name, kernel in {"recurrent": r, "input": w}.items():
    if kernel.shape[1] != gates * units:
      raise ValueError(
        f"{name} kernel: {gates} gates of {units} units take"
        f" {gates * units} columns, got {kernel.shape=}"
      )
  unit = r_scale * h_scale
  from_input = fixed.multiplier(w_scale * _scale("x_scale", x_scale) / unit)
  return (w, r), (from_input, fixed.multiplier(unit * 2**12)), unit


def _kernel(name, kernel, gates):
  """Codes, and scales `[1, G, 1]` in float64."""
  grid = getattr(kernel, "grid", kernel)
  if not isinstance(grid, grids.Affine):
    raise ValueError(
      f"{name} kernel: expected a QTensor on an Affine grid, got"
      f" {type(grid).__name__}"
    )
  if not grid.spec.symmetric or grid.bounds != (-127, 127):
    raise ValueError(
      f"{name} kernel: expected symmetric codes -127..127, got {grid.spec}"
    )
  codes = grids.plain(kernel.codes)
  if codes.ndim != 2 or not jnp.issubdtype(codes.dtype, jnp.integer):
    raise ValueError(
      f"{name} kernel: expected a matrix of integer codes, got {codes.dtype}"
      f" of shape {codes.shape}"
    )
  if grid.scale.shape != (1, gates):
    raise ValueError(
      f"{name} kernel: expected one scale per gate, {(1, gates)}, as"
      f" chunks(-1, {gates}) gives, got {grid.scale.shape=}"
    )
  scale = np.asarray(grid.scale, np.float64)[:, :, None]
  return codes.astype(jnp.int8), scale


def _bias(name, bias, unit, units):
  bias = np.asarray(bias, np.float64)
  gates = unit.shape[1]
  if bias.shape != (gates * units,) or not np.isfinite(bias).all():
    raise ValueError(
      f"{name}: expected {gates * units} finite floats, got {bias} of shape"
      f" {bias.shape}"
    )
  codes = np.round(bias.reshape(1, gates, units) / unit)
  codes = np.clip(codes, -MOST_BIAS, MOST_BIAS)
  return jnp.asarray(codes.astype(np.int32))


def _scale(name: str, scale: jax.typing.ArrayLike) -> float:
  value = np.asarray(scale, np.float64)
  if value.size != 1 or not 0 < value.item() < np.inf:
    raise ValueError(f"{name} must be one positive number, got {scale}")
  return value.item()
