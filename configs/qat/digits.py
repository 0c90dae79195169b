"""LSQ+ against LSQ on scikit-learn's digits, with a small Swish network.

  python -m launch.qat --config=configs/qat/digits.py --workdir=runs/qat-digits

A float network is trained first; each variant goes on from it with its weights
and activations rounded in the loss. First and last layer have 8 bits.
"""

import ml_collections


def _variant(bits, weights, acts):
  return {
    "quantizers": {"inner": weights, "act": acts},
    "panel": f"{bits} bits",
  }


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.model = {"name": "efficientnet"}
  config.data = {"source": "digits"}
  config.float = {"steps": 600, "learning_rate": 0.1}
  config.train = {"steps": 400, "learning_rate": 0.02}
  config.weights = (
    ("stem/conv/kernel|head/kernel", "edge"),
    ("kernel", "inner"),
  )
  config.acts = (
    ("stem/conv/in$|head/in$", "edge_act"),
    ("(conv|squeeze|excite)/in$", "act"),
  )
  config.quantizers = {
    "edge": {"method": "lsq", "bits": 8, "start": "three_sigma"},
    "edge_act": {"method": "lsq_plus", "bits": 8},
  }
  config.variants = {
    name: _variant(bits, weights, acts)
    for bits in (2, 3, 4)
    for name, weights, acts in (
      (
        f"lsq_w{bits}a{bits}",
        {"method": "lsq", "bits": bits},
        {"method": "lsq", "bits": bits, "signed": False},
      ),
      (
        f"lsq_plus_w{bits}a{bits}",
        {"method": "lsq", "bits": bits, "start": "three_sigma"},
        {"method": "lsq_plus", "bits": bits},
      ),
    )
  }
  config.variants.float_longer = {
    "quantizers": {"edge": None, "edge_act": None},
    "panel": "4 bits",
  }
  return config
