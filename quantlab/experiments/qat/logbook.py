"""The numbers of a training, as lines of JSON and as TensorBoard scalars."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import math
import pathlib
from typing import Any

from quantlab.experiments import workdir

FILE = "metrics.jsonl"

Write = Callable[[int, Mapping[str, Any]], None]
"""`write(step, numbers)`: a row of numbers by name."""


@contextlib.contextmanager
def opened(folder: pathlib.Path, step: int) -> Iterator[Write]:
  """Adds rows to the book of a run; what is written survives a killed process.

  Args:
    folder: of the run.
    step: where it goes on. Rows of later steps are forgotten, and all at 0:
      they will come again.
  """
  import tensorboardX

  file = folder / FILE
  known = [row for row in read(folder) if row["step"] <= step and step]
  workdir.write_text(file, "".join(map(_line, known)))
  board = tensorboardX.SummaryWriter(
    str(folder / "tensorboard"), purge_step=step + 1 if step else 0
  )
  with open(file, "a", encoding="utf-8") as lines, contextlib.closing(board):

    def write(step, numbers):
      row = {name: _plain(x) for name, x in numbers.items()}
      lines.write(_line({"step": step} | row))
      lines.flush()
      for name, value in row.items():
        if value is not None:
          board.add_scalar(name, value, step)

    yield write


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a run; a last line that was cut off is left out."""
  file, rows = folder / FILE, []
  for line in file.read_text().splitlines() if file.exists() else []:
    try:
      rows.append(json.loads(line))
    except ValueError:
      break
  return rows


def _line(row: Mapping[str, Any]) -> str:
  return json.dumps(row) + "\n"


def _plain(x: Any) -> float | None:
  """JSON has neither nan nor inf."""
  x = float(x)
  return x if math.isfinite(x) else None
