"""The study of formats under bit errors: results, resumption, bad input."""

import json

import numpy as np
import pytest

from quantlab.experiments import configs
from quantlab.experiments.faults import (
  storage,
  storage_report,
  storage_settings,
)
from tests.launch import ptq_test

CONFIG = ptq_test.ROOT / "configs/randbet/storage_study.py"
TINY = {
  "formats": {"float32": "keep", "rtn_4": {"method": "rtn", "bits": 4}},
  "widths": [],  # one kernel: each shape is compiled for
  "steps": 30,
  "rates": [1e-3, 0.05],
  "patterns": 2,
  "remedies": [[1, 1]],
  "samples": 4,
}


def test_run_and_resumption(tmp_path, monkeypatch, capsys):
  judge = storage._Study.judge
  calls = []

  def killed(self, quantizer):
    calls.append(quantizer)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return judge(self, quantizer)

  monkeypatch.setattr(storage._Study, "judge", killed)
  with pytest.raises(KeyboardInterrupt):
    storage.run(TINY, tmp_path)
  assert not (tmp_path / "report.json").exists()
  (done,) = tmp_path.glob("*/result.json")
  before = done.stat().st_mtime_ns
  results = storage.run(TINY, tmp_path)
  assert len(calls) == 3  # the finished one is not repeated
  assert done.stat().st_mtime_ns == before
  assert (tmp_path / "storage.png").stat().st_size > 10_000
  report = json.loads((tmp_path / "report.json").read_text())
  assert report["results"] == results
  assert "only grid" in capsys.readouterr().out

  assert [*results] == ["rtn_4", "float32"]  # fewest bits first
  weights = 64 * 10
  assert results["float32"]["parts"] == {"float": 32 * weights}
  result = results["rtn_4"]
  assert result["parts"] == {"codes": 4 * weights, "grid": 64 * 10}
  assert result["bits_per_weight"] == pytest.approx(4 + 64 * 10 / weights)
  exposed = result["exposed"]
  for found in exposed.values():
    for rate, either in found["either"].items():
      alone = found["alone"][rate]
      assert alone["lowest"] <= alone["mean"] <= alone["highest"]
      assert either["mean"] >= max(alone["mean"], result["clean"])
  low, high = exposed["only codes"]["weight_error"].values()
  assert 0 < low < high
  # Two names of the same are the same numbers.
  assert exposed["only codes"] == exposed["all but grid"]

  with pytest.raises(configs.InputError, match=r"holds another run: .*steps"):
    storage.run(TINY | {"steps": 31}, tmp_path)


def test_a_gap_code_is_studied_too(tmp_path, monkeypatch, capsys):
  # The other exposures are compiled and measured alike.
  monkeypatch.setattr(
    storage, "exposures", lambda parts: {"all": frozenset(parts)}
  )
  method = {"method": "icquant", "inner": {"method": "rtn", "bits": 2}}
  results = storage.run(TINY | {"formats": {"icq": method}}, tmp_path)
  (own,) = results["icq"]["gaps"]
  assert set(results["icq"]["parts"]) == {"codes", "grid", "index"}
  assert own["rows_per_bit"] <= 1
  assert own["most"] <= 64
  assert 0 < own["bits_per_weight"] < 1.5
  assert own["index"]["weight_error"].keys() == {"0.001", "0.05"}
  assert "icq: wrong bits in the gap symbols alone" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"formats": {"a": "rtm"}}, r"config\.formats\.a: unknown .*'rtn'"),
    ({"formats": {}}, "formats: name at least one"),
    ({"rates": [1e-3, 2.0]}, r"probability in \[0, 1\]"),
    ({"at": 0.5}, r"at=0\.5 is none of rates"),
    ({"patterns": 0}, "patterns=0 must be at least 1"),
    ({"remedies": [[8, 2]]}, r"odd number of copies, got \[8, 2\]"),
    ({"widths": [0]}, r"widths=\[0\] must be at least 1"),
    ({"pattern": 3}, r"config\.pattern: .*'patterns'"),
  ],
)
def test_refuses_bad_input(change, message, tmp_path):
  with pytest.raises(configs.InputError, match=message):
    storage.run(TINY | change, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_the_config_is_of_every_format():
  module = ptq_test._module(CONFIG)
  settings, formats = storage_settings.read(configs.plain(module.get_config()))
  assert len(formats) == 16
  assert settings.at in settings.rates
  assert settings.patterns >= 20
  assert "launch.storage" in module.__doc__


def test_tolerated_rates():
  alone = {"0.001": 0.02, "0.01": 0.03, "0.1": 0.025}
  alone = {rate: {"mean": mean} for rate, mean in alone.items()}
  result = {"clean": 0.018, "exposed": {"all": {"alone": alone}}}
  assert storage_report.tolerated(result, "all") == 0.001
  assert storage_report.tolerated(result, "all", rise=0.02) == 0.1
  assert storage_report.tolerated(result, "all", rise=0.001) == 0


def test_distance():
  clean = np.array([3.0, 4.0], np.float32)
  for other, expected in (
    ([3.0, 4.0], 0.0),
    ([3.0, 9.0], 1.0),
    ([3e38, 4.0], 6e37),
    ([np.nan, 4.0], np.inf),
    ([np.inf, 4.0], np.inf),
  ):
    found = storage._distance(clean, np.array(other, np.float32))
    assert float(found) == pytest.approx(expected)
