"""Questions with answers to choose from, for a published language model.

Shape letters: Q questions, R answers of all questions together, T tokens.
"""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.data import choices
from quantlab.experiments import progress
from quantlab.experiments.tasks import base, perplexity, spare
from quantlab.models import causal_checkpoint, likelihood, tokens


@dataclasses.dataclass(frozen=True)
class Data:
  """The section `data`.

  Attributes:
    source: as `data.choices.arc` takes, like all but the last two.
    split: of the source.
    letters: lists the choices in the prompt, for the model to name one.
    options: takes only questions with so many.
    limit: questions to draw; by default all are evaluated.
    seed: of the draw.
    calibration: a source whose split `"train"` is for calibration; by default
      what the draw leaves over is.
    batch_size: answers that the model reads at once, at least 1.
  """

  source: str = choices.ARC
  split: str = "train"
  letters: bool = False
  options: int | None = None
  limit: int | None = None
  seed: int = 0
  calibration: str | None = None
  batch_size: int = 8

  def __post_init__(self):
    if self.batch_size < 1:
      raise ValueError(f"batch_size={self.batch_size} must be at least 1")

  def questions(self, **changes: Any) -> choices.Questions:
    """Draws the questions."""
    arguments = dataclasses.asdict(self) | changes
    del arguments["calibration"], arguments["batch_size"]
    return choices.arc(**arguments)

  def others(self) -> choices.Questions:
    """What calibrations draw from; some of it may be evaluated."""
    if self.calibration is None:
      return self.questions(limit=None)
    return self.questions(source=self.calibration, split="train", limit=None)


def outline(model: perplexity.Model, data: Data) -> base.Outline:
  """Reads the `config.json` alone."""
  return perplexity.outlined(model, (data.batch_size, tokens.MULTIPLE))


def load(
  model: perplexity.Model,
  data: Data,
  place: pathlib.Path,
  track: progress.Track,
) -> base.Task:
  """Loads model and questions; a `ValueError` says what they do not offer."""
  del place, track
  published = causal_checkpoint.load(model.path, dtype=model.dtype)
  task = data.questions()
  own = likelihood.tails(published.encode, task.stems, task.texts)
  return base.Task(
    model=published.model,
    params=published.params,
    head=_padded(own.shape[1]),
    batches=[
      base.Batch((ids,), rows)
      for ids, _, rows in tokens.batches(
        published.encode, task.texts, batch_size=data.batch_size
      )
    ],
    compare=functools.partial(compare, task, own),
    loss=functools.partial(perplexity.loss, published.model),
    spare=functools.partial(_spare, published.encode, data, set(task.prompts)),
    sha256=task.sha256,
    source=task.source,
  )


def compare(
  task: choices.Questions,
  own: np.ndarray,
  found: np.ndarray,
  reference: np.ndarray,
) -> dict[str, float]:
  """Scores the answers that a model chooses.

  Args:
    task: the questions.
    own: `[R, T - 1]` bool, the tokens of the answers.
    found: `[R, T - 1]` nats.
    reference: the same of the float model.

  Returns:
    `accuracy`, and `agreement` with the choices of the float model.

  Example:
    >>> task = choices.Questions(["1 + 1 ="], [("2", "3")], [0], "", "")
    >>> found = np.array([[9.0, 0.5], [9.0, 0.4]])
    >>> compare(task, np.array([[False, True]] * 2), found, found)
    {'accuracy': 0.0, 'agreement': 1.0}
  """
  picks, floats = (
    np.array(task.pick(np.sum(nats, axis=1, where=own)))
    for nats in (found, reference)
  )
  return {
    "accuracy": float(np.mean(picks == np.array(task.answers))),
    "agreement": float(np.mean(picks == floats)),
  }


def _padded(width: int) -> Callable[..., jax.Array]:
  """Nats, as many columns whatever the length of a batch's longest text."""

  def head(logits: jax.Array, ids: jax.Array) -> jax.Array:
    found = likelihood.nats(logits, ids)
    return jnp.pad(found, ((0, 0), (0, width - found.shape[1])))

  return head


def _spare(
  encode: tokens.Encode, data: Data, evaluated: set[str], count: int
) -> list[base.Batch]:
  """Batches of questions with their right answers."""
  every = data.others()
  asked = zip(every.prompts, every.options, every.answers, strict=True)
  drawn = spare.draw(
    [
      f"{prompt} {options[answer]}"
      for prompt, options, answer in asked
      if prompt not in evaluated
    ],
    count,
    data.batch_size,
    seed=data.seed,
    source=every.source,
  )
  # Encoded together, all batches have one shape.
  ids, mask = encode([text for batch in drawn for text in batch])
  rows = np.arange(data.batch_size)
  return [
    base.Batch((ids[rows + start],), rows, mask[rows + start, 1:])
    for start in range(0, len(ids), len(rows))
  ]


KIND = base.Kind(
  model=perplexity.Model,
  data=Data,
  outline=outline,
  load=load,
  metrics=(
    base.Metric(
      "accuracy", "accuracy", "{:.4f}", axis="accuracy (fraction of questions)"
    ),
    base.Metric("agreement", "choices as\nfloat"),
  ),
)
