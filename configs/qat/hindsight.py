"""Full quantized training: in-hindsight ranges against dynamic ones.

  python -m launch.qat --config=configs/qat/hindsight.py \
    --workdir=runs/qat-hindsight

A ResNet-8 on scikit-learn's digits. Weights, the inputs of all layers and the
gradients that arrive at them have 8 or 4 bits; gradients are rounded at random,
and at 4 bits to nearest too.
The estimators are those that arXiv 2105.04246 compares: `current` takes the
range of the tensor itself, `running` an average up to it, `hindsight` an
average of earlier tensors alone, `dsgc` one that keeps a gradient's direction.
"""

import ml_collections

_RANGES = {
  "current": {},
  "running": {"observer": "ema", "hindsight": False},
  "hindsight": {"observer": "ema"},
  "dsgc": {"observer": ("periodic", "cosine"), "hindsight": False},
}


def _quantizers(bits, ranges, stochastic=True):
  act = {
    "method": "rtn",
    "bits": bits,
    "exact_zero": True,
    "granularity": "per_tensor",
  }
  return {
    "weight": {
      "method": "rtn",
      "bits": bits,
      "symmetric": True,
      "granularity": "per_tensor",
    },
    # DSGC is for gradients; activations then have current ranges.
    "act": act | _RANGES["current" if ranges == "dsgc" else ranges],
    "grad": act | {"stochastic": stochastic} | _RANGES[ranges],
  }


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.model = {"name": "resnet8"}
  config.data = {"source": "digits"}
  config.float = {"steps": 20, "learning_rate": 0.05}
  config.train = {"steps": 400, "learning_rate": 0.05}
  config.weights = (("kernel", "weight"),)
  config.acts = ((r"(conv|head)/in$", "act"),)
  config.grads = ((r"(conv|head)/out$", "grad"),)
  config.variants = {"float_longer": {"panel": "8 bits"}}
  for bits in (8, 4):
    for name in _RANGES:
      config.variants[f"{name}_w{bits}a{bits}g{bits}"] = {
        "quantizers": _quantizers(bits, name),
        "panel": f"{bits} bits",
      }
  for name in ("current", "running", "hindsight"):
    config.variants[f"{name}_w4a4g4_nearest"] = {
      "quantizers": _quantizers(4, name, stochastic=False),
      "panel": "4 bits, to nearest",
    }
  return config
