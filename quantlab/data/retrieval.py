"""Retrieval tasks: pairs of a query and the one document that answers it.

`docstrings` is a real task that needs no download: find the body of a
standard-library docstring from its first line.
"""

from collections.abc import Iterable
import dataclasses
import hashlib
import pathlib
import platform
import random
from typing import Any

from quantlab import hub
from quantlab.data import stdlib

Pair = tuple[str, str]

# Characters: shorter ones ("Close.") do not tell documents apart.
_MIN_QUERY = 15
_MIN_DOCUMENT = 40
_READERS = {
  ".csv": "csv",
  ".json": "json",
  ".jsonl": "json",
  ".parquet": "parquet",
}


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
    source: `"docstrings"`; a csv, json, jsonl or parquet file; a folder of
      `datasets.Dataset.save_to_disk`; or a hub id.
    limit: pairs to draw; None takes all.
    seed: of the draw.
    query_column: column of the queries.
    document_column: column of the documents.
    split: split to read; slices such as `"train[:1000]"` work for files and
      hub ids.

  Raises:
    FileNotFoundError: no such file, folder or hub id.
    ConnectionError: a hub id that neither the hub nor its cache gives.
    ValueError: a column or split is missing, or no pair is left.
  """
  if source == "docstrings":
    return docstrings(limit=limit, seed=seed)
  table = _table(source, split)
  columns = [query_column, document_column]
  missing = [name for name in columns if name not in table.column_names]
  if missing:
    raise ValueError(f"{source}: no {missing} among {table.column_names}")
  queries, documents = (
    [str(text or "").strip() for text in table[name]] for name in columns
  )
  rows = zip(queries, documents, strict=True)
  pairs = [(query, document) for query, document in rows if query and document]
  return _draw(pairs, f"{source}, {split}", limit=limit, seed=seed)


def _draw(
  pairs: Iterable[Pair], source: str, *, limit: int | None, seed: int
) -> Pairs:
  """Sorts, drops repeated queries and documents, and samples."""
  if limit is not None and limit < 1:
    raise ValueError(f"{limit=} must be at least 1")
  queries, documents, kept = set(), set(), []
  for query, document in sorted(set(pairs)):
    # A repeated text would make the right answer ambiguous.
    if query not in queries and document not in documents:
      queries.add(query)
      documents.add(document)
      kept.append((query, document))
  if not kept:
    raise ValueError(f"{source}: no pair of a query and a document")
  count = len(kept) if limit is None else min(limit, len(kept))
  chosen = random.Random(seed).sample(kept, count)
  texts = [text for pair in chosen for text in pair]
  digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
  return Pairs(texts[::2], texts[1::2], f"{source}, seed {seed}", digest)


def _table(source: str, split: str) -> Any:
  """Returns a `datasets.Dataset`."""
  import datasets
  import datasets.exceptions

  path = pathlib.Path(source).expanduser()
  if path.is_dir():
    return _saved(source, path, split)
  if path.suffix in _READERS:
    if not path.is_file():
      raise FileNotFoundError(f"{source}: no such file")
    reader = _READERS[path.suffix]
    try:
      return datasets.load_dataset(reader, data_files=str(path), split=split)
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
      cause = str(error.__cause__ or error).partition("\n")[0]
      raise ValueError(f"{source}: not read as {reader}: {cause}") from None
  return _hub_table(source, split)


def _saved(source: str, path: pathlib.Path, split: str) -> Any:
  import datasets

  try:
    saved = datasets.load_from_disk(str(path))
  except FileNotFoundError:
    raise FileNotFoundError(
      f"{source}: not a folder of datasets.Dataset.save_to_disk"
    ) from None
  if isinstance(saved, datasets.Dataset):
    return saved
  if split not in saved:
    raise ValueError(f"{source}: no split {split!r} among {[*saved]}")
  return saved[split]


def _hub_table(source: str, split: str) -> Any:
  import datasets
  import datasets.config

  try:
    hub.require(source, repo_type="dataset")
  except ConnectionError as unreachable:
    # Without the variable the library would retry for half a minute.
    if not datasets.config.HF_HUB_OFFLINE:
      raise
    try:
      return datasets.load_dataset(source, split=split)
    except OSError:
      raise unreachable from None
  return datasets.load_dataset(source, split=split)
