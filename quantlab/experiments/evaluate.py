"""Measures of a quantized encoder beside its float original.

Every variant is judged through one compiled forward: its packed tensors are
decoded once into float parameters. Running from the packed form (`ql.apply`)
gives the same values, but would compile the model again for every variant and
batch shape, and decode every tensor again for every batch.

Shape letters: Q queries and as many documents, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.core import qtensor
from quantlab.data import ranking, retrieval
from quantlab.models import checkpoint, tokens

Array = jax.Array
Params = Any

Embed = Callable[..., np.ndarray]
"""`embed(params, track=...)`: `[2 Q, D]`, the queries, then the documents.

`track` wraps the list of batches in an iterator that shows progress."""


class Task(NamedTuple):
  """A retrieval task.

  Attributes:
    pairs: queries and documents.
    batch_size: texts that the model reads at once.
  """

  pairs: retrieval.Pairs
  batch_size: int


class Error(NamedTuple):
  """How far a tensor is from its original.

  Attributes:
    signal: sum of the squared original.
    noise: sum of the squared differences.
    worst: the largest absolute difference.
  """

  signal: float
  noise: float
  worst: float


def task(
  *,
  source: str = "docstrings",
  limit: int | None = 600,
  seed: int = 0,
  query_column: str = "query",
  document_column: str = "document",
  split: str = "train",
  batch_size: int = 32,
) -> Task:
  """Loads a task: the section `data` of a config.

  Args:
    source: as `data.retrieval.retrieval` takes, like all below.
    limit: pairs to draw.
    seed: of the draw.
    query_column: column of the queries.
    document_column: column of the documents.
    split: of the source.
    batch_size: texts per batch, at least 1.

  Raises:
    ValueError: what the data does not offer, or `batch_size` below 1.
  """
  if batch_size < 1:
    raise ValueError(f"{batch_size=} must be at least 1")
  pairs = retrieval.retrieval(
    source,
    limit=limit,
    seed=seed,
    query_column=query_column,
    document_column=document_column,
    split=split,
  )
  return Task(pairs, batch_size)


def embedder(encoder: checkpoint.Checkpoint, task: Task) -> Embed:
  """The embeddings of a task's texts as a function of float parameters.

  Args:
    encoder: the model; its own parameters are not used.
    task: the texts.
  """
  texts = [*task.pairs.queries, *task.pairs.documents]
  batches = list(
    tokens.batches(encoder.encode, texts, batch_size=task.batch_size)
  )

  @jax.jit
  def forward(params, ids, mask):
    hidden: Any = encoder.model.apply({"params": params}, ids, mask)
    return encoder.pool(hidden, mask)

  def embed(params, track=iter):
    out: dict[int, np.ndarray] = {}
    for ids, mask, rows in track(batches):
      vectors = np.asarray(forward(params, ids, mask), np.float32)
      # The batch may end in filler.
      out.update(zip(rows.tolist(), vectors, strict=False))
    return np.stack([out[i] for i in range(len(texts))])

  return embed


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
    "cosine": cosine(found, reference),
    "recall_at_1": ranking.recall(ranks),
    "mrr": ranking.mrr(ranks),
    "agreement": float(np.mean(same)),
  }


def cosine(a: np.ndarray, b: np.ndarray) -> float:
  """Mean cosine of the rows of two `[R, D]` arrays; 0 for a row of zeros.

  Example:
    >>> cosine(
    ...   np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[2.0, 0.0], [0.0, 1.0]])
    ... )
    0.9
  """
  dot = np.sum(a * b, axis=1)
  norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
  return float(np.mean(dot / np.where(norms > 0, norms, 1)))


def top1(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
  """Index of each query's first document, `[Q]`.

  Example:
    >>> top1(
    ...   np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    ... )
    array([1, 0])
  """
  return np.argmax(queries @ documents.T, axis=1)


def decode(tree: Params) -> Params:
  """`ql.dequantize`, one part of one tensor at a time, each compiled.

  Compiled, a part takes two copies of it as floats at most, and up to seven
  otherwise. In parts, the tensors of a model share their programs: of a sum,
  only the exact part has a size that depends on the data.
  """
  return jax.tree.map(_decoded, tree, is_leaf=qtensor.is_quantized)


def _decoded(x: Any) -> Array:
  if isinstance(x, qtensor.Sum):
    first, *rest = map(_decoded, x.parts)
    return sum(rest, first)
  return _dequantize(x) if qtensor.is_quantized(x) else x


@jax.jit
def _dequantize(x: Any) -> Array:
  return x.dequantize()


def damage(original: Array, restored: Array) -> Error:
  """Compares a tensor with what is left of it.

  Example:
    >>> damage(jnp.array([3.0, 4.0]), jnp.array([3.0, 4.5]))
    Error(signal=25.0, noise=0.25, worst=0.5)
  """
  return Error(*(float(value) for value in _damage(original, restored)))


@jax.jit
def _damage(original: Array, restored: Array) -> tuple[Array, Array, Array]:
  x, y = (v.astype(jnp.float32) for v in (original, restored))
  worst = jnp.max(jnp.abs(x - y), initial=0)
  return jnp.sum(x * x), jnp.sum((x - y) ** 2), worst


def total(errors: Sequence[Error]) -> Error:
  """The error of several tensors as if they were one."""
  signal, noise, worst = zip(*errors, strict=True) if errors else ((), (), ())
  return Error(sum(signal), sum(noise), max(worst, default=0.0))


def sqnr(found: Error) -> float | None:
  """Signal to quantization noise in dB; None where nothing was lost.

  Example:
    >>> sqnr(Error(signal=100.0, noise=1.0, worst=1.0))
    20.0
  """
  if not found.noise:
    return None
  ratio = found.signal / found.noise
  return float(10 * np.log10(ratio)) if ratio else -float("inf")
