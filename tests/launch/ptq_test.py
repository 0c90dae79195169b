import importlib
import json
import pathlib
import subprocess
import sys

import pytest

from quantlab.experiments import configs, ptq, variants
from tests import tiny_bert

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "configs/ptq/minilm.py"


MISTAKE = (
  "error: config.methods.icquant.inner.method: unknown quantizer 'lloid'; did "
  f"you mean 'lloyd'? Known: {', '.join(configs.QUANTIZERS)}"
)


def _start(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "launch.ptq", f"--config={CONFIG}", *arguments],
    capture_output=True,
    cwd=ROOT,
    text=True,
    check=False,
  )


def _tiny(tmp_path):
  """Flags that turn the config of MiniLM into a quick one."""
  found = tiny_bert.config(tmp_path)
  return [
    f"--config.model.path={found['model']['path']}",
    f"--config.data.source={found['data']['source']}",
    "--config.evaluate=decoded",
    "--config.weights.method=icquant",
    "--config.weights.bits=3",
  ]


def _module(file):
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_config_is_the_promised_sweep():
  module = _module(CONFIG)
  found = variants.variants(configs.plain(module.get_config()))
  assert {variant[1:3] for variant in found} == {
    (method, bits)
    for bits in (2, 3, 4)
    for method in ("rtn", "easyquant", "icquant")
  }
  assert module.__doc__.count("launch.ptq") >= 1


COMPARED = {
  "rtn",
  *("lloyd", "icquant", "easyquant", "splitquant", "clusterquant"),
}


@pytest.mark.parametrize("name", ["minilm", "repvgg"])
def test_comparison_is_of_every_method_and_rate(name):
  module = _module(ROOT / "configs/compare" / f"{name}.py")
  job = ptq.read(configs.plain(module.get_config()))
  bits = {}
  for variant in job.variants:
    bits.setdefault(variant.method, set()).add(variant.bits)
  assert bits.keys() >= COMPARED | ({"cfws"} if name == "repvgg" else set())
  assert all(bits[method] >= {2, 3, 4} for method in COMPARED)
  assert len({v.granularity for v in job.variants}) >= 3
  # Some of them, each on the leaves of the real model.
  ptq.check(job, job.variants[::16])


def test_one_variant_from_the_command_line(tmp_path):
  run = _start(f"--workdir={tmp_path / 'run'}", *_tiny(tmp_path))
  assert run.returncode == 0, run.stderr
  assert "icquant" in run.stdout
  assert "Traceback" not in run.stderr
  assert "icquant-3bit: " in run.stderr
  report = json.loads((tmp_path / "run" / "report.json").read_text())
  assert list(report["total"]) == ["float", "icquant-3bit"]
  assert "icquant-3bit: " in (tmp_path / "run" / "ptq.log").read_text()


def test_bad_input_is_one_line_and_exit_code_1(tmp_path):
  run = _start(
    f"--workdir={tmp_path}", "--config.methods.icquant.inner.method=lloid"
  )
  assert run.returncode == 1
  assert run.stdout == ""
  assert run.stderr.splitlines() == [MISTAKE]
  run = _start("--config.methods.icqant.ratio=0.1", "--dry_run")
  assert run.returncode == 1
  assert run.stderr.count("\n") == 1
  assert "'icqant' Did you mean \"icquant\"" in run.stderr


def test_dry_run_needs_no_workdir(launch, tmp_path, capsys):
  launch("ptq", CONFIG, "--dry_run", *_tiny(tmp_path))
  captured = capsys.readouterr()
  assert "layer_0/mlp/down/kernel" in captured.out
  assert captured.err == ""
  with pytest.raises(SystemExit, match=r"^error: --workdir is missing$"):
    launch("ptq", CONFIG, "--nodry_run", *_tiny(tmp_path))


def test_a_tuple_from_the_command_line(launch, tmp_path, capsys):
  blocks = "--config.weights.granularity=('per_block', 0, 32)"
  launch(
    "ptq",
    CONFIG,
    "--dry_run",
    *_tiny(tmp_path),
    "--config.weights.method=rtn",
    blocks,
  )
  # 3 bits; for 32 weights a float16 scale and a zero point of 8 bits.
  assert " 3.750 " in capsys.readouterr().out


def test_an_argument_that_the_file_does_not_list(launch, tmp_path):
  tiny = [*_tiny(tmp_path), "--config.weights.method=rtn", "--dry_run"]
  launch(
    "ptq", CONFIG, *tiny, "--config.methods.rtn.estimator=('percentile', 99)"
  )
  with pytest.raises(
    SystemExit, match=r"^error: config\.methods\.rtn\.estimator: .*mse"
  ):
    launch("ptq", CONFIG, *tiny, "--config.methods.rtn.estimator=msee")
  with pytest.raises(
    SystemExit, match=r"^error: config\.weights\.bitz: .*bits"
  ):
    launch("ptq", CONFIG, *tiny, "--config.weights.bitz=3")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.weights.bits=9"], "takes 2 to 8 or 16 bits, got bits=9"),
    (["--config.model.path=/nowhere"], "'/nowhere': no path that exists"),
    (["--config.rules=(('bias', 'keep'),)"], "matches no rule"),
  ],
)
def test_bad_input_in_a_dry_run(launch, tmp_path, arguments, message):
  with pytest.raises(SystemExit, match=message) as end:
    launch("ptq", CONFIG, "--dry_run", *_tiny(tmp_path), *arguments)
  assert end.value.code.startswith("error: ")
  assert "\n" not in end.value.code


def test_unwritable_workdir(launch, tmp_path):
  (tmp_path / "file").touch()
  where = tmp_path / "file" / "run"
  with pytest.raises(SystemExit) as end:
    launch("ptq", CONFIG, f"--workdir={where}", "--nodry_run", *_tiny(tmp_path))
  expected = f"error: workdir {where}: cannot be written: Not a directory"
  assert end.value.code == expected


def test_a_bug_shows_its_traceback(launch, tmp_path, monkeypatch):
  def run(config, workdir):
    raise ValueError("a bug")

  monkeypatch.setattr(ptq, "run", run)
  with pytest.raises(ValueError, match="a bug"):
    launch(
      "ptq", CONFIG, f"--workdir={tmp_path}", "--nodry_run", *_tiny(tmp_path)
    )
