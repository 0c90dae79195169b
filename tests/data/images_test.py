import io
import time

import numpy as np
import PIL.Image
import pytest

from quantlab.data import images, labelled, pixels

COUNT = 6
CLASSES = ("ant", "bee", "cow")


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  import datasets.config

  folder = tmp_path_factory.mktemp("cache")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


def _pixels():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (COUNT, 5, 4, 3)).astype(np.uint8)


LABELS = np.repeat(np.arange(3), 2)


def _png(values):
  file = io.BytesIO()
  PIL.Image.fromarray(values).save(file, "PNG")
  return file.getvalue()


def _dataset(count=COUNT, **columns):
  import datasets

  data = {
    "img": [{"bytes": _png(x), "path": None} for x in _pixels()[:count]],
    "label": LABELS[:count],
    **columns,
  }
  features = datasets.Features(
    img=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES))
  )
  for name in columns:
    features[name] = datasets.Dataset.from_dict(columns).features[name]
  return datasets.Dataset.from_dict(data, features=features)


def _picture_folder(folder):
  for i, (x, label) in enumerate(zip(_pixels(), LABELS, strict=True)):
    path = folder / CLASSES[label] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(x))


def _write(kind, folder):
  """Writes the same six images in each form; returns the source."""
  import datasets

  path = folder / kind
  if kind == "parquet":
    path = folder / "x.parquet"
    _dataset().to_parquet(str(path))
  elif kind in ("pattern", "shards"):
    path.mkdir()
    for i in range(2):
      shard = _dataset().shard(2, i, contiguous=True)
      shard.to_parquet(str(path / f"train-{i}.parquet"))
    if kind == "pattern":
      path /= "train-*.parquet"
  elif kind == "saved":
    _dataset().save_to_disk(str(path))
  elif kind == "saved splits":
    datasets.DatasetDict(train=_dataset()).save_to_disk(str(path))
  elif kind == "pictures":
    _picture_folder(path)
  elif kind == "picture splits":
    _picture_folder(path / "train")
    _picture_folder(path / "test")
  return str(path)


