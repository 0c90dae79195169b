import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.models import denoiser
from tests import draws

# Weights alone: kernels, no biases.
_SIZES = {
  ("lstm", 256): (197_890, 1_049_600),
  ("gru", 128): (164_994, 246_144),
  ("lstm", 128): (164_994, 328_192),
  ("gru", 256): (197_890, 787_200),
}


def _shapes(cell, features):
  model = denoiser.TinyDenoiser(cell, features)
  x = jax.ShapeDtypeStruct((1, 2, 257), jnp.float32)
  return model, jax.eval_shape(model.init, jax.random.key(0), x)


@pytest.mark.parametrize(("cell", "features"), list(_SIZES))
def test_parameters_are_counted_as_published(cell, features):
  model, variables = _shapes(cell, features)
  params = variables["params"]
  counts = {"dense": 0, "rnn": 0}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if len(leaf.shape) == 2:
      counts[path[0].key.split("_")[0]] += math.prod(leaf.shape)
  assert (counts["dense"], counts["rnn"]) == _SIZES[cell, features]
  assert denoiser.of_params(params) == model


@pytest.fixture(scope="module", params=["lstm", "gru"])
def small(request):
  model = denoiser.TinyDenoiser(request.param, 6, bins=9)
  x = jnp.abs(draws.normal((2, 7, 9)))
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  variables = draws.like(shapes, 0.5)
  return model, variables, x, jax.jit(model.apply)(variables, x)


def test_frame_by_frame_gives_the_same_masks_and_sites(small):
  model, variables, x, masks = small
  slow = model.clone(by_frame=True)
  np.testing.assert_allclose(slow.apply(variables, x), masks, atol=1e-6)
  sites = ql.sites(slow, variables, x)
  assert list(sites) == list(ql.sites(model, variables, x))
  assert sites["dense_0/in"].shape == (2, 1, 9)
  assert sites["rnn_1/step/hidden/out"].shape == (2, 6)
  kept = {s for s in sites if s.endswith(("cell/out", "candidate/out"))}
  last = {"lstm": "cell", "gru": "candidate"}[model.cell]
  assert kept == {f"rnn_{i}/step/{last}/out" for i in (0, 1)}


def test_the_future_does_not_matter(small):
  model, variables, x, masks = small
  changed = x.at[:, 4:].set(3.0)
  found = jax.jit(model.apply)(variables, changed)
  np.testing.assert_array_equal(found[:, :4], masks[:, :4])
  assert not np.allclose(found[:, 4:], masks[:, 4:])


def test_a_stream_of_frames_is_the_whole(small):
  model, variables, x, masks = small
  step = jax.jit(lambda x, carry: model.apply(variables, x, carry))
  carry, found = model.start(2), []
  for t in range(x.shape[1]):
    mask, carry = step(x[:, t : t + 1], carry)
    found.append(mask)
  np.testing.assert_allclose(jnp.concatenate(found, 1), masks, atol=1e-6)


def test_packed_weights_run_through_the_recurrence(small):
  model, variables, x, _ = small
  plan = ql.by_path([("kernel", ql.rtn(4)), ("bias", ql.keep())])
  packed = ql.quantize(plan, variables)
  found = jax.jit(lambda v, x: ql.apply(model, v, x))(packed, x)
  expected = model.apply(ql.dequantize(packed), x)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_is_no_denoiser_is_refused():
  with pytest.raises(ValueError, match="TinyDenoiser: 'dense_0' is not there"):
    denoiser.of_params({"head": {}})
  _, variables = _shapes("gru", 8)
  params = dict(variables["params"])
  params["dense_1"] = {"kernel": jax.ShapeDtypeStruct((9, 257), jnp.float32)}
  with pytest.raises(ValueError, match=r"no TinyDenoiser has .*\(9, 257\)"):
    denoiser.of_params(params)
  with pytest.raises(ValueError, match="cell='rnn' is none of lstm, gru"):
    _shapes("rnn", 8)
