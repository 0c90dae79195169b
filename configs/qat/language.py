"""A byte Llama with 8-bit activations: weights trained against calibrated.

  python -m launch.qat --config=configs/qat/language.py \
    --workdir=runs/qat-language

Four layers on the sources of the standard library. At 4 and at 2 bits, the same
weights are calibrated only (`ptq`: no steps, ranges of least squared error) and
trained (`qat`, LSQ). Embeddings and head stay float.
"""

import ml_collections

_ACT = {"method": "lsq_plus", "bits": 8}


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.model = {"name": "llama"}
  config.data = {"source": "stdlib", "tokens": 128, "windows": 128}
  config.float = {
    "steps": 800,
    "batch_size": 16,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "evaluate_every": 200,
  }
  config.train = {
    "steps": 200,
    "batch_size": 16,
    "range_batch": 32,
    "optimizer": "adamw",
    "learning_rate": 5e-4,
    "evaluate_every": 50,
  }
  config.weights = (("layer_.*kernel", "weight"),)
  config.acts = (("layer_.*/(query|key|value|out|gate|up|down)/in$", "act"),)
  config.quantizers = {"act": _ACT}
  config.variants = {
    "float_longer": {"quantizers": {"act": None}, "panel": "4 bits"},
  }
  for bits in (4, 2):
    weight = {
      "method": "lsq",
      "bits": bits,
      "granularity": "per_output",
      "start": "mse",
    }
    for name, steps in (("ptq", 0), ("qat", 200)):
      config.variants[f"{name}_w{bits}a8"] = {
        "quantizers": {"weight": weight},
        "train": {"steps": steps},
        "panel": f"{bits} bits",
      }
  return config
