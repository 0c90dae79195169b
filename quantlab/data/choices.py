"""Questions with several answers to choose from: ARC.

Shape letters: Q questions, R answers of all questions together.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from quantlab.data import tables

ARC = "hf://datasets/allenai/ai2_arc/ARC-Challenge/test-*.parquet"
"""The 1172 questions of ARC-Challenge; ARC-Easy lies beside it."""

_ALTERNATIVES = "a local parquet or json file, or a save_to_disk folder"
_LETTERS = "ABCDEFGH"


@dataclasses.dataclass(frozen=True)
class Questions:
  """Questions, of which a model chooses the answer that it expects most.

  Attributes:
    prompts: Q texts that end where the answer begins.
    options: the answers to choose from, for each.
    answers: index of the right one, for each.
    source: where they come from, for a report.
    sha256: of all of them: equal hashes are the same task.
  """

  prompts: list[str]
  options: list[tuple[str, ...]]
  answers: list[int]
  source: str
  sha256: str

  def __len__(self) -> int:
    return len(self.prompts)

  @property
  def stems(self) -> list[str]:
    """The prompt of each option, R texts."""
    pairs = zip(self.prompts, self.options, strict=True)
    return [prompt for prompt, options in pairs for _ in options]

  @property
  def texts(self) -> list[str]:
    """Prompt and option, R texts."""
    options = itertools.chain.from_iterable(self.options)
    return [f"{s} {o}" for s, o in zip(self.stems, options, strict=True)]

  def pick(self, nats: npt.ArrayLike) -> list[int]:
    """Chooses the option of least surprise per character, for each question.

    Args:
      nats: `[R]`: the surprise at the tokens of each option, summed.

    Raises:
      ValueError: not one number for each option.

    Example:
      >>> task = Questions(["1 + 1 ="], [("two", "three")], [0], "", "")
      >>> task.pick([2.0, 3.0]), task.pick([3.0, 2.0])
      ([1], [1])
    """
    lengths = np.array([len(o) for options in self.options for o in options])
    nats = np.asarray(nats, float)
    if nats.shape != lengths.shape:
      raise ValueError(f"{nats.size} numbers for {lengths.size} options")
    ends = np.cumsum([len(options) for options in self.options])
    parts = np.split(nats / lengths, ends[:-1])
    return [int(np.argmin(part)) for part in parts]


def arc(
  source: str = ARC,
  *,
  split: str = "train",
  letters: bool = False,
  options: int | None = None,
  limit: int | None = None,
  seed: int = 0,
) -> Questions:
  """Loads ARC, or a table of its columns question, choices and answerKey.

  Args:
    source: as `tables.table` takes it.
    split: likewise.
    letters: lists the choices in the prompt, for the model to name one.
      Otherwise it sees the question alone, and completes it.
    options: takes only questions with so many; None takes all.
    limit: questions to draw; None takes all, in the order they are stored.
    seed: of the draw.

  Raises:
    FileNotFoundError: no such file, folder or hub id.
    ConnectionError: a hub id that neither the hub nor its cache gives.
    ValueError: a column or split is missing, an answer is none of its
      choices, or there is no question.

  References:
    Clark et al., arXiv:1803.05457. The prompts, and the division by
    characters, are those of EleutherAI's lm-evaluation-harness, whose results
    papers quote.
  """
  table = tables.table(source, split, alternatives=_ALTERNATIVES)
  for column in ("question", "choices", "answerKey"):
    tables.column(source, table, column)
  rows = [
    row
    for row in table
    if options is None or len(row["choices"]["text"]) == options
  ]
  name = f"{source}, {split}"
  if not rows:
    raise ValueError(f"{name}: no questions")
  if limit is not None:
    chosen = tables.draw(len(rows), limit=limit, seed=seed)
    rows = [rows[i] for i in chosen]
    name += f", seed {seed}"
  prompts, found, answers = zip(
    *(_asked(name, row, letters) for row in rows), strict=True
  )
  digest = hashlib.sha256(repr((prompts, found, answers)).encode()).hexdigest()
  return Questions([*prompts], [*found], [*answers], name, digest)


def _asked(
  name: str, row: dict[str, Any], letters: bool
) -> tuple[str, tuple[str, ...], int]:
  """Returns prompt, options and the index of the answer."""
  keys: Sequence[str] = row["choices"]["label"]
  texts: Sequence[str] = row["choices"]["text"]
  if row["answerKey"] not in keys:
    raise ValueError(
      f"{name}: answer {row['answerKey']!r} of {row['question']!r} is not one "
      f"of {[*keys]}"
    )
  answer = list(keys).index(row["answerKey"])
  prompt = f"Question: {row['question']}\n"
  if letters:
    names = tuple(_LETTERS[: len(texts)])
    lines = (f"{n}. {text}\n" for n, text in zip(names, texts, strict=True))
    return f"{prompt}{''.join(lines)}Answer:", names, answer
  return f"{prompt}Answer:", tuple(texts), answer
