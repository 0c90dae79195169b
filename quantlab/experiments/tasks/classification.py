"""Text classification with a published BERT.

Shape letters: N texts, C classes.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantlab import hub
from quantlab.data import classification
from quantlab.experiments import progress
from quantlab.experiments.tasks import base, logits, spare
from quantlab.models import classifier, tokens


@dataclasses.dataclass(frozen=True)
class Model:
  """The section `model`.

  Attributes:
    path: a local folder or a hub id.
    max_tokens: cuts texts shorter than the model's files ask for.
  """

  path: str
  max_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Data:
  """The section `data`.

  Attributes:
    source: as `data.classification.classification` takes, like all but the last
      two.
    split: of the source.
    text_column: column of the texts.
    label_column: column of the labels.
    limit: texts to draw; by default all are evaluated.
    seed: of the draw.
    calibration: a source whose split `"train"` is for calibration; by default
      what the draw leaves over is.
    batch_size: texts that the model reads at once, at least 1.
  """

  source: str
  split: str = "train"
  text_column: str = "text"
  label_column: str = "label"
  limit: int | None = None
  seed: int = 0
  calibration: str | None = None
  batch_size: int = 32

  def __post_init__(self):
    if self.batch_size < 1:
      raise ValueError(f"batch_size={self.batch_size} must be at least 1")

  def texts(self, **changes: Any) -> classification.Texts:
    """Draws the texts."""
    arguments = dataclasses.asdict(self) | changes
    del arguments["calibration"], arguments["batch_size"]
    return classification.classification(**arguments)

  def others(self) -> classification.Texts:
    """What calibrations draw from; some of it may be evaluated."""
    if self.calibration is None:
      return self.texts(limit=None)
    return self.texts(source=self.calibration, split="train", limit=None)


def outline(model: Model, data: Data) -> base.Outline:
  """Reads the `config.json` alone."""
  file = hub.folder(model.path) / "config.json"
  _, network, _ = classifier.parse(hub.read_json(file), file=file)
  ids = jax.ShapeDtypeStruct((data.batch_size, tokens.MULTIPLE), jnp.int32)
  return base.Outline(network, classifier.shapes(network), (ids, ids))


def load(
  model: Model, data: Data, place: pathlib.Path, track: progress.Track
) -> base.Task:
  """Loads classifier and texts; a `ValueError` says what they do not offer."""
  del place, track
  published = classifier.load(model.path, max_tokens=model.max_tokens)
  texts = data.texts()
  return base.Task(
    model=published.model,
    params=published.params,
    head=lambda y, ids, mask: y,
    batches=[
      base.Batch((ids, mask), rows)
      for ids, mask, rows in tokens.batches(
        published.encode, texts.texts, batch_size=data.batch_size
      )
    ],
    compare=functools.partial(
      logits.compare, numbered(texts, published.labels)
    ),
    loss=functools.partial(logits.cross_entropy, published.model),
    spare=functools.partial(_spare, published, data, set(texts.texts)),
    sha256=texts.sha256,
    source=texts.source,
  )


def numbered(
  texts: classification.Texts, labels: tuple[str, ...]
) -> np.ndarray:
  """The model's number for the class of each text, `[N]`.

  Classes that the model knows by name are found by it. All others are taken to
  be in the model's order.

  Args:
    texts: N texts with classes.
    labels: names of the model's C classes.

  Raises:
    ValueError: the task has more classes than the model.

  Example:
    >>> texts = classification.Texts(
    ...   ["hi", "buy"], np.array([1, 0]), ("spam", "ham"), "mails", ""
    ... )
    >>> numbered(texts, ("ham", "spam")).tolist()
    [0, 1]
    >>> numbered(texts, ("LABEL_0", "LABEL_1")).tolist()
    [1, 0]
  """
  if len(texts.classes) > len(labels):
    raise ValueError(
      f"{texts.source} has the classes {[*texts.classes]}, the model only "
      f"{[*labels]}"
    )
  if not set(texts.classes) <= set(labels):
    return texts.labels
  numbers = np.array([labels.index(name) for name in texts.classes])
  return numbers[texts.labels]


def _spare(
  published: classifier.Checkpoint,
  data: Data,
  evaluated: set[str],
  count: int,
) -> list[base.Batch]:
  every = data.others()
  classes = numbered(every, published.labels).tolist()
  pairs = zip(every.texts, classes, strict=True)
  drawn = spare.draw(
    [(text, label) for text, label in pairs if text not in evaluated],
    count,
    data.batch_size,
    seed=data.seed,
    source=every.source,
  )
  # Encoded together, all batches have one shape.
  texts = [text for batch in drawn for text, _ in batch]
  ids, mask = published.encode(texts)
  rows = np.arange(data.batch_size)
  return [
    base.Batch(
      (ids[rows + start], mask[rows + start]),
      rows,
      np.array([label for _, label in batch]),
    )
    for start, batch in zip(range(0, len(texts), len(rows)), drawn, strict=True)
  ]


KIND = base.Kind(
  model=Model,
  data=Data,
  outline=outline,
  load=load,
  # Papers quote the accuracy: it comes first.
  metrics=logits.METRICS[::-1],
)
