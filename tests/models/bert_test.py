import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.models import bert
from tests import draws

CONFIG = bert.BertConfig(
  vocab_size=11,
  hidden_size=8,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=12,
  max_position_embeddings=6,
)
IDS = jnp.array([[5, 3, 7, 4], [6, 2, 1, 1]])
MASK = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]])


def _params(config):
  """Returns parameters of which none is 0 or 1, as biases start out."""
  shapes = jax.eval_shape(bert.Bert(config).init, jax.random.key(0), IDS, MASK)
  return draws.like(shapes["params"], 0.5)


def _apply(config, params, ids=IDS, mask=MASK):
  return jax.jit(bert.Bert(config).apply)({"params": params}, ids, mask)


def test_parameter_names_and_shapes():
  flat = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree.leaves_with_path(_params(CONFIG))
  }
  assert flat["embeddings/word/embedding"] == (11, 8)
  assert flat["embeddings/position/embedding"] == (6, 8)
  assert flat["embeddings/token_type/embedding"] == (2, 8)
  assert flat["layer_1/mlp/up/kernel"] == (8, 12)
  assert flat["layer_1/mlp/down/kernel"] == (12, 8)
  assert flat["layer_0/attention/norm/scale"] == (8,)
  for name in ("query", "key", "value", "out"):
    assert flat[f"layer_0/attention/{name}/kernel"] == (8, 8)
  # 5 of embeddings; 8 + 2 of attention and 4 + 2 of mlp in each layer.
  assert len(flat) == 5 + 2 * 16


def test_interceptor_sees_every_weight():
  seen = set()

  def note(call, args, kwargs, context):
    if isinstance(context.module, nn.Dense | nn.Embed | nn.LayerNorm):
      seen.add("/".join(context.module.path))
    return call(*args, **kwargs)

  params = _params(CONFIG)
  with nn.intercept_methods(note):
    bert.Bert(CONFIG).apply({"params": params}, IDS, MASK)
  owners = {
    jax.tree_util.keystr(path[:-1], simple=True, separator="/")
    for path, _ in jax.tree.leaves_with_path(params)
  }
  assert seen == owners


def test_padding_changes_nothing():
  params = _params(CONFIG)
  ids = IDS.at[1, 2:].set(9)
  expected = _apply(CONFIG, params)
  found = _apply(CONFIG, params, ids)
  np.testing.assert_array_equal(found[1, :2], expected[1, :2])
  short = _apply(CONFIG, params, IDS[1:, :2], MASK[1:, :2])
  np.testing.assert_allclose(short[0], expected[1, :2], atol=1e-6)
  # The same ids count where the mask does not hide them.
  seen = _apply(CONFIG, params, ids, jnp.ones_like(MASK))
  assert np.abs(seen[1, :2] - expected[1, :2]).max() > 1e-3


def test_order_of_words_counts():
  params = _params(CONFIG)
  params["embeddings"]["position"]["embedding"] *= 0
  bag = _apply(CONFIG, params, IDS[:1], MASK[:1])
  swapped = _apply(CONFIG, params, IDS[:1, ::-1], MASK[:1])
  np.testing.assert_allclose(swapped[:, ::-1], bag, atol=1e-5)
  params = _params(CONFIG)
  one = _apply(CONFIG, params, IDS[:1], MASK[:1])
  other = _apply(CONFIG, params, IDS[:1, ::-1], MASK[:1])
  assert np.abs(other[:, ::-1] - one).max() > 1e-3


def test_position_offset_moves_the_table():
  params = _params(CONFIG)
  shifted = dataclasses.replace(CONFIG, position_offset=2)
  expected = _apply(CONFIG, params)
  table = params["embeddings"]["position"]["embedding"]
  params["embeddings"]["position"]["embedding"] = jnp.roll(table, 2, axis=0)
  found = _apply(shifted, params)
  np.testing.assert_array_equal(found, expected)


def test_too_many_tokens():
  params = _params(CONFIG)
  config = dataclasses.replace(CONFIG, position_offset=3)
  with pytest.raises(ValueError, match=r"4 tokens exceed .*max_tokens=3"):
    bert.Bert(config).apply({"params": params}, IDS, MASK)


def test_exact_gelu_is_not_its_tanh_approximation():
  exact, approximate = (
    bert.ACTIVATIONS[name](jnp.float32(-2)) for name in ("gelu", "gelu_new")
  )
  assert exact == pytest.approx(-0.0455003, abs=1e-6)
  assert approximate == pytest.approx(-0.0454023, abs=1e-6)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"hidden_act": "mish"}, r"hidden_act='mish' is not one of"),
    ({"num_attention_heads": 3}, r"hidden_size=8 .* num_attention_heads=3"),
  ],
)
def test_impossible_config(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_mean_pool(dtype):
  hidden = jnp.array([[[1, 2], [3, 4], [50, 60]], [[7, 8]] * 3], dtype)
  mask = jnp.array([[1, 1, 0], [0, 0, 0]])
  pooled = bert.mean_pool(hidden, mask)
  assert pooled.dtype == jnp.float32
  np.testing.assert_allclose(pooled, [[0.5547002, 0.8320503], [0, 0]], 1e-6)


def test_cls_pool():
  hidden = jnp.array([[[3.0, 4.0], [9.0, 9.0]]])
  pooled = bert.cls_pool(hidden, jnp.ones((1, 2)))
  np.testing.assert_allclose(pooled, [[0.6, 0.8]], 1e-6)


@pytest.mark.parametrize("pool", [bert.mean_pool, bert.cls_pool])
def test_filler_rows_have_finite_gradients(pool):
  def loss(hidden):
    return pool(hidden, jnp.zeros((1, 3))).sum()

  gradient = jax.jit(jax.grad(loss))(jnp.ones((1, 3, 2)))
  np.testing.assert_array_equal(gradient, 0)
