"""From a picture to the array that a model reads.

Shape letters: H height, W width, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_MODES = {1: "L", 3: "RGB"}


def preparation(
  *,
  channels: int = 3,
  size: int | None = None,
  crop: int | None = None,
  mean: float | Sequence[float] = 0.0,
  std: float | Sequence[float] = 1.0,
) -> Callable[[Any], np.ndarray]:
  """Returns a function that converts, resizes, crops and normalizes.

  ImageNet models are evaluated on `size=256, crop=224`: bilinear with
  antialiasing, then the middle; rounding is torchvision's.

  Args:
    channels: C, 1 or 3. Colours become their luma, grey becomes equal channels;
      transparency is dropped, as if there were none.
    size: pixels of the shorter side after resizing; None leaves it.
    crop: side of the square that is cut from the middle; None leaves all.
    mean: one number or C, subtracted from the values, which are in [0, 1].
    std: one number or C, by which the difference is divided.

  Returns:
    A function of a `PIL.Image.Image` that returns `[H, W, C]` float32. Pictures
    of floats (mode F) are grey, and in [0, 1] already. It raises `ValueError`
    where a picture is smaller than `crop`, or has 16 bits or more per pixel.

  Raises:
    ValueError: an argument is out of range.

  Example:
    >>> import PIL.Image
    >>> prepare = preparation(size=15, crop=10, mean=0.5, std=0.5)
    >>> x = prepare(PIL.Image.new("RGB", (40, 30), "white"))
    >>> x.shape, x.max().item()
    ((10, 10, 3), 1.0)
  """
  if channels not in _MODES:
    raise ValueError(f"{channels=} must be 1 or 3")
  for name, value in (("size", size), ("crop", crop)):
    if value is not None and value < 1:
      raise ValueError(f"{name}={value} must be at least 1")
  shift = _per_channel("mean", mean, channels)
  scale = _per_channel("std", std, channels)
  if not (scale > 0).all():
    raise ValueError(f"{std=} must be positive")

  def prepare(picture: Any) -> np.ndarray:
    picture = _cropped(_resized(_converted(picture, channels), size), crop)
    x = np.asarray(picture, np.float32)
    x = x.reshape(*x.shape[:2], -1)
    if picture.mode != "F":
      x = x / 255
    return np.broadcast_to((x - shift) / scale, (*x.shape[:2], channels))

  return prepare


def _per_channel(
  name: str, value: float | Sequence[float], channels: int
) -> np.ndarray:
  array = np.asarray(value, np.float32)
  if array.shape not in ((), (channels,)):
    raise ValueError(f"{name}={value} must be one number or {channels}")
  return array


def _converted(picture: Any, channels: int) -> Any:
  if picture.mode in ("F", _MODES[channels]):
    return picture
  if picture.mode.startswith("I"):
    # Pillow would clip them to 255.
    raise ValueError(f"has more than 8 bits per pixel (mode {picture.mode})")
  if picture.mode == "P":
    # Palettes may hold colours that are transparent, which RGB cannot.
    picture = picture.convert("RGBA")
  return picture.convert(_MODES[channels])


def _resized(picture: Any, size: int | None) -> Any:
  import PIL.Image

  shorter = min(picture.size)
  if size is None or shorter == size:
    return picture
  # Rounded down as in torchvision: published accuracies depend on it.
  sides = tuple(side * size // shorter for side in picture.size)
  return picture.resize(sides, PIL.Image.Resampling.BILINEAR)


def _cropped(picture: Any, crop: int | None) -> Any:
  if crop is None:
    return picture
  width, height = picture.size
  if crop > min(width, height):
    raise ValueError(f"{height} x {width} pixels are less than {crop=}")
  left, top = round((width - crop) / 2), round((height - crop) / 2)
  return picture.crop((left, top, left + crop, top + crop))
