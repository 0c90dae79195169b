import copy
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import safetensors.numpy

import quantlab as ql
from quantlab import checkpoint
from quantlab.core import stored
from quantlab.experiments import calibration, configs, evaluate, ptq
from quantlab.experiments.tasks import retrieval
from quantlab.transforms import plan
from tests import tiny_bert

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = ("seconds", "evaluate_seconds")


class Stopped(Exception):
  """Stands for what ends a process in the middle of its work."""


@pytest.fixture(name="config")
def _config(tmp_path):
  return tiny_bert.config(tmp_path)


@pytest.fixture(name="finished", scope="module")
def _finished(tmp_path_factory):
  """A run to its end: its folder, what it read and what it returned."""
  folder = tmp_path_factory.mktemp("finished")
  config = tiny_bert.config(folder)
  return folder / "run", config, ptq.run(config, folder / "run")


@pytest.fixture(name="quantized")
def _quantized(monkeypatch):
  """Counts the leaves that are quantized; `limit` stops the run after some."""

  class Calls:
    count, limit = 0, None

  original = plan.quantize_leaf

  def counting(quantizer, x, key=None, sensitivity=None):
    # Shapes are quantized too, before the work.
    if quantizer is not ql.keep() and not isinstance(x, jax.core.Tracer):
      if Calls.count == Calls.limit:
        raise Stopped
      Calls.count += 1
    return original(quantizer, x, key, sensitivity)

  monkeypatch.setattr(plan, "quantize_leaf", counting)
  return Calls


def _task(config):
  model, data = config["model"], config["data"]
  return retrieval.load(
    retrieval.Model(**model), retrieval.Data(**data), None, None
  )


def _timeless(x):
  """Results without what differs from run to run."""
  if isinstance(x, dict):
    return {k: _timeless(v) for k, v in x.items() if k not in SECONDS}
  return [_timeless(v) for v in x] if isinstance(x, list) else x


def test_run_scores_every_variant(finished):
  _, _, metrics = finished
  assert list(metrics) == ["float", "rtn-3bit", "icquant-3bit"]
  rtn, icquant = metrics["rtn-3bit"], metrics["icquant-3bit"]
  assert metrics["float"]["cosine"] == pytest.approx(1)
  assert 0.3 < rtn["cosine"] < icquant["cosine"] < 0.999
  assert 3 < rtn["bits_per_weight"] < icquant["bits_per_weight"] < 6
  assert 8 < rtn["sqnr_db"] < icquant["sqnr_db"] < 25
  for row in metrics.values():
    assert 0 <= row["recall_at_1"] <= row["mrr"] <= 1
    assert 0 <= row["agreement"] <= 1


def test_checkpoint_is_what_was_evaluated(finished):
  folder, config, metrics = finished
  task = _task(config)
  outputs = evaluate.outputs(task)
  reference = outputs(task.params)
  for name in ("rtn-3bit", "icquant-3bit"):
    packed = checkpoint.restore(folder / name / "params")
    found = task.compare(outputs(ql.dequantize(packed)), reference)
    assert found == {key: metrics[name][key] for key in found}
    leaves = plan.leaves(packed)
    quantized = [leaves[path] for path in tiny_bert.LEAVES]
    assert ql.bits_per_weight(quantized) == metrics[name]["bits_per_weight"]
    assert ql.nbits(packed) == 8 * metrics[name]["model_bytes"]


def test_packed_weights_give_the_same_scores(tmp_path, finished, monkeypatch):
  _, config, metrics = finished
  ran, original = [], evaluate.outputs

  def outputs(task):
    run = original(task)
    return lambda params, *args: [ran.append(params), run(params, *args)][1]

  monkeypatch.setattr(evaluate, "outputs", outputs)
  config = {k: v for k, v in config.items() if k != "evaluate"}
  config["weights"] = config["weights"] | {"method": "icquant"}
  found = ptq.run(config, tmp_path)["icquant-3bit"]
  for key in ("cosine", "recall_at_1", "mrr", "agreement", "sqnr_db"):
    assert found[key] == pytest.approx(metrics["icquant-3bit"][key], abs=1e-5)
  # Labels are ready for kernels: no positions left to decode.
  kernel = ran[-1]["layer_0"]["mlp"]["up"]["kernel"]
  assert isinstance(kernel.grid.labels, stored.Packed)


