"""A budget of stored bits, for gates of any quantizer, on digits.

  python -m launch.qat --config=configs/cgmq/stored_bits.py --workdir=runs/bits

An MLP 64-64-32-10 may take 3 stored bits per weight, all that is stored
counted: codes, scales, tables, index code, biases. Kernels choose among 2, 3, 4
and 8 bits of round to nearest, of k-means tables, or of index-coded outliers
around either. Ours: arXiv 2409.20138 counts bit operations.
"""

import ml_collections

WEIGHTS = 64 * 64 + 64 * 32 + 32 * 10
BIASES = 64 + 32 + 10
ICQUANT = {"method": "icquant", "ratio": 0.05}


def _variant(inner, **budget):
  weights = {"method": "gated", "inner": inner, "widths": (2, 3, 4, 8)}
  most = 3 * WEIGHTS + 32 * BIASES
  return {
    "quantizers": {"weights": weights},
    "budget": {"most": most, "of": "bits", "every": 18, "warmup": 36} | budget,
  }


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.model = {"name": "mlp"}
  config.data = {"source": "digits"}
  adam = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.0}
  config.float = {"steps": 1080} | adam
  config.train = {"steps": 360, "evaluate_every": 90} | adam
  config.weights = (("kernel", "weights"),)
  tensor = {"granularity": "per_tensor"}
  config.variants = {
    "rtn": _variant({"method": "rtn"} | tensor),
    "rtn_programme": _variant({"method": "rtn"} | tensor, allocate="programme"),
    "lloyd": _variant({"method": "lloyd"} | tensor),
    "icquant_rtn": _variant(ICQUANT | {"inner": {"method": "rtn"} | tensor}),
    "icquant_lloyd": _variant(
      ICQUANT | {"inner": {"method": "lloyd"} | tensor}
    ),
  }
  config.quantizers = {}
  return config
