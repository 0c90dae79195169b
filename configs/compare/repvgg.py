r"""All weight methods on the convolutions of a RepVGG, at equal stored bits.

The network is trained here, on scikit-learn's handwritten digits, and fused:
the centre taps of its kernels are ten times as large as the taps around them,
which is what CFWS (arXiv 2312.10588) is for. Judged on the logits of the 355
images of the test split.

  python -m launch.ptq --config=configs/compare/repvgg.py \
    --workdir=runs/compare-repvgg

The first layer and the classifier have 8 bits in all variants, as is usual.
`A8` means 8-bit activations too, the inputs of all products: `static` with one
calibrated scale each, `dynamic` with one for each image.

Left out, because it cannot pay: tables at 8 bits, whose 256 levels for a row
of 288 weights take more than the codes.

The paper's own model and data: configs/published/cfws_repvgg.py.
"""

import ml_collections
from ml_collections import config_dict

BITS = (2, 3, 4, 8)
FEW = (2, 3, 4)
ROWS = ("per_output",)
BLOCKS = (("per_block", -2, 32),)


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = "images"
  config.evaluate = "decoded"  # The variants are many and small.
  config.model = {"path": "repvgg-digits", "seed": 0}
  config.data = {"source": "digits", "split": "test", "batch_size": 64}
  config.sensitivity = {"batches": 16}
  rtn = {"method": "rtn", "symmetric": True}
  ends = {**rtn, "bits": 8, "dtype": "float16"}
  config.rules = (
    (r"bias$", "keep"),
    (r"stage_0|head", ends),
    (r"conv/kernel$", "weights"),
  )
  act = {"method": "rtn", "bits": 8}
  static = {"method": "histogram", "estimator": "mse"}

  def inputs(act):
    return {"rules": ((r"(conv|head)/in$", act), (r"", "keep")), "batches": 4}

  config.acts = {
    "static": inputs({**act, "granularity": "per_tensor", "observer": static}),
    "dynamic": inputs({**act, "granularity": ("per_channel", 0)}),
  }
  config.weights = {
    "method": config_dict.placeholder(str),
    "bits": config_dict.placeholder(int),
    "granularity": config_dict.placeholder(object),
    "acts": config_dict.placeholder(str),
    "dtype": "float16",
  }
  icquant = {"method": "icquant", "ratio": 0.05}
  config.methods = {
    "rtn": rtn,
    "rtn_mse": {**rtn, "estimator": "mse"},
    "rtn_A8": rtn,
    "lloyd": {"method": "lloyd"},
    "lloyd_fisher": {"method": "lloyd", "sensitivity": True},
    "easyquant": {"method": "easyquant", "steps": 100, "learning_rate": 0.05},
    "icquant": {**icquant, "inner": {"method": "rtn"}},
    "icquant_lloyd": {**icquant, "inner": {"method": "lloyd"}},
    "splitquant": {
      "method": "splitquant",
      "inner": {"method": "rtn", "exact_zero": True},
    },
    "clusterquant": {
      "method": "clusterquant",
      "inner": {"method": "rtn"},
    },
    "cfws": {"method": "cfws", "fine": rtn},
    "cfws_whole": {"method": "cfws", "fine": rtn, "extract": False},
    "cfws_A8": {"method": "cfws", "fine": rtn},
    "cfws_lloyd": {"method": "cfws", "fine": {"method": "lloyd"}},
    "cfws_icquant": {
      "method": "cfws",
      "fine": {**icquant, "inner": {"method": "lloyd"}},
    },
  }
  every = {"bits": BITS, "granularity": ROWS}
  tables = {"bits": FEW, "granularity": ROWS}
  quantized = {
    "bits": (4, 8),
    "granularity": ROWS,
    "acts": ("static", "dynamic"),
  }
  config.sweep = {
    "rtn": {"bits": BITS, "granularity": ("per_tensor", *ROWS, *BLOCKS)},
    "rtn_mse": {**every},
    "rtn_A8": {**quantized},
    "lloyd": {**tables},
    "lloyd_fisher": {**tables},
    "easyquant": {**every},
    "icquant": {**every},
    "icquant_lloyd": {**tables},
    "splitquant": {**every},
    "clusterquant": {**every},
    "cfws": {"bits": BITS, "granularity": (*ROWS, *BLOCKS)},
    "cfws_whole": {**every},
    "cfws_A8": {**quantized},
    "cfws_lloyd": {**tables},
    "cfws_icquant": {**tables},
  }
  return config
