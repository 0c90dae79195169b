import pathlib

import pytest

from quantlab import hub
from quantlab.data import tables

ROWS = {"text": ["a", "b", "c", "d"], "number": [3, 1, 4, 1]}


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  import datasets.config

  folder = tmp_path_factory.mktemp("cache")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


def _dataset():
  import datasets

  return datasets.Dataset.from_dict(ROWS)


def _table(source, split="train"):
  return tables.table(str(source), split, alternatives="something else")


def test_pattern(tmp_path):
  for name in ("x-0.parquet", "x-1.parquet", "y.parquet"):
    _dataset().to_parquet(str(tmp_path / name))
  assert len(_table(tmp_path / "x-*.parquet")) == 8
  assert len(_table(tmp_path / "**" / "*.parquet")) == 12
  assert len(_table(tmp_path / "x-0.parquet", "train[:3]")) == 3
  with pytest.raises(FileNotFoundError, match=r"z-\*\.parquet: no such file"):
    _table(tmp_path / "z-*.parquet")


def test_name_that_looks_like_a_pattern(tmp_path):
  file = tmp_path / "x[1].csv"
  _dataset().to_csv(str(file))
  assert _table(file)["text"][:] == ROWS["text"]


def test_folder_of_files(tmp_path):
  for name in ("train-0.parquet", "train-1.parquet", "test-0.parquet"):
    _dataset().to_parquet(str(tmp_path / name))
  assert len(_table(tmp_path)) == 8
  assert len(_table(tmp_path, "test")) == 4
  with pytest.raises(ValueError, match=r"split \"valid\".*'train', 'test'"):
    _table(tmp_path, "valid")


def test_saved_folders(tmp_path):
  import datasets

  _dataset().save_to_disk(str(tmp_path / "one"))
  assert _table(tmp_path / "one", "whatever")["number"][:] == ROWS["number"]
  splits = datasets.DatasetDict(a=_dataset(), b=_dataset())
  splits.save_to_disk(str(tmp_path / "two"))
  assert len(_table(tmp_path / "two", "b")) == 4
  with pytest.raises(ValueError, match=r"two: no split 'c' among \['a', 'b'\]"):
    _table(tmp_path / "two", "c")


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_folder(tmp_path, damage):
  _dataset().save_to_disk(str(tmp_path / "x"))
  (file,) = (tmp_path / "x").glob("*.arrow")
  if damage == "cut":
    file.write_bytes(file.read_bytes()[:9])
  else:
    file.unlink()
  with pytest.raises(ValueError, match="x: not read: ") as error:
    _table(tmp_path / "x")
  assert "\n" not in str(error.value)


def test_empty(tmp_path):
  empty = _dataset().select([])
  empty.save_to_disk(str(tmp_path / "saved"))
  with pytest.raises(ValueError, match="saved: no rows"):
    _table(tmp_path / "saved")
  empty.to_parquet(str(tmp_path / "x.parquet"))
  with pytest.raises(ValueError, match=r"x\.parquet: .*no data"):
    _table(tmp_path / "x.parquet")
  (tmp_path / "bare").mkdir()
  with pytest.raises(FileNotFoundError, match="a folder without images"):
    _table(tmp_path / "bare")


def test_column():
  import datasets

  def column(name, kind=object):
    return tables.column("x", _dataset(), name, kind)

  assert column("number") == "number"
  with pytest.raises(ValueError, match=r"no column 'size' among .*'number'"):
    column("size")
  with pytest.raises(ValueError, match="2 columns of type Value, name one"):
    column(None, datasets.Value)
  with pytest.raises(ValueError, match="0 columns of type Image, name one"):
    column(None, datasets.Image)


def test_draw():
  assert tables.draw(100, limit=5, seed=0) == tables.draw(100, limit=5, seed=0)
  assert tables.draw(100, limit=5, seed=0) != tables.draw(100, limit=5, seed=1)
  assert sorted(tables.draw(5, seed=3)) == list(range(5))
  with pytest.raises(ValueError, match="limit=0 must be at least 1"):
    tables.draw(5, limit=0, seed=3)


@pytest.fixture(name="calls")
def _calls(monkeypatch):
  """Arguments of `load_dataset`, which returns True."""
  import datasets

  calls = []

  def load_dataset(*args, **kwargs):
    calls.append((*args, kwargs))
    return True

  monkeypatch.setattr(datasets, "load_dataset", load_dataset)
  return calls


FILES = "hf://datasets/team/name/data/val-*.parquet"


def test_hub_answers(calls, monkeypatch):
  monkeypatch.setattr(hub, "_ask", lambda *args: None)
  assert _table("team/name", "test")
  assert _table(FILES)
  assert calls == [
    ("team/name", {"split": "test"}),
    ("parquet", {"split": "train", "data_files": FILES}),
  ]
  with pytest.raises(ValueError, match=r"must end in one of \['.csv', "):
    _table("hf://datasets/team/name/data")


@pytest.mark.parametrize("source", ["team/name", FILES])
def test_no_hub(source, calls, monkeypatch):
  from datasets import config

  monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr(hub, "_ask", lambda *args: OSError("no route"))
  with pytest.raises(ConnectionError, match="no route") as error:
    _table(source)
  # The library's own attempt would take half a minute.
  assert not calls
  assert str(error.value).endswith("or give something else")
  assert "\n" not in str(error.value)


def test_offline_reads_the_cache(calls):
  # The tests' environment has HF_HUB_OFFLINE=1.
  assert _table("team/name")
  assert len(calls) == 1


@pytest.mark.parametrize("source", ["team/name", FILES])
def test_offline_without_cache(source):
  with pytest.raises(ConnectionError, match=r"team/name: .*HF_HUB_OFFLINE"):
    _table(source)


def test_hub_asks_for_a_log_in(monkeypatch):
  import datasets

  def load_dataset(*args, **kwargs):
    raise FileNotFoundError("401 error (id 7)\n\nAccess is restricted.")

  monkeypatch.setattr(hub, "_ask", lambda *args: None)
  monkeypatch.setattr(datasets, "load_dataset", load_dataset)
  with pytest.raises(
    FileNotFoundError, match=r"name: 401 error \(id 7\) Access is restricted"
  ):
    _table("team/name")


@pytest.mark.parametrize(
  "source", ["nothing.csv", "/no/such/folder", "two words"]
)
def test_missing_path(source, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError, match=source):
    _table(source)


def test_home_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  _dataset().to_csv(str(tmp_path / "x.csv"))
  assert len(_table("~/x.csv")) == 4
