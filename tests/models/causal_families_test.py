import pytest

from quantlab.models import causal_families, positions

LLAMA = {
  "model_type": "llama",
  "vocab_size": 32000,
  "hidden_size": 4096,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "intermediate_size": 11008,
}
BLOOM = {"model_type": "bloom", "vocab_size": 9, "n_layer": 2}
LLAMA3 = {
  "rope_type": "llama3",
  "factor": 32.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}


def _parse(published, **changes):
  return causal_families.parse(published | changes)[1]


def test_first_llama():
  config = _parse(LLAMA)
  assert (config.num_key_value_heads, config.head_dim) == (32, 128)
  assert config.position == positions.Rope(10000.0)
  assert (config.norm_eps, config.tied) == (1e-6, False)


@pytest.mark.parametrize(
  "changes",
  [
    {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
  ],
)
def test_llama3_speeds(changes):
  expected = positions.Rope(5e5, 32.0, 8192, 1.0, 4.0)
  assert _parse(LLAMA, **changes).position == expected


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_linear_speeds(key):
  config = _parse(LLAMA, rope_scaling={key: "linear", "factor": 2.0})
  assert config.position == positions.Rope(10000.0, 2.0)


@pytest.mark.parametrize(
  "names", [("n_embed", "n_head"), ("hidden_size", "num_attention_heads")]
)
def test_bloom_goes_by_two_names(names):
  config = _parse(BLOOM, **dict(zip(names, (48, 6), strict=True)))
  assert (config.hidden_size, config.num_attention_heads) == (48, 6)
  assert (config.head_dim, config.intermediate_size) == (8, 192)
  assert config.position == positions.Alibi()
  assert config.hidden_act == "gelu_pytorch_tanh"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model_type": "gpt2"}, r"model_type='gpt2' is not one of \['bloom', 'l"),
    ({"hidden_size": None}, r"^config\.json: 'hidden_size' is missing"),
    ({"attention_bias": True}, r"attention_bias=True is not computed"),
    ({"mlp_bias": True}, r"mlp_bias=True is not computed"),
    ({"hidden_act": "mish"}, r"hidden_act='mish' is not one of"),
    (
      {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
      r"rope_type='yarn' is not one of \['default', 'linear', 'llama3'\]",
    ),
    (
      {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
      r"'original_max_position_embeddings' is missing",
    ),
    (
      {"model_type": "bloom", "apply_residual_connection_post_layernorm": True},
      r"apply_residual_connection_post_layernorm=True is not computed",
    ),
  ],
)
def test_what_is_not_computed(changes, message):
  with pytest.raises(ValueError, match=message):
    _parse(LLAMA, **changes)
