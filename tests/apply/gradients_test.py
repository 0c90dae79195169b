"""Gradients that are quantized on their way down, and their states."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.apply import gradients
from tests import draws

INT8 = ql.IntSpec(8, exact_zero=True)


def _hindsight(spec=INT8, observer=None, **kwargs):
  observer = ql.ema() if observer is None else observer
  tracked = ql.tracked(observer, spec, ql.per_tensor, **kwargs)
  return ql.chain(tracked, ql.nearest())


@functools.cache
def _program(quantizer):
  def loss(x, carried, above):
    tapped = gradients.grad_tap(quantizer, x, carried)
    return jnp.sum(above * tapped)

  return jax.jit(jax.grad(loss, (0, 1)))


def _pull(quantizer, above, carried=None):
  """What comes down for a gradient from above, and the state after it."""
  if carried is None:
    carried = gradients.carry(quantizer, above)
  down, seen = _program(quantizer)(np.ones_like(above), carried, above)
  return down, gradients.overwritten(carried, seen), seen


def test_forward_is_the_identity_and_backward_is_the_quantizer():
  quantizer, x = _hindsight(), draws.normal((40, 3))
  carried = gradients.carry(quantizer, x)
  out = gradients.grad_tap(quantizer, x, carried)
  np.testing.assert_array_equal(out, x)
  above = draws.normal((40, 3), 1)
  down, _, _ = _pull(quantizer, above)
  expected, _ = jax.jit(quantizer.apply)(above, quantizer.init(above))
  np.testing.assert_array_equal(down, expected.dequantize())
  assert np.any(down != above)


def test_the_state_is_that_of_the_quantizer_itself():
  quantizer = _hindsight()
  stream = [(i + 1) * draws.normal((40, 3), i) for i in range(4)]
  carried, state = None, quantizer.init(stream[0])
  apply = jax.jit(quantizer.apply)
  for above in stream:
    down, carried, _ = _pull(quantizer, above, carried)
    q, stats = apply(above, state)
    state = state._replace(stats=stats)
    np.testing.assert_allclose(down, q.dequantize(), atol=1e-6)
  found = gradients.restored(quantizer, stream[0], carried)
  assert jax.tree.structure(found) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("hindsight", [True, False])
def test_only_hindsight_ranges_are_of_earlier_gradients(hindsight):
  quantizer = _hindsight(hindsight=hindsight)
  first, second = draws.normal((40, 3)), draws.normal((40, 3), 1)
  _, carried, _ = _pull(quantizer, first)
  small = jnp.asarray([0.3, 0.1, -0.2])

  def rounded(scale):
    above = (scale * second).at[0].set(small)
    return _pull(quantizer, above, carried)[0][0]

  same = np.array_equal(rounded(1.0), rounded(20.0))
  assert same == hindsight


def test_what_is_not_finite_leaves_the_state():
  quantizer, above = _hindsight(), draws.normal((40, 3))
  _, carried, _ = _pull(quantizer, above)
  _, after, _ = _pull(quantizer, above.at[0, 0].set(jnp.inf), carried)
  for a, b in zip(
    jax.tree.leaves(after), jax.tree.leaves(carried), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_stochastic_rounding_is_unbiased():
  # 2,000 values far below a step of 2 / 255.
  rng = np.random.default_rng(0)
  above = jnp.asarray(1e-3 * rng.laplace(size=2000), jnp.float32)
  grid = ql.fit(lambda rows, weight, spec: _one(rows), INT8, ql.per_tensor)

  def mean_error(rounding, draws_):
    quantizer = ql.chain(grid, rounding)

    def down(key):
      return jax.vjp(
        lambda x: gradients.grad_tap(quantizer, x, key=key), above
      )[1](above)[0]

    keys = jax.random.split(jax.random.key(0), draws_)
    total = jax.jit(lambda keys: jax.lax.map(down, keys).mean(axis=0))(keys)
    return float(jnp.sqrt(jnp.mean((total - above) ** 2)))

  random = mean_error(ql.stochastic(), 4000)
  assert random < 6e-5
  assert mean_error(ql.nearest(), 1) > 20 * random


def _one(rows):
  end = jnp.ones(rows.shape[0])
  return ql.Range(-end, end)


def test_a_state_used_twice_is_found():
  quantizer, x = _hindsight(), draws.normal((8, 3))
  carried = gradients.carry(quantizer, x)

  def loss(carried):
    once = gradients.grad_tap(quantizer, x, carried)
    twice = gradients.grad_tap(quantizer, 2 * x, carried)
    return jnp.sum(once**2) + jnp.sum(twice)

  seen = jax.jit(jax.grad(loss))(carried)
  assert seen.uses == 2
  after = gradients.overwritten(carried, seen)
  assert all(np.isnan(a).all() for a in jax.tree.leaves(after.state))
  with pytest.raises(ValueError, match=r"^a/out: 2 places used one state"):
    ql.check_uses({"a/out": seen})


def test_a_place_that_is_not_reached_keeps_its_state():
  quantizer, above = _hindsight(), draws.normal((40, 3))
  _, carried, _ = _pull(quantizer, above)
  nothing = jax.tree.map(jnp.zeros_like, carried)
  after = gradients.overwritten({"a": carried}, {"a": nothing})["a"]
  for a, b in zip(
    jax.tree.leaves(after), jax.tree.leaves(carried), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_what_learns_is_refused():
  quantizer = ql.lsq(4)
  with pytest.raises(ValueError, match="cannot learn"):
    gradients.carry(quantizer, jnp.ones((4, 3)))


# --- in a model

MODEL = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(3)])
GRADS = ql.by_path([(r"layers_\d/out$", _hindsight()), (".*", ql.keep())])


def _model():
  x = draws.normal((16, 5))
  return jax.jit(MODEL.init)(jax.random.key(0), x), x


def test_gradients_of_sites():
  variables, x = _model()
  carried = ql.grad_state(MODEL, variables, x, grads=GRADS)
  assert [*carried] == ["layers_0/out", "layers_2/out"]
  above = draws.normal((16, 3), 1)

  def loss(variables, carried):
    y = ql.apply(MODEL, variables, x, grads=GRADS, grad_state=carried)
    return jnp.sum(above * y)

  gradient, seen = jax.jit(jax.grad(loss, (0, 1)))(variables, carried)
  ql.check_uses(seen)
  # By hand: each product of the backward pass reads a quantized gradient.
  p = variables["params"]
  h = x @ p["layers_0"]["kernel"] + p["layers_0"]["bias"][None]
  g2 = ql.dequantize(_applied(above))
  g1 = ql.dequantize(_applied((g2 @ p["layers_2"]["kernel"].T) * (h > 0)))
  found = gradient["params"]
  close = {"rtol": 1e-4, "atol": 1e-5}
  np.testing.assert_allclose(
    found["layers_2"]["kernel"], jax.nn.relu(h).T @ g2, **close
  )
  np.testing.assert_allclose(found["layers_0"]["kernel"], x.T @ g1, **close)
  np.testing.assert_allclose(found["layers_0"]["bias"], g1.sum(0), **close)


@jax.jit
def _applied(above):
  quantizer = _hindsight()
  return quantizer.apply(above, quantizer.init(above))[0]


def test_activations_and_gradients_at_one_site():
  variables, x = _model()
  acts = ql.by_path([("out$", ql.rtn(8)), (".*", ql.keep())])
  carried = ql.grad_state(MODEL, variables, x, grads=GRADS)

  def loss(variables, carried):
    y, _ = ql.apply(
      MODEL, variables, x, acts=acts, grads=GRADS, grad_state=carried
    )
    return jnp.sum(y**2)

  gradient, seen = jax.jit(jax.grad(loss, (0, 1)))(variables, carried)
  plain = jax.jit(
    jax.grad(lambda v: jnp.sum(ql.apply(MODEL, v, x, acts=acts)[0] ** 2))
  )(variables)
  after = ql.overwritten(carried, seen)
  assert {float(entry.state.stats[0].count) for entry in after.values()} == {1}
  a, b = (tree["params"]["layers_0"]["kernel"] for tree in (gradient, plain))
  assert np.any(a != b)
  np.testing.assert_allclose(a, b, atol=0.05 * float(jnp.max(jnp.abs(b))))


def test_random_rounding_takes_its_own_stream():
  variables, x = _model()
  quantizer = ql.chain(
    ql.fit(ql.minmax, ql.IntSpec(4, exact_zero=True), ql.per_tensor),
    ql.stochastic(),
  )
  grads = ql.by_path([(r"layers_0/out$", quantizer), (".*", ql.keep())])

  @jax.jit
  def gradient(key):
    def loss(variables):
      rngs = {"grads": key}
      return jnp.sum(ql.apply(MODEL, variables, x, grads=grads, rngs=rngs) ** 2)

    return jax.jit(jax.grad(loss))(variables)["params"]["layers_0"]["kernel"]

  one, again, other = (gradient(jax.random.key(seed)) for seed in (0, 0, 1))
  np.testing.assert_array_equal(one, again)
  assert np.any(one != other)
  with pytest.raises(ValueError, match=r"layers_0/out: .*needs a PRNG key"):
    jax.grad(lambda v: jnp.sum(ql.apply(MODEL, v, x, grads=grads)))(variables)


class Stack(nn.Module):
  lift: bool

  @nn.compact
  def __call__(self, x):
    axes = {"params": 0} | ({"grads": 0} if self.lift else {})
    layers = nn.scan(
      Layer,
      variable_axes=axes,
      variable_broadcast=() if self.lift else "grads",
      split_rngs={"params": True},
      length=3,
    )
    return layers(name="layers")(x, None)[0]


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return nn.Dense(x.shape[-1], name="dense")(x), None


@pytest.mark.parametrize("lift", [True, False])
def test_layers_of_a_scan(lift):
  model, x = Stack(lift), draws.normal((4, 5))
  variables = jax.jit(model.init)(jax.random.key(0), x)
  grads = ql.by_path([("dense/out$", _hindsight()), (".*", ql.keep())])
  carried = ql.grad_state(model, variables, x, grads=grads)
  if lift:  # a state for each layer
    carried = jax.tree.map(lambda a: jnp.stack(3 * [a]), carried)

  def loss(carried):
    y = ql.apply(model, variables, x, grads=grads, grad_state=carried)
    return jnp.sum(y**2)

  seen = jax.jit(jax.grad(loss))(carried)
  if lift:
    ql.check_uses(seen)
    hi = seen["layers/dense/out"].state.stats[0].stats.hi
    assert hi.shape == (3, 1)
    assert len(set(np.asarray(hi).ravel())) == 3
  else:
    with pytest.raises(ValueError, match="3 places used one state"):
      ql.check_uses(seen)


def test_missing_state_and_unknown_sites():
  variables, x = _model()
  with pytest.raises(ValueError, match=r"layers_0/out: .*none was given"):
    ql.apply(MODEL, variables, x, grads=GRADS)
  wrong = ql.by_path([("nowhere", _hindsight()), (".*", ql.keep())])
  with pytest.raises(ValueError, match="no site of the model matches"):
    ql.grad_state(MODEL, variables, x, grads=wrong)
  with pytest.raises(ValueError, match="give grads"):
    ql.apply(MODEL, variables, x, grad_state={})
