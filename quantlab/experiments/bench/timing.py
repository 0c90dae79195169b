"""Times cases in turn.

All cases run one after the other, round after round, and the median round
counts: what slows the machine for a while slows every case alike.
"""

from collections.abc import Callable, Iterable, Sequence
import os
import platform
import statistics
import time
from typing import Any, NamedTuple

import jax


class Case(NamedTuple):
  """What is timed.

  Attributes:
    name: it.
    call: does it `repeats` times.
    work: weights or images of one time.
    repeats: how often a call does it.
  """

  name: str
  call: Callable[[], Any]
  work: int
  repeats: int = 1


def run(
  cases: Iterable[Case], *, rounds: int = 5, only: Sequence[str] = ()
) -> dict[str, Any]:
  """Times cases.

  Args:
    cases: what to time.
    rounds: timed rounds after one that compiles.
    only: names, or starts of names, to run; all if empty.

  Returns:
    `machine`, and under `cases` by name `seconds` of one time (the median),
    `per_second` (weights or images) and `ratio`, of the seconds to those of the
    first case.

  Raises:
    ValueError: `rounds` is out of range, or nothing matches `only`.
  """
  if rounds < 1:
    raise ValueError(f"{rounds=} must be at least 1")
  every = list(cases)
  chosen = [
    case for case in every if not only or case.name.startswith(tuple(only))
  ]
  if not chosen:
    names = [case.name for case in every]
    raise ValueError(f"{only=} matches none of {names}")
  for case in chosen:
    jax.block_until_ready(case.call())
  times: list[list[float]] = [[] for _ in chosen]
  for _ in range(rounds):
    for case, found in zip(chosen, times, strict=True):
      start = time.perf_counter()
      jax.block_until_ready(case.call())
      found.append(time.perf_counter() - start)
  seconds = [
    statistics.median(found) / case.repeats
    for case, found in zip(chosen, times, strict=True)
  ]
  return {
    "machine": machine(),
    "rounds": rounds,
    "cases": {
      case.name: {
        "seconds": s,
        "per_second": case.work / s,
        "ratio": s / seconds[0],
      }
      for case, s in zip(chosen, seconds, strict=True)
    },
  }


def show(results: dict[str, Any]) -> None:
  """Prints results as a table."""
  from rich import console, table

  where = results["machine"]
  out = table.Table(
    title=f"{where['device']}, {where['cores']} cores, jax {where['jax']}"
  )
  out.add_column("case")
  for column in ("ms", "per second", "times the first"):
    out.add_column(column, justify="right")
  for name, found in results["cases"].items():
    out.add_row(
      name,
      f"{found['seconds'] * 1e3:.1f}",
      f"{found['per_second']:.3g}",
      f"{found['ratio']:.2f}",
    )
  console.Console().print(out)


def machine() -> dict[str, Any]:
  """What this runs on."""
  return {
    "device": jax.devices()[0].device_kind,
    "cores": os.cpu_count(),
    "python": platform.python_version(),
    "jax": jax.__version__,
  }
