"""Trainings that keep a budget, and what refuses one."""

import json
import shutil

import jax
import numpy as np
import pytest

import quantlab as ql
from quantlab.experiments import configs, qat, train
from quantlab.experiments.qat import budgets, logbook
from quantlab.models import cnn

TINY = cnn.Mlp((8,))
FLOOR = 8 * 2 * 64 * 8 + 2 * 2 * 8 * 10  # bits of input, of weights, MACs
CONFIG = {
  "seed": 1,
  "model": {"name": "tiny"},
  "data": {"limit": 32},
  "float": {"steps": 4, "batch_size": 12},
  "train": {
    "steps": 10,
    "batch_size": 12,
    "range_batch": 32,
    "evaluate_every": 5,
    "save_every": 3,
  },
  "weights": [["kernel", "weights"]],
  "acts": [["head/in$", "acts"]],
  "quantizers": {
    "weights": {"method": "cgmq", "widths": [2, 8, 32]},
    "acts": {
      "method": "cgmq",
      "signed": False,
      "batch": True,
      "widths": [2, 8, 32],
    },
  },
  "variants": {
    "guided": {
      "budget": {
        "most": 1.75 * FLOOR,
        "direction": "dir_3",
        "rate": 1.0,
        "every": 2,
        "warmup": 2,
      }
    },
    "programme": {
      "budget": {"most": 1.75 * FLOOR, "allocate": "programme"},
      "train": {"steps": 1},
    },
    "pushed": {
      "budget": {"most": 2 * FLOOR, "rate": 1e-6},
      "train": {"steps": 1},
      "quantizers": {"acts": None},  # of 32 bits
    },
  },
}


@pytest.fixture(name="tiny", autouse=True)
def _tiny(monkeypatch):
  monkeypatch.setattr(cnn, "NETWORKS", {"tiny": TINY})


@pytest.fixture(name="done", scope="module")
def _done(tmp_path_factory):
  folder = tmp_path_factory.mktemp("budget") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cnn, "NETWORKS", {"tiny": TINY})
    return folder, qat.run(CONFIG, folder)


@pytest.fixture(name="begun")
def _begun(done, tmp_path):
  """The folder of another run, with the same float model."""
  shutil.copytree(done[0] / "float", tmp_path / "run/float")
  return tmp_path / "run"


def _changed(budget, quantizers=None, **variant):
  variant |= {"budget": budget}
  if quantizers:
    variant["quantizers"] = quantizers
  return {**CONFIG, "variants": {"one": variant}}


@pytest.mark.parametrize("name", ["guided", "programme"])
def test_the_budget_is_kept_exactly(done, name):
  folder, results = done
  row = results[name]
  assert row["least"] == FLOOR
  assert row["cost"] <= row["budget"] == int(1.75 * FLOOR)
  layers = json.loads((folder / name / "layers.json").read_text())
  assert sum(layer["bops"] for layer in layers) == row["cost"]
  assert [layer["layer"] for layer in layers] == ["hidden_0", "head"]
  # The packed model has the bits of the table.
  params = ql.restore(folder / name / "params")["params"]
  for layer in layers:
    kernel = params[layer["layer"]]["kernel"]
    bits = kernel.codes.bits if isinstance(kernel, ql.QTensor) else 32
    assert bits == layer["weight_bits"]
    assert ql.nbits(kernel) == layer["stored_bits"]
  assert (folder / name / "cost.png").stat().st_size > 5000


def test_cost_is_logged_and_gates_wait(done):
  folder, _ = done
  rows = [row for row in logbook.read(folder / "guided") if "cost" in row]
  assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
  # Nothing moves in the warm-up: the input has 8 bits, all else 32.
  assert rows[0]["cost"] == 8 * 32 * 512 + 32 * 32 * 80
  assert rows[-1]["cost"] < rows[0]["cost"]


def test_a_killed_run_ends_with_the_same_bits(done, begun, monkeypatch):
  class Killed(BaseException):
    pass

  seen = []
  check = train.check

  def killing(*args):
    seen.append(1)
    if len(seen) == 8:
      raise Killed
    return check(*args)

  config = {**CONFIG, "variants": {"guided": CONFIG["variants"]["guided"]}}
  monkeypatch.setattr(train, "check", killing)
  with pytest.raises(Killed):
    qat.run(config, begun)
  results = qat.run(config, begun)
  folder, expected = done
  assert results["guided"] == expected["guided"]
  a, b = (ql.restore(f / "guided/params") for f in (begun, folder))
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_training_that_never_kept_it_is_pushed(done):
  folder, results = done
  rows = [row for row in logbook.read(folder / "pushed") if "cost" in row]
  row = results["pushed"]
  assert rows[-1]["cost"] > row["budget"]
  assert row["least"] <= row["cost"] <= row["budget"]


