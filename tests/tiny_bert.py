"""A random BERT of 29 k weights and a task: the whole job takes seconds."""

import csv
import json

import numpy as np
import safetensors.numpy
import tokenizers

from quantlab.models import families

WORDS = [
  *("[PAD]", "[CLS]", "[SEP]", "the", "a", "cat", "dog"),
  *("runs", "sleeps", "red", "blue", "old", "new"),
]
D, F = 64, 128
KERNELS = {
  "attention/query": (D, D),
  "attention/key": (D, D),
  "attention/value": (D, D),
  "attention/out": (D, D),
  "mlp/up": (D, F),
  "mlp/down": (F, D),
}
LEAVES = [f"layer_0/{name}/kernel" for name in KERNELS]
SIZES = {
  "model_type": "bert",
  "vocab_size": len(WORDS),
  "hidden_size": D,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "intermediate_size": F,
  "max_position_embeddings": 32,
  "type_vocab_size": 2,
  "pad_token_id": 0,
}
PAIRS = [
  ("the cat runs", "a red cat runs"),
  ("the dog sleeps", "an old dog sleeps"),
  ("the red dog", "a new red dog runs"),
  ("the blue cat", "the old blue cat sleeps"),
]


def tensors(seed=0):
  """Published names and torch's layout, drawn from a normal distribution."""
  shapes = {
    "embeddings/word/embedding": (len(WORDS), D),
    "embeddings/position/embedding": (32, D),
    "embeddings/token_type/embedding": (2, D),
  }
  for norm in ("embeddings", "layer_0/attention", "layer_0/mlp"):
    shapes |= {f"{norm}/norm/scale": (D,), f"{norm}/norm/bias": (D,)}
  for name, shape in KERNELS.items():
    shapes[f"layer_0/{name}/kernel"] = shape
    shapes[f"layer_0/{name}/bias"] = shape[1:]
  generator = np.random.default_rng(seed)
  out = {}
  for path, shape in shapes.items():
    value = generator.normal(size=shape).astype(np.float32) / 4
    value += path.endswith("scale")
    name = families.FAMILIES["bert"].keys(tuple(path.split("/")))[0]
    out[name] = np.ascontiguousarray(
      value.T if path.endswith("kernel") else value
    )
  return out


def write(folder, seed=0):
  """Writes a Hugging Face folder; returns it."""
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps(SIZES))
  safetensors.numpy.save_file(tensors(seed), folder / "model.safetensors")
  ids = {word: i for i, word in enumerate(WORDS)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, "the"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.post_processor = tokenizers.processors.BertProcessing(
    ("[SEP]", 2), ("[CLS]", 1)
  )
  tokenizer.save(str(folder / "tokenizer.json"))
  return folder


def write_pairs(file):
  """Writes the task; returns the file."""
  with open(file, "w", newline="", encoding="utf-8") as f:
    csv.writer(f).writerows([("query", "document"), *PAIRS])
  return file


def config(folder):
  """A config of the job on what is written into `folder`: two variants."""
  return {
    "task": "retrieval",
    "evaluate": "decoded",
    "model": {"path": str(write(folder / "model"))},
    "data": {"source": str(write_pairs(folder / "pairs.csv")), "batch_size": 4},
    "rules": [["embeddings|norm|bias", "keep"], ["kernel$", "weights"]],
    "methods": {
      "rtn": {"method": "rtn"},
      "icquant": {"method": "icquant", "inner": "rtn", "ratio": 0.05},
    },
    "weights": {"method": None, "bits": 3, "dtype": "float16"},
    "sweep": {"rtn": {}, "icquant": {}},
  }
