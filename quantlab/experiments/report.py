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
from quantlab.experiments import evaluate, plots, sizes, workdir

Results = Mapping[str, dict[str, Any]]
"""Scores by variant; `layers` of each holds a row per leaf."""

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "orbax-checkpoint", "tokenizers")
_COLUMNS = (
  *("variant", "path", "shape", "rule", "method", "bits"),
  *("stored_bits", "bits_per_weight", "sqnr_db", "max_abs_error", "seconds"),
  *("cosine", "recall_at_1", "mrr", "agreement"),
)
# Heading, key and format of the table's columns.
_TABLE = (
  ("method", "method", "{}"),
  ("bits", "bits", "{}"),
  ("bits per\nweight", "bits_per_weight", "{:.3f}"),
  ("SQNR\ndB", "sqnr_db", "{:.2f}"),
  ("cosine\nto float", "cosine", "{:.4f}"),
  ("R@1", "recall_at_1", "{:.3f}"),
  ("MRR", "mrr", "{:.3f}"),
  ("top-1 as\nfloat", "agreement", "{:.3f}"),
  ("seconds", "seconds", "{:.1f}"),
)
_NOTES = (
  "bits per weight: as stored, of the quantized leaves, with index code, "
  "scales, tables and exact outliers; SQNR: of the same leaves; seconds: of "
  "quantization, with compilation."
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


def write(
  root: pathlib.Path, results: Results, about: Mapping[str, Any]
) -> None:
  """Writes `report.json`, `report.csv` and `report.png`.

  Args:
    root: the folder.
    results: of all variants.
    about: what they are results of: config, hashes, environment.
  """
  layers = [
    {"variant": name, **row}
    for name, result in results.items()
    for row in result["layers"]
  ]
  content = {**about, "total": scores(results), "layers": layers}
  workdir.write_json(root / "report.json", content)
  totals = [
    {"variant": name, "path": "total", **row}
    for name, row in scores(results).items()
  ]
  for row in layers:
    row["shape"] = "x".join(map(str, row["shape"]))
  with open(root / "report.csv", "w", newline="", encoding="utf-8") as f:
    writer = csv.DictWriter(f, _COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows([*layers, *totals])
  plots.rate_quality(scores(results), root / "report.png")


def show(results: Results) -> None:
  """Prints the table: float first, then from many bits to few."""
  headings = [heading for heading, _, _ in _TABLE]
  table = _table(*headings, left=("method",))
  previous = None
  for row in ordered(results):
    if row["bits"] != previous:
      table.add_section()
    previous = row["bits"]
    table.add_row(*(_cell(row.get(key), form) for _, key, form in _TABLE))
  _print(table, rich.text.Text(_NOTES, style="dim"))


def ordered(results: Results) -> list[dict[str, Any]]:
  """Float, then falling bits; within the same, rising bits per weight."""
  first, *rest = results.values()
  return [
    first,
    *sorted(rest, key=lambda r: (-(r["bits"] or 0), r["bits_per_weight"])),
  ]


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
    console = rich.console.Console(file=sys.stdout, width=120)
  for part in parts:
    console.print(part, markup=False, highlight=False)
