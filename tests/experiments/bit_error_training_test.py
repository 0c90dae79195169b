"""Steps of random bit error training, against the same by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import quantlab as ql
from quantlab.core import flips
from quantlab.experiments import train
from quantlab.methods import randbet
from quantlab.transforms import noise
from tests import draws

RATE, CLIP, SEED = 0.05, 0.4, 7
# Here the clean loss is low enough for errors, their mean with it is not.
THRESHOLD, CLAMP = 1.1, 0.05


class Mlp(nn.Module):
  """Two layers, with a norm whose running mean the model writes."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(5)(x)
    mean = self.variable("stats", "mean", lambda: jnp.zeros(5))
    mean.value = 0.5 * mean.value + 0.5 * jnp.mean(x, axis=0)
    return nn.Dense(3)(nn.relu(x))


MODEL = Mlp()
PLANS = train.Plans(weights=randbet.rquant(8))
OPTIMIZER = optax.sgd(0.1)


@functools.cache
def _batch():
  return np.asarray(draws.normal((6, 4))), np.arange(6) % 3


@functools.cache
def _start():
  variables = jax.jit(MODEL.init)(jax.random.key(0), _batch()[0])
  return train.start(MODEL, variables, OPTIMIZER, PLANS)


def _clip(params):
  return jax.tree.map(lambda x: jnp.clip(x, -CLIP, CLIP), params)


@jax.jit
def _by_hand(training):
  """The step in plain jax: both losses, params and what the model writes."""
  inputs, labels = _batch()
  params = _clip(training.variables["params"])
  key = jax.random.fold_in(jax.random.key(SEED), training.step)
  plan = ql.by_path([("", PLANS.weights)])

  def run(values):
    variables = {"params": values, "stats": training.variables["stats"]}
    logits, wrote = MODEL.apply(variables, inputs, mutable=["stats"])
    picked = jnp.take_along_axis(
      jax.nn.log_softmax(logits), labels[:, None], axis=1
    )
    return -jnp.mean(picked), wrote

  q, _ = plan.apply(params, plan.init(params))
  bad = noise.flip_codes(q, RATE, jax.random.fold_in(key, 3))
  for name in params:  # ranges are those of the clean weights
    for leaf in ("kernel", "bias"):
      assert bad[name][leaf].grid is q[name][leaf].grid
  slope = jax.value_and_grad(run, has_aux=True)
  # Gradients at the values, handed to the weights as they are.
  (clean, wrote), first = slope(ql.dequantize(q))
  (noisy, _), second = slope(ql.dequantize(bad))
  both = jax.tree.map(
    lambda a, b: (a + jnp.clip(b, -CLAMP, CLAMP)) / 2, first, second
  )
  moved = [
    _clip(jax.tree.map(lambda w, g: w - 0.1 * g, params, gradient))
    for gradient in (first, both)
  ]
  return clean, noisy, moved, wrote


def _close(found, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    found,
    expected,
  )


def test_steps_by_hand():
  errors = train.Errors(RATE, threshold=THRESHOLD, clamp=CLAMP)
  update = train.step(
    MODEL, OPTIMIZER, PLANS, seed=SEED, errors=errors, clip=CLIP
  )
  training, actives = _start(), []
  assert not training.active
  for _ in range(4):
    clean, noisy, (plain, averaged), wrote = _by_hand(training)
    after, seen = update(training, *_batch())
    assert seen.loss == pytest.approx(float(clean), rel=1e-5)
    expected = averaged if training.active else plain
    _close(after.variables["params"], expected)
    _close(after.variables["stats"], wrote["stats"])
    second = float(noisy) if training.active else 0.0
    assert bool(after.active) == (
      clean < 1.15 * THRESHOLD and (clean + second) / 2 <= THRESHOLD
    )
    training = after
    actives.append(bool(after.active))
  assert actives[:3] == [True, False, True]
  assert update._cache_size() == 1


def test_errors_begin_when_the_loss_is_low_and_end_when_it_is_high():
  errors = train.Errors(0.1, threshold=1.0)
  losses = [(1.2, 0.0), (1.14, 0.0), (0.9, 1.09), (0.9, 1.11), (1.16, 0.0)]
  begins = [
    bool(errors.begin(jnp.float32(loss), jnp.float32(noisy)))
    for loss, noisy in losses
  ]
  assert begins == [False, True, True, False, False]


