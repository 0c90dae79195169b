"""What a run shows and leaves behind: the table, the JSON, the CSV."""

from collections.abc import Mapping, Sequence
import csv
import hashlib
import importlib.metadata
import math
import pathlib
import platform
import sys
from typing import Any

import jax
import rich.box
import rich.console
import rich.table
import rich.text

import quantlab
from quantlab.experiments import evaluate, pareto, plots, sizes, workdir
from quantlab.experiments.tasks import base

Results = Mapping[str, dict[str, Any]]
"""Scores by variant; `layers` of each holds a row per leaf."""

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "orbax-checkpoint", "tokenizers")
_COLUMNS = (
  *("variant", "path", "shape", "rule", "method", "bits", "granularity"),
  *("acts", "stored_bits", "bits_per_weight", "sqnr_db", "max_abs_error"),
  "seconds",
)
_SQNR = base.Metric(
  "sqnr_db", "SQNR\ndB", "{:.2f}", axis="SQNR of the weights (dB)"
)
_LEFT = ("method", "granularity", "acts")
_NOTES = (
  "bits per weight: as stored, of the quantized leaves, with index code, "
  "scales, tables and exact outliers; SQNR: of the same leaves; seconds: of "
  "quantization, with compilation"
)
_FRONT_NOTE = (
  "; front: the place on the Pareto front, or below (<) which place: the "
  "variant there takes no more bits and is better"
)


