"""A mixed scheme with its recurrent layers in integers alone.

The same packed weights and calibrated ranges run twice: as fake quantization,
in floats on grids, and as `kernels.integer_rnn`, from the codes of the first
layer's input to those of the last hidden state.

From equal states a step of the two is at most one code apart. Over a sequence
they part further, as two runs of fake quantization do that begin one code
apart: what a state differs by is fed back, and a code of the cell is worth
several of the hidden state.

Shape letters: B batch, T frames, F bins, K units.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import quantlab as ql
from quantlab.experiments import schemes
from quantlab.kernels import fixed_point, integer_rnn
from quantlab.models import denoiser, recurrent

Array = jax.Array

_LAYERS = ("rnn_0", "rnn_1")


class Comparison(NamedTuple):
  """Integers beside fake quantization.

  Attributes:
    masks: `[B, T, F]`, with integers.
    step: codes of any state apart after one frame from equal states, at most.
    equal: share of the last layer's hidden codes that are the same, over whole
      utterances.
    within_one: share of those at most one code apart.
    most: codes apart, at most.
    mask_rmse: between the masks.
  """

  masks: np.ndarray
  step: int
  equal: float
  within_one: float
  most: int
  mask_rmse: float


def compare(scheme: schemes.Scheme, magnitudes: Array) -> Comparison:
  """Runs a TinyDenoiser both ways over whole utterances.

  Its very input and output are left as they are.

  Args:
    scheme: whose recurrent layers are in INT8 as `methods.rnn_mixed` has it.
    magnitudes: `[B, T, F]`.

  Raises:
    ValueError: the scheme is not of that kind; names what is not.
  """
  model = denoiser.of_params(scheme.params)
  carry = model.start(len(magnitudes))
  encoded = _run(scheme, model, "encode", magnitudes)
  _, fake = _run(scheme, model, "recur", carry, encoded)
  codes = fixed_point.quantize(encoded, _scale(scheme, "rnn_0/in"))
  layers = [layer(scheme, name, model.cell) for name in _LAYERS]
  for each in layers:
    codes = integer_rnn.run(each, codes)
  scale = _scale(scheme, "rnn_1/step/hidden/out")
  masks = [
    np.asarray(_run(scheme, model, "decode", hidden))
    for hidden in (codes.astype(fake.dtype) * scale, fake)
  ]
  apart = np.abs(np.round(np.asarray(fake) / scale) - np.asarray(codes))
  return Comparison(
    masks[0],
    _step(scheme, model, layers, encoded),
    float(np.mean(apart == 0)),
    float(np.mean(apart <= 1)),
    int(apart.max()),
    float(np.sqrt(np.mean((masks[0] - masks[1]) ** 2))),
  )


def _step(
  scheme: schemes.Scheme,
  model: denoiser.TinyDenoiser,
  layers: list[integer_rnn.Layer],
  encoded: Array,
) -> int:
  """How far states of the two are apart after a frame from equal ones."""
  names = ["cell", "hidden"] if model.cell == "lstm" else ["hidden"]
  scales = [
    [_scale(scheme, f"{name}/step/{state}/out") for state in names]
    for name in _LAYERS
  ]
  inputs = [_scale(scheme, f"{name}/in") for name in _LAYERS]

  def codes(states, scales):
    pairs = zip(states, scales, strict=True)
    return [fixed_point.quantize(state, scale) for state, scale in pairs]

  def frame(carry, x):
    after, _ = _run(scheme, model, "recur", carry, x[:, None])
    x, apart = fixed_point.quantize(x, inputs[0]), []
    for i, each in enumerate(layers):
      before, fake = (codes(states[i], scales[i]) for states in (carry, after))
      state = tuple(before) if len(before) > 1 else before[0]
      found, _ = each.step(state, x)
      for a, b in zip(jax.tree.leaves(found), fake, strict=True):
        apart.append(jnp.max(jnp.abs(a.astype(int) - b.astype(int))))
      x = fake[-1]  # what the next layer reads
    return after, jnp.max(jnp.stack(apart))

  start = model.start(len(encoded))
  run = jax.jit(lambda x: jax.lax.scan(frame, start, jnp.moveaxis(x, 1, 0))[1])
  return int(np.max(run(encoded)))


def layer(scheme: schemes.Scheme, name: str, cell: str) -> integer_rnn.Layer:
  """A recurrent layer in integers, from its weights and ranges.

  Args:
    scheme: of the model.
    name: of the layer.
    cell: "lstm" or "gru".

  Raises:
    ValueError: its weights or activations have no such integers.
  """
  params = scheme.params[name]
  kernels = params["input"]["kernel"], params["step"]["recurrent"]["kernel"]
  bias = params["input"]["bias"]
  x_scale = _scale(scheme, f"{name}/in")
  if recurrent.LAYERS[cell] is recurrent.LSTM:
    return integer_rnn.lstm(
      *kernels,
      bias,
      x_scale=x_scale,
      h_scale=_scale(scheme, f"{name}/step/hidden/out"),
      c_scale=_scale(scheme, f"{name}/step/cell/out"),
    )
  return integer_rnn.gru(
    *kernels, bias, params["step"]["recurrent"]["bias"], x_scale=x_scale
  )


def _scale(scheme: schemes.Scheme, site: str) -> float:
  """The step of a site's grid."""
  if scheme.acts is None or scheme.state is None:
    raise ValueError(f"{site}: is not quantized, so it has no integers")
  x = jnp.zeros((1, 1))
  quantizer = scheme.acts.assign({site: x})[site]
  state = quantizer.init(x)
  if site in scheme.state.stats:
    state = ql.State(scheme.state.learned[site], scheme.state.stats[site])
  q, _ = quantizer.apply(x, state)
  scale = getattr(getattr(q, "grid", None), "scale", None)
  if scale is None or scale.size != 1:
    raise ValueError(f"{site}: has no grid with one step, so no integers")
  return float(scale.item())


def _run(
  scheme: schemes.Scheme, model: denoiser.TinyDenoiser, method: str, *args: Any
) -> Any:
  """Runs a method of the model with what the scheme has for its sites."""
  variables: Any = {"params": scheme.params}
  sites = ql.sites(model, variables, *args, method=method)
  part = schemes.join({method: ""}, {method: scheme}, scheme.params, [*sites])
  out = ql.apply(
    model, variables, *args, acts=part.acts, state=part.state, method=method
  )
  return out if part.acts is None else out[0]
