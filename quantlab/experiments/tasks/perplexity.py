"""The perplexity of a published language model.

Shape letters: B batch, W windows, T tokens.
"""

import dataclasses
import functools
import pathlib
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from quantlab import hub
from quantlab.data import language
from quantlab.experiments import progress
from quantlab.experiments.tasks import base, spare
from quantlab.models import (
  causal,
  causal_checkpoint,
  causal_families,
  likelihood,
  tokens,
)


@dataclasses.dataclass(frozen=True)
class Model:
  """The section `model`.

  Attributes:
    path: a local folder or a hub id, of BLOOM or Llama.
    dtype: of the parameters, and so of what is computed.
  """

  path: str
  dtype: jax.typing.DTypeLike = jnp.float32


@dataclasses.dataclass(frozen=True)
class Data:
  """The section `data`.

  Attributes:
    source: as `data.language.language` takes, like the next two.
    split: of the source.
    text_column: column of the rows that are joined.
    tokens: T, of a window.
    limit: windows to evaluate, the first ones; by default all.
    calibration: a source whose split `"train"` is for calibration; by default
      the windows beyond the limit are.
    seed: of the draw for calibration.
    batch_size: windows that the model reads at once, at least 1. The logits of
      a window of 2048 tokens take 2 GB where the vocabulary has 250,000.
  """

  source: str = "docstrings"
  split: str = "train"
  text_column: str = "text"
  tokens: int = 2048
  limit: int | None = None
  calibration: str | None = None
  seed: int = 0
  batch_size: int = 1

  def __post_init__(self):
    for name in ("batch_size", "limit"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"{name}={value} must be at least 1")
    if self.tokens < 2:
      raise ValueError(f"tokens={self.tokens} must be at least 2")

  def text(self) -> language.Text:
    """What is evaluated."""
    return language.language(
      self.source, split=self.split, text_column=self.text_column
    )

  def other(self) -> language.Text:
    """What calibrations draw from; some of it may be evaluated."""
    if self.calibration is None:
      return self.text()
    return language.language(self.calibration, text_column=self.text_column)


def outline(model: Model, data: Data) -> base.Outline:
  """Reads the `config.json` alone."""
  return outlined(model, (data.batch_size, data.tokens))


def outlined(model: Model, shape: tuple[int, int]) -> base.Outline:
  """The outline of a language model that reads `[B, T]` tokens."""
  file = hub.folder(model.path) / "config.json"
  _, config = causal_families.parse(hub.read_json(file), file=file)
  network = causal.Causal(config)
  params = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, model.dtype),
    causal_checkpoint.shapes(network),
  )
  return base.Outline(
    network, params, (jax.ShapeDtypeStruct(shape, jnp.int32),)
  )


def load(
  model: Model, data: Data, place: pathlib.Path, track: progress.Track
) -> base.Task:
  """Loads model and text; a `ValueError` says what they do not offer."""
  del place, track
  published = causal_checkpoint.load(model.path, dtype=model.dtype)
  text = data.text()
  windows = language.windows(
    published.encode, text.text, tokens=data.tokens, limit=data.limit
  )
  return base.Task(
    model=published.model,
    params=published.params,
    head=likelihood.nats,
    batches=_batches(windows, data.batch_size),
    compare=compare,
    loss=functools.partial(loss, published.model),
    spare=functools.partial(_spare, published.encode, data, windows),
    sha256=text.sha256,
    source=f"{text.source}, {len(windows)} windows of {data.tokens} tokens",
  )


def compare(found: np.ndarray, reference: np.ndarray) -> dict[str, float]:
  """Scores the surprise at tokens.

  Args:
    found: `[W, T - 1]` nats.
    reference: the same of the float model.

  Returns:
    `perplexity`, and by how much it is `above` that of the float model, as a
    fraction.

  Example:
    >>> nats = np.log([[2.0, 8.0]])
    >>> found = compare(nats, np.log([[2.0, 2.0]]))
    >>> round(found["perplexity"], 3), round(found["above"], 3)
    (4.0, 1.0)
  """
  perplexity = likelihood.perplexity(found)
  return {
    "perplexity": perplexity,
    "above": perplexity / likelihood.perplexity(reference) - 1,
  }


def loss(model: nn.Module, params: base.Params, batch: base.Batch) -> jax.Array:
  """Mean surprise at the tokens that a batch's labels mark, `[B, T - 1]`."""
  (ids,) = batch.args
  logits: Any = model.apply({"params": params}, ids)
  return jnp.mean(likelihood.nats(logits, ids), where=batch.labels)


def _batches(windows: np.ndarray, size: int) -> list[base.Batch]:
  count = len(windows)
  padded = np.pad(windows, ((0, -count % size), (0, 0)))
  rows = np.arange(count)
  return [
    base.Batch((padded[start : start + size],), rows[start : start + size])
    for start in range(0, count, size)
  ]


def _spare(
  encode: tokens.Encode, data: Data, evaluated: np.ndarray, count: int
) -> list[base.Batch]:
  text = data.other()
  every = language.windows(encode, text.text, tokens=data.tokens)
  seen = {window.tobytes() for window in evaluated}
  drawn = spare.draw(
    [window for window in every if window.tobytes() not in seen],
    count,
    data.batch_size,
    seed=data.seed,
    source=text.source,
  )
  rows = np.arange(data.batch_size)
  all_ = np.ones((data.batch_size, data.tokens - 1), bool)
  return [base.Batch((np.stack(batch),), rows, all_) for batch in drawn]


KIND = base.Kind(
  model=Model,
  data=Data,
  outline=outline,
  load=load,
  metrics=(
    base.Metric("perplexity", "perplexity", axis="perplexity", falls=True),
    base.Metric("above", "above\nfloat", "{:.1%}", falls=True),
  ),
)
