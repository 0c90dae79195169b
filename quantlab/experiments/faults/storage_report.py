"""Table and picture of `storage`.

A result has `bits_per_weight`, `parts` (stored bits by part), `clean` (test
error), `weight_error` (of quantization), `exposed`, and `gaps` where the format
has a gap code: a list by remedy, with `rows`, `copies`, `bits_per_weight`,
`weights_per_bit`, `rows_per_bit`, `most` and `index`. `exposed[name]` and
`gaps[i]["index"]` hold `weight_error[rate]` and `alone[rate]`, `either[rate]`
with `mean`, `deviation`, `lowest` and `highest`.
"""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Any

from quantlab.experiments import plots

Results = Mapping[str, Mapping[str, Any]]

PARTS = ("codes", "grid", "labels", "index", "exact", "float")
"""What is stored, in the order of columns and of bars."""


def show(results: Results, at: float) -> None:
  """Prints what bit errors do, and how many of them do little.

  Args:
    results: by format.
    at: the rate of the first table.
  """
  from rich import console

  to = console.Console(width=120)
  to.print(
    _table(
      results,
      f"test error (%) where bits are wrong with probability {at:g}",
      ("all", *(f"only {part}" for part in PARTS)),
      lambda result, key: percent(mean(result["exposed"][key], at)),
    )
  )
  to.print(
    _table(
      results,
      "the highest rate up to which the mean error is 1 point higher at most",
      ("all", "all but grid", "all but index", "only codes", "only grid"),
      lambda result, key: f"{tolerated(result, key):g}",
    )
  )
  for name, result in results.items():
    if "gaps" in result:
      to.print(_gaps(name, result, at))


def _table(
  results: Results,
  title: str,
  keys: Sequence[str],
  cell: Callable[[Mapping[str, Any], str], str],
) -> Any:
  from rich import box, table

  out = table.Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
  out.add_column("format", no_wrap=True)
  for column in ("bits/weight", "clean", *keys):
    out.add_column(column, justify="right")
  for name, result in results.items():
    out.add_row(
      name,
      f"{result['bits_per_weight']:.3f}",
      percent(result["clean"]),
      *(cell(result, key) if key in result["exposed"] else "" for key in keys),
    )
  return out


def tolerated(
  result: Mapping[str, Any], key: str, *, rise: float = 0.01
) -> float:
  """The highest measured rate up to which the error rises little.

  Args:
    result: of a format.
    key: what has bit errors.
    rise: of the mean test error, as a fraction.

  Returns:
    The rate; 0 if none of those measured is low enough.
  """
  highest = 0.0
  for rate, found in result["exposed"][key]["alone"].items():
    if found["mean"] > result["clean"] + rise:
      break
    highest = float(rate)
  return highest


def _gaps(name: str, result: Mapping[str, Any], at: float) -> Any:
  from rich import box, table

  out = table.Table(
    title=f"{name}: wrong bits in the gap symbols alone",
    box=box.SIMPLE_HEAD,
  )
  for column in (
    *("rows of a stream", "copies", "bits/weight", "share of all bits (%)"),
    *("weights per misread bit", "at most", "rows per misread bit"),
    *(f"weights' error (%) at {at:g}", f"test error (%) at {at:g}"),
  ):
    out.add_column(column, justify="right")
  for found in result["gaps"]:
    bits = found["bits_per_weight"]
    out.add_row(
      *(str(found["rows"]), str(found["copies"]), f"{bits:.3f}"),
      percent(bits / (_rest(result) + bits)),
      *(f"{found['weights_per_bit']:.1f}", str(found["most"])),
      f"{found['rows_per_bit']:.1f}",
      percent(found["index"]["weight_error"][str(at)]),
      percent(mean(found["index"], at)),
    )
  return out


def _rest(result: Mapping[str, Any]) -> float:
  """Bits per weight of all but the index."""
  share = result["parts"]["index"] / sum(result["parts"].values())
  return (1 - share) * result["bits_per_weight"]


