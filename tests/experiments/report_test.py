import csv
import json

import matplotlib.image

from quantlab.experiments import report


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
  "rtn-2bit": _result("rtn", 2, 2.1),
  "rtn-3bit": _result("rtn", 3, 3.1, LAYERS),
  "keep": _result("keep", 0, 0.0) | {"bits": None, "sqnr_db": None},
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
  report.show(RESULTS)
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
  expected = "icquant 2 2.500 12.00 0.9000 0.400 0.500 0.750 3.0"
  assert rows[3] == expected.split()
  assert rows[0][3] == "–"  # nothing is lost, so no ratio


def test_write_json_and_csv(tmp_path):
  about = {"config": {"x": [1]}, "environment": {"python": "3"}}
  report.write(tmp_path, RESULTS, about)
  content = json.loads((tmp_path / "report.json").read_text())
  assert content["config"] == about["config"]
  assert content["environment"] == about["environment"]
  assert content["total"]["rtn-3bit"]["cosine"] == 0.9
  assert "layers" not in content["total"]["rtn-3bit"]
  assert [row["path"] for row in content["layers"]] == ["a", "b", "c"]
  with open(tmp_path / "report.csv", newline="") as f:
    rows = list(csv.DictReader(f))
  assert [row["path"] for row in rows] == ["a", "b", "c"] + 5 * ["total"]
  assert rows[0]["variant"] == "rtn-3bit"
  assert rows[0]["shape"] == "4x8"
  assert float(rows[1]["bits_per_weight"]) == 4
  assert rows[-2]["cosine"] == "0.9"
  assert rows[0]["cosine"] == ""


def test_plot_draws_every_method(tmp_path):
  report.write(tmp_path, RESULTS, {})
  picture = matplotlib.image.imread(tmp_path / "report.png")
  height, width, _ = picture.shape
  assert width > 1500 > height > 500
  colours = {
    tuple(c) for c in (picture[::2, ::2, :3] * 255).astype(int).reshape(-1, 3)
  }
  assert {(0, 114, 178), (213, 94, 0)} <= colours


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
