"""SplitQuant V2's INT4 of Llama 3.2 1B Instruct on ARC (arXiv 2503.07657).

Accuracy in %, the paper's. Its abstract has the gain at INT4, +11.76 points,
and that it matches the float model; the accuracies are recalled, not confirmed:

  float   INT4 plain -> split   INT8             INT2
  57.9    45.92 -> 57.68        about as float   fails, split or not

The abstract also has the time, 2 min 6 s on the CPU of an Apple M4.

  python -m launch.ptq --config=configs/published/splitquant_llama.py \
    --workdir=runs/splitquant-llama

What the paper leaves open is reconstruction, in other words a guess: ARC as the
questions of ARC-Challenge with four choices; the prompt, which lists them for
the model to name a letter; the quantizer, asymmetric with a level at 0, of
which both granularities are tried. Biases there are none, and the embeddings,
which are the head too, stay as they are.

Not run here, where there is no network: the tests run it on a tiny model of the
same format. The download takes 2.5 GB and a licence that Meta grants on the
model's page; as floats of 32 bits the model takes 5 GB of memory.
"""

import ml_collections
from ml_collections import config_dict

from quantlab.data import choices


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.task = "choices"
  config.evaluate = "decoded"
  config.model = {
    "path": "meta-llama/Llama-3.2-1B-Instruct",
    "dtype": "float32",
  }
  config.data = {
    "source": choices.ARC,
    "options": 4,
    "letters": True,
    "limit": config_dict.placeholder(int),
    "batch_size": 4,
  }
  config.rules = (
    (r"embeddings|norm|bias|head", "keep"),
    (r"kernel$", "weights"),
  )
  rtn = {"method": "rtn", "exact_zero": True}
  config.methods = {
    "plain": rtn,
    "split": {"method": "splitquant", "inner": rtn},
  }
  config.weights = {
    "method": config_dict.placeholder(str),
    "bits": config_dict.placeholder(int),
    "granularity": config_dict.placeholder(object),
    "dtype": "float16",
  }
  sweep = {"bits": (4, 8, 2), "granularity": ("per_output", "per_tensor")}
  config.sweep = {name: {**sweep} for name in config.methods}
  return config
