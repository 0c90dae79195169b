"""Texts to token arrays whose shapes are few, so that jit compiles rarely.

Shape letters: B batch, R texts, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
import pathlib
from typing import Any

import numpy as np

from quantlab import hub

Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
"""Maps R texts to `[R, T]` int32 ids and the `[R, T]` bool mask."""

# T is rounded up to this: at most four shapes for texts of 128 tokens.
MULTIPLE = 32


def encoder(
  file: str | pathlib.Path, *, max_tokens: int, pad_id: int = 0
) -> Encode:
  """Makes an `Encode` of a published tokenizer.

  Args:
    file: a `tokenizer.json`, or the `vocab.txt` that BERT's had before.
    max_tokens: texts are cut to so many tokens, special ones included; the
      tokenizer's own limit counts where it is lower.
    pad_id: id that fills rows on the right, as the model's config says.

  Returns:
    The function; its T is the longest text's, rounded up to `MULTIPLE` but
    never above the limit.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no tokenizer, or `max_tokens` leaves no room for text.
  """
  tokenizer = _tokenizer(pathlib.Path(file))
  own = (tokenizer.truncation or {}).get("max_length", max_tokens)
  limit = min(own, max_tokens)
  special = tokenizer.num_special_tokens_to_add(is_pair=False)
  if limit <= special:
    raise ValueError(f"{file}: {max_tokens=} leaves no room for text")
  tokenizer.no_padding()
  tokenizer.enable_truncation(limit)

  def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    rows = [e.ids for e in tokenizer.encode_batch(list(texts))]
    longest = max(map(len, rows), default=0)
    shape = (len(rows), min(_round_up(longest), limit))
    ids = np.full(shape, pad_id, np.int32)
    mask = np.zeros(shape, bool)
    for i, row in enumerate(rows):
      ids[i, : len(row)] = row
      mask[i, : len(row)] = True
    return ids, mask

  return encode


def batches(
  encode: Encode, texts: Sequence[str], *, batch_size: int = 32
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yields all texts in batches of one size, sorted by length.

  Args:
    encode: an `Encode`.
    texts: R texts.
    batch_size: B.

  Yields:
    `(ids, mask, rows)`: `[B, T]` int32, `[B, T]` bool and the indices of the
    texts, `[B]` or shorter in the last batch. Rows of a batch beyond
    `len(rows)` are filler: their mask is false throughout.

  Raises:
    ValueError: `batch_size` is below 1.

  Example:
    >>> import numpy as np
    >>> def encode(texts):
    ...   mask = np.arange(4) < np.array([[len(t)] for t in texts])
    ...   return mask.astype(np.int32), mask
    >>> lengths = np.zeros(3, int)
    >>> for ids, mask, rows in batches(encode, "ab c d".split(), batch_size=2):
    ...   lengths[rows] = ids.sum(axis=1)[: len(rows)]
    >>> lengths.tolist()
    [2, 1, 1]
  """
  if batch_size < 1:
    raise ValueError(f"{batch_size=} must be at least 1")
  ids, mask = encode(texts)
  lengths = mask.sum(axis=1)
  order = np.argsort(lengths, kind="stable")
  for start in range(0, len(order), batch_size):
    rows = order[start : start + batch_size]
    width = min(_round_up(int(lengths[rows].max())), ids.shape[1])
    filler = ((0, batch_size - len(rows)), (0, 0))
    yield (
      np.pad(ids[rows, :width], filler),
      np.pad(mask[rows, :width], filler),
      rows,
    )


def _tokenizer(file: pathlib.Path) -> Any:
  import tokenizers

  if not file.is_file():
    raise FileNotFoundError(f"{file}: no such file")
  try:
    if file.suffix == ".txt":
      settings = file.with_name("tokenizer_config.json")
      found = hub.read_json(settings) if settings.is_file() else {}
      lowercase = found.get("do_lower_case", True)
      return tokenizers.BertWordPieceTokenizer(str(file), lowercase=lowercase)
    return tokenizers.Tokenizer.from_file(str(file))
  except Exception as error:  # noqa: BLE001 (the library raises no other)
    raise ValueError(f"{file}: not a tokenizer: {error}") from None


def _round_up(count: int) -> int:
  return max(1, -(-count // MULTIPLE)) * MULTIPLE
