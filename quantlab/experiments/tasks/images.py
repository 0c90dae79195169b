"""Image classification with a RepVGG, fused.

The model is published, or trained by the job at its first use and kept in the
folder of the run.
"""

from collections.abc import Iterator
import dataclasses
import functools
import logging
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.data import images
from quantlab.experiments import progress, train, workdir
from quantlab.experiments.tasks import base, logits
from quantlab.models import repvgg, repvgg_weights

_LOG = logging.getLogger(__name__)
_TRAINED = {f"repvgg-{name}": name for name in repvgg.CONFIGS}
_CROPPED = 0.875  # Of the shorter side, for published models.


@dataclasses.dataclass(frozen=True)
class Model:
  """The section `model`.

  Attributes:
    path: a local folder or hub id of published weights, or `"repvgg-digits"`
      and the like, for a network of that size that the job trains.
    steps: of a training.
    batch_size: of a training.
    learning_rate: the first one of a training.
    seed: of a training.
  """

  path: str
  steps: int = 400
  batch_size: int = 64
  learning_rate: float = 0.05
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Data:
  """The section `data`.

  Attributes:
    source: as `data.images.images` takes, like all that is not said otherwise.
    split: what is evaluated.
    train: the split of trainings and calibrations.
    image_column: column of the images.
    label_column: column of the labels.
    channels: 1 or 3.
    size: pixels of the shorter side after resizing; by default what a published
      model wants.
    crop: side of the square that is cut from the middle; as `size`.
    limit: images to draw for the evaluation.
    seed: of that draw.
    batch_size: images that the model reads at once, at least 1.
  """

  source: str = "digits"
  split: str = "test"
  train: str = "train"
  image_column: str | None = None
  label_column: str | None = None
  channels: int | None = None
  size: int | None = None
  crop: int | None = None
  limit: int | None = None
  seed: int = 0
  batch_size: int = 64

  def __post_init__(self):
    if self.batch_size < 1:
      raise ValueError(f"batch_size={self.batch_size} must be at least 1")

  def images(self, split: str, **changes: Any) -> images.Images:
    """Opens a split."""
    arguments = dataclasses.asdict(self) | {"split": split} | changes
    del arguments["batch_size"], arguments["train"]
    return images.images(**arguments)


class Batches:
  """The batches of a task, decoded as they are read."""

  def __init__(self, task: images.Images, size: int):
    self.task, self.size = task, size

  def __len__(self) -> int:
    return -(-len(self.task) // self.size)

  def __iter__(self) -> Iterator[base.Batch]:
    for i, (x, labels) in enumerate(self.task.batches(self.size)):
      filler = self.size - len(x)
      rows = np.arange(len(x)) + i * self.size
      x = np.pad(x, [(0, filler), (0, 0), (0, 0), (0, 0)])
      yield base.Batch((x,), rows, labels)


def outline(model: Model, data: Data) -> base.Outline:
  """Opens the data, whose shape and classes a trained model takes."""
  if model.path not in _TRAINED:
    found = repvgg_weights.load(model.path)
    shape = (found.size, found.size, len(found.mean))
    branched, variables = found.model, found.variables
  else:
    task = data.images(data.split)
    branched, shape = _network(model, task), task.shape
    images_ = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(branched.init, jax.random.key(0), images_)
  params = jax.eval_shape(repvgg.fuse, variables)["params"]
  args = (jax.ShapeDtypeStruct((data.batch_size, *shape), jnp.float32),)
  return base.Outline(branched.clone(fused=True), params, args)


def load(
  model: Model, data: Data, place: pathlib.Path, track: progress.Track
) -> base.Task:
  """Loads the model, or trains it, and opens the images.

  Raises:
    ValueError: what the files or the data do not offer.
  """
  if model.path in _TRAINED:
    open_ = data.images
    task = open_(data.split)
    branched = _network(model, task)
    train_ = functools.partial(_train, branched, model, data, task, track)
    variables = workdir.kept(place, train_)["variables"]
  else:
    found = repvgg_weights.load(model.path)
    open_ = functools.partial(
      data.images,
      mean=found.mean,
      std=found.std,
      crop=data.crop or found.size,
      size=data.size or round(found.size / _CROPPED),
    )
    task, branched, variables = open_(data.split), found.model, found.variables
  network: Any = branched.clone(fused=True)
  return base.Task(
    model=network,
    params=jax.jit(repvgg.fuse)(variables)["params"],
    head=lambda y, x: y,
    batches=Batches(task, data.batch_size),
    compare=functools.partial(logits.compare, task.labels),
    loss=functools.partial(logits.cross_entropy, network),
    spare=functools.partial(_spare, open_, data),
    sha256=task.sha256,
    source=task.source,
  )


def _network(model: Model, task: images.Images) -> repvgg.RepVGG:
  config = repvgg.CONFIGS[_TRAINED[model.path]]
  classes = len(task.classes)
  return repvgg.RepVGG(dataclasses.replace(config, classes=classes))


def _train(
  branched: repvgg.RepVGG,
  model: Model,
  data: Data,
  test: images.Images,
  track: progress.Track,
) -> dict[str, Any]:
  start = time.perf_counter()
  task = data.images(data.train, limit=None)
  example = jnp.zeros((1, *task.shape))
  variables = jax.jit(branched.init)(jax.random.key(model.seed), example)

  def batches(epoch):
    seed = model.seed + epoch
    return task.batches(
      model.batch_size, shuffle_seed=seed, drop_remainder=True
    )

  variables = train.fit(
    branched,
    variables,
    batches,
    train.sgd(model.steps, learning_rate=model.learning_rate),
    steps=model.steps,
    track=lambda steps: track(steps, f"training {model.path}"),
  )
  accuracy = train.accuracy(branched, variables, test.batches(data.batch_size))
  seconds = time.perf_counter() - start
  _LOG.info(
    "%s: trained on %s in %.1f s; accuracy on %s %.4f",
    model.path,
    task.source,
    seconds,
    test.source,
    accuracy,
  )
  return {"variables": variables, "seconds": seconds}


def _spare(open_: Any, data: Data, count: int) -> list[base.Batch]:
  """Batches of the split for trainings, in an order of their own."""
  task = open_(data.train, limit=None)
  size = min(data.batch_size, len(task))
  if len(task) < count * size:
    raise ValueError(
      f"{count} batches for calibration take {count * size} images, but "
      f"{task.source} has {len(task)}"
    )
  found = task.batches(size, shuffle_seed=data.seed)
  return [
    base.Batch((x,), np.arange(size), labels)
    for (x, labels), _ in zip(found, range(count), strict=False)
  ]


KIND = base.Kind(
  model=Model,
  data=Data,
  outline=outline,
  load=load,
  metrics=logits.METRICS,
)
