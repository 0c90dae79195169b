import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import quantlab as ql
from quantlab.models import causal_checkpoint
from tests import tiny_causal

IDS = np.array([[(11 * i * i + 3 * i) % 257 for i in range(12)]], np.int32)


@pytest.fixture(name="folder")
def _folder(tmp_path):
  return tiny_causal.write(tmp_path / "tiny", tiny_causal.CONFIGS["llama3"])


def _logits(loaded, params=None):
  params = loaded.params if params is None else params
  return np.asarray(jax.jit(loaded.model.apply)({"params": params}, IDS))


# What `test_agrees_with_torch` computes at the tokens 1, 5 and 11, the first
# four logits; transformers 5.23.0 with torch 2.13.0.
GOLDEN = {
  "bloom": [
    [-2.096804, -1.524957, -1.365141, 2.291621],
    [-1.831394, -0.686448, -0.666301, -1.116828],
    [-0.129684, -1.615987, -0.515282, 2.901164],
  ],
  "llama": [
    [-1.130097, -0.117084, 1.713078, 0.138358],
    [-1.967533, 0.327674, 6.116132, 1.792501],
    [1.079789, -0.389582, 2.738780, 0.153884],
  ],
  "llama3": [
    [-2.093927, -1.078548, 3.921056, 2.330981],
    [0.478624, -0.090473, -3.170250, -1.816528],
    [0.402239, -1.943909, 2.654158, -0.597159],
  ],
}


@pytest.mark.parametrize("name", tiny_causal.CONFIGS)
def test_golden(tmp_path, name):
  folder = tiny_causal.write(tmp_path / name, tiny_causal.CONFIGS[name])
  found = _logits(causal_checkpoint.load(folder))[0, [1, 5, 11], :4]
  np.testing.assert_allclose(found, GOLDEN[name], atol=1e-5)