def test_weights_are_clipped_without_errors_too():
  inputs, labels = _batch()
  model = nn.Dense(3)
  params = {"kernel": 9 * draws.normal((4, 3)), "bias": jnp.ones(3)}
  training = train.start(model, {"params": params}, OPTIMIZER)
  update = train.step(model, OPTIMIZER, clip=0.25)
  clipped = training._replace(variables={"params": randbet.clip(params, 0.25)})
  found, seen = update(training, inputs, labels)
  expected, same = update(clipped, inputs, labels)
  assert seen.loss == same.loss
  for name, x in found.variables["params"].items():
    np.testing.assert_array_equal(x, expected.variables["params"][name])
    assert np.max(np.abs(x)) == 0.25
  assert not found.active


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"rate": 1.5}, r"in \[0, 1\], got rate=1.5"),
    ({"rate": 0.1, "threshold": 0.0}, "above 0, got self.threshold=0.0"),
    ({"rate": 0.1, "clamp": -1.0}, "self.clamp=-1.0"),
  ],
)
def test_refuses(kwargs, message):
  with pytest.raises(ValueError, match=message):
    train.Errors(**kwargs)


def test_errors_need_a_plan_of_weights():
  with pytest.raises(ValueError, match=r"plans\.weights=None"):
    train.step(MODEL, OPTIMIZER, errors=train.Errors(0.1))


EPOCHS, BATCH, PATTERNS = 60, 64, 20
GLOBAL = {"symmetric": True, "signed": True, "rounding": False, "q_max": 1.0}


class Digits(nn.Module):
  """64-128-128-10, without norms."""

  @nn.compact
  def __call__(self, x):
    # He's, not truncated: the tails are what sets the ranges.
    he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    dense = functools.partial(nn.Dense, kernel_init=he)
    return dense(10)(nn.relu(dense(128)(nn.relu(dense(128)(x)))))


@functools.cache
def _digits():
  from sklearn import datasets, model_selection

  images, labels = datasets.load_digits(return_X_y=True)
  return model_selection.train_test_split(
    (images / 16).astype(np.float32),
    labels,
    test_size=0.33,
    random_state=0,
    stratify=labels,
  )


@functools.cache
def _trained(bits=8, clip=None, trained_at=None, **scheme):
  """A packed model, trained with its quantizer in the loss."""
  images, _, labels, _ = map(jnp.asarray, _digits())
  steps = EPOCHS * (len(images) // BATCH)
  drops = {steps * i // 5: 0.1 for i in (2, 3, 4)}
  optimizer = optax.chain(
    optax.add_decayed_weights(5e-4),
    optax.sgd(
      optax.piecewise_constant_schedule(0.05, drops),
      momentum=0.9,
      nesterov=True,
    ),
  )
  plans = train.Plans(weights=randbet.rquant(bits, **scheme))
  errors = None if trained_at is None else train.Errors(trained_at)
  model = Digits()
  update = train.step(model, optimizer, plans, errors=errors, clip=clip)
  variables = jax.jit(model.init)(jax.random.key(0), images[:1])
  rng = np.random.default_rng(0)
  whole = len(images) // BATCH * BATCH
  order = [rng.permutation(len(images))[:whole] for _ in range(EPOCHS)]
  order = jnp.asarray(np.reshape(order, (-1, BATCH)))

  @jax.jit
  def run(training):
    def one(training, rows):
      return update(training, images[rows], labels[rows])[0], ()

    return jax.lax.scan(one, training, order)[0]

  training = run(train.start(model, variables, optimizer, plans))
  return train.deploy(plans, training)


def _error(rate, **kwargs):
  """Test error in percent, the mean over patterns."""
  packed = _trained(**kwargs)
  _, images, _, labels = _digits()

  @jax.jit
  def wrong(key, rate):
    bad = flips.flip_bits(packed, rate, key, protect=("grid",))
    params = {"params": ql.dequantize(bad)}
    return jnp.mean(jnp.argmax(Digits().apply(params, images), 1) != labels)

  keys = [jax.random.key(seed) for seed in range(100, 100 + PATTERNS)]
  return 100 * float(np.mean([wrong(key, rate) for key in keys]))


@pytest.mark.study
def test_digits_survive_bit_errors_as_the_parts_of_the_method_say():
  clipped = {"clip": 0.25}
  both = {"clip": 0.25, "trained_at": 0.05}
  assert _error(0.01, **GLOBAL) > 1.5 * _error(0.01)
  assert _error(0.025) > 3 * _error(0.025, **clipped)
  assert _error(0.05, **clipped) > 1.3 * _error(0.05, **both)
  assert _error(0.1, **clipped) > 1.3 * _error(0.1, **both)
  assert _error(0.01) > 1.3 * _error(0.01, trained_at=0.01)
  cut = _error(0.01, bits=4, rounding=False)
  assert cut > 1.2 * _error(0.01, bits=4)
  for kwargs in (clipped, both, {"trained_at": 0.01}):
    assert _error(0.0, **kwargs) < _error(0.0) + 1
