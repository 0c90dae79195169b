"""CGMQ on LeNet-5 and MNIST (arXiv 2409.20138), bounds from 0.4 to 5 %.

  python -m launch.qat --config=configs/cgmq/lenet5.py --workdir=runs/lenet5

Published: 99.0 to 99.3 % at bounds of 0.4, 0.9, 1.4, 2 and 5 % of the bit
operations at 32 bits (the paper's table, as recalled, not confirmed); Bayesian
Bits, with pruning, about 99.30 % at 0.36 % (its authors' README). With an input
of 8 bits the least is 0.517 % without pruning, so 0.4 % takes an input of 2.

Reconstruction: the schedule of 250 epochs before and 250 with gates, the
rates, the bounds. MNIST is a dataset of the Hugging Face hub. Not run here,
where there is no network; what LeNet-5 costs is in tests/apply/cost_test.py.
"""

import ml_collections

EPOCH = 60_000 // 128
BOUNDS = (0.004, 0.009, 0.014, 0.02, 0.05)


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.model = {"name": "lenet5"}
  config.data = {"source": "ylecun/mnist"}
  adam = {
    "batch_size": 128,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
  }
  config.float = {"steps": 250 * EPOCH} | adam
  config.train = {
    "steps": 270 * EPOCH,
    "range_batch": 10_000,
    "evaluate_every": 5 * EPOCH,
    "save_every": 5 * EPOCH,
  } | adam
  config.weights = (("kernel", "weights"),)
  config.acts = (("conv_1/in$|hidden/in$|head/in$", "acts"),)
  config.quantizers = {
    "weights": {"method": "cgmq"},
    "acts": {"method": "cgmq", "signed": False, "batch": True},
  }
  config.variants = {
    f"{direction}_{1000 * bound:.0f}_per_mille": {
      "budget": {
        "most": bound,
        "direction": direction,
        "rate": rate,
        "every": EPOCH,
        "warmup": 20 * EPOCH,
        "input_bits": 2 if bound < 0.00518 else 8,
      },
      "panel": f"{bound:.1%}",
    }
    for bound in BOUNDS
    for direction, rate in (("dir_1", 1e-3), ("dir_2", 1e-2), ("dir_3", 1e-2))
  }
  return config
