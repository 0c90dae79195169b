import importlib
import json
import pathlib
import subprocess
import sys

import pytest

from quantlab.experiments import configs
from quantlab.experiments.qat import settings
from quantlab.models import cnn

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(
  file
  for folder in ("qat", "cgmq", "randbet")
  for file in (ROOT / "configs" / folder).glob("*.py")
  if "launch.qat" in file.read_text()
)
DIGITS = ROOT / "configs/qat/digits.py"


def _config(file):
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return configs.plain(module.get_config())


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_configs_are_read(file):
  config = _config(file)
  if "mnist" in config["data"].get("source", ""):  # needs network
    config["data"] = {"source": "digits"}
  found = settings.read(config)
  assert len(found.variants) > 2
  assert len({variant.name for variant in found.variants}) == len(
    found.variants
  )
  command = f"--config=configs/{file.parent.name}/{file.name}"
  assert command in file.read_text()


def test_one_variant_and_again(launch, tmp_path, monkeypatch, capsys):
  tiny = cnn.NETWORKS["resnet8"].clone(stem=4, blocks=((4, 1),))
  monkeypatch.setattr(cnn, "NETWORKS", {"efficientnet": tiny})
  inner = "{'quantizers': {'inner': {'method': 'lsq', 'bits': 4}}}"
  only = [
    f"--config.variants={{'w4': {inner}}}",
    "--config.weights=(('kernel', 'inner'),)",
    "--config.acts=()",
    "--config.quantizers={}",
    "--config.data.limit=32",
    "--config.float.steps=2",
    "--config.train.steps=0",
    f"--workdir={tmp_path}",
  ]
  launch("qat", DIGITS, *only)
  first = capsys.readouterr().out
  assert "accuracy" in first
  assert "w4" in first
  rows = json.loads((tmp_path / "report.json").read_text())["results"]
  assert rows["float"]["steps"] == 2
  assert rows["w4"]["steps"] == 0  # what calibration alone gives
  assert rows["w4"]["bits_per_weight"] < 16
  launch("qat", DIGITS, *only)
  assert capsys.readouterr().out == first
  assert "w4: packed in " in (tmp_path / "qat.log").read_text()


def test_bad_input_is_one_line_and_exit_code_1(tmp_path):
  run = subprocess.run(
    [
      *(sys.executable, "-m", "launch.qat", f"--config={DIGITS}"),
      *(f"--workdir={tmp_path}", "--config.train.optimiser=adamw"),
    ],
    capture_output=True,
    cwd=ROOT,
    text=True,
    check=False,
  )
  assert run.returncode == 1
  assert run.stdout == ""
  assert run.stderr.count("\n") == 1
  assert run.stderr.startswith("error: config.")
  assert "did you mean 'optimizer'" in run.stderr


def test_a_workdir_is_needed(launch):
  with pytest.raises(SystemExit, match=r"^error: --workdir is missing$"):
    launch("qat", DIGITS)
