"""Post-training quantization of all-MiniLM-L6-v2: three methods, three widths.

python -m launch.ptq --config=configs/ptq/minilm.py --workdir=runs/ptq-minilm

TODO
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  # The pip package's model; or a folder of the BERT family, or a hub id.
  config.model = {"path": "minilm"}
  config.data = {
    "source": "docstrings",
    "limit": 600,
    "seed": 0,
    "batch_size": 32,
  }
  # The first pattern that is found in a leaf's path places it.
  config.rules = ((r"embeddings|norm|bias", "keep"), (r"kernel$", "weights"))
  # For every quantizer that has such arguments.
  config.weights = {
    "method": config_dict.placeholder(str),
    "bits": config_dict.placeholder(int),
    "granularity": ("per_channel", -1),
    "dtype": "float16",
  }
  # What `weights` leaves open: a table row for each combination.
  config.sweep = {"method": ("rtn", "easyquant", "icquant"), "bits": (2, 3, 4)}
  # Arguments of one method.
  # With a level at 0: without one, the many small weights of a row that has an
  # outlier are all off by the same amount, which a sum does not average out.
  config.rtn = {"symmetric": True, "narrow": False}
  config.easyquant = {"sigmas": 3.0, "steps": 100, "learning_rate": 0.05}
  config.icquant = {"inner": {"method": "rtn"}, "ratio": 0.05, "gap_bits": 6}
  return config
