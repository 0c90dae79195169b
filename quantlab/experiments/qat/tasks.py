"""What is trained, on what, and how it is judged.

Shape letters: B batch, T tokens, C classes.
"""

from collections.abc import Callable, Iterable
import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from quantlab.data import images, language
from quantlab.experiments import train
from quantlab.models import causal, cnn

Array = jax.Array


class Task(NamedTuple):
  """A model to train, its data and its scores.

  Attributes:
    model: untrained.
    batches: from batch size, seed and number of an epoch to its batches.
    test: from batch size to the batches of the evaluation.
    objective: the loss.
    scores: from the outputs and labels of the evaluation to numbers by name.
    best: name of the score to plot, and whether more of it is better.
    source: of the data, for a report.
    sha256: of the data.
  """

  model: nn.Module
  batches: Callable[[int, int, int], Iterable[train.Batch]]
  test: Callable[[int], Iterable[train.Batch]]
  objective: train.Objective
  scores: Callable[[Iterable[tuple[Array, np.ndarray]]], dict[str, float]]
  best: tuple[str, bool]
  source: str
  sha256: str


@dataclasses.dataclass(frozen=True)
class Images:
  """The section `data` of classifiers.

  Attributes:
    source: as `data.images.images` takes it, like what follows.
    train: the split to train on.
    split: the split to evaluate.
    image_column: column of the images.
    label_column: column of the labels.
    channels: 1 or 3.
    size: pixels of the shorter side after resizing.
    crop: side of the square that is cut from the middle.
    limit: images to draw from the split that is evaluated.
  """

  source: str = "digits"
  train: str = "train"
  split: str = "test"
  image_column: str | None = None
  label_column: str | None = None
  channels: int | None = None
  size: int | None = None
  crop: int | None = None
  limit: int | None = None

  def open(self, split: str, limit: int | None = None) -> images.Images:
    """Opens a split."""
    arguments = dataclasses.asdict(self) | {"split": split, "limit": limit}
    del arguments["train"]
    return images.images(**arguments)


@dataclasses.dataclass(frozen=True)
class Bytes:
  """The section `data` of language models, whose tokens are bytes.

  Attributes:
    source: as `data.language.language` takes it, like what follows.
    split: of the source.
    text_column: column of the text.
    tokens: T, bytes of a window.
    windows: of the evaluation, from the end of the text, which is not trained
      on.
  """

  source: str = "stdlib"
  split: str = "train"
  text_column: str = "text"
  tokens: int = 128
  windows: int = 64

  def __post_init__(self):
    for name in ("tokens", "windows"):
      if getattr(self, name) < 2:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 2")


def classify(name: str, data: Images) -> Task:
  """A classifier of `cnn.NETWORKS` on images."""
  trained, tested = data.open(data.train), data.open(data.split, data.limit)
  model = cnn.NETWORKS[name].clone(classes=len(trained.classes))

  def batches(size, seed, epoch):
    # The order of one epoch says nothing about that of another seed's.
    order = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    return trained.batches(size, shuffle_seed=order, drop_remainder=True)

  return Task(
    model,
    batches,
    tested.batches,
    train.cross_entropy,
    _accuracy,
    ("accuracy", True),
    f"{trained.source}; {tested.source}",
    trained.sha256 + tested.sha256,
  )


def _accuracy(pairs: Iterable[tuple[Array, np.ndarray]]) -> dict[str, float]:
  right, count, surprise = 0, 0, 0.0
  for logits, labels in pairs:
    right += int(np.sum(np.argmax(logits, axis=-1) == labels))
    surprise += float(jnp.sum(train.cross_entropy(logits, labels)))
    count += len(labels)
  return {"accuracy": right / count, "test_loss": surprise / count}


def model_language(data: Bytes) -> Task:
  """A small Llama of bytes, as `causal.CausalConfig` is by default."""
  text = language.language(
    data.source, split=data.split, text_column=data.text_column
  )
  ids = np.frombuffer(text.text.encode(), np.uint8)
  held = data.windows * (data.tokens + 1)
  if len(ids) < 2 * held:
    raise ValueError(
      f"{text.source}: {len(ids)} bytes are too few for {data.windows} windows "
      f"of {data.tokens} and as many to train on"
    )
  known, unseen = ids[:-held], ids[-held:].reshape(data.windows, -1)

  def batches(size, seed, epoch):
    rng = np.random.default_rng((seed, epoch))
    count = max(1, len(known) // data.tokens // size)
    starts = rng.integers(len(known) - data.tokens, size=(count, size))
    for chosen in starts:
      windows = known[chosen[:, None] + np.arange(data.tokens + 1)[None]]
      yield _next(windows)

  def test(size):
    for i in range(0, len(unseen), size):
      yield _next(unseen[i : i + size])

  return Task(
    causal.Causal(causal.CausalConfig()),
    batches,
    test,
    _surprise,
    _bits_per_byte,
    ("bits_per_byte", False),
    text.source,
    text.sha256,
  )


def _next(windows: np.ndarray) -> train.Batch:
  """Bytes to read, and the one that follows each."""
  windows = windows.astype(np.int32)
  return windows[:, :-1], windows[:, 1:]


def _surprise(logits: Any, labels: Any) -> Array:
  return train.cross_entropy(logits, labels).mean(axis=-1)


def _bits_per_byte(
  pairs: Iterable[tuple[Array, np.ndarray]],
) -> dict[str, float]:
  nats = [np.asarray(_surprise(logits, labels)) for logits, labels in pairs]
  mean = float(np.concatenate(nats).mean())
  return {"bits_per_byte": mean / np.log(2), "test_loss": mean}
