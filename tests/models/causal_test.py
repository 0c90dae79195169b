import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.models import causal, positions
from tests import draws

LLAMA = causal.CausalConfig(
  vocab_size=11,
  hidden_size=8,
  num_hidden_layers=2,
  num_key_value_heads=2,
  head_dim=4,
  intermediate_size=12,
)
BLOOM = dataclasses.replace(
  LLAMA,
  num_key_value_heads=4,
  position=positions.Alibi(),
  hidden_act="gelu_pytorch_tanh",
  rms_norm=False,
  gated=False,
  biased=True,
  fused=True,
  embedding_norm=True,
  tied=True,
)
CONFIGS = {"llama": LLAMA, "bloom": BLOOM}
IDS = jnp.array([[5, 3, 7, 4, 3, 9], [6, 2, 1, 1, 8, 0]])


def _params(config):
  """Returns parameters of which none is 0 or 1, as biases start out."""
  shapes = jax.eval_shape(causal.Causal(config).init, jax.random.key(0), IDS)
  return draws.like(shapes["params"], 0.5)


def _apply(config, params, ids=IDS):
  return jax.jit(causal.Causal(config).apply)({"params": params}, ids)


def _names(config):
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree.leaves_with_path(_params(config))
  }


def test_llama_names_and_shapes():
  flat = _names(LLAMA)
  assert flat["embeddings/embedding"] == (11, 8)
  assert flat["layer_1/attention/query/kernel"] == (8, 16)
  assert flat["layer_1/attention/key/kernel"] == (8, 8)
  assert flat["layer_1/attention/value/kernel"] == (8, 8)
  assert flat["layer_1/attention/out/kernel"] == (16, 8)
  assert flat["layer_0/mlp/gate/kernel"] == (8, 12)
  assert flat["layer_0/mlp/down/kernel"] == (12, 8)
  assert flat["head/kernel"] == (8, 11)
  assert len(flat) == 3 + 2 * 9


def test_bloom_names_and_shapes():
  flat = _names(BLOOM)
  assert flat["embeddings_norm/bias"] == (8,)
  assert flat["layer_0/attention/query_key_value/kernel"] == (8, 48)
  assert flat["layer_0/mlp/up/bias"] == (12,)
  assert not any(name.startswith("head") for name in flat)
  assert len(flat) == 1 + 2 + 2 + 2 * 12


@pytest.mark.parametrize("name", CONFIGS)
def test_interceptor_sees_every_weight(name):
  seen = set()
  kinds = nn.Dense | nn.Embed | nn.LayerNorm | nn.RMSNorm

  def note(call, args, kwargs, context):
    if isinstance(context.module, kinds):
      seen.add("/".join(context.module.path))
    return call(*args, **kwargs)

  params = _params(CONFIGS[name])
  with nn.intercept_methods(note):
    causal.Causal(CONFIGS[name]).apply({"params": params}, IDS)
  owners = {
    jax.tree_util.keystr(path[:-1], simple=True, separator="/")
    for path, _ in jax.tree.leaves_with_path(params)
  }
  assert seen == owners


@pytest.mark.parametrize("name", CONFIGS)
def test_no_token_sees_the_next(name):
  params = _params(CONFIGS[name])
  expected = _apply(CONFIGS[name], params)
  found = _apply(CONFIGS[name], params, IDS.at[:, 4:].set(10))
  np.testing.assert_array_equal(found[:, :4], expected[:, :4])
  assert np.abs(found[:, 4:] - expected[:, 4:]).max() > 1e-3
  short = _apply(CONFIGS[name], params, IDS[:, :3])
  np.testing.assert_allclose(short, expected[:, :3], atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_order_of_tokens_counts(name):
  params = _params(CONFIGS[name])
  swapped = IDS[:, jnp.array([1, 0, 2, 3, 4, 5])]
  change = _apply(CONFIGS[name], params, swapped) - _apply(
    CONFIGS[name], params
  )
  assert np.abs(change[:, -1]).max() > 1e-4


def test_fused_is_one_kernel_of_three():
  split = dataclasses.replace(BLOOM, fused=False)
  params, fused = _params(BLOOM), {}
  for layer in ("layer_0", "layer_1"):
    attention = params[layer]["attention"]
    whole = attention["query_key_value"]
    parts = {
      key: value.reshape(*value.shape[:-1], 4, 3, 4)
      for key, value in whole.items()
    }
    rest = {k: v for k, v in attention.items() if k != "query_key_value"}
    fused[layer] = params[layer] | {
      "attention": rest
      | {
        name: {
          key: value[..., i, :].reshape(*value.shape[:-3], 16)
          for key, value in parts.items()
        }
        for i, name in enumerate(["query", "key", "value"])
      }
    }
  found = _apply(split, params | fused)
  np.testing.assert_allclose(found, _apply(BLOOM, params), atol=1e-5)


def test_bytes_by_default():
  assert causal.CausalConfig().vocab_size == 256


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"hidden_act": "mish"}, r"hidden_act='mish' is not one of"),
    ({"num_key_value_heads": 3}, r"=4 must be divisible by .*=3"),
    ({"fused": True}, r"fused takes num_key_value_heads=2 equal to .*=4"),
  ],
)
def test_impossible_config(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(LLAMA, **change)
