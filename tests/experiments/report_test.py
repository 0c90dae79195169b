import csv
import json

import matplotlib.image

from quantlab.experiments import plots, report
from quantlab.experiments.tasks import retrieval

METRICS = retrieval.KIND.metrics


def _layer(path, **changes):
  return {
    "path": path,
    "shape": [4, 8],
    "rule": "kernel$",
    "method": "rtn",
    "bits": 3,
    "stored_bits": 128,
    "bits_per_weight": 4.0,
    "sqnr_db": 20.0,
    "max_abs_error": 0.5,
    "seconds": 1.5,
    "signal": 99.0,
    "noise": 0.25,
  } | changes


def _result(method, bits, bits_per_weight, layers=(), **changes):
  return {
    "method": method,
    "bits": bits,
    "granularity": "",
    "acts": "",
    "precision": "",
    "bits_per_weight": bits_per_weight,
    "sqnr_db": 10.0 + bits,
    "max_abs_error": 0.5,
    "cosine": 0.9,
    "recall_at_1": 0.4,
    "mrr": 0.5,
    "agreement": 0.75,
    "seconds": 3.0,
    "layers": list(layers),
  } | changes


KEPT = {"method": "keep", "stored_bits": 64, "shape": [2], "noise": 0.0}
LAYERS = [_layer("a"), _layer("b", signal=1.0, noise=0.75), _layer("c", **KEPT)]
RESULTS = {
  "float": _result("float", 32, 32.0, sqnr_db=None, cosine=1.0),
  "icquant-2bit": _result("icquant", 2, 2.5),
  "rtn-2bit": _result("rtn", 2, 2.1, cosine=0.8),
  "rtn-3bit": _result("rtn", 3, 3.1, LAYERS, cosine=0.85),
  "keep": _result("keep", 0, 0.0, cosine=0.1) | {"bits": None, "sqnr_db": None},
}


def test_total_counts_the_quantized_leaves():
  total = report.total(LAYERS)
  assert total == {
    "stored_bits": 256,
    "bits_per_weight": 4.0,
    "sqnr_db": 20.0,  # 100 / 1
    "max_abs_error": 0.5,
    "seconds": 3.0,
  }


def test_total_of_nothing():
  assert report.total([LAYERS[2]])["bits_per_weight"] == 0
  assert report.total([LAYERS[2]])["sqnr_db"] is None


def test_table_goes_from_many_bits_to_few(capsys):
  report.show(RESULTS, METRICS)
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  methods = dict.fromkeys(r["method"] for r in RESULTS.values())
  rows = [line for line in lines if line and line[0] in methods]
  assert [(row[0], row[1]) for row in rows] == [
    ("float", "32"),
    ("rtn", "3"),
    ("rtn", "2"),
    ("icquant", "2"),
    ("keep", "–"),
  ]
  expected = "icquant 2 2.500 12.00 0.9000 0.400 0.500 0.750 3.0 3"
  assert rows[3] == expected.split()
  assert rows[0][3] == "–"  # nothing is lost, so no ratio
  # The front, from few bits to many, and what is below it.
  assert [row[1] for row in lines if row and row[0] in ("1", "2", "3")] == [
    *("keep", "rtn", "icquant")
  ]
  assert rows[1][-2:] == ["<", "3"]


def test_table_of_one_variant_has_no_front(capsys):
  report.show({name: RESULTS[name] for name in ("float", "keep")}, METRICS)
  assert "front" not in capsys.readouterr().out


def test_table_says_what_differs(capsys):
  changes = [
    {"granularity": "per_output", "precision": "W2"},
    {"granularity": "per_output", "acts": "int8", "precision": "W2A8"},
    {"granularity": "per_block(-2, 64)", "precision": "W2"},
  ]
  results = {"float": RESULTS["float"]}
  for i, change in enumerate(changes):
    results[str(i)] = _result("rtn", 2, 2.0 + i, **change)
  report.show(results, METRICS)
  out = capsys.readouterr().out
  lines = [line.split() for line in out.splitlines()]
  rows = [line[:5] for line in lines if line and line[0] == "rtn"]
  assert rows == [
    ["rtn", "W2", "per_output", "2.000", "12.00"],
    ["rtn", "W2A8", "per_output", "int8", "3.000"],
    ["rtn", "W2", "per_block(-2,", "64)", "4.000"],
  ]
  report.show({name: results[name] for name in ("float", "0")}, METRICS)
  assert "granularity" not in capsys.readouterr().out


