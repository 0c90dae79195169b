"""Batches for calibration: drawn from what a task does not evaluate."""

from collections.abc import Sequence
from typing import TypeVar

from quantlab.data import tables

Item = TypeVar("Item")


def draw(
  items: Sequence[Item], count: int, size: int, *, seed: int, source: str
) -> list[list[Item]]:
  """Draws batches without replacement.

  Args:
    items: what is not evaluated.
    count: batches.
    size: items of a batch.
    seed: of the draw.
    source: of the items, for the error.

  Raises:
    ValueError: there are not that many.

  Example:
    >>> batches = draw("abcdefg", 2, 3, seed=0, source="letters")
    >>> [len(batch) for batch in batches], len(set(sum(batches, [])))
    ([3, 3], 6)
  """
  wanted = count * size
  if len(items) < wanted:
    raise ValueError(
      f"{count} batches for calibration take {wanted}, but beside what is "
      f"evaluated {source} has {len(items)}; lower config.data.limit, or name "
      "another source in config.data.calibration"
    )
  chosen = tables.draw(len(items), limit=wanted, seed=seed)
  return [
    [items[i] for i in chosen[start : start + size]]
    for start in range(0, wanted, size)
  ]
