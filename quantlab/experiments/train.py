"""Trains a linen model, with any of its tensors quantized, and runs it.

No randomness is in here but what is folded from a seed and the number of a
step: equal arguments give equal results, wherever a training was interrupted.

Shape letters: B batch, N examples, C classes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import itertools
import logging
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import quantlab as ql
from quantlab.core import flips
from quantlab.methods import randbet
from quantlab.transforms import noise, plan

Array = jax.Array
PyTree = Any

Batch = tuple[np.ndarray, np.ndarray]
"""What a model reads, `[B, ...]`, and what it should say, `[B, ...]`."""

Objective = Callable[[Array, Array], Array]
"""`objective(output, labels) -> [B]` losses."""

_LOG = logging.getLogger(__name__)
_LINES = 10  # Of a run, in the log.


class Plans(NamedTuple):
  """What is quantized in a training; None is nothing.

  Attributes:
    weights: of the params.
    acts: of the model's sites.
    grads: of the gradients at the model's sites.
  """

  weights: Any = None
  acts: Any = None
  grads: Any = None


NOTHING = Plans()


@dataclasses.dataclass(frozen=True)
class Errors:
  """Random bit errors in the codes of weights during training.

  Attributes:
    rate: the probability of an error, in [0, 1].
    threshold: the loss up to which there are errors; the paper has 1.75 for 10
      classes and 3.5 for 100.
    clamp: the largest magnitude of an element of the gradient under errors.

  References:
    arXiv 2006.13977 and its authors' code.
  """

  rate: float
  threshold: float = 1.75
  clamp: float = 0.05

  def __post_init__(self):
    flips.check(self.rate)
    if not (self.threshold > 0 and self.clamp > 0):
      raise ValueError(
        "errors take a threshold and a clamp above 0, got"
        f" {self.threshold=}, {self.clamp=}"
      )

  def begin(self, loss: Array, noisy: Array) -> Array:
    """Whether the next step has errors.

    Args:
      loss: of this step.
      noisy: its loss under errors, 0 where it had none.
    """
    low = loss < 1.15 * self.threshold
    return low & ((loss + noisy) / 2 <= self.threshold)


class Training(NamedTuple):
  """All that a step reads and writes.

  Attributes:
    step: int32, updates so far.
    variables: of the model: params, and what it writes itself.
    weights: state of the plan of weights.
    acts: state of the plan of activations, by site.
    grads: states of the plan of gradients, by site.
    optimizer: its state.
    active: bool, whether the next step has bit errors; see `Errors`.
  """

  step: Array
  variables: PyTree
  weights: ql.State
  acts: ql.State
  grads: dict[str, Any]
  optimizer: optax.OptState
  active: Array


class Seen(NamedTuple):
  """What a step says.

  Attributes:
    loss: the mean over the batch, before the update.
    finite: whether it and all gradients are.
    bad: by path, whether a leaf's gradient holds NaN or Inf.
    uses: what came back as the gradients' states; see `ql.check_uses`.
  """

  loss: Array
  finite: Array
  bad: dict[str, Array]
  uses: dict[str, Any]


Step = Callable[[Training, Any, Any], tuple[Training, Seen]]
"""`step(training, inputs, labels) -> (training, seen)`."""


def cross_entropy(logits: Any, labels: Any) -> Array:
  """The surprise `[B]` at labels `[B]`."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def sgd(
  steps: int,
  *,
  learning_rate: optax.ScalarOrSchedule = 0.1,
  weight_decay: float = 1e-4,
) -> optax.GradientTransformation:
  """The optimizer of the RepVGG paper.

  Nesterov's momentum of 0.9, the learning rate along a cosine to 0, and weight
  decay on kernels but on no vector, such as biases and scales.

  Args:
    steps: number of updates.
    learning_rate: of the first update, or a schedule instead of the cosine.
    weight_decay: times the parameter, added to its gradient.

  References:
    Ding et al., arXiv:2101.03697, Section 4.1. The authors' code also decays
    the scale of the identity branch, which they say makes little difference.
  """
  if not callable(learning_rate):
    learning_rate = optax.cosine_decay_schedule(learning_rate, steps)
  return optax.chain(
    optax.add_decayed_weights(weight_decay, mask=kernels),
    optax.sgd(learning_rate, momentum=0.9, nesterov=True),
  )


