"""Image classification tasks: pictures, and the class of each.

Shape letters: N images, B images of a batch, H height, W width, C channels.

`"digits"` are real images that need no download. Of the rest, what papers use:

| source                  | columns      | splits            |
|-------------------------|--------------|-------------------|
| `uoft-cs/cifar10`       | img, label   | train, test       |
| `zh-plus/tiny-imagenet` | image, label | train, valid      |
| `ILSVRC/imagenet-1k`    | image, label | train, validation |

ImageNet asks for a log-in, and its id downloads all of it. Its 50,000
validation images alone are the split `"train"` of
`hf://datasets/ILSVRC/imagenet-1k/data/validation-*.parquet`.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib
from typing import Any

import numpy as np

from quantlab.data import labelled, pixels, tables

# Images in the hash: to decode all of ImageNet for it would take minutes.
_HASHED = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """An image classification task, of which one batch at a time is decoded.

  Attributes:
    labels: `[N]` int32, indices into `classes`.
    classes: name of each class.
    shape: `(H, W, C)` of every image.
    source: where they come from, for a report.
    sha256: of the classes, all labels and 64 evenly spread images as `read`
      returns them: equal hashes are the same task.
    read: decodes image i, of N; `[H, W, C]` float32.
  """

  labels: np.ndarray = dataclasses.field(repr=False)
  classes: tuple[str, ...]
  shape: tuple[int, ...]
  source: str
  sha256: str
  read: Callable[[int], np.ndarray] = dataclasses.field(repr=False)

  def __len__(self) -> int:
    return len(self.labels)

  def pick(self, chosen: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns some images, `[B, H, W, C]` float32, and labels, `[B]` int32.

    Args:
      chosen: B numbers below N.

    Raises:
      ValueError: one of them is damaged, or not of the task's shape.
    """
    x = [self.read(i) for i in chosen]
    for i, image in zip(chosen, x, strict=True):
      if image.shape != self.shape:
        raise ValueError(
          f"{self.source}: image {i} is {image.shape}, the first {self.shape}; "
          "size and crop make them alike"
        )
    return np.stack(x), self.labels[np.asarray(chosen)]

  def batches(
    self,
    batch_size: int,
    *,
    shuffle_seed: int | None = None,
    drop_remainder: bool = False,
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields each image once, in batches as `pick` returns them.

    Args:
      batch_size: B; the last batch may be smaller.
      shuffle_seed: decides the order; None leaves it as it is.
      drop_remainder: leaves out a last batch that is smaller.

    Raises:
      ValueError: there is not one batch of that size.
    """
    count = len(self)
    if batch_size < 1 or (drop_remainder and batch_size > count):
      raise ValueError(f"{self.source}: no batch of {batch_size=} of {count}")
    order = list(range(count))
    if shuffle_seed is not None:
      order = tables.draw(count, seed=shuffle_seed)
    stop = count - count % batch_size if drop_remainder else count
    starts = range(0, stop, batch_size)
    return (self.pick(order[i : i + batch_size]) for i in starts)


def images(
  source: str = "digits",
  *,
  split: str = "train",
  image_column: str | None = None,
  label_column: str | None = None,
  channels: int | None = None,
  size: int | None = None,
  crop: int | None = None,
  mean: float | Sequence[float] = 0.0,
  std: float | Sequence[float] = 1.0,
  limit: int | None = None,
  seed: int = 0,
) -> Images:
  """Loads an image classification task from anywhere.

  `"digits"` are scikit-learn's 1,797 handwritten digits of 8 × 8 pixels, whose
  values 0 to 16 become 0 to 1. Each fifth of a class is in the split `"test"`
  (355 images), the others are in `"train"` (1,442).

  Args:
    source: `"digits"`; a parquet file or a pattern of several; a folder of
      them, of images with a folder per class, or of
      `datasets.Dataset.save_to_disk`; a hub id; or files on the hub. See
      `quantlab.data.tables.table`.
    split: split to read; for all but `"digits"` as `tables.table` takes it.
    image_column: column of the images; None finds the one of type `Image`.
    label_column: column of the labels, of type `ClassLabel` or integers from
      0 without a gap; None finds the one of type `ClassLabel`.
    channels: 1 for grey or 3 for RGB, to which other images are converted;
      None is 1 for `"digits"`, 3 for all else.
    size: pixels of the shorter side after resizing; None leaves it.
    crop: side of the square that is cut from the middle; None leaves all.
    mean: of the values, which are in [0, 1]; one number or one per channel.
    std: likewise; images are (values - mean) / std.
    limit: images to draw; None takes all, in the order they are stored.
    seed: of the draw.

  Raises:
    FileNotFoundError: no such file, folder or hub id.
    ConnectionError: a hub id that neither the hub nor its cache gives.
    ValueError: a column or split is missing or ambiguous, labels are no
      classes, an argument is out of range, or one of the images that are
      looked at (the first, and those in the hash) is damaged.

  Example:
    >>> digits = images("digits", split="test", limit=100)
    >>> x, y = next(digits.batches(32))
    >>> x.shape, x.max().item(), y.dtype.name
    ((32, 8, 8, 1), 1.0, 'int32')
  """
  embedded = source == "digits"
  prepare = pixels.preparation(
    channels=channels or (1 if embedded else 3),
    size=size,
    crop=crop,
    mean=mean,
    std=std,
  )
  if embedded:
    stored = labelled.digits(split)
  else:
    stored = labelled.table(
      source, split, image_column=image_column, label_column=label_column
    )
  name = f"{source}, {split}"
  rows = list(range(len(stored.labels)))
  if limit is not None:
    rows = tables.draw(len(rows), limit=limit, seed=seed)
    name += f", seed {seed}"
  return _task(name, stored, rows, prepare)


def _task(
  name: str,
  stored: labelled.Labelled,
  rows: list[int],
  prepare: Callable[[Any], np.ndarray],
) -> Images:
  if not rows:
    raise ValueError(f"{name}: no images")

  def read(i: int) -> np.ndarray:
    try:
      return prepare(stored.picture(rows[i]))
    except ValueError as error:
      raise ValueError(f"{name}: row {rows[i]} {error}") from None

  task = Images(
    labels=stored.labels[rows].astype(np.int32),
    classes=stored.classes,
    shape=read(0).shape,
    source=name,
    sha256="",
    read=read,
  )
  return dataclasses.replace(task, sha256=_hash(task))


def _hash(task: Images) -> str:
  count = min(_HASHED, len(task))
  x, _ = task.pick(np.linspace(0, len(task) - 1, count).astype(int).tolist())
  digest = hashlib.sha256(repr(task.classes).encode())
  digest.update(task.labels.data)
  digest.update(x.data)
  return digest.hexdigest()
