import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import quantlab as ql
from quantlab.experiments import train
from quantlab.models import repvgg

MODEL = repvgg.RepVGG(repvgg.RepVGGConfig((6,), (2,), (1,), classes=2))
LINEAR = nn.Dense(2)
ZEROS = {"params": {"kernel": np.zeros((16, 2)), "bias": np.zeros(2)}}


def _data(epoch=0):
  """Vertical and horizontal stripes, shifted and noisy."""
  noise = np.random.default_rng(epoch).normal(size=(2, 8, 4, 4, 1))
  stripes = np.resize([1.0, -1.0], (4, 4))
  for shift in noise:
    labels = np.arange(8) % 2
    images = np.where(labels[:, None, None] == 0, stripes, stripes.T)
    yield (images[..., None] + 0.3 * shift).astype(np.float32), labels


def _rows(epoch=0):
  for images, labels in _data(epoch):
    yield images.reshape(8, 16), labels


def _start():
  return jax.jit(MODEL.init)(jax.random.key(0), jnp.ones((1, 4, 4, 1)))


def _fit(steps=20, **kwargs):
  optimizer = train.sgd(steps, learning_rate=0.05)
  return train.fit(MODEL, _start(), _data, optimizer, steps=steps, **kwargs)


def _loss(variables):
  logits, labels = train.predict(MODEL, variables, _data(99))
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def test_training_lowers_the_loss():
  start, found = _start(), _fit()
  assert _loss(found) < 0.2 < _loss(start)
  assert train.accuracy(MODEL, found, _data(99)) == 1
  # Running statistics have moved too: they are what was just evaluated with.
  before, after = (
    tree["batch_stats"]["stage_0"]["block_1"]["norm_3x3"]["mean"]
    for tree in (start, found)
  )
  assert np.abs(after - before).max() > 0.01


def test_training_is_deterministic():
  jax.tree.map(np.testing.assert_array_equal, _fit(4), _fit(4))


def test_step_by_hand():
  # From zero, every class has probability 1/2.
  model = nn.Dense(2)
  variables = {"params": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
  optimizer = optax.sgd(0.5)
  images, labels = np.array([[1.0, 2, 0], [0, 4, 0]]), np.array([0, 0])
  update = train.step(model, optimizer)
  training = train.start(model, variables, optimizer)
  after, seen = update(training, images, labels)
  assert seen.loss == pytest.approx(np.log(2))
  assert (int(training.step), int(after.step)) == (0, 1)
  found = after.variables
  # The mean of x (p - 1) is -[1/4, 3/2, 0] for the label's column.
  column = np.array([0.125, 0.75, 0])
  kernel = np.stack([column, -column], axis=1)
  np.testing.assert_allclose(found["params"]["kernel"], kernel, rtol=1e-6)
  np.testing.assert_allclose(found["params"]["bias"], [0.25, -0.25], rtol=1e-6)
  assert not variables["params"]["kernel"].any()


def test_one_program_for_all_steps():
  model, x = nn.Dense(2), np.ones((8, 3), np.float32)
  labels = np.arange(8) % 2
  act = ql.rtn(8, exact_zero=True, granularity=ql.per_tensor, observer=ql.ema())
  plans = train.Plans(
    weights=ql.by_path([("kernel", ql.lsq(4)), ("", ql.keep())]),
    acts=ql.by_path([("in", act), ("", ql.keep())]),
    grads=ql.by_path([("out", act), ("", ql.keep())]),
  )
  optimizer = train.separate(train.sgd(5), optax.adam(1e-3))
  variables = model.init(jax.random.key(0), x)
  training = train.start(model, variables, optimizer, plans, (x, labels))
  update = train.step(model, optimizer, plans)
  for _ in range(3):
    training, _ = update(training, x, labels)
  assert update._cache_size() == 1


def test_sgd_decays_kernels_along_a_cosine():
  params = {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.full(1, 2.0)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  optimizer = train.sgd(2, learning_rate=0.1, weight_decay=0.5)
  state = optimizer.init(params)
  moves = []
  for _ in range(3):
    move, state = optimizer.update(zeros, state, params)
    moves.append(move["kernel"].item())
    assert not move["bias"].any()
  # A gradient of 1; Nesterov's step is .9 of the momentum and the gradient.
  momenta = [1, 1.9, 2.71]
  rates = [0.1, 0.05, 0]
  expected = [-r * (0.9 * m + 1) for r, m in zip(rates, momenta, strict=True)]
  np.testing.assert_allclose(moves, expected, rtol=1e-6, atol=1e-8)


def test_epochs_follow_each_other():
  epochs, steps = [], []

  def batches(epoch):
    epochs.append(epoch)
    return list(_rows(epoch))

  def track(items):
    steps.extend(items)
    return items

  train.fit(LINEAR, ZEROS, batches, train.sgd(5), steps=5, track=track)
  assert epochs == [0, 1, 2]
  assert steps == [0, 1, 2, 3, 4]


def test_loss_that_is_not_finite():
  def batches(epoch):
    for images, labels in _rows(epoch):
      yield (images * (np.nan if epoch == 1 else 1)), labels

  message = (
    r"step 2 of 6: the loss is nan; not finite is first the inputs; .* 0 to 1;"
  )
  with pytest.raises(FloatingPointError, match=message):
    train.fit(LINEAR, ZEROS, batches, train.sgd(6), steps=6)


def test_labels_beyond_the_classes():
  def batches(epoch):
    return ((images, labels + epoch) for images, labels in _rows(epoch))

  message = (
    r"step 2 of 6: the loss is nan; .* first the loss; labels are 1 to 2; "
  )
  with pytest.raises(FloatingPointError, match=message):
    train.fit(LINEAR, ZEROS, batches, train.sgd(6), steps=6)


def test_epoch_without_batches():
  def batches(epoch):
    return [] if epoch else _rows()

  with pytest.raises(ValueError, match="epoch=1 has no batches"):
    train.fit(LINEAR, ZEROS, batches, train.sgd(6), steps=6)


def test_predict_reads_every_image_once():
  model = nn.Dense(2, use_bias=False)
  variables = {"params": {"kernel": jnp.eye(2)}}
  batches = [
    (np.array([[1.0, 0], [0, 1]]), np.array([0, 0])),
    (np.array([[2.0, 3]]), np.array([1])),
  ]
  logits, labels = train.predict(model, variables, batches)
  np.testing.assert_array_equal(logits, [[1, 0], [0, 1], [2, 3]])
  np.testing.assert_array_equal(labels, [0, 0, 1])
  found = train.accuracy(model, variables, batches)
  assert found == pytest.approx(2 / 3)


def test_nothing_to_predict():
  with pytest.raises(ValueError, match="no batches to predict"):
    train.accuracy(LINEAR, ZEROS, [])
