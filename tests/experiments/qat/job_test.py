"""A quantized training as a job: its numbers, its files, and what stops it."""

import functools
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

import quantlab as ql
from quantlab.experiments import configs, qat, train
from quantlab.experiments.qat import curves, job, logbook, settings
from quantlab.models import causal, cnn

TINY = cnn.CNN(4, ((4, 1),), cnn.Residual, jax.nn.swish)
CONFIG = {
  "seed": 3,
  "model": {"name": "tiny"},
  "data": {"limit": 60},
  "float": {"steps": 12, "batch_size": 12, "save_every": 5},
  "train": {
    "steps": 8,
    "batch_size": 12,  # on one device
    "range_batch": 32,
    "evaluate_every": 4,
    "save_every": 3,
  },
  "weights": [["kernel", "weights"]],
  "acts": [["(conv|head)/in$", "acts"]],
  "grads": [["conv/out$", "grads"]],
  "variants": {
    "lsq_plus": {
      "quantizers": {
        "weights": {"method": "lsq", "bits": 4, "start": "three_sigma"},
        "acts": {"method": "lsq_plus", "bits": 4},
        "grads": None,
      }
    },
    "hindsight": {
      "quantizers": {
        "weights": {"method": "rtn", "bits": 8, "symmetric": True},
        "acts": {
          "method": "rtn",
          "bits": 8,
          "exact_zero": True,
          "granularity": "per_tensor",
          "observer": "ema",
        },
        "grads": {
          "method": "rtn",
          "bits": 8,
          "exact_zero": True,
          "granularity": "per_tensor",
          "observer": "ema",
          "stochastic": True,
        },
      }
    },
  },
}


# The float model alone, and with one variant.
FLOAT = {name: CONFIG[name] for name in ("seed", "model", "data", "float")}
FIRST = {
  **CONFIG,
  "variants": {"lsq_plus": CONFIG["variants"]["lsq_plus"]},
}


def _first(results):
  return {name: results[name] for name in ("float", "lsq_plus")}


@pytest.fixture(name="tiny", autouse=True)
def _tiny(monkeypatch):
  monkeypatch.setattr(cnn, "NETWORKS", {**cnn.NETWORKS, "tiny": TINY})


def _params(folder, name):
  return ql.restore(folder / name / "params")


def _same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(name="done", scope="module")
def _done(tmp_path_factory):
  folder = tmp_path_factory.mktemp("qat") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cnn, "NETWORKS", {**cnn.NETWORKS, "tiny": TINY})
    return folder, qat.run(CONFIG, folder)


@pytest.fixture(name="begun")
def _begun(done, tmp_path):
  """The folder of another run, with the same float model."""
  shutil.copytree(done[0] / "float", tmp_path / "run/float")
  return tmp_path / "run"


def test_scores_and_files(done):
  folder, results = done
  assert [*results] == ["float", "lsq_plus", "hindsight"]
  for name, row in results.items():
    assert 0 <= row["accuracy"] <= 1
    rows = logbook.read(folder / name)
    assert rows[-1]["step"] == row["steps"]
    assert (folder / name / "curves.png").stat().st_size > 5000
    assert list((folder / name / "tensorboard").iterdir())
  assert results["lsq_plus"]["bits_per_weight"] < 8
  assert (folder / "report.png").exists()
  assert "hindsight" in qat.show(results)


def test_ranges_are_logged(done):
  folder, _ = done
  row = logbook.read(folder / "lsq_plus")[-1]
  assert row["weights/stem/conv/kernel/scale"] > 0
  assert "acts/block_0/first/conv/in/offset" in row
  row = logbook.read(folder / "hindsight")[-1]
  assert row["acts/head/in/lo"] < row["acts/head/in/hi"]
  assert row["grads/stem/conv/out/hi"] > 0


def test_packed_scores_are_those_of_the_training(done):
  folder, results = done
  for name in ("lsq_plus", "hindsight"):
    last = logbook.read(folder / name)[-1]
    assert last["accuracy"] == results[name]["accuracy"]
    assert last["test_loss"] == pytest.approx(results[name]["test_loss"])


