"""The rate-quality plot: what a bit buys, and which variants are worth it."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from quantlab.experiments import pareto
from quantlab.experiments.tasks import base

# Okabe and Ito's colours, which colour-blind readers tell apart; markers and
# dashes say the same without any colour. As their numbers share no factor, the
# first 8 * 9 * 5 methods all look different.
_COLORS = (
  *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
  *("#E69F00", "#56B4E9", "#000000", "#8C8C00"),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
_DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))


def rate_quality(
  totals: Mapping[str, Mapping[str, Any]],
  metrics: Sequence[base.Metric],
  file: str | os.PathLike[str],
) -> None:
  """Plots quality over bits per weight as stored, a panel for each metric.

  A dot is a variant. A method's line goes through those that none of the same
  method dominates, the wide grey one through those that none at all does.

  Args:
    totals: scores by variant, the float model's under `"float"`.
    metrics: what to plot.
    file: where the picture goes; its ending says in which format.
  """
  import matplotlib.figure
  import matplotlib.layout_engine
  import matplotlib.ticker

  variants = {name: row for name, row in totals.items() if name != "float"}
  layout = matplotlib.layout_engine.ConstrainedLayoutEngine(wspace=0.06)
  size = (5.2 * len(metrics), 6.4)
  figure = matplotlib.figure.Figure(size, layout=layout, dpi=150)
  for axes, metric in zip(
    figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True
  ):
    _panel(axes, variants, metric)
    reference = totals["float"][metric.key]
    if reference is not None:
      axes.axhline(reference, color="0.45", linewidth=1, label="float")
    # The same quality for half the bits is the same step everywhere.
    axes.set_xscale("log")
    ticks = matplotlib.ticker.LogLocator(subs=(1, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
    axes.xaxis.set_major_locator(ticks)
    axes.xaxis.set_major_formatter(
      matplotlib.ticker.StrMethodFormatter("{x:g}")
    )
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xlabel("stored bits per quantized weight")
    axes.set_ylabel(metric.axis)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
  handles, labels = figure.axes[-1].get_legend_handles_labels()
  figure.legend(
    handles,
    labels,
    loc="outside upper center",
    handlelength=4,
    ncols=min(len(labels), 2 * len(metrics)),
    frameon=False,
  )
  figure.savefig(file)


def _panel(
  axes: Any, variants: Mapping[str, Mapping[str, Any]], metric: base.Metric
) -> None:
  known = {n: row for n, row in variants.items() if row[metric.key] is not None}
  _line(
    axes,
    known,
    metric,
    label="Pareto front of all",
    color="0.8",
    linewidth=7,
    solid_capstyle="round",
    zorder=1,
  )
  methods = dict.fromkeys(row["method"] for row in variants.values())
  for i, method in enumerate(methods):
    rows = {n: row for n, row in known.items() if row["method"] == method}
    rate = [row["bits_per_weight"] for row in rows.values()]
    quality = [row[metric.key] for row in rows.values()]
    dots = style(i) | {"linestyle": "", "markersize": 5}
    axes.plot(rate, quality, alpha=0.4, **dots)
    line = style(i) | {"markersize": 6, "linewidth": 1.3}
    _line(axes, rows, metric, label=method, **line)


def style(i: int) -> dict[str, Any]:
  """Colour, marker and dashes of a method."""
  return {
    "color": _COLORS[i % len(_COLORS)],
    "marker": _MARKERS[i % len(_MARKERS)],
    "linestyle": _DASHES[i % len(_DASHES)],
  }


def _line(
  axes: Any,
  rows: Mapping[str, Mapping[str, Any]],
  metric: base.Metric,
  **style: Any,
) -> None:
  """A line through the Pareto front of some variants."""
  points = {name: pareto.point(row, metric) for name, row in rows.items()}
  front = [rows[name] for name in pareto.front(points)]
  rate = [row["bits_per_weight"] for row in front]
  axes.plot(rate, [row[metric.key] for row in front], **style)
