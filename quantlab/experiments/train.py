"""Trains a linen classifier, and reads its logits.

No randomness is in here: the caller draws the first variables and orders the
batches, so equal arguments give equal results.

Shape letters: B batch, N images, C classes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import itertools
import logging
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

Array = jax.Array
PyTree = Any

Batch = tuple[np.ndarray, np.ndarray]
"""Images `[B, ...]` and integer labels `[B]`."""

Step = Callable[..., tuple[PyTree, optax.OptState, Array]]
"""`step(variables, state, images, labels) -> (variables, state, loss)`, where
`state` is the optimizer's."""

_LOG = logging.getLogger(__name__)
_LINES = 10  # Of a run, in the log.


def sgd(
  steps: int, *, learning_rate: float = 0.1, weight_decay: float = 1e-4
) -> optax.GradientTransformation:
  """The optimizer of the RepVGG paper.

  Nesterov's momentum of 0.9, the learning rate along a cosine to 0, and weight
  decay on kernels but on no vector, such as biases and scales.

  Args:
    steps: number of updates.
    learning_rate: of the first update.
    weight_decay: times the parameter, added to its gradient.

  References:
    Ding et al., arXiv:2101.03697, Section 4.1. The authors' code also decays
    the scale of the identity branch, which they say makes little difference.
  """
  return optax.chain(
    optax.add_decayed_weights(
      weight_decay, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
    ),
    optax.sgd(
      optax.cosine_decay_schedule(learning_rate, steps),
      momentum=0.9,
      nesterov=True,
    ),
  )


def step(model: nn.Module, optimizer: optax.GradientTransformation) -> Step:
  """One update of a classifier towards the labels of a batch, compiled.

  Args:
    model: `model.apply(variables, images)` gives logits `[B, C]`.
    optimizer: of the params. Other collections, such as `batch_stats`, become
      what the model writes into them.

  Returns:
    The step; its loss is the mean cross-entropy before the update.
  """

  def loss(params, rest, images, labels):
    logits, rest = model.apply(
      {"params": params, **rest}, images, mutable=[*rest]
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), rest

  @jax.jit
  def update(variables, state, images, labels):
    params = variables["params"]
    rest = {key: variables[key] for key in variables if key != "params"}
    (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(
      params, rest, images, labels
    )
    moves, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, moves)
    return {"params": params, **rest}, state, value

  return update


def fit(
  model: nn.Module,
  variables: PyTree,
  batches: Callable[[int], Iterable[Batch]],
  optimizer: optax.GradientTransformation,
  *,
  steps: int,
  track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> PyTree:
  """Trains a classifier.

  Args:
    model: as in `step`.
    variables: where to start.
    batches: from the number of an epoch, 0 first, to its batches. Their shapes
      should be few: each is compiled once.
    optimizer: of the params.
    steps: number of updates, through as many epochs as they take.
    track: wraps the sequence of steps in an iterator that shows progress.

  Returns:
    The variables after the last update.

  Raises:
    ValueError: an epoch without batches.
    FloatingPointError: a loss that is not finite.

  Example:
    >>> import jax.numpy as jnp
    >>> images = np.eye(2, dtype=np.float32)
    >>> labels = np.array([1, 0])
    >>> model = nn.Dense(2)
    >>> start = model.init(jax.random.key(0), images)
    >>> found = fit(
    ...   model, start, lambda epoch: [(images, labels)], sgd(50), steps=50
    ... )
    >>> accuracy(model, found, [(images, labels)])
    1.0
  """
  update = step(model, optimizer)
  state = optimizer.init(variables["params"])
  every = max(1, steps // _LINES)
  stream = _stream(batches)
  for i, (images, labels) in zip(track(range(steps)), stream, strict=False):
    variables, state, loss = update(variables, state, images, labels)
    if not np.isfinite(loss):
      raise FloatingPointError(_diagnosis(i, steps, loss, images, labels))
    if i % every == 0 or i == steps - 1:
      _LOG.info("step %d of %d: loss %.4f", i, steps, loss)
  return variables


def _stream(batches: Callable[[int], Iterable[Batch]]) -> Iterator[Batch]:
  for epoch in itertools.count():
    batch = None
    for batch in batches(epoch):
      yield batch
    if batch is None:
      raise ValueError(f"{epoch=} has no batches to train on")


def _diagnosis(i, steps, loss, images, labels) -> str:
  return (
    f"step {i} of {steps}: the loss is {loss}; finite images: "
    f"{np.isfinite(images).all()}, labels {labels.min()} to {labels.max()}; "
    "if those are right, lower the learning rate"
  )


def predict(
  model: nn.Module, variables: PyTree, batches: Iterable[Batch]
) -> tuple[np.ndarray, np.ndarray]:
  """Runs a classifier over its data.

  Args:
    model: as in `step`; nothing it writes is kept.
    variables: its float variables.
    batches: the data, once.

  Returns:
    Logits `[N, C]` and labels `[N]`.

  Raises:
    ValueError: no batches.
  """
  pairs = [
    (_logits(model, variables, images), labels) for images, labels in batches
  ]
  if not pairs:
    raise ValueError("no batches to predict")
  logits, labels = zip(*pairs, strict=True)
  return np.concatenate(logits), np.concatenate(labels)


# Compiled once per model, not once per call: a model is compared by its fields.
@functools.partial(jax.jit, static_argnums=0)
def _logits(model: nn.Module, variables: PyTree, images: Array) -> Array:
  logits: Any = model.apply(variables, images)
  return logits


def accuracy(
  model: nn.Module, variables: PyTree, batches: Iterable[Batch]
) -> float:
  """Fraction of images whose largest logit is their label's; as `predict`."""
  logits, labels = predict(model, variables, batches)
  return float(np.mean(logits.argmax(axis=1) == labels))