ICQUANT = {"method": "icquant", "inner": {"method": "rtn"}, "ratio": 0.1}


@pytest.mark.parametrize(
  ("inner", "of", "most"),
  [
    ({"method": "rtn"}, "bits", 5000),
    pytest.param(ICQUANT, "bits", 6400, marks=pytest.mark.study),
    pytest.param(ICQUANT, "bytes", 860, marks=pytest.mark.study),
  ],
)
def test_stored_bits_of_any_quantizer(begun, inner, of, most):
  # One gate, of most of the weights.
  rules = {"weights": [["hidden_0/kernel", "weights"]]}
  quantizers = {
    "weights": {
      "method": "gated",
      "inner": inner,
      "widths": [2, 3],
    },
    "acts": None,
  }
  budget = {"most": most, "of": of, "direction": "dir_3", "rate": 1, "every": 2}
  config = _changed(budget, quantizers) | rules
  row = qat.run(config, begun)["one"]
  params = ql.restore(begun / "one/params")["params"]
  stored = ql.nbits(params)
  inputs = 64  # 8 bits each; 8 hidden ones of 32 bits are fewer
  assert row["cost"] == (stored if of == "bits" else stored // 8 + inputs)
  assert row["least"] <= row["cost"] <= most


@pytest.mark.study
def test_robustness_is_scored_of_the_packed_model(tmp_path):
  config = {
    **CONFIG,
    "float": {"steps": 0},
    "weights": [[".*", "weights"]],
    "acts": [],
    "quantizers": {"weights": {"method": "rquant", "bits": 8}},
    "robustness": {"rates": [0.0, 0.5], "patterns": 3},
    "variants": {
      "randbet": {"clip": 0.25, "errors": {"rate": 0.05, "threshold": 99.0}}
    },
  }
  row = qat.run(config, tmp_path / "run")["randbet"]
  assert row["error@0"] == pytest.approx(1 - row["accuracy"])
  assert row["error@0.5"] > 0.5
  stored = json.loads((tmp_path / "run/randbet/robustness.json").read_text())
  assert stored["alone"]["mean"] == [row["error@0"], row["error@0.5"]]
  assert stored["either"]["mean"][1] >= stored["alone"]["mean"][1]
  params = ql.restore(tmp_path / "run/randbet/params")["params"]
  for leaf in jax.tree.leaves(ql.dequantize(params)):
    assert np.abs(leaf).max() <= 0.25


WRONG = {
  "below the floor": (
    _changed({"most": FLOOR - 1}),
    rf"a budget of {FLOOR - 1} bops is below the least cost, {FLOOR}",
  ),
  "direction": (
    _changed({"most": 0.5, "direction": "dir_9"}),
    r"config\.variants\.one\.budget: direction='dir_9' is none of dir_1",
  ),
  "what": (_changed({"most": 0.5, "of": "flops"}), "of='flops' is none of"),
  "nothing gated": (
    _changed(
      {"most": 0.5}, {"weights": {"method": "lsq", "bits": 4}, "acts": None}
    ),
    "a budget needs gates",
  ),
  "something not gated": (
    _changed({"most": 0.5}, {"acts": {"method": "rtn", "bits": 4}}),
    r"head/in of acts is not",
  ),
  "rate of errors": (
    {**CONFIG, "variants": {"one": {"errors": {"rate": 1.5}}}},
    r"config\.variants\.one\.errors: .*1\.5",
  ),
  "clip": (
    {**CONFIG, "variants": {"one": {"clip": 0}}},
    r"config\.variants\.one\.clip: 0 is no number above 0",
  ),
  "rates": (
    {**CONFIG, "robustness": {"rates": [2.0]}},
    r"config\.robustness: .*2\.0",
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_refuses(done, tmp_path, case):
  config, message = WRONG[case]
  with pytest.raises(configs.InputError, match=message) as error:
    qat.run(config, tmp_path / "run")
  assert "\n" not in str(error.value)


def test_sections_say_what_they_know():
  with pytest.raises(ValueError, match="every=0 is less than 1"):
    budgets.Budget(0.5, every=0)