def test_report_holds_every_leaf(finished):
  folder, config, metrics = finished
  report = json.loads((folder / "report.json").read_text())
  assert report["config"] == config
  assert report["total"] == json.loads(json.dumps(metrics))
  assert len(report["data"]) == len(report["weights"]) == 64
  assert "python" in report["environment"]
  rows = [r for r in report["layers"] if r["variant"] == "icquant-3bit"]
  leaves = plan.leaves(_task(config).params)
  packed = plan.leaves(checkpoint.restore(folder / "icquant-3bit" / "params"))
  assert [row["path"] for row in rows] == list(leaves)
  for row in rows:
    x, q = leaves[row["path"]], packed[row["path"]]
    assert row["shape"] == list(x.shape)
    assert row["stored_bits"] == ql.nbits(q)
    worst = np.abs(np.asarray(x) - np.asarray(ql.dequantize(q))).max()
    assert row["max_abs_error"] == pytest.approx(worst, rel=1e-5)
    assert (row["method"] == "icquant") == (row["path"] in tiny_bert.LEAVES)


def test_run_leaves_the_promised_files(finished):
  found = {file.name for file in finished[0].iterdir()}
  assert found == {
    *("report.json", "report.csv", "report.png", "run.json", "inputs.json"),
    *("float", "rtn-3bit", "icquant-3bit"),
  }
  assert not list(finished[0].glob("*/leaves"))


def test_finished_run_does_nothing_again(
  finished, quantized, monkeypatch, capsys
):
  folder, config, metrics = finished

  def outputs(task):
    return lambda *args: pytest.fail("evaluated again")

  monkeypatch.setattr(evaluate, "outputs", outputs)
  again = ptq.run(config, folder)
  assert again == json.loads(json.dumps(metrics))
  assert quantized.count == 0
  assert "icquant" in capsys.readouterr().out


@pytest.mark.parametrize("after", [0, 3, 6, 10])
def test_stopped_run_resumes_at_the_next_leaf(
  tmp_path, finished, quantized, caplog, after
):
  _, config, metrics = finished
  quantized.limit = after
  with pytest.raises(Stopped):
    ptq.run(config, tmp_path)
  quantized.limit = None
  caplog.set_level(logging.INFO, "quantlab")
  found = ptq.run(config, tmp_path)
  assert quantized.count == 2 * len(tiny_bert.LEAVES)
  assert _timeless(found) == _timeless(metrics)
  done, left = divmod(after, len(tiny_bert.LEAVES))
  name = ["rtn-3bit", "icquant-3bit"][done]
  assert (f"{name}: {left} leaves are finished" in caplog.text) == bool(left)
  assert (f"{done} of 2 variants are finished" in caplog.text) == bool(done)


RUN = """
import json, sys
from quantlab.experiments import ptq
ptq.run(json.loads(sys.argv[1]), sys.argv[2])
"""


def test_killed_run_resumes(tmp_path, finished, quantized):
  _, config, metrics = finished
  arguments = [sys.executable, "-c", RUN, json.dumps(config), str(tmp_path)]
  with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL) as run:
    limit = time.monotonic() + 60
    while not (leaves := list(tmp_path.glob("*/leaves/**/kernel/tree.json"))):
      assert run.poll() is None, "ended before its first leaf"
      assert time.monotonic() < limit
      time.sleep(0.001)
    os.kill(run.pid, signal.SIGKILL)
  assert run.returncode == -signal.SIGKILL
  leaves = list(tmp_path.glob("*/leaves/**/kernel/tree.json"))
  assert not (tmp_path / "report.json").exists()
  found = ptq.run(config, tmp_path)
  assert _timeless(found) == _timeless(metrics)
  assert quantized.count == 2 * len(tiny_bert.LEAVES) - len(leaves)


CALIBRATED = {
  "methods": {
    "lloyd": {"method": "lloyd", "sensitivity": True},
    "rtn": {"method": "rtn"},
  },
  "weights": {"method": None, "bits": 3, "acts": None, "dtype": "float16"},
  "sweep": {"lloyd": {}, "rtn": {"acts": ["", "int8"]}},
  "sensitivity": {"batches": 1},
  "acts": {
    "int8": {
      "rules": [["mlp/../in$", {"method": "rtn", "bits": 8}], ["", "keep"]],
      "batches": 1,
    },
  },
}


def _calibrated(folder):
  config = tiny_bert.config(folder) | copy.deepcopy(CALIBRATED)
  config["data"] |= {"limit": 2, "batch_size": 2}
  return config


