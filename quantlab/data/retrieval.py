"""Retrieval tasks: pairs of a query and the one document that answers it.

`docstrings` is a real task that needs no download: find the body of a
standard-library docstring from its first line.
"""

from collections.abc import Iterable
import dataclasses
import hashlib
import platform

from quantlab.data import stdlib, tables

Pair = tuple[str, str]

# Characters: shorter ones ("Close.") do not tell documents apart.
_MIN_QUERY = 15
_MIN_DOCUMENT = 40
_ALTERNATIVES = "a local path, or 'docstrings', which needs no files at all"


@dataclasses.dataclass(frozen=True)
class Pairs:
  """A retrieval task; `documents[i]` answers `queries[i]`.

  Attributes:
    queries: distinct texts.
    documents: distinct texts, as many.
    source: where they come from, for a report.
    sha256: of all texts in order: equal hashes are the same task.
  """

  queries: list[str]
  documents: list[str]
  source: str
  sha256: str

  def __len__(self) -> int:
    return len(self.queries)


def docstrings(*, limit: int | None = 600, seed: int = 0) -> Pairs:
  """Pairs the first line of standard-library docstrings with their bodies.

  Sources are parsed, not imported. Texts differ between Python versions, so
  compare results of equal `sha256` only.

  Args:
    limit: pairs to draw; None takes all, about 2,500.
    seed: of the draw.

  Raises:
    FileNotFoundError: this Python comes without its sources.

  Example:
    >>> pairs = docstrings(limit=3)
    >>> len(pairs), pairs.source.startswith("docstrings of Python 3.")
    (3, True)
  """
  pairs = [
    (query, document)
    for query, document in stdlib.docstrings()
    if len(query) >= _MIN_QUERY and len(document) >= _MIN_DOCUMENT
  ]
  source = f"docstrings of Python {platform.python_version()}"
  return _draw(pairs, source, limit=limit, seed=seed)


def retrieval(
  source: str = "docstrings",
  *,
  limit: int | None = 600,
  seed: int = 0,
  query_column: str = "query",
  document_column: str = "document",
  split: str = "train",
) -> Pairs:
  """Loads a retrieval task from anywhere.

  Args:
    source: `"docstrings"`; a csv, json, jsonl or parquet file, or a pattern of
      several; a folder of them, or of `datasets.Dataset.save_to_disk`; or a hub
      id. See `quantlab.data.tables.table`.
    limit: pairs to draw; None takes all.
    seed: of the draw.
    query_column: column of the queries.
    document_column: column of the documents.
    split: split to read, as `tables.table` takes it.

  Raises:
    FileNotFoundError: no such file, folder or hub id.
    ConnectionError: a hub id that neither the hub nor its cache gives.
    ValueError: a column or split is missing, or no pair is left.
  """
  if source == "docstrings":
    return docstrings(limit=limit, seed=seed)
  table = tables.table(source, split, alternatives=_ALTERNATIVES)
  queries, documents = (
    [
      str(text or "").strip()
      for text in table[tables.column(source, table, name)]
    ]
    for name in (query_column, document_column)
  )
  rows = zip(queries, documents, strict=True)
  pairs = [(query, document) for query, document in rows if query and document]
  return _draw(pairs, f"{source}, {split}", limit=limit, seed=seed)


def _draw(
  pairs: Iterable[Pair], source: str, *, limit: int | None, seed: int
) -> Pairs:
  """Sorts, drops repeated queries and documents, and samples."""
  queries, documents, kept = set(), set(), []
  for query, document in sorted(set(pairs)):
    # A repeated text would make the right answer ambiguous.
    if query not in queries and document not in documents:
      queries.add(query)
      documents.add(document)
      kept.append((query, document))
  if not kept:
    raise ValueError(f"{source}: no pair of a query and a document")
  rows = tables.draw(len(kept), limit=limit, seed=seed)
  texts = [text for row in rows for text in kept[row]]
  digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
  return Pairs(texts[::2], texts[1::2], f"{source}, seed {seed}", digest)
