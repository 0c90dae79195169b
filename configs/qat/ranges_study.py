"""How a learned range is said: bits and learning rates of each way.

  python -m launch.qat --config=configs/qat/ranges_study.py \
    --workdir=runs/qat-ranges

A MobileNetV2-style network on scikit-learn's digits, weights and activations
per tensor. The ways are those that arXiv 2404.16898 compares.
"""

import ml_collections

_KINDS = ("scale_zero", "min_max", "beta_gamma", "beta_gamma_sigmoid")


def _quantizer(kind, bits):
  return {
    "method": "rtn",
    "bits": bits,
    "exact_zero": True,
    "granularity": "per_tensor",
    "learned": kind,
  }


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.model = {"name": "mobilenet"}
  config.data = {"source": "digits"}
  config.float = {"steps": 400, "learning_rate": 0.1}
  config.train = {"steps": 200, "learning_rate": 0.01}
  config.weights = (("kernel", "weight"),)
  config.acts = ((r"(conv|head)/in$", "act"),)
  config.variants = {
    f"{kind}_{bits}bit_{rate:.0e}": {
      "quantizers": {
        "weight": _quantizer(kind, bits),
        "act": _quantizer(kind, bits),
      },
      "train": {"range_learning_rate": rate},
      "panel": f"{bits} bits, rate {rate:g}",
    }
    for bits in (3, 8)
    for rate in (1e-3, 1e-2)
    for kind in _KINDS
  }
  return config