KINDS = [
  "parquet",
  "pattern",
  "shards",
  "saved",
  "saved splits",
  "pictures",
  "picture splits",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_is_the_same_task(tmp_path, kind):
  task = images.images(_write(kind, tmp_path))
  assert len(task) == COUNT
  assert task.classes == CLASSES
  assert task.shape == (5, 4, 3)
  assert task.source == f"{_write_name(kind, tmp_path)}, train"
  ((x, y),) = task.batches(COUNT)
  assert x.dtype == np.float32
  assert y.dtype == np.int32
  np.testing.assert_array_equal(x, _pixels().astype(np.float32) / 255)
  np.testing.assert_array_equal(y, LABELS)
  (tmp_path / "again").mkdir()
  again = images.images(_write("saved", tmp_path / "again"))
  assert task.sha256 == again.sha256


def _write_name(kind, folder):
  names = {"parquet": "x.parquet", "pattern": "pattern/train-*.parquet"}
  return str(folder / names.get(kind, kind))


@pytest.fixture(name="saved")
def _saved(tmp_path):
  return _write("saved", tmp_path)


def test_hash_tells_tasks_apart(saved):
  options = [
    {},
    {"crop": 4},
    {"mean": 0.5},
    {"channels": 1},
    {"limit": 3},
    {"limit": 3, "seed": 1},
  ]
  hashes = {images.images(saved, **each).sha256 for each in options}
  assert len(hashes) == len(options)


def test_digits():
  train, test = (images.images(split=split) for split in ("train", "test"))
  assert (len(train), len(test)) == (1442, 355)
  assert train.shape == test.shape == (8, 8, 1)
  assert train.classes == test.classes == tuple("0123456789")
  assert np.bincount(test.labels).min() == 34
  assert np.bincount(test.labels).max() == 36
  assert train.sha256 != test.sha256


def test_digits_are_those_of_scikit_learn():
  import sklearn.datasets

  values, labels = sklearn.datasets.load_digits(return_X_y=True)
  want = {
    (label, row.tobytes())
    for label, row in zip(labels, values.astype(np.uint8), strict=True)
  }
  found = set()
  for split in ("train", "test"):
    ((x, y),) = images.images("digits", split=split).batches(2000)
    assert x.min() == 0
    assert x.max() == 1
    rows = (x * 16).astype(np.uint8)
    np.testing.assert_array_equal(rows, x * 16)
    found |= {(i, row.tobytes()) for i, row in zip(y, rows, strict=True)}
  assert found == want
  assert len(found) > 1790  # a few were written twice


def test_digits_have_two_splits():
  with pytest.raises(ValueError, match=r"'valid' among \['train', 'test'\]"):
    images.images(split="valid")


def test_batches_cover_all_once():
  task = images.images(split="test")
  sizes = [len(y) for _, y in task.batches(100)]
  assert sizes == [100, 100, 100, 55]
  sizes = [len(y) for _, y in task.batches(100, drop_remainder=True)]
  assert sizes == [100, 100, 100]

  def order(**options):
    return np.concatenate([y for _, y in task.batches(100, **options)])

  np.testing.assert_array_equal(order(), task.labels)
  one = order(shuffle_seed=0)
  np.testing.assert_array_equal(one, order(shuffle_seed=0))
  assert (one != order(shuffle_seed=1)).any()
  np.testing.assert_array_equal(np.sort(one), np.sort(task.labels))


def test_images_keep_their_labels_when_shuffled(saved):
  task = images.images(saved)
  want = dict(zip([x.tobytes() for x in _pixels()], LABELS, strict=True))
  for x, y in task.batches(4, shuffle_seed=3):
    for image, label in zip(x, y, strict=True):
      stored = np.round(image * 255).astype(np.uint8)
      assert want.pop(stored.tobytes()) == label
  assert not want


@pytest.mark.parametrize(
  ("size", "drop_remainder"), [(0, False), (-1, True), (7, True)]
)
def test_no_batch_of_that_size(saved, size, drop_remainder):
  task = images.images(saved)
  with pytest.raises(ValueError, match=f"batch_size={size} of 6"):
    task.batches(size, drop_remainder=drop_remainder)


def test_one_batch_at_a_time_is_decoded(saved, monkeypatch):
  decode, decoded = PIL.Image.open, []

  def counted(*args):
    decoded.append(None)
    return decode(*args)

  monkeypatch.setattr(images, "_HASHED", 1)
  monkeypatch.setattr(PIL.Image, "open", counted)
  batches = images.images(saved).batches(2)
  assert len(decoded) == 2  # for the shape and for the hash
  for i in range(3):
    next(batches)
    assert len(decoded) == 2 + 2 * (i + 1)


def test_limit(saved):
  task = images.images(saved, limit=4, seed=1)
  assert len(task) == 4
  assert task.source.endswith("train, seed 1")
  again = images.images(saved, limit=4, seed=1)
  assert again.sha256 == task.sha256
  assert len(images.images(saved, limit=99)) == COUNT
  assert len(images.images(limit=10)) == 10
  for source in (saved, "digits"):
    with pytest.raises(ValueError, match="limit=0 must be at least 1"):
      images.images(source, limit=0)


def test_columns_by_name(tmp_path):
  import datasets

  table = _dataset(fine=[2, 0, 1, 2, 0, 1], label2=LABELS.tolist())
  table = table.cast_column("label2", datasets.ClassLabel(num_classes=3))
  source = str(tmp_path / "x")
  table.save_to_disk(source)
  with pytest.raises(ValueError, match=r"2 columns of type ClassLabel.*label2"):
    images.images(source)
  task = images.images(source, label_column="fine")
  assert task.labels.tolist() == [2, 0, 1, 2, 0, 1]
  assert task.classes == ("0", "1", "2")
  assert images.images(source, label_column="label").classes == CLASSES
  with pytest.raises(ValueError, match=r"no column 'image' among .*'img'"):
    images.images(source, label_column="fine", image_column="image")


def test_images_without_their_type(tmp_path):
  import datasets

  binary = [_png(x) for x in _pixels()]
  table = datasets.Dataset.from_dict(
    {
      "plain": binary,
      "pair": [{"bytes": x, "path": "x.png"} for x in binary],
      "label": LABELS,
    }
  )
  source = str(tmp_path / "x.parquet")
  table.to_parquet(source)
  with pytest.raises(ValueError, match="0 columns of type Image, name one"):
    images.images(source, label_column="label")
  for column in ("plain", "pair"):
    task = images.images(source, image_column=column, label_column="label")
    x, _ = next(task.batches(COUNT))
    np.testing.assert_array_equal(x, _pixels().astype(np.float32) / 255)
  with pytest.raises(ValueError, match="'label' holds no images"):
    images.images(source, image_column="label", label_column="label")


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    (list("abcabc"), "holds no classes but"),
    ([0.0] * 6, "holds no classes but"),
    ([0, 1, 3, 0, 1, 3], r"without a gap.*: \[0, 1, 3\]"),
    ([1, 2, 1, 2, 1, 2], r"without a gap.*: \[1, 2\]"),
    ([0, -1, 1, None, 1, 0], "no class in 2 rows"),
  ],
)
def test_labels_that_are_no_classes(tmp_path, labels, message):
  source = str(tmp_path / "x")
  _dataset(kind=labels).save_to_disk(source)
  with pytest.raises(ValueError, match=message):
    images.images(source, label_column="kind")


