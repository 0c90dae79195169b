r"""All weight methods on all-MiniLM-L6-v2, at equal stored bits.

Which method keeps most of the encoder for the bits that it really stores? All
are judged by one task, retrieval among 300 docstrings, and the report ends in
the Pareto front of bits and cosine to the float embeddings.

  python -m launch.ptq --config=configs/compare/minilm.py \
    --workdir=runs/compare-minilm

One method, or one variant:

  ... --config.weights.method=icquant --config.weights.bits=3

Left out, because it cannot pay: tables at 8 bits, whose 256 levels for a row
of 384 weights take more than the codes, and tables for each block.

Sensitivities are the mean squared gradients of a contrastive loss over pairs
that are not among the 300. The variants with `static` or `dynamic` in their
name have 8-bit activations too, the inputs of all 36 products: static with one
calibrated scale each, dynamic with one for each token.
"""

import ml_collections
from ml_collections import config_dict

BITS = (2, 3, 4, 8)
FEW = (2, 3, 4)
ROWS = ("per_output",)
BLOCKS = (("per_block", -2, 128), ("per_block", -2, 64), ("per_block", -2, 32))


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = "retrieval"
  config.evaluate = "decoded"  # The variants are many and small.
  config.model = {"path": "minilm"}
  config.data = {
    "source": "docstrings",
    "limit": 300,
    "seed": 0,
    "batch_size": 16,
  }
  config.sensitivity = {"batches": 16}
  act = {"method": "rtn", "bits": 8}
  static = {"method": "histogram", "estimator": "mse"}

  def inputs(act):
    sites = r"(query|key|value|attention/out|up|down)/in$"
    return {"rules": ((sites, act), (r"", "keep")), "batches": 8}

  config.acts = {
    "static": inputs({**act, "granularity": "per_tensor", "observer": static}),
    "dynamic": inputs({**act, "granularity": ("chunks", -1, 1)}),
  }
  config.rules = ((r"embeddings|norm|bias", "keep"), (r"kernel$", "weights"))
  config.weights = {
    "method": config_dict.placeholder(str),
    "bits": config_dict.placeholder(int),
    "granularity": config_dict.placeholder(object),
    "acts": config_dict.placeholder(str),
    "dtype": "float16",
  }
  # Uniform grids have a level at 0, see configs/ptq/minilm.py.
  rtn = {"method": "rtn", "exact_zero": True}
  icquant = {"method": "icquant", "ratio": 0.05}
  config.methods = {
    "rtn": rtn,
    "rtn_mse": {**rtn, "estimator": "mse"},
    "rtn_A8": {**rtn, "estimator": "mse"},
    "lloyd": {"method": "lloyd"},
    "lloyd_fisher": {"method": "lloyd", "sensitivity": True},
    "easyquant": {"method": "easyquant", "steps": 100, "learning_rate": 0.05},
    "icquant": {**icquant, "inner": rtn},
    "icquant_lloyd": {**icquant, "inner": {"method": "lloyd"}},
    "icquant_fisher": {
      **icquant,
      "inner": {"method": "lloyd"},
      "sensitivity": True,
    },
    # What is best for Gaussian rows, about 8 %.
    "icquant_fisher_best": {
      "method": "icquant",
      "inner": {"method": "lloyd"},
      "sensitivity": True,
    },
    # Fewer outliers, for less than 2.35 bits.
    "icquant_fisher_1pct": {
      **icquant,
      "ratio": 0.01,
      "inner": {"method": "lloyd"},
      "sensitivity": True,
    },
    "exact_icquant": {
      "method": "exact_outliers",
      "inner": {**icquant, "inner": rtn},
    },
    "splitquant": {"method": "splitquant", "inner": rtn},
    # Each grid covers one cluster, far from 0 or around it.
    "clusterquant": {"method": "clusterquant", "inner": {"method": "rtn"}},
  }
  tables = {"bits": FEW, "granularity": ROWS}
  config.sweep = {
    "rtn": {"bits": BITS, "granularity": ("per_tensor", *ROWS, *BLOCKS)},
    "rtn_mse": {"bits": BITS, "granularity": (*ROWS, BLOCKS[1])},
    "rtn_A8": {
      "bits": (4, 8),
      "granularity": ROWS,
      "acts": ("static", "dynamic"),
    },
    "lloyd": {**tables},
    "lloyd_fisher": {**tables},
    "easyquant": {"bits": BITS, "granularity": ROWS},
    "icquant": {"bits": BITS, "granularity": (*ROWS, BLOCKS[1])},
    "icquant_lloyd": {**tables},
    "icquant_fisher": {**tables},
    "icquant_fisher_best": {**tables},
    "icquant_fisher_1pct": {"bits": (2,), "granularity": ROWS},
    "exact_icquant": {"bits": FEW, "granularity": ROWS},
    "splitquant": {"bits": BITS, "granularity": ROWS},
    "clusterquant": {"bits": BITS, "granularity": (*ROWS, BLOCKS[1])},
  }
  return config
