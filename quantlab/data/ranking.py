"""Measures of retrieval, where document i answers query i.

Shape letters: Q queries and documents, D width.

Retrieval hides small damage: report the cosine to the unquantized
embeddings beside it.
"""

import numpy as np
import numpy.typing as npt


def rank(queries: npt.ArrayLike, documents: npt.ArrayLike) -> np.ndarray:
  """Ranks each query's own document among all, by inner product.

  Args:
    queries: `[Q, D]` float, of unit length where cosine is meant.
    documents: `[Q, D]` float; row i answers query i.

  Returns:
    `[Q]` int; 1 is best. A tie counts against the own document, and so does
    NaN: a model that maps all texts to one vector ranks last, not first.

  Raises:
    ValueError: the shapes differ.

  Example:
    >>> rank([[1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [0.9, 0.1]]).tolist()
    [1, 1]
    >>> rank([[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]).tolist()
    [2, 2]
  """
  queries, documents = np.asarray(queries), np.asarray(documents)
  if queries.ndim != 2 or queries.shape != documents.shape:
    raise ValueError(
      f"{queries.shape=} and {documents.shape=} must be one [Q, D]"
    )
  scores = queries @ documents.T
  own = np.diagonal(scores)[:, None]
  return (~(scores < own)).sum(axis=1)


def recall(ranks: npt.ArrayLike, k: int = 1) -> float:
  """Share of queries whose document is among the first k: R@k.

  Args:
    ranks: `[Q]` int, as `rank` returns.
    k: how many places count.

  Example:
    >>> recall([1, 3, 1, 2]), recall([1, 3, 1, 2], k=2)
    (0.5, 0.75)
  """
  return float(np.mean(np.asarray(ranks) <= k))


def mrr(ranks: npt.ArrayLike) -> float:
  """Mean of 1 / rank: the mean reciprocal rank.

  Args:
    ranks: `[Q]` int, as `rank` returns.

  Example:
    >>> mrr([1, 2, 4, 4])
    0.5
  """
  return float(np.mean(1 / np.asarray(ranks)))
