"""Trains a TinyDenoiser with LSTM layers (arXiv 2210.07692) in floats.

  python -m launch.qat --config=configs/rnn/denoiser_lstm.py \
    --config.model.features=128 --workdir=runs/denoiser-lstm128

Speech is synthetic unless `--config.data.source` names a folder with `clean`
and `noisy` in it, or a table such as JacobLinCool/VoiceBank-DEMAND-16k.

On two cores, beside other work, 128 units take 3 minutes and 256 take 6. The
last test_loss: 0.0031 and 0.0027 on the five recordings of docs/denoising.md,
which are trained on too.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.model = {"name": "denoiser", "cell": "lstm", "features": 256}
  config.data = {
    "source": "synthetic",
    "train": "train",
    "split": "test",
    "clean": "clean",
    "noisy": "noisy",
    "seconds": 1.0,
  }
  config.float = {
    "steps": 1500,
    "batch_size": 12,
    "max_norm": 1.0,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "weight_decay": 0.0,
    "evaluate_every": 250,
    "save_every": 250,
  }
  return config