def picture(results: Results, at: float, file: str | os.PathLike[str]) -> None:
  """Draws bits by part, errors by part, and remedies of the gap code.

  Args:
    results: by format.
    at: the rate of the second panel.
    file: where the picture goes.
  """
  import matplotlib.figure

  coded = [name for name, result in results.items() if "gaps" in result]
  panels = 2 + len(coded)
  figure = matplotlib.figure.Figure(
    (4.6 * panels, 2 + 0.36 * max(8, len(results))),
    layout="constrained",
    dpi=130,
  )
  axes = figure.subplots(1, panels, squeeze=False)[0]
  _bits(axes[0], results)
  _exposed(axes[1], results, at)
  handles, labels = axes[1].get_legend_handles_labels()
  figure.legend(
    handles,
    labels,
    loc="outside upper center",
    ncols=len(labels),
    frameon=False,
  )
  for panel, name in zip(axes[2:], coded, strict=True):
    _remedies(panel, name, results[name])
  for panel in axes:
    panel.grid(color="0.9")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
  figure.savefig(file)


def _bits(axes: Any, results: Results) -> None:
  names = [
    f"{name}  {result['bits_per_weight']:.2f}"
    for name, result in results.items()
  ]
  left = [0.0] * len(names)
  for i, part in enumerate(PARTS):
    widths = [
      100 * result["parts"].get(part, 0) / sum(result["parts"].values())
      for result in results.values()
    ]
    axes.barh(names, widths, left=left, color=plots.style(i)["color"])
    left = [x + width for x, width in zip(left, widths, strict=True)]
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.set_xlabel("share of the stored bits (%)")
  axes.set_title("format, stored bits per weight", fontsize=10)


def _exposed(axes: Any, results: Results, at: float) -> None:
  rows = range(len(results))
  clean = [100 * result["clean"] for result in results.values()]
  axes.plot(
    clean, rows, "|", color="0.45", markersize=14, label="no wrong bits"
  )
  for i, key in enumerate(("all", *(f"only {part}" for part in PARTS))):
    found = {
      row: 100 * mean(result["exposed"][key], at)
      for row, result in zip(rows, results.values(), strict=True)
      if key in result["exposed"]
    }
    look = {"color": "0.25", "marker": "d", "markerfacecolor": "none"}
    size = 12
    if key != "all":
      look, size = plots.style(i - 1), 7
    # A part that no format has is drawn nowhere, and named in the legend.
    axes.plot(
      [*found.values()],
      [*found],
      **look | {"linestyle": "", "markersize": size, "label": key},
    )
  axes.set_yticks(rows, [""] * len(results))
  axes.set_ylim(len(results) - 0.5, -0.5)
  axes.set_xlabel("test error (%)")
  axes.set_title(f"bit error rate {at:g}", fontsize=10)
  axes.set_xscale("log")
  axes.xaxis.set_major_formatter("{x:g}")


def _remedies(axes: Any, name: str, result: Mapping[str, Any]) -> None:
  own = 100 * result["weight_error"]
  axes.axhline(own, color="0.45", linewidth=1, label="of quantization")
  for i, found in enumerate(result["gaps"]):
    total = _rest(result) + found["bits_per_weight"]
    # Logarithmic axes have no 0: most patterns had no wrong bit.
    errors = {
      float(rate): 100 * error
      for rate, error in found["index"]["weight_error"].items()
      if error
    }
    rows, copies = found["rows"], found["copies"]
    text = f"streams of {rows}" + (f", {copies} copies" if copies > 1 else "")
    axes.plot(
      [*errors],
      [*errors.values()],
      label=f"{text}: {total:.2f} bits",
      **plots.style(i) | {"markersize": 5, "linewidth": 1.3},
    )
  axes.set_xscale("log")
  axes.set_yscale("log")
  axes.yaxis.set_major_formatter("{x:g}")
  axes.set_xlabel("bit error rate")
  axes.set_ylabel("relative error of the weights (%)")
  axes.set_title(f"{name}, wrong bits in the index alone", fontsize=10)
  axes.legend(frameon=False, fontsize=8)


def mean(found: Mapping[str, Any], rate: float) -> float:
  """The mean test error at a rate, of the perturbed network alone."""
  return found["alone"][str(rate)]["mean"]


def percent(fraction: float) -> str:
  """A fraction as a number of percent."""
  return f"{100 * fraction:.1f}"