def test_sensitivity_and_activations(tmp_path, quantized, capsys):
  metrics = ptq.run(_calibrated(tmp_path), tmp_path / "run")
  assert list(metrics) == ["float", "lloyd-3bit", "rtn-3bit", "rtn-3bit-int8"]
  weights_alone, both = metrics["rtn-3bit"], metrics["rtn-3bit-int8"]
  # The same weights, but other outputs, a little further away.
  for key in ("stored_bits", "sqnr_db", "max_abs_error"):
    assert weights_alone[key] == both[key]
  assert 0 < abs(weights_alone["cosine"] - both["cosine"]) < 0.05
  assert [metrics[name]["precision"] for name in metrics] == [
    *("32", "W3", "W3", "W3A8")
  ]
  assert "W3A8" in capsys.readouterr().out
  # Levels follow the sensitivities, so the plain error is larger than without.
  plain = _calibrated(tmp_path)
  del plain["methods"]["lloyd"]["sensitivity"]
  plain["weights"] |= {"method": "lloyd"}
  without = ptq.run(plain, tmp_path / "plain")["lloyd-3bit"]
  assert metrics["lloyd-3bit"]["sqnr_db"] < without["sqnr_db"]
  stages = {file.name for file in (tmp_path / "run").iterdir()}
  assert {"sensitivity", "acts"} <= stages
  assert not (tmp_path / "plain" / "sensitivity").exists()
  assert quantized.count == 4 * len(tiny_bert.LEAVES)


@pytest.mark.parametrize(
  ("stage", "method"), [("sensitivity", "lloyd"), ("calibrate", "rtn")]
)
def test_run_stopped_in_a_calibration_resumes(
  tmp_path, monkeypatch, stage, method
):
  config = _calibrated(tmp_path)
  config["weights"]["method"] = method
  calls, original = [], getattr(calibration.ql, stage)

  def counting(*args, **kwargs):
    calls.append(stage)
    if len(calls) == 1:
      raise Stopped
    return original(*args, **kwargs)

  monkeypatch.setattr(calibration.ql, stage, counting)
  with pytest.raises(Stopped):
    ptq.run(config, tmp_path / "run")
  found = ptq.run(config, tmp_path / "run")
  assert len(calls) == 2
  assert ptq.run(config, tmp_path / "run") == json.loads(json.dumps(found))
  assert len(calls) == 2


def _change(config, **entries):
  return {
    k: {**v, **entries.get(k, {})} if isinstance(v, dict) else v
    for k, v in config.items()
  }


def test_another_config_is_refused(finished, quantized):
  folder, config, _ = finished
  changed = _change(config, data={"seed": 1})
  message = r"holds another run: config\.data\.seed: nothing -> 1\. Choose"
  with pytest.raises(configs.InputError, match=message):
    ptq.run(changed, folder)
  one = _change(config, weights={"method": "rtn"})
  message = r"config\.weights\.method: None -> 'rtn'"
  with pytest.raises(configs.InputError, match=message):
    ptq.run(one, folder)
  assert quantized.count == 0


def test_other_weights_and_data_are_refused(tmp_path, quantized):
  config = _change(tiny_bert.config(tmp_path), weights={"method": "rtn"})
  quantized.limit = 1
  with pytest.raises(Stopped):
    ptq.run(config, tmp_path / "run")
  tiny_bert.write(tmp_path / "model", seed=1)
  with pytest.raises(configs.InputError, match=r"another run: weights: '\w+'"):
    ptq.run(config, tmp_path / "run")
  tiny_bert.write(tmp_path / "model", seed=0)
  file = tmp_path / "pairs.csv"
  file.write_text(file.read_text().replace("an old dog", "an old cat"))
  with pytest.raises(configs.InputError, match=r"another run: data: '\w+'"):
    ptq.run(config, tmp_path / "run")


def test_damaged_leaf_is_named(tmp_path, finished, quantized):
  config = finished[1]
  quantized.limit = 2
  with pytest.raises(Stopped):
    ptq.run(config, tmp_path)
  files = tmp_path.glob("rtn-3bit/leaves/layer_0/attention/key/**/*")
  file = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
  file.write_bytes(file.read_bytes()[:-1] + b"?")
  with pytest.raises(configs.InputError) as error:
    ptq.run(config, tmp_path)
  assert str(file) in str(error.value)
  assert "delete" in str(error.value)
  assert "\n" not in str(error.value)


def _nan(config, tmp_path):
  file = tmp_path / "model" / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  tensors["encoder.layer.0.output.dense.weight"][3, 4] = np.nan
  safetensors.numpy.save_file(tensors, file)


def _no_rule(config, tmp_path):
  config["rules"] = [["kernel$", "weights"], ["bias|norm", "keep"]]


def _file_in_the_way(config, tmp_path):
  (tmp_path / "run").touch()