def test_write_json_and_csv(tmp_path):
  about = {"config": {"x": [1]}, "environment": {"python": "3"}}
  report.write(tmp_path, RESULTS, about, METRICS)
  content = json.loads((tmp_path / "report.json").read_text())
  assert content["config"] == about["config"]
  assert content["environment"] == about["environment"]
  assert content["total"]["rtn-3bit"]["cosine"] == 0.85
  assert "layers" not in content["total"]["rtn-3bit"]
  assert [row["path"] for row in content["layers"]] == ["a", "b", "c"]
  with open(tmp_path / "report.csv", newline="") as f:
    rows = list(csv.DictReader(f))
  assert [row["path"] for row in rows] == ["a", "b", "c"] + 5 * ["total"]
  assert rows[0]["variant"] == "rtn-3bit"
  assert rows[0]["shape"] == "4x8"
  assert float(rows[1]["bits_per_weight"]) == 4
  assert rows[-2]["cosine"] == "0.85"
  assert rows[0]["cosine"] == ""
  dominated = {row["variant"]: row["dominated_by"] for row in rows[3:]}
  assert dominated["rtn-3bit"] == "icquant-2bit"
  assert dominated["rtn-2bit"] == dominated["float"] == ""
  found = content["dominated_by"]
  assert list(found) == ["sqnr_db", "cosine", "recall_at_1"]
  assert found["cosine"] == {
    **dict.fromkeys(("icquant-2bit", "rtn-2bit", "keep"), ""),
    "rtn-3bit": "icquant-2bit",
  }


def _plotted(tmp_path, results):
  file = tmp_path / "plot.png"
  plots.rate_quality(results, report.plotted(METRICS), file)
  picture = matplotlib.image.imread(file)
  return (picture[..., :3] * 255).round().astype(int)


def test_plot_draws_every_method_and_the_front(tmp_path):
  report.write(tmp_path, RESULTS, {}, METRICS)
  picture = matplotlib.image.imread(tmp_path / "report.png")
  height, width, _ = picture.shape
  assert width > 1500 > height > 500
  found = _plotted(tmp_path, RESULTS)
  colours = {tuple(c) for c in found[::2, ::2].reshape(-1, 3)}
  assert {(0, 114, 178), (213, 94, 0), (204, 204, 204)} <= colours


def test_plot_tells_many_methods_apart(tmp_path):
  results = {"float": RESULTS["float"]} | {
    f"m{i}-{bits}": _result(f"m{i}", bits, bits + i / 10, cosine=bits / 5)
    for i in range(12)
    for bits in (2, 3)
  }
  colours = {tuple(c) for c in _plotted(tmp_path, results).reshape(-1, 3)}
  for i in range(8):
    code = plots.style(i)["color"]
    assert tuple(bytes.fromhex(code[1:])) in colours, code
  every = [tuple(map(str, plots.style(i).values())) for i in range(360)]
  assert len(set(every)) == 360


def test_sources_are_part_of_the_environment(tmp_path, monkeypatch):
  found = report.environment()
  assert {"python", "jax", "device", "quantlab sources"} <= found.keys()
  assert found == report.environment()
  (tmp_path / "a.py").write_text("1")
  monkeypatch.setattr(
    report.quantlab, "__file__", str(tmp_path / "__init__.py")
  )
  before = report.environment()["quantlab sources"]
  assert before != found["quantlab sources"]
  (tmp_path / "a.py").write_text("2")
  assert report.environment()["quantlab sources"] != before
