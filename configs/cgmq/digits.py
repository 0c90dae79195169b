"""Mixed precision under a budget of bit operations: CGMQ on digits.

  python -m launch.qat --config=configs/cgmq/digits.py --workdir=runs/cgmq

An MLP 64-64-32-10 may cost 1.75 times its floor: the cost of 2 bits everywhere
with an input of 8 bits, 1.133 % of that at 32 bits. The same budget goes to the
gates, guided in three ways, and to widths chosen before the training: uniform,
greedy, and by an integer programme.

arXiv 2409.20138 has MNIST and CIFAR10; see `lenet5.py`.
"""

import ml_collections

FLOOR = 75_008 / 6_619_136
GATES = {
  "weights": {"method": "cgmq"},
  "acts": {"method": "cgmq", "signed": False, "batch": True},
}


def _budget(**changes):
  return {"most": 1.75 * FLOOR, "every": 18, "warmup": 180} | changes


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.model = {"name": "mlp"}
  config.data = {"source": "digits"}
  config.float = {
    "steps": 1080,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
  }
  config.train = {
    "steps": 1260,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "range_batch": 1024,
    "evaluate_every": 90,
  }
  config.weights = (("kernel", "weights"),)
  config.acts = (("hidden_1/in$|head/in$", "acts"),)
  config.quantizers = GATES
  config.variants = {
    name: {"budget": _budget(**changes)}
    for name, changes in {
      "dir_1": {"direction": "dir_1", "rate": 1e-3},
      "dir_2": {"direction": "dir_2"},
      "dir_3": {"direction": "dir_3"},
      "uniform": {"allocate": "uniform"},
      "greedy": {"allocate": "greedy"},
      "programme": {"allocate": "programme"},
    }.items()
  }
  return config
