"""Tables of examples, wherever they lie: files, folders, the hub.

Everything is read by `datasets`, which keeps tables on disk and maps them into
memory; what it raises becomes one line that names the source.
"""

import glob
import pathlib
import random
import textwrap
from typing import Any

from quantlab import hub

_READERS = {
  ".csv": "csv",
  ".json": "json",
  ".jsonl": "json",
  ".parquet": "parquet",
}
_HUB_FILES = "hf://datasets/"


def table(source: str, split: str, *, alternatives: str) -> Any:
  """Opens a table.

  Args:
    source: csv, json, jsonl or parquet files, one or a pattern such as
      `"data/val-*.parquet"`; a folder of such files, of images in a folder per
      class, or of `save_to_disk`; a hub id; or files on the hub. An id
      downloads every split; `"hf://datasets/TEAM/NAME/data/val-*.parquet"`
      nothing but those files.
    split: split to read. Files that are named are all of split `"train"`, and
      folders are split as `datasets` does, by the names in them. Slices such
      as `"train[:1000]"` work unless the folder is of `save_to_disk`.
    alternatives: what to use without the hub, for the error.

  Returns:
    A `datasets.Dataset`.

  Raises:
    FileNotFoundError: no such file, folder or hub id, or none open to you.
    ConnectionError: a hub id that neither the hub nor its cache gives.
    ValueError: not readable, or the split is missing.
  """
  path = pathlib.Path(source).expanduser()
  if path.is_dir():
    return _folder(source, path, split)
  if source.startswith(_HUB_FILES):
    name = "/".join(source.removeprefix(_HUB_FILES).split("/")[:2])
    return _from_hub(source, name, split, alternatives)
  if path.suffix in _READERS:
    return _files(source, path, split)
  return _from_hub(source, source, split, alternatives)


def column(
  source: str, table: Any, name: str | None, kind: type = object
) -> str:
  """Returns the name of a column.

  Args:
    source: of the table, for the error.
    table: a `datasets.Dataset`.
    name: a column, which must be there; None finds the one of type `kind`.
    kind: a type of feature, such as `datasets.Image`.

  Raises:
    ValueError: no such column, or none or several of that type.
  """
  features = table.features
  if name is None:
    found = [key for key in features if isinstance(features[key], kind)]
    if len(found) == 1:
      return found[0]
    problem = f"{len(found)} columns of type {kind.__name__}, name one"
  elif name in features:
    return name
  else:
    problem = f"no column {name!r}"
  columns = {key: type(feature).__name__ for key, feature in features.items()}
  raise ValueError(f"{source}: {problem} among {columns}")


def draw(count: int, *, limit: int | None = None, seed: int) -> list[int]:
  """Samples rows without replacement, in random order.

  Args:
    count: rows there are.
    limit: rows to draw; None, or more than there are, takes all.
    seed: of the draw.

  Raises:
    ValueError: `limit` is less than 1.

  Example:
    >>> sorted(draw(3, seed=0)), len(draw(9, limit=4, seed=0))
    ([0, 1, 2], 4)
  """
  if limit is not None and limit < 1:
    raise ValueError(f"{limit=} must be at least 1")
  size = count if limit is None else min(limit, count)
  return random.Random(seed).sample(range(count), size)


def _files(source: str, path: pathlib.Path, split: str) -> Any:
  names = [str(path)]
  if not path.is_file():
    names = sorted(glob.glob(str(path), recursive=True))
    if not names:
      raise FileNotFoundError(f"{source}: no such file")
  # `datasets` would take a bracket in a name for a pattern.
  names = [glob.escape(name) for name in names]
  return _load(source, _READERS[path.suffix], split, data_files=names)


def _folder(source: str, path: pathlib.Path, split: str) -> Any:
  import datasets
  from datasets import config

  marks = config.DATASET_STATE_JSON_FILENAME, config.DATASETDICT_JSON_FILENAME
  if not any((path / mark).is_file() for mark in marks):
    try:
      return _load(source, str(path), split)
    except FileNotFoundError:
      raise FileNotFoundError(
        f"{source}: a folder without images, without {', '.join(_READERS)} "
        "files, and not of save_to_disk"
      ) from None
  try:
    saved = datasets.load_from_disk(str(path))
  except IndexError:  # what it does with a table of no rows
    raise ValueError(f"{source}: no rows") from None
  except (OSError, ValueError) as error:
    raise ValueError(f"{source}: not read: {_line(error)}") from None
  if isinstance(saved, datasets.Dataset):
    return saved
  if split not in saved:
    raise ValueError(f"{source}: no split {split!r} among {[*saved]}")
  return saved[split]


def _from_hub(source: str, name: str, split: str, alternatives: str) -> Any:
  from datasets import config

  def load() -> Any:
    if source == name:
      return _load(source, name, split)
    reader = _READERS.get(pathlib.Path(source).suffix)
    if reader is None:
      raise ValueError(f"{source}: must end in one of {[*_READERS]}")
    return _load(source, reader, split, data_files=source)

  try:
    hub.require(name, repo_type="dataset", alternatives=alternatives)
  except ConnectionError as unreachable:
    # Without the variable the library would retry for half a minute.
    if not config.HF_HUB_OFFLINE:
      raise
    try:
      return load()
    except OSError:
      raise unreachable from None
  return load()


def _load(source: str, reader: str, split: str, **options: Any) -> Any:
  import datasets
  from datasets import exceptions

  try:
    return datasets.load_dataset(reader, split=split, **options)
  except FileNotFoundError as error:
    raise FileNotFoundError(f"{source}: {_line(error)}") from None
  except (exceptions.DatasetsError, ValueError) as error:
    cause = _line(error.__cause__ or error)
    raise ValueError(f"{source}: not read: {cause}") from None


def _line(error: BaseException) -> str:
  return textwrap.shorten(str(error), 300)
