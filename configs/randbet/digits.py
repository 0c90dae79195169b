"""Weights in faulty memory: RQuant, clipping and RandBET on digits.

  python -m launch.qat --config=configs/randbet/digits.py --workdir=runs/randbet

An MLP 64-128-128-10 is trained from scratch, all params quantized, and scored
with its stored bits flipped at random: the mean test error over 50 patterns.
Ranges have no errors, as in the paper.

arXiv 2006.13977 has CIFAR10, 8 bits, errors of 1 %: RQuant 32.05, clipping at
0.15 13.08, at 0.05 7.18 (test error in %, the paper's).
"""

import ml_collections

RQUANT = {"method": "rquant", "bits": 8}
GLOBAL = {
  "method": "rquant",
  "bits": 8,
  "symmetric": True,
  "signed": True,
  "rounding": False,
  "q_max": 1.0,
}
FOUR = {"method": "rquant", "bits": 4}


def _variant(weights=None, **rest):
  return {"quantizers": {"weights": weights or RQUANT}, **rest}


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.model = {"name": "mlp_wide"}
  config.data = {"source": "digits"}
  config.float = {"steps": 0}
  config.train = {
    "steps": 1080,
    "learning_rate": 0.05,
    "schedule": "steps",
    "weight_decay": 5e-4,
    "evaluate_every": 180,
  }
  config.weights = ((".*", "weights"),)
  config.quantizers = {}
  config.robustness = {"rates": (0.001, 0.005, 0.01, 0.025, 0.05, 0.1)}
  config.variants = {
    "global": _variant(GLOBAL),
    "rquant": _variant(),
    "clip_50": _variant(clip=0.5),
    "clip_25": _variant(clip=0.25),
    "randbet_1": _variant(errors={"rate": 0.01}),
    "clip_25_randbet_5": _variant(clip=0.25, errors={"rate": 0.05}),
    "4bit_truncated": _variant({**FOUR, "rounding": False}),
    "4bit": _variant(FOUR),
    "4bit_clip_25_randbet_5": _variant(FOUR, clip=0.25, errors={"rate": 0.05}),
  }
  return config
