"""Golden numbers of arXiv 2210.07692 as its authors' code has them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.methods import rnn_mixed
from quantlab.models import denoiser
from tests import draws

_SAVING = {("lstm", 256): 1.7262, ("gru", 128): 1.4272}
_BYTES = {
  ("lstm", 256): (2_494_980, 1_445_380),
  ("gru", 128): (822_276, 576_132),
}


def _codes(params):
  """Bytes of the kernels' codes, without scales."""
  leaves = jax.tree.leaves(params, is_leaf=lambda x: hasattr(x, "dequantize"))
  kernels = [leaf for leaf in leaves if len(leaf.shape) == 2]
  return sum(ql.nbits(getattr(w, "codes", w)) for w in kernels) // 8


@pytest.mark.parametrize(
  ("cell", "features"),
  [(cell, features) for cell in ("lstm", "gru") for features in (256, 128)],
)
def test_saving_is_that_of_the_share_in_recurrent_layers(cell, features):
  model = denoiser.TinyDenoiser(cell, features)
  x = jnp.zeros((1, 2, 257))
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]

  def stored(plans):
    def quantize(params):
      return ql.quantize(plans.weights, params)

    return _codes(jax.eval_shape(quantize, shapes))

  half, mixed = stored(rnn_mixed.fp16()), stored(rnn_mixed.mixed(cell))
  kernels = [x for x in jax.tree.leaves(shapes) if len(x.shape) == 2]
  total = sum(math.prod(x.shape) for x in kernels)
  dense = 2 * 257**2 + 257 * features
  share = 1 - dense / total
  assert half == 2 * total
  assert half / mixed == pytest.approx(2 / (2 - share), rel=1e-12)
  if (cell, features) in _SAVING:
    assert (half, mixed) == _BYTES[cell, features]
    assert half / mixed == pytest.approx(_SAVING[cell, features], abs=1e-4)


@pytest.mark.parametrize(
  ("lo", "hi", "step", "values"),
  [
    (0.0, 15.36, 0.12094488, {1.0: 0.96755906, 15.36: 15.36}),
    (-0.884, 1.282, 0.01009449, {1.0: 0.99935433, 15.36: 1.282}),
    (-1.2, 0.8, 0.009375, {0.5: 0.496875, 0.8: 0.796875, -1.2: -1.2}),
  ],
)
def test_activations_have_a_step_that_reaches_both_ends(lo, hi, step, values):
  quantizer = rnn_mixed.rnn_activation()
  ends = jnp.array([lo, hi])
  _, stats = quantizer.apply(ends, quantizer.init(ends))
  x = jnp.array(list(values))
  q, _ = quantizer.apply(x, ql.State(quantizer.init(ends).learned, stats))
  assert q.grid.scale.item() == pytest.approx(step, rel=1e-6)
  np.testing.assert_allclose(q.dequantize(), [*values.values()], rtol=1e-6)


def test_three_deviations_are_means_over_frames():
  frames = jnp.array([[-1.0, 1.0], [-1.0, 5.0]])
  quantizer = rnn_mixed.rnn_activation(ql.deviations(3))
  state = quantizer.init(frames[0])
  for frame in frames:
    _, stats = quantizer.apply(frame, state)
    state = ql.State(state.learned, stats)
  q, _ = quantizer.apply(frames[0], state)
  assert q.grid.scale.item() == pytest.approx(7 / 127)  # not -5 / 128


def test_fixed_point_formats_are_exact():
  q4, q7, q12 = (
    ql.dequantize(ql.quantize(quantizer, jnp.array([1.0, -1.0, 1 / 3, -81.0])))
    for quantizer in (rnn_mixed.q4(), rnn_mixed.q7(), rnn_mixed.q12())
  )
  assert (16 * q4).tolist() == [16, -16, 5, -128]
  assert (128 * q7).tolist() == [127, -128, 43, -128]
  assert (4096 * q12).tolist() == [4096, -4096, 1365, -8 * 4096]


def test_each_gates_matrix_has_a_scale_of_its_own():
  w = draws.normal((5, 12)) * jnp.repeat(jnp.array([1.0, 2.0, 4.0]), 4)[None]
  q = ql.quantize(rnn_mixed.rnn_weights(3), w)
  largest = jnp.abs(w).reshape(5, 3, 4).max((0, 2))
  np.testing.assert_allclose(q.grid.scale[0], largest / 127, rtol=1e-6)
  assert q.codes.bits == 8


@pytest.fixture(scope="module", params=["lstm", "gru"])
def network(request):
  """A tiny network with wide inputs, as a raw magnitude spectrum has."""
  model = denoiser.TinyDenoiser(request.param, 8, bins=17, by_frame=True)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.lognormal(-2, 1.5, (2, 24, 17)), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  variables = draws.like(shapes, 0.4)
  return model, variables, x, jax.jit(model.apply)(variables, x)


def _rmse(network, plans, acts=True):
  model, variables, x, masks = network
  packed = {"params": ql.quantize(plans.weights, variables["params"])}
  state = ql.calibrate(model, variables, [x[:1], x[1:]], plans.acts)
  found, _ = ql.apply(model, packed, x, acts=plans.acts, state=state)
  return float(jnp.sqrt(jnp.mean((found - masks) ** 2)))


@pytest.mark.study
def test_dense_layers_do_the_damage(network):
  cell = network[0].cell
  half = _rmse(network, rnn_mixed.fp16())
  mixed = _rmse(network, rnn_mixed.mixed(cell))
  uniform = _rmse(network, rnn_mixed.uniform(cell))
  assert half < 1e-3
  assert half < mixed < uniform


def test_any_weight_method_drops_into_the_recurrent_layers(network):
  model, variables, *_ = network
  low = ql.icquant(ql.rtn(4), ratio=0.05)
  plans = rnn_mixed.mixed(model.cell, weights=low)
  packed = ql.quantize(plans.weights, variables["params"])
  codes = packed["rnn_0"]["step"]["recurrent"]["kernel"].codes
  assert codes.bits == 4
  assert packed["dense_0"]["kernel"].dtype == jnp.float16


@pytest.mark.parametrize("network", ["lstm"], indirect=True)
def test_states_are_fed_back_while_they_are_calibrated(network):
  model, variables, x, _ = network
  acts = rnn_mixed.mixed(model.cell).acts
  state = ql.calibrate(model, variables, [x], acts)
  seen = state.stats["rnn_0/step/cell/out"][0]
  assert seen.count == x.shape[1]  # frames, not batches
  # One frame adds at most 1 to a cell that begins at 0.
  assert float(seen.stats.hi.max()) > 1


def test_an_unknown_cell_is_named():
  with pytest.raises(ValueError, match="cell='rnn' is none of lstm, gru"):
    rnn_mixed.mixed("rnn")