@pytest.mark.parametrize("name", tiny_causal.CONFIGS)
def test_agrees_with_torch(tmp_path, name):
  """Needs torch and transformers, which the project does without."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  folder = tiny_causal.write(tmp_path / name, tiny_causal.CONFIGS[name])
  model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
  with torch.no_grad():
    expected = model(torch.tensor(IDS).long()).logits.numpy()
  found = _logits(causal_checkpoint.load(folder))
  np.testing.assert_allclose(found, expected, atol=1e-5)
  # Under the names and in the config of today's transformers.
  model.save_pretrained(folder)
  again = _logits(causal_checkpoint.load(folder))
  np.testing.assert_array_equal(again, found)
  # And as those were saved before safetensors.
  (folder / "model.safetensors").unlink()
  torch.save(model.state_dict(), folder / "pytorch_model.bin")
  again = _logits(causal_checkpoint.load(folder))
  np.testing.assert_array_equal(again, found)


@pytest.mark.parametrize("name", ["bloom", "llama3"])
def test_runs_packed(tmp_path, name):
  folder = tiny_causal.write(tmp_path / name, tiny_causal.CONFIGS[name])
  loaded = causal_checkpoint.load(folder)
  # Embeddings that are the head too are read in both ways.
  plan = ql.by_path([("norm|bias", ql.keep()), ("kernel|embed", ql.rtn(8))])
  packed = ql.quantize(plan, loaded.params)

  def run(params):
    return ql.apply(loaded.model, {"params": params}, IDS)

  found = jax.jit(run)(packed)
  again = _logits(loaded, ql.dequantize(packed))
  np.testing.assert_allclose(found, again, atol=2e-5)
  expected = _logits(loaded)
  error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
  assert 0 < error < 0.1


def test_prefix(tmp_path):
  config = tiny_causal.CONFIGS["bloom"]
  folder = tiny_causal.write(tmp_path / "bloom", config)
  expected = _logits(causal_checkpoint.load(folder))
  renamed = {
    f"transformer.{key}": value
    for key, value in tiny_causal.tensors(config).items()
  }
  # A second copy of the embeddings, which the config says are the head.
  renamed["lm_head.weight"] = renamed["transformer.word_embeddings.weight"]
  safetensors.numpy.save_file(renamed, folder / "model.safetensors")
  found = _logits(causal_checkpoint.load(folder))
  np.testing.assert_array_equal(found, expected)


def test_constants_are_not_weights(folder):
  tensors = tiny_causal.tensors(tiny_causal.CONFIGS["llama3"])
  key = "model.layers.1.self_attn.rotary_emb.inv_freq"
  tensors[key] = np.ones(4, np.float32)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  causal_checkpoint.load(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_missing_shard(folder, file):
  (folder / "model.safetensors").unlink()
  index = {"weight_map": {"model.norm.weight": "part-1"}}
  (folder / f"{file}.index.json").write_text(json.dumps(index))
  with pytest.raises(FileNotFoundError, match="tiny/part-1: no such file"):
    causal_checkpoint.load(folder)


def test_shards(folder):
  expected = _logits(causal_checkpoint.load(folder))
  (folder / "model.safetensors").unlink()
  items = [*tiny_causal.tensors(tiny_causal.CONFIGS["llama3"]).items()]
  parts = {"a.safetensors": items[:9], "b.safetensors": items[9:]}
  for file, part in parts.items():
    safetensors.numpy.save_file(dict(part), folder / file)
  where = {key: file for file, part in parts.items() for key, _ in part}
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": where}))
  found = _logits(causal_checkpoint.load(folder))
  np.testing.assert_array_equal(found, expected)


def test_dtype(folder):
  tensors = tiny_causal.tensors(tiny_causal.CONFIGS["llama3"])
  half = {key: x.astype(ml_dtypes.bfloat16) for key, x in tensors.items()}
  safetensors.numpy.save_file(half, folder / "model.safetensors")
  kept = causal_checkpoint.load(folder, dtype=None)
  assert {x.dtype for x in jax.tree.leaves(kept.params)} == {
    jnp.dtype("bfloat16")
  }
  found, wide = _logits(kept), _logits(causal_checkpoint.load(folder))
  assert (found.dtype, wide.dtype) == (jnp.bfloat16, jnp.float32)
  error = np.mean((found.astype(np.float32) - wide) ** 2) / np.mean(wide**2)
  assert error < 0.01


def test_encode(tmp_path, folder):
  ids, mask = causal_checkpoint.load(folder).encode(["ab", "b" * 9000])
  assert ids.shape == (2, 9024)
  assert ids[0, :4].tolist() == [256, 64, 65, 0]
  assert mask.sum(axis=1).tolist() == [3, 9001]
  config = tiny_causal.CONFIGS["bloom"]
  loaded = causal_checkpoint.load(tiny_causal.write(tmp_path / "b", config))
  ids, mask = loaded.encode(["ab"])
  assert ids[mask].tolist() == [64, 65]


BROKEN = {
  "too few layers": (
    {"num_hidden_layers": 1},
    r"9 tensors have no place .*s\.1",
  ),
  "too many layers": (
    {"num_hidden_layers": 3},
    r"tensor 'model\.layers\.2\.\S+' is missing",
  ),
  "heads": (
    {"num_key_value_heads": 6},
    r"'model\.layers\.0\.self_attn\.k_proj\.weight' has shape .*for \(48, 24\)",
  ),
  "no head": (
    {"tie_word_embeddings": False},
    r"tensor 'lm_head\.weight' is missing; head/kernel .* \(257, 24\)",
  ),
  "family": ({"model_type": "gpt2"}, r"config\.json: model_type='gpt2'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folder(folder, case):
  change, message = BROKEN[case]
  file = folder / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(ValueError, match=message) as error:
    causal_checkpoint.load(folder)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "file", ["config.json", "model.safetensors", "tokenizer.json"]
)
def test_missing_file(folder, file):
  (folder / file).unlink()
  with pytest.raises(FileNotFoundError, match=f"tiny/{file}: no such file"):
    causal_checkpoint.load(folder)
