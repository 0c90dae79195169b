"""How far LSQ+ runs spread over seeds, by the start of their activations.

  for seed in 0 1 2 3 4; do
    python -m launch.qat --config=configs/qat/starts.py --config.seed=$seed \
      --workdir=runs/starts-$seed
  done

LSQ+ (arXiv 2004.09576) at W2A2 on scikit-learn's digits with a Swish network:
activations start at a step of 1 and an offset of 0, at the extremes of the
first batch, or at the range of least squared error, which is LSQ+'s. The paper
reports that the last spreads least; no figures of it are compared here.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.model = {"name": "efficientnet"}
  config.data = {"source": "digits"}
  config.float = {"steps": 600, "learning_rate": 0.1}
  config.train = {"steps": 400, "learning_rate": 0.02, "evaluate_every": 100}
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
    "inner": {"method": "lsq", "bits": 2, "start": "three_sigma"},
  }
  config.variants = {
    name: {
      "quantizers": {"act": {"method": "lsq_plus", "bits": 2, "start": start}}
    }
    for name, start in (
      ("unit_step", "unit_step"),
      ("extremes", "minmax"),
      ("least_error", "mse_ends"),
    )
  }
  return config
