"""Running text for language models, and windows of its tokens.

`"docstrings"` and `"stdlib"` are real text that needs no download. `WIKITEXT2`
is what GPTQ (arXiv:2210.17323) and all who compare with it measure: its rows
joined by blank lines, their tokens cut into windows of 2048.

Shape letters: W windows, T tokens.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import hashlib
import itertools
import platform

import numpy as np

from quantlab.data import stdlib, tables

WIKITEXT2 = "hf://datasets/Salesforce/wikitext/wikitext-2-raw-v1/test-*.parquet"
"""The test split of WikiText-2."""

_EMBEDDED: dict[str, tuple[str, Callable[[], Iterable[str]]]] = {
  "docstrings": (
    "docstrings",
    lambda: (" ".join(filter(None, pair)) for pair in stdlib.docstrings()),
  ),
  "stdlib": ("sources", stdlib.sources),
}
_ALTERNATIVES = "a local path, or 'docstrings' or 'stdlib', which need no files"


@dataclasses.dataclass(frozen=True)
class Text:
  """A text.

  Attributes:
    text: it, in one piece.
    source: where it comes from, for a report.
    sha256: of the text: equal hashes are the same text.
  """

  text: str
  source: str
  sha256: str


def language(
  source: str = "docstrings",
  *,
  split: str = "train",
  text_column: str = "text",
  separator: str = "\n\n",
  limit: int | None = None,
) -> Text:
  """Loads a text from anywhere.

  Args:
    source: `"docstrings"` or `"stdlib"`, the sources of the standard library
      with the reference manual among them; both differ between Python versions.
      Or as `tables.table` takes it.
    split: of a table, as `tables.table` takes it.
    text_column: column of the rows that are joined, empty ones too.
    separator: goes between them.
    limit: rows to take, the first ones; None takes all.

  Raises:
    FileNotFoundError: no such file, folder or hub id.
    ConnectionError: a hub id that neither the hub nor its cache gives.
    ValueError: the column or split is missing, or there is no text.

  Example:
    >>> language(limit=2).text.partition(".")[0]
    'Abstract Base Classes (ABCs) according to PEP 3119'
  """
  if limit is not None and limit < 1:
    raise ValueError(f"{limit=} must be at least 1")
  if source in _EMBEDDED:
    kind, read = _EMBEDDED[source]
    rows = list(itertools.islice(read(), limit))
    name = f"{kind} of Python {platform.python_version()}"
  else:
    table = tables.table(source, split, alternatives=_ALTERNATIVES)
    column = tables.column(source, table, text_column)
    rows = [str(text or "") for text in table[column][:limit]]
    name = f"{source}, {split}"
  text = separator.join(rows[:limit])
  if not text.strip():
    raise ValueError(f"{name}: no text")
  return Text(text, name, hashlib.sha256(text.encode()).hexdigest())


def windows(
  encode: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]],
  text: str,
  *,
  tokens: int = 2048,
  limit: int | None = None,
) -> np.ndarray:
  """Cuts the tokens of a text into windows that do not overlap.

  A tokenizer that puts a token in front of each text does so once, in front of
  the first window. What is left at the end is dropped.

  Args:
    encode: texts to `[B, T]` ids and a mask that is true at real tokens.
    text: the text.
    tokens: T.
    limit: windows to take, the first ones; None takes all.

  Returns:
    `[W, T]` int32.

  Raises:
    ValueError: the text does not fill one window, or `tokens` is below 2,
      which leaves nothing to predict.

  Example:
    >>> windows(of_bytes, "quantize", tokens=3).tolist()
    [[113, 117, 97], [110, 116, 105]]
  """
  if tokens < 2:
    raise ValueError(f"{tokens=} must be at least 2")
  ids, mask = encode([text])
  found = ids[0][mask[0]]
  count = len(found) // tokens
  if not count:
    raise ValueError(f"{tokens=}, but the text has {len(found)}")
  cut = found[: count * tokens].reshape(count, tokens)
  return cut[:limit].astype(np.int32)


def of_bytes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """Encodes texts as their UTF-8 bytes: a tokenizer of 256 ids.

  Args:
    texts: R texts.

  Returns:
    `[R, T]` int32 ids, padded by 0 on the right, and the `[R, T]` bool mask.

  Example:
    >>> ids, mask = of_bytes(["ab", "c"])
    >>> ids.tolist(), mask.astype(int).tolist()
    ([[97, 98], [99, 0]], [[1, 1], [1, 0]])
  """
  rows = [np.frombuffer(text.encode(), np.uint8) for text in texts]
  lengths = np.array([len(row) for row in rows], int)
  mask = np.arange(lengths.max(initial=0))[None] < lengths[:, None]
  ids = np.zeros(mask.shape, np.int32)
  ids[mask] = np.concatenate([*rows, np.zeros(0, np.uint8)])
  return ids, mask
