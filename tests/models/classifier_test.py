import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import quantlab as ql
from quantlab.models import classifier
from tests import tiny_bert

IDS = np.array([[1, 3, 5, 7, 2], [1, 9, 11, 2, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], np.int32)
C, D = 6, tiny_bert.D
NAMES = ["sadness", "joy", "love", "anger", "fear", "surprise"]


def _chirp(i, shape):
  # No generator of random numbers promises the same stream for ever.
  k = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
  return (0.2 * np.sin(0.37 * k * k + i)).astype(np.float32)


def _tensors():
  shapes = {f"bert.{k}": x.shape for k, x in tiny_bert.tensors().items()}
  shapes |= {"bert.pooler.dense.weight": (D, D), "bert.pooler.dense.bias": (D,)}
  shapes |= {"classifier.weight": (C, D), "classifier.bias": (C,)}
  return {
    key: _chirp(i, shape) + key.endswith("LayerNorm.weight")
    for i, (key, shape) in enumerate(sorted(shapes.items()))
  }


@pytest.fixture(name="folder")
def _folder(tmp_path):
  folder = tiny_bert.write(tmp_path / "tiny")
  _edit(folder, id2label={str(i): name for i, name in enumerate(NAMES)})
  safetensors.numpy.save_file(_tensors(), folder / "model.safetensors")
  return folder


def _edit(folder, **changes):
  file = folder / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _logits(loaded, ids=IDS, mask=MASK):
  run = jax.jit(loaded.model.apply)
  return np.asarray(run({"params": loaded.params}, ids, mask))


# What `test_agrees_with_torch` computes; transformers 5.23.0 with torch 2.13.0.
GOLDEN = [
  [-1.7642189, 0.6722037, -0.2780966, 0.7119793, 0.1145511, 0.6664770],
  [-1.4197383, 1.3120204, -0.3794152, 0.7736285, 0.1140586, 1.0746143],
]


def test_golden(folder):
  loaded = classifier.load(folder)
  assert loaded.labels == tuple(NAMES)
  np.testing.assert_allclose(_logits(loaded), GOLDEN, atol=2e-6)


def test_agrees_with_torch(folder):
  """Needs torch and transformers, which the project does without."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  auto = transformers.AutoModelForSequenceClassification
  model = auto.from_pretrained(folder).eval()
  with torch.no_grad():
    expected = model(
      input_ids=torch.tensor(IDS).long(),
      attention_mask=torch.tensor(MASK).long(),
    ).logits.numpy()
  np.testing.assert_allclose(
    _logits(classifier.load(folder)), expected, atol=2e-6
  )


def test_encoder_and_head_are_both_used(folder):
  loaded = classifier.load(folder)
  flat = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree.leaves_with_path(loaded.params)
  }
  assert flat["pooler/kernel"] == (D, D)
  assert flat["classifier/kernel"] == (D, C)
  assert flat["layer_0/attention/query/kernel"] == (D, D)
  other = jax.tree.map(lambda x: x, loaded.params)
  other["pooler"]["kernel"] = other["pooler"]["kernel"].T
  changed = _logits(loaded._replace(params=other))
  assert np.abs(changed - _logits(loaded)).max() > 1e-3


def test_runs_packed(folder):
  loaded = classifier.load(folder)
  expected = _logits(loaded)
  plan = ql.by_path([("norm|bias", ql.keep()), ("kernel|embed", ql.rtn(8))])
  packed = ql.quantize(plan, loaded.params)

  def run(params, ids, mask):
    return ql.apply(loaded.model, {"params": params}, ids, mask)

  found = jax.jit(run)(packed, IDS, MASK)
  again = _logits(loaded._replace(params=ql.dequantize(packed)))
  np.testing.assert_allclose(found, again, atol=1e-5)
  error = np.abs(found - expected).max()
  assert 0 < error < 0.05 * np.abs(expected).max()


def test_labels(folder):
  _edit(folder, id2label={"10": 10} | {str(i): i for i in range(10)})
  file = folder / "config.json"
  published = json.loads(file.read_text())
  labels = classifier.parse(published)[2]
  assert labels == tuple(map(str, range(11)))
  del published["id2label"]
  assert classifier.parse(published)[2] == ("LABEL_0", "LABEL_1")


def _change_tensors(change):
  def apply(folder):
    tensors = _tensors()
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")

  return apply


BROKEN = {
  "no head": (
    _change_tensors(lambda t: t.pop("classifier.weight")),
    r"tensor 'classifier\.weight' is missing; classifier/kernel .*\(6, 64\)",
  ),
  "no pooler": (
    _change_tensors(lambda t: t.pop("bert.pooler.dense.bias")),
    r"tensor 'bert\.pooler\.dense\.bias' is missing",
  ),
  "other classes": (
    lambda folder: _edit(folder, id2label={"0": "a", "1": "b"}),
    r"'classifier\.\w+' has shape \(6.*\), but the config asks for \(2",
  ),
  "left over": (
    _change_tensors(lambda t: t.update({"classifier.out.bias": np.ones(1)})),
    r"1 tensors have no place .* 'classifier\.out\.bias'",
  ),
  "another family": (
    lambda folder: _edit(folder, model_type="roberta"),
    r"config\.json: model_type='roberta' is not 'bert'",
  ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folder(folder, case):
  breaks, message = BROKEN[case]
  breaks(folder)
  with pytest.raises(ValueError, match=message) as error:
    classifier.load(folder)
  assert "\n" not in str(error.value)


def test_length_limit(folder):
  text = ["the cat runs " * 20]
  assert classifier.load(folder).encode(text)[0].shape == (1, 32)
  ids, mask = classifier.load(folder, max_tokens=4).encode(text)
  assert ids.tolist() == [[1, 3, 5, 2]]
  assert mask.all()
