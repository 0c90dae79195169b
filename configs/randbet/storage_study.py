"""What a wrong bit does to each stored part of each format.

  python -m launch.storage --config=configs/randbet/storage_study.py \
    --workdir=runs/storage

A perceptron 64-256-256-10 without biases on scikit-learn's digits. Its kernels
are stored in one format after another; bit errors hit everything, one part
alone, and all but one part. The error model, the patterns and `rquant` are
those of arXiv 2006.13977; the comparison is ours. Ten minutes on two cores that
others use too.

docs/bit-errors.md has the results of this command. At a rate of 0.001 the mean
test error (%) is

  format         clean   all  only codes  only grid  only index
  rquant_8         2.3   2.1         2.1        2.3
  rtn_4            2.0  38.3         2.0       38.3
  icquant_rtn_2    3.1  87.5         3.2       86.9         3.4
"""

import ml_collections


def _rtn(bits, **arguments):
  return {"method": "rtn", "bits": bits, **arguments}


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.source = "digits"
  config.split = "test"
  config.widths = (256, 256)
  config.steps = 1000
  config.batch_size = 64
  config.learning_rate = 0.05
  config.rates = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
  config.at = 1e-3
  config.patterns = 20
  config.remedies = ((128, 1), (128, 3), (32, 1), (8, 1), (1, 1))
  config.samples = 500
  lloyd2 = {"method": "lloyd", "bits": 2}
  config.formats = {
    "float32": "keep",
    "rtn_8": _rtn(8),
    "rtn_4": _rtn(4),
    "rtn_2": _rtn(2),
    "rtn_4_block64": _rtn(4, granularity=("per_block", 0, 64)),
    "rtn_4_float16": _rtn(4, dtype="float16"),
    "rquant_8": {"method": "rquant", "bits": 8},
    "rquant_4": {"method": "rquant", "bits": 4},
    "lloyd_4": {"method": "lloyd", "bits": 4},
    "lloyd_2": lloyd2,
    "icquant_rtn_2": {"method": "icquant", "inner": _rtn(2), "ratio": 0.05},
    "icquant_lloyd_2": {"method": "icquant", "inner": lloyd2, "ratio": 0.05},
    "splitquant_rtn_4": {
      "method": "splitquant",
      "inner": _rtn(4, exact_zero=True),
    },
    "clusterquant_rtn_4": {"method": "clusterquant", "inner": _rtn(4)},
    "easyquant_4": {"method": "easyquant", "bits": 4},
    "exact_rtn_4": {"method": "exact_outliers", "inner": _rtn(4)},
  }
  return config
