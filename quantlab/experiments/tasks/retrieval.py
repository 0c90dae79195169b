"""Retrieval with a pretrained sentence encoder.

Shape letters: Q queries and as many documents, D width.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from quantlab import hub
from quantlab.data import ranking, retrieval
from quantlab.experiments import evaluate, progress
from quantlab.experiments.tasks import base
from quantlab.models import bert, checkpoint, families, tokens

_SHARPNESS = 20.0  # What sentence-transformers multiplies cosines with.


@dataclasses.dataclass(frozen=True)
class Model:
  """The section `model`.

  Attributes:
    path: `"minilm"`, a local folder or a hub id.
    max_tokens: cuts texts shorter than the model's files ask for.
  """

  path: str
  max_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Data:
  """The section `data`.

  Attributes:
    source: as `data.retrieval.retrieval` takes, like all but the last.
    limit: pairs to draw.
    seed: of the draw.
    query_column: column of the queries.
    document_column: column of the documents.
    split: of the source.
    batch_size: texts that the model reads at once, at least 1.
  """

  source: str = "docstrings"
  limit: int | None = 600
  seed: int = 0
  query_column: str = "query"
  document_column: str = "document"
  split: str = "train"
  batch_size: int = 32

  def __post_init__(self):
    if self.batch_size < 1:
      raise ValueError(f"batch_size={self.batch_size} must be at least 1")

  def pairs(self, **changes: Any) -> retrieval.Pairs:
    """Draws the pairs."""
    arguments = dataclasses.asdict(self) | changes
    del arguments["batch_size"]
    return retrieval.retrieval(**arguments)


def outline(model: Model, data: Data) -> base.Outline:
  """Reads the `config.json` alone."""
  file = hub.folder(model.path) / "config.json"
  _, config = families.parse(hub.read_json(file), file=file)
  ids = jax.ShapeDtypeStruct((data.batch_size, tokens.MULTIPLE), jnp.int32)
  module = bert.Bert(config)
  params = jax.eval_shape(module.init, jax.random.key(0), ids, ids)["params"]
  return base.Outline(module, params, (ids, ids))


def load(
  model: Model, data: Data, place: pathlib.Path, track: progress.Track
) -> base.Task:
  """Loads encoder and pairs; a `ValueError` says what they do not offer."""
  del place, track
  encoder = checkpoint.load(model.path, max_tokens=model.max_tokens)
  pairs = data.pairs()
  texts = [*pairs.queries, *pairs.documents]
  return base.Task(
    model=encoder.model,
    params=encoder.params,
    head=lambda hidden, ids, mask: encoder.pool(hidden, mask),
    batches=[
      base.Batch((ids, mask), rows)
      for ids, mask, rows in tokens.batches(
        encoder.encode, texts, batch_size=data.batch_size
      )
    ],
    compare=compare,
    loss=functools.partial(contrastive, encoder),
    spare=functools.partial(_spare, encoder, data, pairs),
    sha256=pairs.sha256,
    source=pairs.source,
  )


def compare(found: np.ndarray, reference: np.ndarray) -> dict[str, float]:
  """Scores embeddings on their task, and against those of the float model.

  Args:
    found: `[2 Q, D]`: the queries, then the documents.
    reference: `[2 Q, D]`, of the float model.

  Returns:
    `cosine` to the reference, `recall_at_1` and `mrr` of the retrieval, and
    `agreement`, the share of queries with the same first document.

  Example:
    >>> x = np.eye(4, dtype=np.float32)[[0, 1, 0, 1]]
    >>> compare(x, x)
    {'cosine': 1.0, 'recall_at_1': 1.0, 'mrr': 1.0, 'agreement': 1.0}
  """
  queries, documents = np.split(found, 2)
  ranks = ranking.rank(queries, documents)
  same = top1(queries, documents) == top1(*np.split(reference, 2))
  return {
    "cosine": evaluate.cosine(found, reference),
    "recall_at_1": ranking.recall(ranks),
    "mrr": ranking.mrr(ranks),
    "agreement": float(np.mean(same)),
  }


def top1(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
  """Index of each query's first document, `[Q]`.

  Example:
    >>> top1(
    ...   np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    ... )
    array([1, 0])
  """
  return np.argmax(queries @ documents.T, axis=1)


def contrastive(
  encoder: checkpoint.Checkpoint, params: base.Params, batch: base.Batch
) -> jax.Array:
  """Cross-entropy of finding each query's document among the batch's.

  What such encoders are trained with. The distance to the float embeddings
  would not do: at the float parameters its gradient is zero.
  """
  ids, mask = batch.args
  hidden: Any = encoder.model.apply({"params": params}, ids, mask)
  queries, documents = jnp.split(encoder.pool(hidden, mask), 2)
  scores = _SHARPNESS * queries @ documents.T
  labels = jnp.arange(len(scores))
  losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
  return jnp.mean(losses)


def _spare(
  encoder: checkpoint.Checkpoint,
  data: Data,
  evaluated: retrieval.Pairs,
  count: int,
) -> list[base.Batch]:
  """Batches of pairs, queries first, none of whose texts is evaluated."""
  every = data.pairs(limit=None)
  queries, documents = set(evaluated.queries), set(evaluated.documents)
  left = [
    (query, document)
    for query, document in zip(every.queries, every.documents, strict=True)
    if query not in queries and document not in documents
  ]
  size = max(2, data.batch_size // 2)  # One pair alone is always found.
  if len(left) < count * size:
    raise ValueError(
      f"{count} batches for calibration take {count * size} pairs, but beside "
      f"those evaluated {every.source} has {len(left)}; lower config.data.limit"
    )
  return [
    base.Batch(_encoded(encoder, left[i * size :][:size]), np.arange(2 * size))
    for i in range(count)
  ]


def _encoded(encoder: checkpoint.Checkpoint, pairs: list[retrieval.Pair]):
  queries, documents = zip(*pairs, strict=True)
  return encoder.encode([*queries, *documents])


KIND = base.Kind(
  model=Model,
  data=Data,
  outline=outline,
  load=load,
  metrics=(
    base.Metric(
      "cosine",
      "cosine\nto float",
      "{:.4f}",
      axis="mean cosine to the float embeddings",
    ),
    base.Metric(
      "recall_at_1", "R@1", axis="R@1 of the retrieval (fraction of queries)"
    ),
    base.Metric("mrr", "MRR"),
    base.Metric("agreement", "top-1 as\nfloat"),
  ),
)
