import numpy as np
import PIL.Image
import pytest

from quantlab.data import pixels


def _ramp(width, height):
  """Grey picture whose value is the column."""
  return PIL.Image.fromarray(
    np.tile(np.arange(width, dtype=np.uint8), (height, 1))
  )


def test_values_are_of_unit_range():
  values = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 15
  x = pixels.preparation()(PIL.Image.fromarray(values))
  assert x.shape == (2, 3, 3)
  assert x.dtype == np.float32
  np.testing.assert_array_equal(x, values.astype(np.float32) / 255)


def test_floats_are_kept():
  values = np.array([[0, 1 / 16, 1], [0.5, 0.25, 0]], np.float32)
  picture = PIL.Image.fromarray(values)
  x = pixels.preparation(channels=1)(picture)
  np.testing.assert_array_equal(x, values[..., None])
  x = pixels.preparation(channels=3)(picture)
  np.testing.assert_array_equal(x, np.stack([values] * 3, -1))


def test_normalizes_each_channel():
  picture = PIL.Image.new("RGB", (1, 1), (255, 0, 51))
  x = pixels.preparation(mean=(0.5, 0.5, 0.2), std=(0.5, 0.25, 1))(picture)
  np.testing.assert_allclose(x[0, 0], [1, -2, 0], atol=1e-6)


@pytest.mark.parametrize(
  ("sides", "options", "shape"),
  [
    # 341.33 and 341.99 are rounded down.
    ((500, 375), {"size": 256}, (256, 341)),
    ((257, 192), {"size": 256}, (256, 342)),
    ((30, 40), {"size": 60}, (80, 60)),
    ((500, 375), {"size": 256, "crop": 224}, (224, 224)),
    ((30, 40), {"size": 30, "crop": 30}, (30, 30)),
  ],
)
def test_sides(sides, options, shape):
  x = pixels.preparation(channels=1, **options)(PIL.Image.new("L", sides))
  assert x.shape == (*shape, 1)


@pytest.mark.parametrize(
  ("width", "left"),
  # A half is rounded to the even number, as Python and torchvision round.
  [(14, 2), (13, 2), (15, 2), (17, 4)],
)
def test_crop_is_the_middle(width, left):
  x = pixels.preparation(channels=1, crop=10)(_ramp(width, 10))
  columns = np.round(x[0, :, 0] * 255).astype(int)
  np.testing.assert_array_equal(columns, np.arange(left, left + 10))


def test_smaller_pictures_are_averaged():
  checkers = np.indices((64, 64)).sum(axis=0) % 2 * 255
  x = pixels.preparation(channels=1, size=8)(
    PIL.Image.fromarray(checkers.astype(np.uint8))
  )
  assert np.abs(x - 0.5).max() < 0.02


RED = {"RGB": (255, 0, 0), "RGBA": (255, 0, 0, 128), "CMYK": (0, 255, 255, 0)}


@pytest.mark.parametrize("mode", RED)
def test_colours_and_grey(mode):
  picture = PIL.Image.new(mode, (1, 1), RED[mode])
  np.testing.assert_array_equal(
    pixels.preparation()(picture)[0, 0], np.float32([1, 0, 0])
  )
  grey = pixels.preparation(channels=1)(picture)
  assert abs(grey.item() - 0.299) < 0.01


@pytest.mark.parametrize(
  ("mode", "colour"), [("L", 51), ("LA", (51, 9)), ("1", 1)]
)
def test_grey_becomes_equal_channels(mode, colour):
  x = pixels.preparation()(PIL.Image.new(mode, (1, 1), colour))
  value = 1.0 if mode == "1" else 0.2
  np.testing.assert_allclose(x[0, 0], [value] * 3, atol=1e-6)


def test_palette_with_transparency():
  picture = PIL.Image.new("RGB", (2, 2), (255, 0, 0)).convert("P")
  picture.info["transparency"] = bytes([0, 128])
  np.testing.assert_array_equal(
    pixels.preparation()(picture)[0, 0], np.float32([1, 0, 0])
  )


def test_sixteen_bits():
  picture = PIL.Image.fromarray(np.array([[1000]], np.uint16))
  with pytest.raises(ValueError, match=r"more than 8 bits .*I;16"):
    pixels.preparation()(picture)


def test_crop_is_too_large():
  prepare = pixels.preparation(crop=9)
  with pytest.raises(ValueError, match="8 x 12 pixels are less than crop=9"):
    prepare(PIL.Image.new("RGB", (12, 8)))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"channels": 4}, "channels=4 must be 1 or 3"),
    ({"size": 0}, "size=0 must be at least 1"),
    ({"crop": -1}, "crop=-1 must be at least 1"),
    ({"mean": (0.5, 0.5)}, r"mean=\(0.5, 0.5\) must be one number or 3"),
    ({"std": (1, 0, 1)}, "must be positive"),
    ({"std": float("nan")}, "must be positive"),
  ],
)
def test_arguments_out_of_range(options, message):
  with pytest.raises(ValueError, match=message):
    pixels.preparation(**options)
