"""The paper's claim, on a denoiser that is trained here on recordings."""

import importlib.util
import pathlib

import pytest

from quantlab.experiments import configs, ptq, qat

_ROOT = pathlib.Path(__file__).parents[3]
_RECORDINGS = _ROOT.parent / "shared/data/valentini"


def _config(name, *arguments):
  file = _ROOT / f"configs/rnn/{name}.py"
  spec = importlib.util.spec_from_file_location(name, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = configs.plain(module.get_config(*arguments))
  config["data"]["source"] = str(_RECORDINGS)
  return config


@pytest.mark.study
@pytest.mark.skipif(not _RECORDINGS.exists(), reason="no recordings here")
@pytest.mark.parametrize("name", ["gru128", "lstm128"])
def test_dense_layers_do_the_damage_not_the_recurrent(name, tmp_path):
  cell = name.removesuffix("128")
  training = _config(f"denoiser_{cell}")
  training["model"]["features"] = 128
  qat.run(training, tmp_path / "train")
  config = _config("schemes", name)
  config["model"]["path"] = str(tmp_path / "train/float")
  config["data"]["calibration"] = str(_RECORDINGS / "calibration")
  config["sweep"] = {
    "fp16": {},
    "dense": {},
    "uniform": {"acts": ["all_max"]},
    "mixed": {"acts": ["max", "std3"]},
  }
  del config["budget"]
  results = ptq.run(config, tmp_path / "schemes")
  errors = {name: row["mask_rmse"] for name, row in results.items()}
  assert errors["fp16"] < 1e-3
  assert errors["mixed-8bit-max"] < 0.25 * errors["uniform-8bit-all_max"]
  assert errors["dense-8bit"] > 0.5 * errors["uniform-8bit-all_max"]
  assert errors["mixed-8bit-max"] < errors["mixed-8bit-std3"]
