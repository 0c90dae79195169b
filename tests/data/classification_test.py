import numpy as np
import pytest

from quantlab.data import classification

TEXTS = ["win a prize", "see you", "call now", "good night"]
NAMED = {"text": TEXTS, "label": ["spam", "ham", "spam", "ham"]}
NUMBERED = {"text": TEXTS, "label": [2, 0, 2, 0]}


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  import datasets.config

  folder = tmp_path_factory.mktemp("cache")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


def _save(folder, rows, classes=None):
  import datasets

  table = datasets.Dataset.from_dict(rows)
  if classes:
    feature = datasets.ClassLabel(names=classes)
    table = table.cast_column("label", feature)
  table.save_to_disk(str(folder / "table"))
  return str(folder / "table")


def _save_splits(folder):
  import datasets

  table = datasets.Dataset.from_dict(NUMBERED)
  datasets.DatasetDict(test=table).save_to_disk(str(folder / "splits"))
  return str(folder / "splits")


def test_class_labels(tmp_path):
  classes = ["sadness", "joy", "love"]
  source = _save(tmp_path, NUMBERED, classes)
  task = classification.classification(source)
  assert task.texts == TEXTS
  assert task.labels.tolist() == [2, 0, 2, 0]
  assert task.labels.dtype == np.int32
  assert task.classes == ("sadness", "joy", "love")
  assert task.source == f"{source}, train"
  assert len(task) == 4


@pytest.mark.parametrize(
  ("rows", "labels", "classes"),
  [
    (NUMBERED, [2, 0, 2, 0], ("0", "1", "2")),
    (NAMED, [1, 0, 1, 0], ("ham", "spam")),
    (NUMBERED | {"label": [True, False, True, True]}, [1, 0, 1, 1], ("0", "1")),
  ],
)
@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_files(tmp_path, kind, rows, labels, classes):
  import datasets

  file = str(tmp_path / f"x.{kind}")
  getattr(datasets.Dataset.from_dict(rows), f"to_{kind}")(file)
  task = classification.classification(file)
  assert task.labels.tolist() == labels
  assert task.classes == classes


def test_columns_and_split(tmp_path):
  source = _save_splits(tmp_path)
  task = classification.classification(source, split="test")
  assert task.texts == TEXTS
  with pytest.raises(ValueError, match=r"no split 'train' among \['test'\]"):
    classification.classification(source)
  for column in ("text_column", "label_column"):
    with pytest.raises(ValueError, match=r"no column 'sms' among .*text"):
      classification.classification(source, split="test", **{column: "sms"})


def test_draw(tmp_path):
  source = _save(tmp_path, NAMED)
  every = classification.classification(source)
  task = classification.classification(source, limit=3, seed=1)
  assert len(task) == 3
  assert task.source.endswith("seed 1")
  assert task.classes == every.classes
  pairs = dict(zip(TEXTS, every.labels.tolist(), strict=True))
  assert [pairs[text] for text in task.texts] == task.labels.tolist()
  again = classification.classification(source, limit=3, seed=1)
  assert (again.texts, again.sha256) == (task.texts, task.sha256)
  with pytest.raises(ValueError, match="limit=0 must be at least 1"):
    classification.classification(source, limit=0)


def test_hash_is_of_the_task(tmp_path):
  changes = [
    {},
    {"label": ["spam", "ham", "ham", "ham"]},
    {"text": ["lose a prize", *TEXTS[1:]]},
    {"label": ["spam", "egg", "spam", "egg"]},
  ]
  hashes = set()
  for i, change in enumerate(changes):
    (tmp_path / str(i)).mkdir()
    source = _save(tmp_path / str(i), NAMED | change)
    hashes.add(classification.classification(source).sha256)
  assert len(hashes) == len(changes)


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    ([0, 1, -1, 0], "'label' of row 2, -1, is no class"),
    ([0, None, 1, 0], "'label' of row 1, None, is no class"),
    ([0.5, 0.0, 1.0, 1.0], "'label' of row 0, 0.5, is no class"),
    (["a", None, "b", "a"], "'label' of row 0, 'a', is no class"),
  ],
)
def test_labels_that_are_none(tmp_path, labels, message):
  source = _save(tmp_path, {"text": TEXTS, "label": labels})
  with pytest.raises(ValueError, match=message):
    classification.classification(source)


def test_empty_table(tmp_path):
  source = _save(tmp_path, {"text": [], "label": []})
  with pytest.raises(ValueError, match="no rows"):
    classification.classification(source)


def test_text_that_is_missing_stays_a_row(tmp_path):
  source = _save(tmp_path, NAMED | {"text": ["a", None, "", "d"]})
  assert classification.classification(source).texts == ["a", "", "", "d"]


def test_offline():
  # The tests' environment has HF_HUB_OFFLINE=1.
  with pytest.raises(ConnectionError, match=r"dair-ai/emotion: .*local csv"):
    classification.classification("dair-ai/emotion", split="test")