def kernels(tree: PyTree) -> PyTree:
  """Whether each leaf is a kernel, not a vector; a mask for weight decay."""
  return jax.tree.map(lambda x: x.ndim > 1, tree)


def separate(
  params: optax.GradientTransformation,
  ranges: optax.GradientTransformation,
  gates: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
  """An optimizer for each: params, what is learned of ranges, and gates.

  Ranges want a rate of their own and no weight decay.

  Args:
    params: of the model's params.
    ranges: of what the plans of weights and activations learn.
    gates: of their gates, such as `ql.guided()`; by default they stay.
  """

  def labels(moved):
    learned = {"weights": moved["weights"], "acts": moved["acts"]}
    return {"params": "params"} | jax.tree.map(
      lambda x: "gates" if isinstance(x, ql.Gate) else "ranges",
      learned,
      is_leaf=lambda x: isinstance(x, ql.Gate),
    )

  gates = optax.set_to_zero() if gates is None else gates
  return optax.multi_transform(
    {"params": params, "ranges": ranges, "gates": gates}, labels
  )


def start(
  model: nn.Module,
  variables: PyTree,
  optimizer: optax.GradientTransformation,
  plans: Plans = NOTHING,
  batch: Batch | None = None,
) -> Training:
  """The training before its first step.

  Args:
    model: `model.apply(variables, inputs)` gives an array.
    variables: where to start.
    optimizer: of `{"params": ..., "weights": ..., "acts": ...}`: the params and
      what is learned by the plans.
    plans: what is quantized.
    batch: what ranges of activations start from, and shapes of gradients.

  Raises:
    ValueError: activations or gradients are quantized and there is no batch, or
      a plan does not fit the model.
  """
  params = variables["params"]
  weights, acts, grads = ql.State({}, {}), ql.State({}, {}), {}
  if plans.weights is not None:
    weights = jax.jit(plan.as_plan(plans.weights).init)(params)
  if batch is None and (plans.acts is not None or plans.grads is not None):
    raise ValueError("quantized activations and gradients start from a batch")
  if plans.acts is not None and batch is not None:
    acts = ql.calibrate(model, variables, [batch[0]], plans.acts, track=_quiet)
  if plans.grads is not None and batch is not None:
    grads = ql.grad_state(model, variables, batch[0], grads=plans.grads)
  moved = {"params": params, "weights": weights.learned, "acts": acts.learned}
  return Training(
    jnp.zeros((), jnp.int32),
    variables,
    weights,
    acts,
    grads,
    optimizer.init(moved),
    jnp.zeros((), bool),
  )


def _quiet(batches: Iterable[Any], text: str) -> Iterable[Any]:
  del text
  return batches


def quantized(
  model: nn.Module, plans: Plans
) -> Callable[[Training, PyTree, Any], Array]:
  """The model as an evaluation runs it, compiled: no range moves.

  Args:
    model: as in `start`.
    plans: what is quantized.

  Returns:
    `run(training, params, inputs) -> outputs`. Ranges, and what the model wrote
    itself, are the training's; the params are `rounded` or packed by `deploy`.
  """

  @jax.jit
  def run(training, params, inputs):
    variables = {**training.variables, "params": params}
    if plans.acts is None:
      return ql.apply(model, variables, inputs)
    return ql.apply(
      model, variables, inputs, acts=plans.acts, state=training.acts
    )[0]

  return run


def rounded(plans: Plans, training: Training) -> PyTree:
  """The params as the loss sees them, floats on their grids."""
  params = training.variables["params"]
  if plans.weights is None:
    return params
  weights = plan.as_plan(plans.weights)
  q, _ = weights.apply(params, training.weights, jax.random.key(0))
  return ql.dequantize(q)


def deploy(plans: Plans, training: Training) -> PyTree:
  """The params packed: they dequantize to `rounded`.

  That is what the loss saw, unless weights are rounded at random.
  """
  params = training.variables["params"]
  if plans.weights is None:
    return params
  weights = plan.as_plan(plans.weights)
  return ql.quantize(
    weights, params, state=training.weights, key=jax.random.key(0)
  )


def step(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  plans: Plans = NOTHING,
  *,
  objective: Objective = cross_entropy,
  seed: int = 0,
  errors: Errors | None = None,
  clip: float | None = None,
) -> Step:
  """One update of a model towards the labels of a batch, compiled.

  Weights are rounded inside the loss, activations and gradients at their sites.
  What the plans learn moves with the params and is made valid again
  (`ql.project`); what they track follows the batch. On several devices a batch
  that is spread over them counts as one: ranges are of all of it.

  Args:
    model: as in `start`. Collections other than params become what the model
      writes into them.
    optimizer: as in `start`.
    plans: what is quantized.
    objective: losses of the outputs.
    seed: of random rounding and of bit errors.
    errors: each step, once the loss is low, has a second pass in which bits of
      the codes flip, others each time; the ranges are those of the weights
      without errors. The update takes the mean of both gradients. What the
      model writes and what plans track is of the first pass.
    clip: all params are clipped to this magnitude before the first pass, and
      after the update, so that what is stored is clipped; see `randbet.clip`.

  Returns:
    The step.

  Raises:
    ValueError: there are errors but no plan of weights.

  References:
    Bit errors and clipping: RandBET, arXiv 2006.13977, Algorithm 1.
    Reconstruction: numbers that plans learn are treated like params.
  """
  if errors is not None and plans.weights is None:
    raise ValueError(f"bit errors are of a plan of weights: {plans.weights=}")

  def loss(moved, carried, training, inputs, labels, key, rate=None):
    w_key, a_key, g_key = jax.random.split(key, 3)
    params, w_stats = moved["params"], training.weights.stats
    if plans.weights is not None:
      state = ql.State(moved["weights"], w_stats)
      q, w_stats = plan.as_plan(plans.weights).apply(params, state, w_key)
      if rate is not None:
        q = noise.flip_codes(q, rate, jax.random.fold_in(key, 3))
      params = ql.dequantize(q)
    rest = {k: v for k, v in training.variables.items() if k != "params"}
    given: dict[str, Any] = {"rngs": {"acts": a_key, "grads": g_key}}
    if plans.acts is not None:
      state = ql.State(moved["acts"], training.acts.stats)
      given |= {"acts": plans.acts, "state": state}
    if plans.grads is not None:
      given |= {"grads": plans.grads, "grad_state": carried}
    out = ql.apply(
      model, {"params": params, **rest}, inputs, mutable=[*rest], **given
    )
    a_stats = training.acts.stats
    if plans.acts is not None:
      out, a_stats = out
    outputs, rest = out
    return objective(outputs, labels).mean(), (rest, w_stats, a_stats)

  def with_errors(errors, slopes, *args):
    """The second pass: its loss, and the mean of both gradients."""
    second = jax.value_and_grad(loss, has_aux=True)
    (noisy, _), other = second(*args, rate=errors.rate)
    limit = errors.clamp
    mean = jax.tree.map(
      lambda a, b: (a + jnp.clip(b, -limit, limit)) / 2, slopes, other
    )
    return noisy, mean

  def clipped(params):
    return params if clip is None else randbet.clip(params, clip)

  @jax.jit
  def update(training, inputs, labels):
    moved = {
      "params": clipped(training.variables["params"]),
      "weights": training.weights.learned,
      "acts": training.acts.learned,
    }
    key = jax.random.fold_in(jax.random.key(seed), training.step)
    args = moved, training.grads, training, inputs, labels, key
    (value, (rest, w_stats, a_stats)), (slopes, seen) = jax.value_and_grad(
      loss, (0, 1), has_aux=True
    )(*args)
    active = training.active
    if errors is not None:
      noisy, slopes = jax.lax.cond(
        active,
        lambda: with_errors(errors, slopes, *args),
        lambda: (jnp.zeros_like(value), slopes),
      )
      active = errors.begin(value, noisy)
    moves, state = optimizer.update(slopes, training.optimizer, moved)
    new: Any = optax.apply_updates(moved, moves)
    after = Training(
      training.step + 1,
      {"params": clipped(new["params"]), **rest},
      ql.State(ql.project(new["weights"]), w_stats),
      ql.State(ql.project(new["acts"]), a_stats),
      ql.overwritten(training.grads, seen),
      state,
      active,
    )
    bad = {
      path: ~jnp.isfinite(leaf).all()
      for path, leaf in plan.leaves(slopes).items()
    }
    finite = jnp.isfinite(value) & ~jnp.any(jnp.stack([*bad.values()]))
    return after, Seen(value, finite, bad, seen)

  return update


def stream(
  batches: Callable[[int], Iterable[Batch]], first: int = 0
) -> Iterator[Batch]:
  """The batches of all epochs, from number `first` on.

  Args:
    batches: from the number of an epoch, 0 first, to its batches.
    first: batches to leave out: those of an earlier start.

  Raises:
    ValueError: an epoch without batches.
  """

  def every():
    for epoch in itertools.count():
      batch = None
      for batch in batches(epoch):
        yield batch
      if batch is None:
        raise ValueError(f"{epoch=} has no batches to train on")

  return itertools.islice(every(), first, None)


def fit(
  model: nn.Module,
  variables: PyTree,
  batches: Callable[[int], Iterable[Batch]],
  optimizer: optax.GradientTransformation,
  *,
  steps: int,
  track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> PyTree:
  """Trains a classifier in floats.

  Args:
    model: as in `start`.
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
    >>> images = np.eye(2, dtype=np.float32)
    >>> labels = np.array([1, 0])
    >>> model = nn.Dense(2)
    >>> first = model.init(jax.random.key(0), images)
    >>> found = fit(
    ...   model, first, lambda epoch: [(images, labels)], sgd(50), steps=50
    ... )
    >>> accuracy(model, found, [(images, labels)])
    1.0
  """
  optimizer = separate(optimizer, optax.set_to_zero())
  update = step(model, optimizer)
  training = start(model, variables, optimizer)
  every = max(1, steps // _LINES)
  for i, batch in zip(track(range(steps)), stream(batches), strict=False):
    before, (training, seen) = training, update(training, *batch)
    check(i, steps, seen, batch, functools.partial(outputs, model, before))
    if i % every == 0 or i == steps - 1:
      _LOG.info("step %d of %d: loss %.4f", i, steps, seen.loss)
  return training.variables


def outputs(
  model: nn.Module, training: Training, inputs: Any
) -> Iterator[tuple[str, Array]]:
  """What the modules return, unquantized, in the order in which they end.

  Args:
    model: as in `start`.
    training: where the variables come from.
    inputs: of the model.

  Yields:
    The path of a module, empty for the model, and an array.
  """
  found = []

  def note(function, args, kwargs, context):
    out = function(*args, **kwargs)
    path = "/".join(context.module.path)
    found.extend((path, leaf) for leaf in jax.tree.leaves(out))
    return out

  rest = [name for name in training.variables if name != "params"]
  with nn.intercept_methods(note):
    model.apply(training.variables, inputs, mutable=rest)
  yield from found


def check(
  i: int,
  steps: int,
  seen: Seen,
  batch: Batch,
  outputs: Callable[[Any], Iterable[tuple[str, Array]]],
) -> None:
  """Refuses a step whose loss or gradient is not finite.

  Args:
    i: number of the step.
    steps: of the training.
    seen: what the step said.
    batch: of the step.
    outputs: from its inputs to what the modules returned.

  Raises:
    FloatingPointError: says what the batch was, and where the first number is
      that is not finite: in an input, in the output of a module, or else in the
      gradient of a leaf.
    ValueError: places share a state; see `ql.check_uses`.
  """
  if not seen.finite:
    inputs, labels = batch
    every = itertools.chain(
      [("the inputs", inputs)],
      (
        (f"the output of {path or 'the model'}", x)
        for path, x in outputs(inputs)
      ),
      (
        (f"the gradient of {path}", np.where(bad, np.nan, 0))
        for path, bad in seen.bad.items()
      ),
    )
    first = next(
      (name for name, x in every if not np.isfinite(x).all()), "the loss"
    )
    raise FloatingPointError(
      f"step {i} of {steps}: the loss is {seen.loss}; not finite is first "
      f"{first}; labels are {labels.min()} to {labels.max()}; if the data are "
      "right, lower the learning rate"
    )
  if i == 0:
    ql.check_uses(seen.uses)


def predict(
  model: nn.Module, variables: PyTree, batches: Iterable[Batch]
) -> tuple[np.ndarray, np.ndarray]:
  """Runs a classifier over its data.

  Args:
    model: as in `start`; nothing it writes is kept.
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
