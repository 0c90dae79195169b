"""The rate-quality plot: what a bit buys, one line per method."""

from collections.abc import Mapping
import itertools
import os
from typing import Any

# Okabe and Ito's colours, which colour-blind readers tell apart; markers and
# dashes say the same without any colour.
_STYLES = (
  {"color": "#0072B2", "marker": "o", "linestyle": "-"},
  {"color": "#D55E00", "marker": "s", "linestyle": "--"},
  {"color": "#009E73", "marker": "^", "linestyle": "-."},
  {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
  {"color": "#E69F00", "marker": "v", "linestyle": "-"},
  {"color": "#56B4E9", "marker": "P", "linestyle": "--"},
  {"color": "#000000", "marker": "X", "linestyle": "-."},
)
_PANELS = (
  ("sqnr_db", "SQNR of the weights (dB)"),
  ("cosine", "mean cosine to the float embeddings"),
  ("recall_at_1", "R@1 of the retrieval (fraction of queries)"),
)


def rate_quality(
  totals: Mapping[str, Mapping[str, Any]], file: str | os.PathLike[str]
) -> None:
  """Plots quality over bits per weight as stored.

  Args:
    totals: scores by variant, the float model's under `"float"`.
    file: where the picture goes; its ending says in which format.
  """
  import matplotlib.figure
  import matplotlib.layout_engine

  methods: dict[str, list[Mapping[str, Any]]] = {}
  for name, row in totals.items():
    if name != "float":
      methods.setdefault(row["method"], []).append(row)
  layout = matplotlib.layout_engine.ConstrainedLayoutEngine(wspace=0.06)
  figure = matplotlib.figure.Figure((13.5, 4.4), layout=layout, dpi=150)
  for axes, (key, label) in zip(
    figure.subplots(1, len(_PANELS)), _PANELS, strict=True
  ):
    _panel(axes, methods, key)
    reference = totals["float"][key]
    if reference is not None:
      axes.axhline(reference, color="0.45", linewidth=1, label="float")
    axes.set_xlabel("stored bits per quantized weight")
    axes.set_ylabel(label)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
  figure.legend(
    *figure.axes[-1].get_legend_handles_labels(),
    loc="outside upper center",
    handlelength=4,
    ncols=len(methods) + 1,
    frameon=False,
  )
  figure.savefig(file)


def _panel(axes: Any, methods: Mapping[str, Any], key: str) -> None:
  """One line per method, from few bits to many."""
  for (method, rows), style in zip(
    methods.items(), itertools.cycle(_STYLES), strict=False
  ):
    known = [row for row in rows if row[key] is not None]
    known.sort(key=lambda row: row["bits_per_weight"])
    rate = [row["bits_per_weight"] for row in known]
    quality = [row[key] for row in known]
    axes.plot(rate, quality, label=method, markersize=7, linewidth=1.8, **style)
