import hashlib
import inspect
import platform
import textwrap
import time

import pytest

from quantlab.data import retrieval, stdlib

ROWS = {
  "query": ["first question", "second question", "third question"],
  "document": ["first answer", "second answer", "third answer"],
}


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path, monkeypatch):
  import datasets
  import datasets.config

  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(name="everything", scope="module")
def _everything():
  start = time.monotonic()
  pairs = retrieval.docstrings(limit=None)
  # A promise of 3 s on a free core; tests may share theirs with others.
  assert time.monotonic() - start < 20
  return pairs


def test_docstrings_are_many_and_distinct(everything):
  assert 1500 < len(everything) < 4000
  assert len(set(everything.queries)) == len(everything)
  assert len(set(everything.documents)) == len(everything)
  assert min(map(len, everything.queries)) >= 15
  assert min(map(len, everything.documents)) >= 40


def test_docstrings_hold_a_known_one(everything):
  title, _, body = inspect.getdoc(textwrap).partition("\n")
  assert not body  # A module of one line is no pair.
  assert title not in everything.queries
  title, _, body = inspect.getdoc(textwrap.TextWrapper).partition("\n")
  title = " ".join(title.split())
  i = everything.queries.index(title)
  assert everything.documents[i] == " ".join(body.split())


def test_docstrings_record_version_and_hash():
  pairs = retrieval.docstrings(limit=5, seed=3)
  assert platform.python_version() in pairs.source
  assert "seed 3" in pairs.source
  texts = [
    text
    for pair in zip(pairs.queries, pairs.documents, strict=True)
    for text in pair
  ]
  joined = "\0".join(texts).encode()
  assert pairs.sha256 == hashlib.sha256(joined).hexdigest()


def test_draw_depends_on_the_seed_alone(everything):
  pairs = list(zip(everything.queries, everything.documents, strict=True))

  def draw(pairs, seed):
    return retrieval._draw(pairs, "x", limit=600, seed=seed)

  one = draw(pairs, 0)
  assert len(one) == 600
  assert draw(pairs[::-1], 0) == one
  assert draw(pairs, 1).sha256 != one.sha256


def test_draw_drops_repeated_texts():
  pairs = [("q", "a"), ("q", "b"), ("r", "a"), ("r", "c"), ("q", "a")]
  drawn = retrieval._draw(pairs, "x", limit=None, seed=0)
  found = set(zip(drawn.queries, drawn.documents, strict=True))
  assert found == {("q", "a"), ("r", "c")}


@pytest.mark.parametrize(
  ("pairs", "limit", "message"),
  [([], 3, "x: no pair"), ([("q", "d")], 0, "limit=0 must be at least 1")],
)
def test_draw_of_nothing(pairs, limit, message):
  with pytest.raises(ValueError, match=message):
    retrieval._draw(pairs, "x", limit=limit, seed=0)


SOURCE = r'''
"""A module's title.

Its body \d
goes on.
"""
class Public:
  """A class."""
  def method(self):
    """A method.
    With a body."""
    def inner():
      """Hidden inside."""
  def _private(self):
    """Hidden."""
class _Private:
  """Hidden."""
  def method(self):
    """Hidden."""
async def function(): """A function."""
def bare(): pass
'''


def test_stdlib_reads_public_docstrings(tmp_path, monkeypatch):
  names = ["abc.py", "_thread.py", "test/abc.py", "json/tool.py", "mine.py"]
  for name in [*names, "json/tests/x.py", "json/_private.py"]:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(SOURCE)
  monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(tmp_path))
  found = list(stdlib.docstrings())
  assert found[:5] == [
    ("A module's title.", r"Its body \d goes on."),
    ("A class.", ""),
    ("A method.", "With a body."),
    ("A function.", ""),
    ("", ""),
  ]
  # abc.py and json/tool.py alone are public modules of the library.
  assert found[5:] == found[:5]


def test_python_without_sources(tmp_path, monkeypatch):
  monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(tmp_path))
  with pytest.raises(FileNotFoundError, match="no sources of the standard"):
    retrieval.docstrings()


def _write(kind, folder):
  import datasets

  table = datasets.Dataset.from_dict(ROWS)
  path = folder / f"pairs.{kind}"
  if kind == "folder":
    table.save_to_disk(str(path))
  elif kind == "splits":
    datasets.DatasetDict(train=table).save_to_disk(str(path))
  elif kind == "jsonl":
    table.to_json(str(path))
  else:
    getattr(table, f"to_{kind}")(str(path))
  return str(path)


@pytest.mark.parametrize(
  "kind", ["csv", "jsonl", "parquet", "folder", "splits"]
)
def test_local_tables(tmp_path, kind):
  source = _write(kind, tmp_path)
  pairs = retrieval.retrieval(source, limit=None)
  found = set(zip(pairs.queries, pairs.documents, strict=True))
  assert found == set(zip(ROWS["query"], ROWS["document"], strict=True))
  assert pairs.source.startswith(source)
  assert len(retrieval.retrieval(source, limit=2)) == 2


def test_columns(tmp_path):
  source = _write("parquet", tmp_path)
  swapped = retrieval.retrieval(
    source, query_column="document", document_column="query"
  )
  assert set(swapped.queries) == set(ROWS["document"])
  message = r"no column 'body' among .*'query': .*'document'"
  with pytest.raises(ValueError, match=message):
    retrieval.retrieval(source, document_column="body")


def test_empty_texts_are_left_out(tmp_path):
  import datasets

  rows = {"query": ["a", None, " ", "d"], "document": ["x", "y", "z", None]}
  datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "holes"))
  pairs = retrieval.retrieval(str(tmp_path / "holes"))
  assert (pairs.queries, pairs.documents) == (["a"], ["x"])


def test_missing_split(tmp_path):
  source = _write("csv", tmp_path)
  with pytest.raises(ValueError, match=r"pairs\.csv: .*test.*train"):
    retrieval.retrieval(source, split="test")
  source = _write("splits", tmp_path)
  with pytest.raises(ValueError, match=r"no split 'test' among \['train'\]"):
    retrieval.retrieval(source, split="test")


def test_broken_table(tmp_path):
  file = tmp_path / "pairs.parquet"
  file.write_bytes(b"no parquet")
  with pytest.raises(ValueError, match=r"pairs\.parquet: not read: "):
    retrieval.retrieval(str(file))


@pytest.mark.parametrize("name", ["nothing.csv", "/no/such/folder"])
def test_missing_path(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError, match=name):
    retrieval.retrieval(name)


def test_folder_of_something_else(tmp_path):
  with pytest.raises(FileNotFoundError, match="save_to_disk"):
    retrieval.retrieval(str(tmp_path))


def test_offline():
  # The tests' environment has HF_HUB_OFFLINE=1.
  start = time.monotonic()
  with pytest.raises(ConnectionError, match="some-team/pairs") as error:
    retrieval.retrieval("some-team/pairs")
  assert time.monotonic() - start < 8
  message = str(error.value)
  assert "\n" not in message
  assert "HF_HUB_OFFLINE" in message
  assert "'docstrings'" in message


def test_default_source(monkeypatch):
  monkeypatch.setattr(retrieval, "docstrings", lambda **kwargs: kwargs)
  assert retrieval.retrieval(limit=4, seed=2) == {"limit": 4, "seed": 2}