def test_labels_that_are_kept_back(tmp_path):
  source = str(tmp_path / "x")
  _dataset(label=[-1] * COUNT).save_to_disk(source)
  with pytest.raises(ValueError, match="'label' has no class in 6 rows"):
    images.images(source, label_column="label")


def test_one_class_folder_has_no_labels(tmp_path):
  _picture_folder(tmp_path / "x")
  with pytest.raises(ValueError, match="0 columns of type ClassLabel"):
    images.images(str(tmp_path / "x" / "ant"))


def test_sizes(tmp_path):
  _picture_folder(tmp_path / "x")
  wide = np.zeros((6, 12, 3), np.uint8)
  (tmp_path / "x" / "bee" / "9.png").write_bytes(_png(wide))
  source = str(tmp_path / "x")
  with pytest.raises(ValueError, match=r"image 4 is \(6, 12, 3\), .*size and"):
    images.images(source)
  assert images.images(source, size=8, crop=6).shape == (6, 6, 3)
  with pytest.raises(ValueError, match="row 0 5 x 4 pixels are less than"):
    images.images(source, crop=5)


def _save_with(data, path):
  """Six images on disk of which the fourth is `data`."""
  import datasets

  rows = [{"bytes": _png(x), "path": None} for x in _pixels()]
  rows[3] = None if data is None else {"bytes": data, "path": "3.png"}
  table = datasets.Dataset.from_dict(
    {"img": rows, "label": LABELS},
    features=datasets.Features(
      img=datasets.Image(decode=False),
      label=datasets.ClassLabel(names=list(CLASSES)),
    ),
  )
  table.cast_column("img", datasets.Image()).save_to_disk(str(path))


@pytest.mark.parametrize(
  ("kind", "data", "message"),
  [
    ("saved", "cut", r"row 3 \(3.png\) is damaged: image file is truncated"),
    ("saved", "text", r"row 3 \(3.png\) is damaged: cannot identify"),
    ("saved", None, "row 3 has no image"),
    ("saved", "empty", r"row 3 \(3.png\) is damaged: .*No such file"),
    ("folder", "cut", r"row 3 \(.*/bee/3.png\) is damaged: image file is tr"),
    ("folder", "text", r"row 3 \(.*/bee/3.png\) is damaged: cannot identify"),
  ],
)
def test_damaged_image(tmp_path, monkeypatch, kind, data, message):
  data = {
    "cut": _png(_pixels()[3])[:60],
    "text": b"no image",
    "empty": b"",
  }.get(data)
  path = tmp_path / "x"
  if kind == "folder":
    _picture_folder(path)
    (path / "bee" / "3.png").write_bytes(data)
  else:
    _save_with(data, path)
  with pytest.raises(ValueError, match=message) as error:
    images.images(str(path))
  assert "\n" not in str(error.value)
  # Where it is not looked at on loading, the batch that holds it fails.
  monkeypatch.setattr(images, "_HASHED", 1)
  batches = images.images(str(path)).batches(2)
  assert next(batches)[0].shape == (2, 5, 4, 3)
  with pytest.raises(ValueError, match=message):
    next(batches)


def test_empty(tmp_path):
  _dataset().to_parquet(str(tmp_path / "x.parquet"))
  with pytest.raises(ValueError, match=r"x\.parquet: .*no data"):
    images.images(str(tmp_path / "x.parquet"), split="train[:0]")
  _dataset(count=0).save_to_disk(str(tmp_path / "empty"))
  with pytest.raises(ValueError, match="empty: no rows"):
    images.images(str(tmp_path / "empty"))
  nothing = labelled.Labelled(lambda row: None, np.zeros(0, int), ())
  with pytest.raises(ValueError, match="x: no images"):
    images._task("x", nothing, [], pixels.preparation())


def test_image_that_vanished(tmp_path):
  _picture_folder(tmp_path / "x")
  task = images.images(str(tmp_path / "x"))
  (tmp_path / "x" / "bee" / "3.png").unlink()
  with pytest.raises(ValueError, match=r"row 3 \(.*3.png\) .*No such file"):
    task.read(3)


def test_missing_split(tmp_path):
  for kind in ("parquet", "saved splits", "picture splits"):
    with pytest.raises(ValueError, match=r"valid.*train"):
      images.images(_write(kind, tmp_path), split="valid")


@pytest.mark.parametrize("name", ["no-such.parquet", "/no/such/folder", ""])
def test_missing_path(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError, match=f"^'?{name}"):
    images.images(name)


def test_offline():
  # The tests' environment has HF_HUB_OFFLINE=1.
  start = time.monotonic()
  with pytest.raises(ConnectionError, match="some-team/pictures") as error:
    images.images("some-team/pictures")
  assert time.monotonic() - start < 10
  message = str(error.value)
  assert "\n" not in message
  hints = ("'digits'", "parquet file", "image folder", "save_to_disk")
  assert [hint for hint in hints if hint not in message] == []
