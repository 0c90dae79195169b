import numpy as np
import pytest

from quantlab.models import tokens

LENGTHS = [40, 3, 70, 32, 1, 33, 12]


def _encode(texts):
  """A stand-in: a text is its own length, its ids count from 1."""
  lengths = np.array([int(text) for text in texts]).reshape(-1, 1)
  mask = np.arange(90) < lengths
  return np.where(mask, np.arange(1, 91), 0).astype(np.int32), mask


def _batches(batch_size):
  texts = [str(n) for n in LENGTHS]
  return list(tokens.batches(_encode, texts, batch_size=batch_size))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_batches_hold_every_text_once(batch_size):
  found = {}
  for ids, mask, rows in _batches(batch_size):
    assert ids.shape == mask.shape
    assert ids.shape[0] == batch_size
    assert mask.dtype == bool
    assert not mask[len(rows) :].any()
    for row, i, m in zip(rows, ids, mask, strict=False):
      assert int(row) not in found
      found[int(row)] = i[m].tolist()
  assert found == {i: list(range(1, n + 1)) for i, n in enumerate(LENGTHS)}


def test_batches_are_sorted_and_of_few_shapes():
  # Widths are multiples of 32, never beyond what the encoder gave (90).
  widths = [ids.shape[1] for ids, _, _ in _batches(2)]
  assert widths == [32, 32, 64, 90]


def test_no_texts():
  assert list(tokens.batches(_encode, [], batch_size=2)) == []


def test_batch_size_of_zero():
  with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
    _batches(0)