NEVER = {"rules": [["lm_head", ["rtn", 8]], ["", "keep"]], "batches": 1}
BAD = {
  "nan": (_nan, r"^layer_0/mlp/down/kernel: cannot .* NaN or Inf: 1 of 8192"),
  "block": (
    lambda c, _: c["weights"].update(granularity=["per_block", 0, 48]),
    r"^rtn-3bit: layer_0/attention/key/kernel: per_block: .*of 48 do not",
  ),
  "no matching layer": (
    lambda c, _: c.update(rules=[["conv", "weights"], ["", "keep"]]),
    r"^config\.rules: no leaf gets \"weights\": \['conv'\] match none of \['",
  ),
  "task": (
    lambda c, _: c.update(task="retreival"),
    r"^config\.task: unknown task 'retreival'; did you mean 'retrieval'",
  ),
  "no task": (
    lambda c, _: c.pop("task"),
    r"^config\.task: unknown task None. Known: .*images.*retrieval",
  ),
  "site": (
    lambda c, _: c.update(CALIBRATED, acts={"int8": NEVER}),
    r"^config\.acts\.int8\.rules: no site matches \['lm_head'\]; the sites are",
  ),
  "form": (
    lambda c, _: c.update(evaluate="pakced"),
    r"^config\.evaluate: there is no form 'pakced'; did you mean 'packed'",
  ),
  "no batches": (
    lambda c, _: c.update(sensitivity={"batches": 0}),
    r"^config\.sensitivity\.batches: calibration takes at least 1 batch, got 0",
  ),
  "no rule": (_no_rule, r"^embeddings/position/embedding: matches no rule of"),
  "method": (
    lambda c, _: c["methods"].update(rtn="icqant"),
    r"^config\.methods\.rtn: unknown quantizer 'icqant'; did you mean",
  ),
  "data argument": (
    lambda c, _: c["data"].update(batchsize=3),
    r"^config\.data\.batchsize: .*did you mean 'batch_size'",
  ),
  "data": (
    lambda c, _: c["data"].update(source="/nowhere/x.csv"),
    r"^/nowhere/x\.csv: no such file",
  ),
  "model": (
    lambda c, _: c["model"].update(path="/nowhere/model"),
    r"^'/nowhere/model': no path that exists",
  ),
  "offline": (
    lambda c, _: c["model"].update(path="someone/some-model"),
    r"^someone/some-model: no such path, and HF_HUB_OFFLINE is set",
  ),
  "workdir": (_file_in_the_way, r"^workdir .*/run: cannot be written: .*xists"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_before_any_work(
  config, tmp_path, quantized, case
):
  change, message = BAD[case]
  change(config, tmp_path)
  with pytest.raises(configs.InputError, match=message) as error:
    ptq.run(config, tmp_path / "run")
  assert "\n" not in str(error.value)
  assert quantized.count == 0
  assert not list(tmp_path.glob("run/float"))


def test_full_disk_is_one_line(config, tmp_path, monkeypatch):
  def save(path, tree):
    raise OSError(28, "cannot save a checkpoint: No space left", str(path))

  monkeypatch.setattr(checkpoint, "save", save)
  with pytest.raises(configs.InputError, match=r"No space left.*run/float"):
    ptq.run(config, tmp_path / "run")


def test_a_bug_keeps_its_traceback(config, tmp_path, monkeypatch):
  def compare(found, reference):
    raise ValueError("a bug")

  monkeypatch.setattr(retrieval, "compare", compare)
  with pytest.raises(ValueError, match=r"^a bug$") as error:
    ptq.run(config, tmp_path / "run")
  assert not isinstance(error.value, configs.InputError)


def test_unused_rule_is_reported_before_the_work(
  config, tmp_path, quantized, caplog
):
  config["rules"].insert(0, ["lm_head", "keep"])
  quantized.limit = 0
  with pytest.raises(Stopped):
    ptq.run(config, tmp_path / "run")
  assert "rule 'lm_head' matches no leaf" in caplog.text


def test_dry_run_reads_no_weights(config, tmp_path, capsys):
  (tmp_path / "model" / "model.safetensors").unlink()
  config["rules"].insert(0, ["lm_head", "keep"])
  ptq.dry_run(config)
  out = capsys.readouterr().out
  for path in tiny_bert.LEAVES:
    assert out.count(path) == 2  # once for each variant
  assert out.count("embeddings/word/embedding") == 1
  assert "rule 'lm_head' matches no leaf" in out
  # 64 x 64 at 3 bits and, per column, scale and zero of 16 bits each.
  assert "3.500" in out
  assert f"{64 * 64 * 3 // 8 + 64 * 4:,}" in out


def test_dry_run_finds_what_would_stop_the_run(config):
  config["weights"]["granularity"] = ["per_block", 0, 48]
  with pytest.raises(configs.InputError, match="blocks of 48 do not divide"):
    ptq.dry_run(config)
