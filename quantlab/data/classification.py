"""Text classification tasks: texts, and the class of each.

Of what papers use:

| source              | text column | split |
|---------------------|-------------|-------|
| `dair-ai/emotion`   | text        | test  |
| `ucirvine/sms_spam` | sms         | train |

Shape letters: N texts.
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from quantlab.data import tables

_ALTERNATIVES = "a local csv, json or parquet file, or a save_to_disk folder"


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
  """A text classification task.

  Attributes:
    texts: N texts.
    labels: `[N]` int32, indices into `classes`.
    classes: name of each class.
    source: where they come from, for a report.
    sha256: of classes, labels and texts: equal hashes are the same task.
  """

  texts: list[str]
  labels: np.ndarray
  classes: tuple[str, ...]
  source: str
  sha256: str

  def __len__(self) -> int:
    return len(self.texts)


def classification(
  source: str,
  *,
  split: str = "train",
  text_column: str = "text",
  label_column: str = "label",
  limit: int | None = None,
  seed: int = 0,
) -> Texts:
  """Loads a text classification task from anywhere.

  Args:
    source: as `tables.table` takes it, such as `"dair-ai/emotion"`.
    split: likewise.
    text_column: column of the texts.
    label_column: column of the labels: a `ClassLabel`, integers from 0, or
      names, which are numbered in alphabetical order.
    limit: texts to draw; None takes all, in the order they are stored.
    seed: of the draw.

  Raises:
    FileNotFoundError: no such file, folder or hub id.
    ConnectionError: a hub id that neither the hub nor its cache gives.
    ValueError: a column or split is missing, a label is no class, or there are
      no rows.
  """
  table = tables.table(source, split, alternatives=_ALTERNATIVES)
  column = table[tables.column(source, table, text_column)]
  labels, classes = _classes(source, table, label_column)
  name = f"{source}, {split}"
  rows = list(range(len(table)))
  if limit is not None:
    rows = tables.draw(len(rows), limit=limit, seed=seed)
    name += f", seed {seed}"
  texts = [str(column[row] or "") for row in rows]
  digest = hashlib.sha256(repr((classes, texts)).encode())
  digest.update(labels[rows].tobytes())
  return Texts(texts, labels[rows], classes, name, digest.hexdigest())


def _classes(
  source: str, table: Any, name: str
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Returns `[N]` labels and the names of the classes."""
  import datasets

  values = list(table[tables.column(source, table, name)])
  feature = table.features[name]
  if isinstance(feature, datasets.ClassLabel):
    names = feature.names
  elif values and all(isinstance(value, str) for value in values):
    names = sorted(set(values))
    values = [names.index(value) for value in values]
  else:
    numbers = [value for value in values if isinstance(value, int)]
    names = [str(i) for i in range(max(numbers, default=-1) + 1)]
  for row, value in enumerate(values):
    # Tests whose answers are kept back have -1.
    if not isinstance(value, int) or value < 0:
      raise ValueError(
        f"{source}: {name!r} of row {row}, {value!r}, is no class"
      )
  return np.array(values, np.int32), tuple(names)