def total(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The row of a whole model: what its quantized leaves add up to."""
  rows = [row for row in rows if row["method"] != "keep"]
  error = evaluate.total(
    [
      evaluate.Error(row["signal"], row["noise"], row["max_abs_error"])
      for row in rows
    ]
  )
  stored_bits = sum(row["stored_bits"] for row in rows)
  weights = sum(math.prod(row["shape"]) for row in rows)
  return {
    "stored_bits": stored_bits,
    "bits_per_weight": stored_bits / max(1, weights),
    "sqnr_db": evaluate.sqnr(error),
    "max_abs_error": error.worst,
    "seconds": sum(row["seconds"] for row in rows),
  }


def scores(results: Results) -> dict[str, Any]:
  """The results without the rows of layers."""
  return {
    name: {k: v for k, v in result.items() if k != "layers"}
    for name, result in results.items()
  }


def fronts(
  results: Results, metrics: Sequence[base.Metric]
) -> dict[str, dict[str, str]]:
  """By each plotted metric, what dominates each variant; see `pareto`."""
  names = [name for name in results if name != "float"]
  return {
    metric.key: pareto.dominators(
      {name: pareto.point(results[name], metric) for name in names}
    )
    for metric in plotted(metrics)
  }


def plotted(metrics: Sequence[base.Metric]) -> list[base.Metric]:
  """The SQNR of the weights, and the metrics of a task that have an axis."""
  return [_SQNR, *(metric for metric in metrics if metric.axis)]


def write(
  root: pathlib.Path,
  results: Results,
  about: Mapping[str, Any],
  metrics: Sequence[base.Metric],
) -> None:
  """Writes `report.json`, `report.csv` and `report.png`.

  Args:
    root: the folder.
    results: of all variants.
    about: what they are results of: config, hashes, environment.
    metrics: of the task.
  """
  layers = [
    {"variant": name, **row}
    for name, result in results.items()
    for row in result["layers"]
  ]
  found = fronts(results, metrics)
  content = {
    **about,
    "total": scores(results),
    "dominated_by": found,
    "layers": layers,
  }
  workdir.write_json(root / "report.json", content)
  dominated = found[metrics[0].key]
  totals = [
    {"variant": name, "path": "total", "dominated_by": dominated.get(name)}
    | row
    for name, row in scores(results).items()
  ]
  for row in layers:
    row["shape"] = "x".join(map(str, row["shape"]))
  keys = [*_COLUMNS, *(metric.key for metric in metrics), "dominated_by"]
  with open(root / "report.csv", "w", newline="", encoding="utf-8") as f:
    writer = csv.DictWriter(f, keys, extrasaction="ignore")
    writer.writeheader()
    writer.writerows([*layers, *totals])
  plots.rate_quality(scores(results), plotted(metrics), root / "report.png")


def show(results: Results, metrics: Sequence[base.Metric]) -> None:
  """Prints all variants from many bits to few, then those on the front."""
  columns, places = _columns(results, metrics), _places(results, metrics[0])
  headings = [heading for heading, _, _ in columns]
  many = len(places) > 1
  table = _table(*headings, *["front"] * many, left=_LEFT)
  previous = None
  for name in ordered(results):
    row = results[name]
    if row["bits"] != previous:
      table.add_section()
    previous = row["bits"]
    table.add_row(*_cells(row, columns), *[places.get(name, "")] * many)
  notes = _NOTES + _FRONT_NOTE * many + "."
  parts: list[Any] = [table, rich.text.Text(notes, style="dim")]
  if many:
    what = " ".join(metrics[0].heading.split())
    title = f"Pareto front of {what} and stored bits"
    front = _table("front", *headings, left=_LEFT, title=title)
    for name, place in places.items():
      if place.isdigit():
        front.add_row(place, *_cells(results[name], columns))
    parts += ["", front]
  _print(*parts)


def _places(results: Results, metric: base.Metric) -> dict[str, str]:
  """Places on the front by variant, those on it first and in order.

  Of a variant that is not on it, the place of what dominates it, as "< 3".
  """
  dominated = fronts(results, [metric])[metric.key]
  on_front = [name for name, by in dominated.items() if not by]
  on_front.sort(key=lambda name: results[name]["bits_per_weight"])
  places = {name: str(i) for i, name in enumerate(on_front, 1)}
  return places | {n: f"< {places[by]}" for n, by in dominated.items() if by}


def _columns(
  results: Results, metrics: Sequence[base.Metric]
) -> list[tuple[str, str, str]]:
  """Heading, key and format of the table's columns.

  What is the same in all variants has none.
  """
  every = [row for name, row in results.items() if name != "float"]
  bits = "precision" if any(row["acts"] for row in every) else "bits"
  varied = [
    (key, key, "{}")
    for key in ("granularity", "acts")
    if len({row[key] for row in every}) > 1
  ]
  scored = [(m.heading, m.key, m.form) for m in (_SQNR, *metrics)]
  return [
    ("method", "method", "{}"),
    ("bits", bits, "{}"),
    *varied,
    ("bits per\nweight", "bits_per_weight", "{:.3f}"),
    *scored,
    ("seconds", "seconds", "{:.1f}"),
  ]


def _cells(
  row: Mapping[str, Any], columns: Sequence[tuple[str, str, str]]
) -> list[str]:
  return [_cell(row.get(key), form) for _, key, form in columns]


def ordered(results: Results) -> list[str]:
  """Float, then falling bits; within the same, rising bits per weight."""
  first, *rest = results

  def order(name):
    return -(results[name]["bits"] or 0), results[name]["bits_per_weight"]

  return [first, *sorted(rest, key=order)]


def show_sizes(
  found: Mapping[str, Sequence[sizes.Size]], unused: Sequence[str]
) -> None:
  """Prints the dry run: leaves that all variants share, then each variant.

  Args:
    found: sizes by variant.
    unused: patterns that match nothing.
  """
  first = next(iter(found.values()))
  fixed = [size for size in first if not size.rule.swept]
  parts: list[Any] = []
  if fixed:
    parts.append(_sizes_table("the same in all variants", fixed))
  parts += [
    _sizes_table(name, [size for size in every if size.rule.swept])
    for name, every in found.items()
  ]
  parts.append(_models_table(found))
  sure = {size.sure for every in found.values() for size in every}
  if sizes.EXPECTED in sure:
    parts.append(
      f"{sizes.EXPECTED} expected: the gap code of outliers at random places"
    )
  if sizes.AT_LEAST in sure:
    parts.append(
      f"{sizes.AT_LEAST} at least: plus 64 bits for every outlier that is "
      "kept exactly, as many as the data have"
    )
  parts.append(
    "* of quantization, estimated: weights, packed model and four times the "
    "largest quantized leaf; the runtime and its compiled programs come on top"
  )
  parts += [f"warning: rule {pattern!r} matches no leaf" for pattern in unused]
  _print(*parts)


def environment() -> dict[str, Any]:
  """What results may depend on besides config, weights and data."""
  packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
  devices = jax.devices()
  return {
    "python": platform.python_version(),
    "machine": platform.machine(),
    "device": f"{len(devices)} x {devices[0].device_kind}",
    **packages,
    "quantlab sources": _sources_sha256(),
  }


def _sources_sha256() -> str:
  """Of the code that makes the numbers; its version says too little."""
  root = pathlib.Path(quantlab.__file__).parent
  digest = hashlib.sha256()
  for file in sorted(root.rglob("*.py")):
    digest.update(file.read_bytes())
  return digest.hexdigest()[:12]


def _sizes_table(title: str, found: Sequence[sizes.Size]) -> rich.table.Table:
  headings = ("leaf", "shape", "rule", "quantizer", "bits per\nweight", "bytes")
  table = _table(*headings, left=headings[:4], title=title)
  for size in found:
    bits = size.rule.bits
    method = size.rule.method + (f", {bits} bits" if bits else "")
    shape = "x".join(map(str, size.shape))
    each = _bits_per_weight([size])
    table.add_row(
      size.path, shape, size.rule.pattern, method, each, _bytes([size])
    )
  table.add_section()
  table.add_row("total", "", "", "", _bits_per_weight(found), _bytes(found))
  return table


def _models_table(found: Mapping[str, Sequence[sizes.Size]]) -> Any:
  headings = (
    *("variant", "bits per weight,\nquantized leaves"),
    *("bytes,\nwhole model", "of float\n%", "peak memory*,\nMB"),
  )
  table = _table(*headings, left=("variant",), title="models")
  for name, every in found.items():
    share = sum(s.bits for s in every) / sum(s.float_bits for s in every)
    table.add_row(
      name,
      _bits_per_weight([size for size in every if not size.kept]),
      _bytes(every),
      f"{100 * share:.1f}",
      f"{sizes.peak_bytes(every) / 1e6:.0f}",
    )
  return table


def _bits_per_weight(found: Sequence[sizes.Size]) -> str:
  weights = sum(math.prod(size.shape) for size in found)
  bits = sum(size.bits for size in found)
  return f"{sizes.least_sure(found)}{bits / max(1, weights):.3f}"


def _bytes(found: Sequence[sizes.Size]) -> str:
  total_bytes = round(sum(size.bits for size in found) / 8)
  return f"{sizes.least_sure(found)}{total_bytes:,}"


def _cell(value: Any, form: str) -> str:
  return "–" if value is None else form.format(value)


def _table(
  *headings: str, left: Sequence[str], title: str | None = None
) -> Any:
  table = rich.table.Table(
    box=rich.box.SIMPLE_HEAD, title=title, title_justify="left"
  )
  for heading in headings:
    justify = "left" if heading in left else "right"
    table.add_column(heading, justify=justify, overflow="fold")
  return table


def _print(*parts: Any) -> None:
  console = rich.console.Console(file=sys.stdout)
  if not console.is_terminal:
    # A pipe has no width. Cut lines would be of no use to who reads it.
    console = rich.console.Console(file=sys.stdout, width=140)
  for part in parts:
    console.print(part, markup=False, highlight=False)