def test_finished_runs_are_read(done):
  folder, results = done
  assert qat.run(CONFIG, folder) == results


class Killed(BaseException):
  pass


def test_a_killed_run_ends_with_the_same_bits(done, begun, monkeypatch):
  seen = []
  check = train.check

  def killing(*args):
    seen.append(1)
    if len(seen) == 5:
      raise Killed
    return check(*args)

  monkeypatch.setattr(train, "check", killing)
  with pytest.raises(Killed):
    qat.run(FIRST, begun)
  results = qat.run(FIRST, begun)
  folder, expected = done
  assert results == _first(expected)
  _same(_params(begun, "lsq_plus"), _params(folder, "lsq_plus"))
  logs = [logbook.read(root / "lsq_plus") for root in (begun, folder)]
  assert logs[0] == logs[1]


def test_a_run_killed_before_its_result_resumes(done, begun, monkeypatch):
  # Trained, and not yet scored.
  after = shutil.ignore_patterns("result.json", "params", "acts", "curves.png")
  shutil.copytree(done[0] / "lsq_plus", begun / "lsq_plus", ignore=after)
  draw = curves.of_run

  def killing(folder, best):
    if folder.name == "lsq_plus":  # what it scores is stored by now
      raise Killed
    draw(folder, best)

  with monkeypatch.context() as patch:
    patch.setattr(curves, "of_run", killing)
    with pytest.raises(Killed):
      qat.run(FIRST, begun)
  assert (begun / "lsq_plus/params").exists()
  assert not (begun / "lsq_plus/result.json").exists()
  assert qat.run(FIRST, begun) == _first(done[1])
  assert (begun / "lsq_plus/curves.png").exists()


def test_sigterm_saves_and_stops(done, tmp_path, monkeypatch):
  seen = []
  check = train.check

  def terminating(*args):
    seen.append(1)
    if len(seen) == 7:
      os.kill(os.getpid(), signal.SIGTERM)
    return check(*args)

  monkeypatch.setattr(train, "check", terminating)
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(qat.Stopped, match="float: stopped and saved at step 7"):
    qat.run(FLOAT, tmp_path / "run")
  assert signal.getsignal(signal.SIGTERM) is before
  assert (tmp_path / "run/float/saves/00000007").exists()
  folder, expected = done
  assert qat.run(FLOAT, tmp_path / "run") == {"float": expected["float"]}
  _same(_params(tmp_path / "run", "float"), _params(folder, "float"))
  logs = [logbook.read(root / "float") for root in (tmp_path / "run", folder)]
  assert logs[0] == logs[1]


def test_another_config_is_refused(done):
  folder, _ = done
  other = {**CONFIG, "seed": 4}
  with pytest.raises(configs.InputError, match=r"config\.seed: 3 -> 4"):
    qat.run(other, folder)


def test_deployed_logits_are_the_fake_quantized_ones(done):
  variant = settings.read(configs.plain(CONFIG)).variants[0]
  folder, _ = done
  run = job._Run(
    settings.read(configs.plain(CONFIG)),
    variant,
    folder / "lsq_plus",
    _params(folder, "float"),
  )
  training, *_ = run.begin()
  training, _ = run._restored((training, None))
  inputs, _ = next(iter(run.task.test(16)))
  model = train.quantized(TINY.clone(classes=10), variant.plans)
  logits = [
    model(training, p, inputs)
    for p in (
      train.rounded(variant.plans, training),
      train.deploy(variant.plans, training),
    )
  ]
  np.testing.assert_array_equal(*logits)


