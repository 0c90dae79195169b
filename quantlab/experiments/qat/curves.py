"""Pictures of a training: its loss and score, and how its ranges moved."""

from collections.abc import Mapping
import pathlib
from typing import Any

from quantlab.experiments import plots
from quantlab.experiments.qat import logbook

_NUMBERS = ("step", "loss", "test_loss", "cost")


def of_run(folder: pathlib.Path, best: str) -> None:
  """Draws `curves.png` from a run's `metrics.jsonl`.

  Args:
    folder: of the run.
    best: the score to show.
  """
  rows = _scored(folder, best)
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
  last = _scored(root / reference, best)[-1][best]
  for title, axes in zip(titles, every, strict=True):
    axes.axhline(last, color="0.45", linewidth=1, label=reference)
    names = [name for name in panels if panels[name] == title]
    for i, name in enumerate(names):
      rows = _scored(root / name, best)
      axes.plot(
        [row["step"] for row in rows],
        [row[best] for row in rows],
        label=name,
        **plots.style(i) | {"markersize": 3, "linewidth": 1.2},
      )
    axes.set_title(", ".join(filter(None, (best, title))))
    axes.legend(frameon=False, fontsize=7)
  figure.savefig(root / "report.png")


def cost(folder: pathlib.Path, unit: str, budget: int) -> None:
  """Draws `cost.png`: what the model cost at each comparison with its budget.

  Args:
    folder: of the run.
    unit: of cost.
    budget: what it may cost.
  """
  rows = [row for row in logbook.read(folder) if "cost" in row]
  figure, [axes] = _figure(1)
  points = [(row["step"], row["cost"]) for row in rows]
  axes.plot(*zip(*points, strict=True), color="0.7", linewidth=1, zorder=1)
  for within, label, look in (
    (True, "within", {"color": "#009E73", "marker": "o"}),
    (False, "over", {"color": "#D55E00", "marker": "x"}),
  ):
    found = [point for point in points if (point[1] <= budget) is within]
    if found:
      axes.scatter(*zip(*found, strict=True), s=16, label=label, **look)
  axes.axhline(budget, color="k", linewidth=1, linestyle="--", label="budget")
  axes.set_yscale("log")
  axes.set_title(f"cost in {unit}")
  axes.legend(frameon=False)
  figure.savefig(folder / "cost.png")


def _scored(folder: pathlib.Path, best: str) -> list[dict[str, Any]]:
  """The rows of a run that have a score."""
  return [row for row in logbook.read(folder) if best in row]


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
