"""Training with gradients of four bits, in the spirit of arXiv 2105.04246.

An experiment of ours: a teacher's labels, the estimators that the paper
compares, and both ways to round. What collapses is an averaged range together
with rounding to nearest: the range grows too wide, all codes are 0, nothing
arrives at the layers above, and the next gradient is far outside. Where it ends
is chaos; that the loss breaks out is not.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import quantlab as ql
from quantlab.experiments import train

pytestmark = pytest.mark.study

STEPS, WIDTH, CLASSES = 800, 64, 10


class Mlp(nn.Module):
  @nn.compact
  def __call__(self, x):
    dense = functools.partial(nn.Dense, kernel_init=nn.initializers.he_normal())
    for i in range(3):
      x = nn.relu(dense(WIDTH, name=f"layer_{i}")(x))
    return dense(CLASSES, name="layer_3")(x)


@functools.cache
def _data():
  """Inputs and labels of 20,000 points to train on and 5,000 to test."""
  rng = np.random.default_rng(0)
  first = rng.standard_normal((32, 64)) / 32**0.5
  second = rng.standard_normal((64, CLASSES)) / 64**0.5
  x = rng.standard_normal((25_000, 32))
  noise = 0.02 * rng.standard_normal((len(x), CLASSES))
  labels = np.argmax(np.tanh(2 * x @ first) @ second + noise, axis=1)
  x = x.astype(np.float32)
  return (x[:20_000], labels[:20_000]), (x[20_000:], labels[20_000:])


def _on(pattern, quantizer):
  return ql.by_path([(pattern, quantizer), ("", ql.keep())])


def _trained(stochastic, **ranges):
  """Accuracy, and the largest loss once training is under way."""
  tensor = {"exact_zero": True, "granularity": ql.per_tensor, **ranges}
  weight = ql.rtn(8, symmetric=True, granularity=ql.per_tensor)
  plans = train.Plans(
    _on("kernel", weight),
    _on("layer_./in$", ql.rtn(8, **tensor)),
    _on("layer_./out$", ql.rtn(4, **tensor, stochastic=stochastic)),
  )
  (x, labels), (unseen, expected) = _data()
  model = Mlp()
  schedule = optax.cosine_decay_schedule(0.05, STEPS)
  optimizer = train.separate(
    optax.sgd(schedule, momentum=0.9), optax.set_to_zero()
  )
  variables = jax.jit(model.init)(jax.random.key(0), x[:1])
  batch = x[:128], labels[:128]
  training = train.start(model, variables, optimizer, plans, batch)
  update = train.step(model, optimizer, plans)
  rng = np.random.default_rng(1)
  order = jnp.asarray(rng.integers(len(x), size=(STEPS, 128)))
  x, labels = jnp.asarray(x), jnp.asarray(labels)

  @jax.jit
  def run(training):
    def step(training, rows):
      training, seen = update(training, x[rows], labels[rows])
      return training, seen.loss

    return jax.lax.scan(step, training, order)

  training, losses = run(training)
  params = train.rounded(plans, training)
  logits = train.quantized(model, plans)(training, params, unseen)
  right = np.argmax(logits, axis=1) == expected
  return np.mean(right), np.max(losses[20:])


def test_ranges_of_the_past_train_where_rounding_is_random():
  accuracy, worst = _trained(True, observer=ql.ema())
  assert accuracy > 0.6
  assert worst < 4


def test_rounding_to_nearest_trains_with_current_ranges():
  accuracy, worst = _trained(False)
  assert accuracy > 0.5
  assert worst < 90


@pytest.mark.parametrize("hindsight", [True, False])
def test_rounding_to_nearest_collapses_with_averaged_ranges(hindsight):
  # Whether the average holds the current tensor or not.
  _, worst = _trained(False, observer=ql.ema(), hindsight=hindsight)
  assert worst > 90
