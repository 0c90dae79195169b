"""Pictures of a training: its loss and score, and how its ranges moved."""

from collections.abc import Mapping
import pathlib
from typing import Any

from quantlab.experiments import plots
from quantlab.experiments.qat import logbook

_NUMBERS = ("step", "loss", "test_loss")


def of_run(folder: pathlib.Path, best: str) -> None:
  """Draws `curves.png` from a run's `metrics.jsonl`.

  Args:
    folder: of the run.
    best: the score to show.
  """
  rows = logbook.read(folder)
  moved = [name for name in rows[-1] if name not in (*_NUMBERS, best)]
  parts = [
    part
    for part in ("weights", "acts", "grads")
    if any(name.startswith(part) for name in moved)
  ]
  figure, panels = _figure(2 + len(parts))
  steps = [row["step"] for row in rows]
  for name in ("loss", "test_loss"):
    found = [(row["step"], row[name]) for row in rows if name in row]
    if found:
      panels[0].plot(*zip(*found, strict=True), label=name)
  panels[1].plot(steps, [row[best] for row in rows], color="#009E73")
  panels[0].legend(frameon=False)
  for axes, title in zip(panels, ("loss", best), strict=False):
    axes.set_title(title)
  for part, axes in zip(parts, panels[2:], strict=True):
    axes.set_title(f"ranges of {part}, over their start")
    names = [name for name in moved if name.startswith(part)]
    for i, name in enumerate(names):
      line = plots.style(i) | {"marker": "", "linewidth": 1.1}
      label = name.removeprefix(f"{part}/")
      values = [row[name] for row in rows]
      start = next(filter(None, values), 1.0)  # none of what saw nothing
      axes.plot(
        steps, [v and v / abs(start) for v in values], label=label, **line
      )
    if len(names) <= 12:
      axes.legend(frameon=False, fontsize=6)
  figure.savefig(folder / "curves.png")


def summary(
  root: pathlib.Path, reference: str, panels: Mapping[str, str], best: str
) -> None:
  """Draws `report.png`: the score of every variant over its steps.

  Args:
    root: the folder of all runs.
    reference: the run whose last score is a line in each panel.
    panels: from the name of a variant to the title of its panel.
    best: the score to show.
  """
  titles = sorted(set(panels.values()))
  figure, every = _figure(len(titles))
  last = logbook.read(root / reference)[-1][best]
  for title, axes in zip(titles, every, strict=True):
    axes.axhline(last, color="0.45", linewidth=1, label=reference)
    names = [name for name in panels if panels[name] == title]
    for i, name in enumerate(names):
      rows = logbook.read(root / name)
      axes.plot(
        [row["step"] for row in rows],
        [row[best] for row in rows],
        label=name,
        **plots.style(i) | {"markersize": 3, "linewidth": 1.2},
      )
    axes.set_title(", ".join(filter(None, (best, title))))
    axes.legend(frameon=False, fontsize=7)
  figure.savefig(root / "report.png")


def _figure(count: int) -> tuple[Any, Any]:
  import matplotlib.figure

  figure = matplotlib.figure.Figure(
    (4.6 * count, 4.2), layout="constrained", dpi=130
  )
  panels = figure.subplots(1, count, squeeze=False)[0]
  for axes in panels:
    axes.set_xlabel("step")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
  return figure, panels
