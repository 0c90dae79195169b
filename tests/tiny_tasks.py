"""Checkpoints and data of the published tasks' formats, a few kB each."""

import json

import jax
import numpy as np
import safetensors.numpy

from quantlab.models import repvgg, repvgg_weights
from quantlab.transforms import plan
from tests import tiny_bert

EMOTIONS = ("sadness", "joy", "love", "anger", "fear", "surprise")
TEXTS = [
  f"{article} {colour} {animal} {verb}"
  for article in ("the", "a")
  for colour in ("red", "blue", "old", "new")
  for animal in ("cat", "dog")
  for verb in ("runs", "sleeps")
]
QUESTIONS = [
  {
    "question": f"What is {i}?",
    "choices": {
      "text": [f"it is {word}" for word in words],
      "label": ["A", "B", "C", "D"][: len(words)],
    },
    "answerKey": "ABCD"[i % len(words)],
  }
  for i, words in enumerate([("one", "two", "four", "3"), ("a", "no", "b")] * 4)
]


def write_classifier(folder, labels=EMOTIONS):
  """A BERT with a head, as `BertForSequenceClassification` is published."""
  tiny_bert.write(folder)
  file = folder / "config.json"
  names = {str(i): label for i, label in enumerate(labels)}
  content = json.loads(file.read_text()) | {"id2label": names}
  file.write_text(json.dumps(content))
  tensors = {f"bert.{key}": x for key, x in tiny_bert.tensors().items()}
  width = tiny_bert.D
  head = {
    "bert.pooler.dense.weight": (width, width),
    "bert.pooler.dense.bias": (width,),
    "classifier.weight": (len(labels), width),
    "classifier.bias": (len(labels),),
  }
  generator = np.random.default_rng(1)
  for key, shape in head.items():
    tensors[key] = generator.normal(size=shape).astype(np.float32) / 4
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  return folder


def write_texts(file, text_column="text", classes=6):
  """As many texts of each class; returns the file."""
  import datasets

  labels = [i % classes for i in range(len(TEXTS))]
  datasets.Dataset.from_dict({text_column: TEXTS, "label": labels}).to_parquet(
    str(file)
  )
  return file


def write_rows(file, words=200):
  """A text in rows, as WikiText is; returns the file."""
  import datasets

  rows = [f"Row {i} of a text ." for i in range(words // 6)]
  datasets.Dataset.from_dict({"text": ["", *rows]}).to_parquet(str(file))
  return file


def write_questions(file):
  """Returns the file."""
  import datasets

  datasets.Dataset.from_list(QUESTIONS).to_parquet(str(file))
  return file


def write_repvgg(folder, name, size=8):
  """timm's form of a size of `repvgg.CONFIGS`, for images of `size` pixels."""
  folder.mkdir()
  config = repvgg.CONFIGS[name]
  model = repvgg.RepVGG(config)
  x = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  generator, tensors = np.random.default_rng(0), {}
  for path, leaf in plan.leaves(shapes).items():
    (key,) = repvgg_weights.Names().keys(tuple(path.split("/")))
    value = generator.normal(size=leaf.shape).astype(np.float32) / 4
    if path.endswith(("scale", "var")):
      value = np.abs(value) + 1
    # torch's layout: what goes out first, then what comes in, then windows.
    layout = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
    tensors[key] = np.ascontiguousarray(value.transpose(layout))
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  published = {
    "architecture": f"repvgg_{name}",
    "num_classes": config.classes,
    "pretrained_cfg": {
      "input_size": [3, size, size],
      "mean": [0.485, 0.456, 0.406],
      "std": [0.229, 0.224, 0.225],
    },
  }
  (folder / "config.json").write_text(json.dumps(published))
  return folder


def write_images(folder, classes, count, size=10):
  """Random pictures in a folder for each class; returns the folder."""
  import PIL.Image

  generator = np.random.default_rng(0)
  for i in range(count):
    pixels = generator.integers(0, 256, (size, size, 3)).astype(np.uint8)
    place = folder / f"{i % classes:03}"
    place.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(place / f"{i}.png")
  return folder