@pytest.mark.study
def test_one_device_and_eight(tmp_path, monkeypatch):
  few = {**CONFIG, "float": {**CONFIG["float"], "steps": 3, "batch_size": 16}}
  hindsight = CONFIG["variants"]["hindsight"]["quantizers"]
  few["variants"] = {"hindsight": {"quantizers": {**hindsight, "grads": None}}}
  few["train"] = {**few["float"], "steps": 2, "evaluate_every": 1}
  assert len(jax.local_devices()) == 8
  qat.run(few, tmp_path / "eight")
  [first, *_] = jax.local_devices()
  monkeypatch.setattr(jax, "local_devices", lambda: [first])
  qat.run(few, tmp_path / "one")
  for name in ("float", "hindsight"):
    eight, one = (
      logbook.read(tmp_path / count / name) for count in ("eight", "one")
    )
    for a, b in zip(eight, one, strict=True):
      assert a.keys() == b.keys()
      for key in a.keys() - {"accuracy"}:
        same = pytest.approx(b[key], rel=0.02, abs=1e-4) if b[key] else b[key]
        assert a[key] == same, key


def test_a_loss_that_is_not_finite_names_step_and_leaf(tmp_path):
  wild = {**CONFIG, "float": {**CONFIG["float"], "learning_rate": 1e30}}
  message = r"step \d+ of 12: .* first the output of stem/norm; labels are "
  with pytest.raises(FloatingPointError, match=message):
    qat.run(wild, tmp_path / "run")


WRONG = {
  "section": (
    {"wieghts": []},
    r"config\.wieghts: no such section; .*'weights'",
  ),
  "model": (
    {"model": {"name": "resnet9"}},
    r"config\.model\.name: unknown model 'resnet9'; did you mean 'resnet8'",
  ),
  "seed": ({"seed": -1}, r"config\.seed: expected an integer of at least 0"),
  "data": ({"data": {"sauce": 1}}, r"config\.data\.sauce: .*mean 'source'"),
  "steps": (
    {"float": {"steps": -1}},
    r"config\.float: steps=-1 must be at least 0",
  ),
  "optimizer": (
    {"train": {"optimizer": "adma"}},
    r"train: optimizer='adma' is none of sgd, adamw",
  ),
  "norm": ({"float": {"max_norm": 0.0}}, "max_norm=0.0 must be above 0"),
  "variants": ({"variants": ["a"]}, r"config\.variants: expected a dict"),
  "rule": (
    {"weights": ["kernel"]},
    r"config\.weights\[0\]: expected a pattern",
  ),
  "a name that is none": (
    {"weights": [["kernel", "wieghts"]]},
    "(no quantizer is named 'wieghts'|no rule places it)",
  ),
  "bits": (
    {
      "quantizers": {"weights": {"method": "lsq", "bits": 1}},
      "variants": {"a": {}},
      "acts": [],
      "grads": [],
    },
    "lsq takes 2 to 8 bits",
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_clear_error(tmp_path, case):
  changes, message = WRONG[case]
  with pytest.raises(configs.InputError, match=message) as error:
    qat.run({**CONFIG, **changes}, tmp_path / "run")
  assert "\n" not in str(error.value)


def test_a_site_that_no_rule_fits_is_named(tmp_path):
  wrong = {**CONFIG, "acts": [["nowhere$", "acts"]]}
  with pytest.raises(configs.InputError, match="no site of the model matches"):
    qat.run(wrong, tmp_path / "run")


@pytest.mark.study
def test_a_language_model(tmp_path, monkeypatch):
  small = functools.partial(
    causal.CausalConfig, hidden_size=32, num_hidden_layers=1, head_dim=8
  )
  monkeypatch.setattr(causal, "CausalConfig", small)
  config = {
    "model": {"name": "llama"},
    "data": {"tokens": 16, "windows": 4},
    "float": {"steps": 2, "batch_size": 4, "optimizer": "adamw"},
    "train": {"steps": 2, "batch_size": 4, "range_batch": 4},
    "weights": [["layer_.*kernel", "weights"]],
    "variants": {
      "w4": {"quantizers": {"weights": {"method": "lsq", "bits": 4}}}
    },
  }
  results = qat.run(config, tmp_path / "run")
  assert 4 < results["w4"]["bits_per_byte"] < 12
  assert re.search(r"w4 +\d", qat.show(results))
