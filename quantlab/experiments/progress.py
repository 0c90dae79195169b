"""What a person sees while a job runs: a bar, or a log; and always a log file.

On a terminal a bar is enough. Where stderr goes to a file or a pipe, the log's
lines are written there instead.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import logging
import os
import sys
from typing import Any, Protocol

import rich.console
import rich.progress


class Items(Protocol):
  """What is iterated over: its length is known before."""

  def __len__(self) -> int: ...

  def __iter__(self) -> Iterator[Any]: ...


Track = Callable[[Items, str], Iterable[Any]]
"""Iterates over items under a bar with a text."""

LOGGER = logging.getLogger("quantlab")


@contextlib.contextmanager
def bars() -> Iterator[Track]:
  """Shows one bar per loop in progress, on stderr if that is a terminal.

  Example:
    >>> with bars() as track:
    ...   sum(track([1, 2, 3], "adding"))
    6
  """
  console = rich.console.Console(stderr=True)
  columns = (
    rich.progress.TextColumn("{task.description}"),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeElapsedColumn(),
  )
  display = rich.progress.Progress(
    *columns, console=console, transient=True, disable=not console.is_terminal
  )

  def track(items: Items, text: str) -> Iterator[Any]:
    bar = display.add_task(text, total=len(items))
    try:
      for item in items:
        yield item
        display.advance(bar)
    finally:
      display.remove_task(bar)

  with display:
    yield track


@contextlib.contextmanager
def log_to(file: str | os.PathLike[str]) -> Iterator[None]:
  """Appends quantlab's log to a file, and writes it to stderr.

  On a terminal stderr gets the warnings alone. What ends the job is in the file
  with its traceback.

  Args:
    file: made where it does not exist.

  Raises:
    OSError: the file cannot be written.
  """
  to_file = logging.FileHandler(file, encoding="utf-8")
  to_file.setFormatter(
    logging.Formatter("%(asctime)s %(levelname)s %(message)s")
  )
  to_stderr = logging.StreamHandler(sys.stderr)
  to_stderr.setFormatter(logging.Formatter("%(levelname).1s %(message)s"))
  terminal = sys.stderr.isatty()
  to_stderr.setLevel(logging.WARNING if terminal else logging.INFO)
  handlers = [to_file, to_stderr]
  before = LOGGER.level, LOGGER.propagate
  LOGGER.setLevel(logging.DEBUG)
  LOGGER.propagate = False
  for handler in handlers:
    LOGGER.addHandler(handler)
  try:
    yield
  except BaseException:
    LOGGER.debug("stopped", exc_info=True)
    raise
  finally:
    for handler in handlers:
      LOGGER.removeHandler(handler)
    LOGGER.setLevel(before[0])
    LOGGER.propagate = before[1]
    to_file.close()
