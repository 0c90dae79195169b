"""Post-training quantization of all-MiniLM-L6-v2: three methods at 2 to 4 bits.

RTN, EasyQuant (arXiv 2403.02775) and ICQuant (arXiv 2505.00850) on the 36
kernels of the encoder, one grid per output channel; tables, biases and norms
stay as they are. Judged on the weights and on retrieval: find the body of a
standard-library docstring from its first line, 600 pairs.

  python -m launch.ptq --config=configs/ptq/minilm.py --workdir=runs/ptq-minilm

One variant, or another model of the BERT family (a folder or a hub id):

  ... --config.weights.method=icquant --config.weights.bits=3
  ... --config.model.path=sentence-transformers/all-MiniLM-L12-v2

`--dry_run` prints the sizes of all leaves instead. Any argument of a method can
be set, listed below or not: `--config.methods.rtn.estimator=mse`.

Takes 7 minutes on 2 CPU cores, as busy as they are; less with
`--config.evaluate=decoded`, which compiles once for all variants. With Python
3.11, whose docstrings the task is made of:

  method     bits  bits/weight  SQNR dB  cosine   R@1    MRR   top-1 as float
  float        32       32.000           1.0000  0.448  0.567  1.000
  rtn           4        4.047    17.48  0.9318  0.437  0.556  0.745
  icquant       4        4.481    22.52  0.9787  0.448  0.561  0.882
  easyquant     4        4.485    19.61  0.9568  0.455  0.570  0.795
  rtn           3        3.047    10.95  0.7309  0.375  0.493  0.557
  icquant       3        3.481    15.91  0.9129  0.425  0.546  0.727
  easyquant     3        3.485    13.69  0.8510  0.402  0.515  0.630
  rtn           2        2.047     4.14  0.1096  0.053  0.093  0.083
  icquant       2        2.481     8.58  0.6044  0.335  0.448  0.448
  easyquant     2        2.485     7.04  0.4483  0.198  0.291  0.238
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = "retrieval"
  config.evaluate = "packed"  # Or decoded, which compiles the model once.
  # The pip package's model; or a folder of the BERT family, or a hub id.
  config.model = {"path": "minilm"}
  config.data = {
    "source": "docstrings",
    "limit": 600,
    "seed": 0,
    "batch_size": 16,
  }
  # The first pattern that is found in a leaf's path places it.
  config.rules = ((r"embeddings|norm|bias", "keep"), (r"kernel$", "weights"))
  # What is compared, with the arguments that are its own.
  # With a level at 0: without one, the many small weights of a row are all off
  # by the same amount, which a sum does not average out.
  rtn = {"method": "rtn", "exact_zero": True}
  config.methods = {
    "rtn": rtn,
    "easyquant": {
      "method": "easyquant",
      "sigmas": 3.0,
      "steps": 100,
      "learning_rate": 0.05,
    },
    "icquant": {
      "method": "icquant",
      "inner": rtn,
      "ratio": 0.05,
      "gap_bits": 6,
    },
  }
  # For every quantizer that has such arguments. What is None is open.
  config.weights = {
    "method": config_dict.placeholder(str),
    "bits": config_dict.placeholder(int),
    "granularity": ("per_channel", -1),
    "dtype": "float16",
  }
  # What is open: a row of the table for each combination of a method's lists.
  config.sweep = {name: {"bits": (2, 3, 4)} for name in config.methods}
  return config
