"""Schemes of arXiv 2210.07692 for a TinyDenoiser, lower ones, and mixes.

  python -m launch.ptq --config=configs/rnn/schemes.py:gru128 \
    --workdir=runs/schemes-gru128

After the colon are the cell, `gru` or `lstm`, and the units; the model is what
configs/rnn/denoiser_gru.py or denoiser_lstm.py left in runs/denoiser-gru128.
Takes two minutes on two cores, four with an LSTM of 256 units; results are in
docs/denoising.md. With a folder of recordings (`clean`, `noisy`),
and PESQ and STOI from the extra `speech`:

  --config.data.source=FOLDER --config.data.calibration=FOLDER/calibration \
    --config.data.scores='("pesq", "stoi", "si_sdr")'
"""

import re

import ml_collections
from ml_collections import config_dict

_FP16 = ["cast", "float16"]
_PERCENTILE = ["percentile", 99.9]
# Ranges of what the first recurrent layer reads.
_RANGES = {
  "max": "extremes",
  "std3": ["deviations", 3.0],
  "percentile": {"method": "histogram", "estimator": _PERCENTILE},
  "mse": {"method": "histogram", "estimator": "mse"},
}


def _acts(cell, inputs, *, cells=None, gates="q12", rest=()):
  """Recurrent layers in 8 bits, what else is not said in float16."""
  byte = {"method": "rnn_activation", "bits": 8}
  observed = {name: {**byte, "observer": _RANGES[name]} for name in _RANGES}
  kept = "q4" if cells is None else observed[cells]
  rules = [
    ["^rnn_0/in$", observed[inputs]],
    ["^rnn_./in$|hidden/out$", byte if cell == "lstm" else "q7"],
    *([["cell/out$", kept]] if cell == "lstm" else []),
    ["(gates|candidate)/out$", gates],
    ["^rnn_", "keep"],
    *rest,
    [".*", _FP16],
  ]
  return {"rules": rules, "batches": 4}


def get_config(name: str = "gru128") -> ml_collections.ConfigDict:
  known = re.fullmatch(r"(gru|lstm)(\d+)", name)
  if not known:
    raise ValueError(f"{name!r}: expected gru or lstm and units, as in gru128")
  cell, units = known[1], int(known[2])
  gates = {"lstm": 4, "gru": 3}[cell]
  config = ml_collections.ConfigDict()
  config.task = "speech"
  config.evaluate = "decoded"  # a scan over frames would decode in each
  config.model = {"path": f"runs/denoiser-{name}/float"}
  config.data = {
    "source": "synthetic",
    "split": "test",
    "train": "train",
    "calibration": config_dict.placeholder(str),
    "scores": ("si_sdr",),
  }
  per_output = {"method": "rtn", "bits": 8, "symmetric": True}
  config.rules = {
    "all": [[".*", "weights"]],
    "recurrent": [["rnn_.*kernel$", "weights"], [".*", _FP16]],
    "uniform": [
      ["rnn_.*kernel$", "weights"],
      ["kernel$", per_output],
      [".*", _FP16],
    ],
    "kernels": [["kernel$", "weights"], [".*", _FP16]],
    "dense": [["dense_.*kernel$", "weights"], [".*", "keep"]],
  }
  byte = {"method": "rnn_weights", "gates": gates, "bits": 8}
  # Rows of all gates, so that grids take little beside the codes.
  rows = {"method": "rtn", "granularity": ["per_channel", 0]}
  icquant = {
    "method": "icquant",
    "ratio": 0.05,
    "rows": ["per_channel", 0],
    "inner": {**rows, "dtype": "float16"},
    "acts": "max",
  }
  config.methods = {
    "fp16": {
      "method": "cast",
      "dtype": "float16",
      "rules": "all",
      "acts": "fp16",
    },
    "uniform": {**byte, "rules": "uniform"},
    "mixed": {**byte, "rules": "recurrent"},
    "dense": {**per_output, "rules": "dense", "acts": "dense"},
    "rnn_icquant": {**icquant, "rules": "recurrent"},
    "rnn_easyquant": {
      "method": "easyquant",
      "rules": "recurrent",
      "acts": "max",
    },
    "icquant": {**icquant, "rules": "kernels"},
  }
  ends = [["^dense_./(in|out)$|^out$", "dense_activation"]]
  std3 = {"method": "dense_activation", "observer": _RANGES["std3"]}
  end3 = [["^out$", "dense_activation"], ["^dense_./(in|out)$", std3]]
  config.acts = {
    "fp16": {"rules": [[".*", _FP16]], "batches": 1},
    "dense": {"rules": [*ends, [".*", "keep"]], "batches": 4},
    "all_max": _acts(cell, "max", rest=ends),
    "all_std3": _acts(cell, "std3", rest=end3),
    **{inputs: _acts(cell, inputs) for inputs in _RANGES},
    # A trap: pre-activations in 8 bits.
    "gates8": _acts(cell, "max", gates="rnn_activation"),
  }
  alone = []  # Plans of which the mixed scheme alone has a row.
  if cell == "lstm":
    config.acts.update(
      {
        "cells_max": _acts(cell, "max", cells="max"),
        "cells_std3": _acts(cell, "max", cells="std3"),
        "cells_mse": _acts(cell, "max", cells="mse"),
        "paper": _acts(cell, "std3", cells="max"),
        "all_cells_max": _acts(cell, "max", cells="max", rest=ends),
      }
    )
    alone = ["cells_max", "cells_std3", "cells_mse", "paper"]
  config.weights = {"method": None, "bits": None, "acts": None}
  config.sweep = {
    "fp16": {},
    "uniform": {"acts": [name for name in config.acts if "all_" in name]},
    "mixed": {"acts": [*_RANGES, "gates8", *alone]},
    "dense": {},
    "rnn_icquant": {"bits": [4, 2]},
    "rnn_easyquant": {"bits": [4]},
    "icquant": {"bits": [4, 3, 2]},
  }
  weights = 2 * 257**2 + 257 * units + gates * (257 * units + 3 * units**2)
  layers = {name: f"^{name}/" for name in ("rnn_0", "rnn_1", "dense_1")}
  config.budget = {
    "bytes": [int(2 * weights * share) for share in (0.6, 0.45, 0.3, 0.2)],
    # The network's own ends belong to its first and last layer.
    "layers": {
      **layers,
      "dense_0": "^(dense_0/|in$)",
      "dense_2": "^(dense_2/|out$)",
    },
    "choices": [
      *("fp16", "uniform-8bit-all_max"),
      *("icquant-4bit", "icquant-3bit", "icquant-2bit"),
    ],
  }
  return config
