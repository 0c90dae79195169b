"""Where pictures with classes come from.

Shape letters: N pictures.
"""

from collections.abc import Callable
import io
import pathlib
from typing import Any, NamedTuple

import numpy as np

from quantlab.data import tables

_ALTERNATIVES = (
  "a local parquet file, image folder or save_to_disk folder, or 'digits', "
  "which needs no files at all"
)


class Labelled(NamedTuple):
  """Pictures with classes.

  Attributes:
    picture: decodes the picture of a row, a `PIL.Image.Image`, as it is
      stored: like torchvision, it does not turn one as its EXIF data say.
      Raises `ValueError` where the picture is damaged.
    labels: `[N]` int, indices into `classes`.
    classes: name of each class.
  """

  picture: Callable[[int], Any]
  labels: np.ndarray
  classes: tuple[str, ...]


def digits(split: str) -> Labelled:
  """Returns scikit-learn's handwritten digits, 8 × 8 floats in [0, 1].

  Args:
    split: `"test"`, each fifth of a class, or `"train"`, the others.

  Raises:
    ValueError: another split.
  """
  import PIL.Image
  import sklearn.datasets

  values, labels = sklearn.datasets.load_digits(return_X_y=True)
  in_test = np.zeros(len(labels), bool)
  for label in range(10):
    in_test[np.flatnonzero(labels == label)[4::5]] = True
  masks = {"train": ~in_test, "test": in_test}
  if split not in masks:
    raise ValueError(f"digits: no split {split!r} among {[*masks]}")
  x = values[masks[split]].reshape(-1, 8, 8).astype(np.float32) / 16
  return Labelled(
    picture=lambda row: PIL.Image.fromarray(x[row]),
    labels=labels[masks[split]],
    classes=tuple(str(label) for label in range(10)),
  )


def table(
  source: str,
  split: str,
  *,
  image_column: str | None = None,
  label_column: str | None = None,
) -> Labelled:
  """Returns two columns of a table; arguments and errors as in `images`."""
  import datasets

  rows = tables.table(source, split, alternatives=_ALTERNATIVES)
  image = tables.column(source, rows, image_column, datasets.Image)
  label = tables.column(source, rows, label_column, datasets.ClassLabel)
  labels, classes = _classes(source, rows, label)
  return Labelled(_pictures(source, rows, image), labels, classes)


def _classes(
  source: str, table: Any, column: str
) -> tuple[np.ndarray, tuple[str, ...]]:
  import datasets

  feature, values = table.features[column], table[column][:]
  where = f"{source}: column {column!r}"
  named = isinstance(feature, datasets.ClassLabel)
  if not named and "int" not in str(getattr(feature, "dtype", "")):
    raise ValueError(f"{where} holds no classes but {feature}")
  # Tests whose answers are kept back have -1.
  unlabelled = sum(value is None or value < 0 for value in values)
  if unlabelled:
    raise ValueError(f"{where} has no class in {unlabelled} rows")
  labels = np.array(values, int)
  if named:
    return labels, tuple(feature.names)
  present = np.unique(labels)
  if not np.array_equal(present, np.arange(len(present))):
    raise ValueError(
      f"{where} must count classes from 0 without a gap, or be a ClassLabel: "
      f"{present.tolist()[:20]}"
    )
  return labels, tuple(str(label) for label in present)


def _pictures(source: str, table: Any, column: str) -> Callable[[int], Any]:
  import datasets
  import PIL.Image

  feature = table.features[column]
  if not isinstance(feature, datasets.Image):
    # Other writers store what `datasets` does, without saying so.
    fields = feature if isinstance(feature, dict) else {"bytes": feature}
    if "binary" not in str(getattr(fields.get("bytes"), "dtype", "")):
      raise ValueError(
        f"{source}: column {column!r} holds no images: {feature}"
      )
  table = table.select_columns([column])
  table = table.cast_column(column, datasets.Image(decode=False))
  broken = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)

  def picture(row: int) -> Any:
    stored = table[row][column] or {}
    data, path = stored.get("bytes"), stored.get("path")
    if not (data or path):
      raise ValueError("has no image")
    try:
      # A file that Pillow cannot read stays open, bytes do not.
      data = data or pathlib.Path(path or "").read_bytes()
      decoded = PIL.Image.open(io.BytesIO(data))
      decoded.load()
    except broken as error:
      cause = str(error).partition(" <")[0]  # the address of the bytes
      raise ValueError(
        f"({path or 'in the table'}) is damaged: {cause}"
      ) from None
    return decoded

  return picture
