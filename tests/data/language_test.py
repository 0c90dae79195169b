import hashlib

import numpy as np
import pytest

from quantlab.data import language

ROWS = ["", " = Title = ", None, "Some words .", "ä"]


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  import datasets.config

  folder = tmp_path_factory.mktemp("cache")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


@pytest.fixture(name="file")
def _file(tmp_path):
  import datasets

  file = str(tmp_path / "text.parquet")
  datasets.Dataset.from_dict({"text": ROWS}).to_parquet(file)
  return file


def test_rows_are_joined_as_gptq_does(file):
  found = language.language(file)
  # Empty rows count: they are what WikiText-2 separates its articles with.
  assert found.text == "\n\n = Title = \n\n\n\nSome words .\n\nä"
  assert found.source == f"{file}, train"
  assert found.sha256 == hashlib.sha256(found.text.encode()).hexdigest()


def test_separator_and_limit(file):
  assert language.language(file, separator=" ", limit=2).text == "  = Title = "
  with pytest.raises(ValueError, match="limit=0 must be at least 1"):
    language.language(file, limit=0)
  with pytest.raises(ValueError, match="no text"):
    language.language(file, limit=1)


def test_missing_column(file):
  with pytest.raises(ValueError, match="no column 'sentence' among"):
    language.language(file, text_column="sentence")


def test_docstrings():
  found = language.language()
  assert 300_000 < len(found.text) < 3_000_000
  assert found.source.startswith("docstrings of Python 3.")
  few = language.language(limit=3)
  assert found.text.startswith(few.text)
  assert few.sha256 != found.sha256


def test_offline():
  with pytest.raises(
    ConnectionError, match=r"Salesforce/wikitext: .*'docstrings'"
  ):
    language.language(language.WIKITEXT2)


def _encode(texts):
  """Begins each text with 256, and pads it."""
  ids, mask = language.of_bytes(texts)
  ids = np.pad(ids, ((0, 0), (1, 3)), constant_values=-1)
  ids[:, 0] = 256
  mask = np.pad(mask, ((0, 0), (1, 3)))
  mask[:, 0] = True
  return ids, mask


def test_windows_follow_each_other():
  found = language.windows(_encode, "abcdefghij", tokens=4)
  assert found.dtype == np.int32
  # One beginning in all; what fills no window is dropped.
  assert found.tolist() == [[256, 97, 98, 99], [100, 101, 102, 103]]
  assert language.windows(_encode, "abcdefghij", tokens=4, limit=1).shape == (
    1,
    4,
  )
  assert len(language.windows(_encode, "abc" * 4 + "ab", tokens=5)) == 3


@pytest.mark.parametrize(
  ("tokens", "message"),
  [(12, "tokens=12, but the text has 11"), (1, "tokens=1 must be at least 2")],
)
def test_impossible_windows(tokens, message):
  with pytest.raises(ValueError, match=message):
    language.windows(_encode, "abcdefghij", tokens=tokens)


def test_bytes():
  ids, mask = language.of_bytes(["ä", "abc", ""])
  assert ids.tolist() == [[195, 164, 0], [97, 98, 99], [0, 0, 0]]
  assert mask.sum(axis=1).tolist() == [2, 3, 0]
  assert ids.dtype == np.int32
  assert language.of_bytes([])[0].shape == (0, 0)
