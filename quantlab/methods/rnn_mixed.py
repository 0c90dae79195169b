"""Mixed FP16-INT8 quantization of recurrent networks, after training.

The recurrent layers hold most of the weights, and their values stay in narrow
ranges: their weights, inputs, hidden and cell states get 8 bits. What the other
layers see, such as a raw magnitude spectrum, has a range that 8 linear bits
cannot hold: they stay in float16. Pre-activations of gates never have 8 bits;
they are rounded to 12 fraction bits, as the tables of sigmoid and tanh take
them.

Plans are for models that name things as `models.recurrent` and
`models.denoiser` do.

References:
  Rusci et al., "Accelerating RNN-based Speech Enhancement on a Multi-Core MCU
  with Mixed FP16-INT8 Post-Training Quantization", arXiv 2210.07692. The paper
  says which tensor gets which type; scales per gate, ranges and fixed-point
  formats are those of the authors' code. Reconstruction: in between, values are
  floats, which differs from integers in the last bit (`kernels.integer_rnn`).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from quantlab.core import base, numerics
from quantlab.methods import rtn
from quantlab.transforms import compose, estimate, observe, plan, store

CELLS = {"lstm": 4, "gru": 3}
"""Gates of each cell, whose kernels lie side by side."""


class Plans(NamedTuple):
  """A scheme: what weights and activations become."""

  weights: plan.Plan
  acts: plan.Plan


@base.interned
def rnn_weights(gates: int, *, bits: int = 8) -> base.Quantizer:
  """Symmetric codes, -127 to 127 in 8 bits; a scale for each gate's matrix.

  Args:
    gates: matrices side by side in the kernel, 4 of an LSTM, 3 of a GRU.
    bits: of a code.
  """
  granularity = numerics.chunks(-1, gates)
  return rtn.rtn(bits, symmetric=True, granularity=granularity)


@base.interned
def rnn_activation(
  observer: base.Observer | None = None, *, bits: int = 8
) -> base.Quantizer:
  """Signed codes, -128 to 127 in 8 bits, over a calibrated range; 0 is exact.

  The step is `max(hi / 127, -lo / 128)`.

  Args:
    observer: of the range, by default `extremes`. The authors also use
      `deviations(3)`, for the input of an LSTM's first layer; `histogram` of
      `percentile` or `mse` are others.
    bits: of a code.
  """
  return rtn.rtn(
    bits,
    symmetric=True,
    narrow=False,
    tight=True,
    granularity=numerics.per_tensor,
    observer=observe.extremes() if observer is None else observer,
  )


@base.interned
def q7() -> base.Quantizer:
  """Signed bytes of 7 fraction bits, -1 to 127/128: a GRU's hidden state.

  Example:
    >>> import quantlab as ql
    >>> ql.dequantize(ql.quantize(q7(), jnp.array([-1.0, 1.0]))).tolist()
    [-1.0, 0.9921875]
  """
  return _fixed_point(8, 7)


@base.interned
def q4() -> base.Quantizer:
  """Signed bytes of 4 fraction bits, -8 to 8: an LSTM's cell state.

  The tanh that reads a cell is within 1e-6 of its end there, as the sigmoid of
  a pre-activation nearly is. That a cell saturates at 8 is ours: the authors
  calibrate its range. A cell may count frames, up to hundreds, and in such a
  range 8 bits see nothing else.
  """
  return _fixed_point(8, 4)


@base.interned
def q12() -> base.Quantizer:
  """16 bits of which 12 are of the fraction, -8 to 8: pre-activations.

  Beyond 8 a sigmoid is within 0.0004 of its end. That larger ones saturate is
  reconstruction.
  """
  return _fixed_point(16, 12)


def _fixed_point(bits: int, fraction: int) -> base.Quantizer:
  end = 2.0 ** (bits - 1 - fraction)
  return rtn.rtn(
    bits,
    symmetric=True,
    narrow=False,
    tight=True,
    granularity=numerics.per_tensor,
    estimator=estimate.fixed(-end, end - 2.0**-fraction),
  )


@base.interned
def dense_activation(
  observer: base.Observer | None = None,
) -> base.Quantizer:
  """Bytes over a calibrated range that holds 0, asymmetric, of a dense layer.

  Args:
    observer: of the range, by default `extremes`.
  """
  return rtn.rtn(
    8,
    exact_zero=True,
    granularity=numerics.per_tensor,
    observer=observe.extremes() if observer is None else observer,
  )


def mixed(
  cell: str,
  *,
  inputs: base.Observer | None = None,
  cells: base.Quantizer | None = None,
  weights: base.Quantizer | None = None,
) -> Plans:
  """Recurrent layers in INT8, all else in float16.

  Args:
    cell: "lstm" or "gru".
    inputs: the range of what the first recurrent layer reads, as
      `rnn_activation` takes it. The authors take `deviations(3)` for an LSTM
      and the default for a GRU.
    cells: an LSTM's cell state, by default `rnn_activation()`, as the authors
      have it. Where cells count frames `q4()` does better.
    weights: of the recurrent layers' kernels, in place of 8 bits.

  Returns:
    Plans for `ql.quantize`, and for `ql.calibrate` and `ql.apply`.

  Raises:
    ValueError: there is no such cell.

  Example:
    >>> import jax
    >>> import quantlab as ql
    >>> from quantlab.models import denoiser
    >>> model = denoiser.TinyDenoiser("gru", 16, by_frame=True)
    >>> x = jax.random.uniform(jax.random.key(0), (1, 5, 257))
    >>> variables = model.init(jax.random.key(1), x)
    >>> weights, acts = mixed("gru")
    >>> state = ql.calibrate(model, variables, [x], acts)
    >>> packed = {"params": ql.quantize(weights, variables["params"])}
    >>> masks, _ = ql.apply(model, packed, x, acts=acts, state=state)
    >>> masks.shape
    (1, 5, 257)
  """
  half = store.cast(jnp.float16)
  kernels = rnn_weights(_gates(cell)) if weights is None else weights
  return Plans(
    plan.by_path([("rnn_.*kernel$", kernels), (".*", half)]),
    plan.by_path([*_recurrent(cell, inputs, cells), (".*", half)]),
  )


def uniform(cell: str, *, cells: base.Quantizer | None = None) -> Plans:
  """Everything in INT8 but the network's input: the paper's baseline.

  Dense layers have a scale for each output, and asymmetric activations.

  Args:
    cell: "lstm" or "gru".
    cells: as of `mixed`.

  Raises:
    ValueError: there is no such cell.
  """
  half, dense = store.cast(jnp.float16), dense_activation()
  return Plans(
    plan.by_path(
      [
        ("rnn_.*kernel$", rnn_weights(_gates(cell))),
        ("kernel$", rtn.rtn(8, symmetric=True)),
        (".*", half),
      ]
    ),
    plan.by_path(
      [
        *_recurrent(cell, None, cells),
        ("^dense_./(in|out)$|^out$", dense),
        (".*", half),
      ]
    ),
  )


def fp16() -> Plans:
  """Everything in float16, products added up in float32."""
  half = plan.by_path([(".*", store.cast(jnp.float16))])
  return Plans(half, half)


def _recurrent(
  cell: str, inputs: base.Observer | None, cells: base.Quantizer | None
) -> list[Any]:
  """The rules of the sites of recurrent layers."""
  lstm = _gates(cell) == CELLS["lstm"]
  cells = rnn_activation() if cells is None else cells
  return [
    ("^rnn_0/in$", rnn_activation(inputs)),
    ("^rnn_./in$|hidden/out$", rnn_activation() if lstm else q7()),
    *([("cell/out$", cells)] if lstm else []),
    ("(gates|candidate)/out$", q12()),
    ("^rnn_", compose.keep()),
  ]


def _gates(cell: str) -> int:
  if cell not in CELLS:
    raise ValueError(f"{cell=} is none of {', '.join(CELLS)}")
  return CELLS[cell]
