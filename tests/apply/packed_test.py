from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from tests import draws

PLAN = ql.by_path(
  [
    ("bias|scale", ql.keep()),
    ("embedding", ql.rtn(4, granularity=ql.per_channel(0))),
    ("", ql.icquant(ql.rtn(3), ratio=0.1)),
  ]
)
IMAGE = draws.normal((2, 8, 8, 4), 1)
TOKENS = jnp.array([[1, 2, 9], [0, 3, -1]])


class Custom(nn.Module):
  """Reads a parameter by itself, beside a submodule."""

  @nn.compact
  def __call__(self, x):
    w = self.param("w", nn.initializers.normal(), (4, 4))
    return nn.Dense(3)(x @ w)


class Scanned(nn.Module):
  """Three layers whose parameters are stacked."""

  @nn.compact
  def __call__(self, x):
    def body(layer, x, _):
      return layer(x), None

    scan = nn.scan(
      body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )
    return scan(nn.Dense(4, name="layer"), x, None)[0]


def _rnn(cell):
  return nn.RNN(cell)


MODELS = {
  "dense": (nn.Dense(6), IMAGE),
  "dense_bfloat16": (nn.Dense(6, dtype=jnp.bfloat16), IMAGE),
  "dense_bfloat16_params": (nn.Dense(6, param_dtype=jnp.bfloat16), IMAGE),
  "dense_general": (nn.DenseGeneral((3, 5), axis=(-2, -1)), IMAGE),
  "conv": (nn.Conv(6, (3, 3), strides=2), IMAGE),
  "conv_grouped": (nn.Conv(6, (3, 3), feature_group_count=2), IMAGE),
  "conv_transpose": (nn.ConvTranspose(6, (3, 3)), IMAGE),
  "einsum": (nn.Einsum((8, 4, 7, 5), "bhwc,wcnm->bhnm"), IMAGE),
  "einsum_plain": (
    nn.Einsum((4, 5), "...c,cd->...d", use_bias=False),
    IMAGE,
  ),
  "embed": (nn.Embed(10, 32), TOKENS),
  "embed_bfloat16": (nn.Embed(10, 32, dtype=jnp.bfloat16), TOKENS),
  "attention": (nn.MultiHeadDotProductAttention(2, qkv_features=8), IMAGE[0]),
  "simple_cell": (_rnn(nn.SimpleCell(5)), IMAGE[0]),
  "lstm": (_rnn(nn.LSTMCell(5)), IMAGE[0]),
  "lstm_optimized": (_rnn(nn.OptimizedLSTMCell(5)), IMAGE[0]),
  "gru": (_rnn(nn.GRUCell(5)), IMAGE[0]),
  "custom": (Custom(), IMAGE),
  "scan": (Scanned(), IMAGE),
  "norms": (nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.Dense(2)]), IMAGE),
}


# What these do, others do too.
ALIKE = ("dense_bfloat16_params", "embed_bfloat16", "simple_cell", "gru")


@pytest.mark.parametrize(
  ("name", "jit"),
  [
    ("dense", False),
    *(
      pytest.param(name, True, marks=[pytest.mark.study] * (name in ALIKE))
      for name in MODELS
    ),
  ],
)
def test_equals_dequantize_then_apply(name, jit):
  model, x = MODELS[name]
  params = jax.jit(model.init)(jax.random.key(0), x)["params"]
  plan = PLAN
  if name == "scan":
    kernel = ql.stacked(ql.rtn(4))
    plan = ql.by_path([("bias", ql.keep()), ("kernel", kernel)])
  packed = ql.quantize(plan, params)
  assert any(isinstance(q, ql.QTensor) for q in packed.values()) or name in (
    "attention",
    "simple_cell",
    "lstm",
    "lstm_optimized",
    "gru",
    "scan",
    "custom",
    "norms",
  )

  def run(packed, x):
    return ql.apply(model, {"params": packed}, x)

  out = (jax.jit(run) if jit else run)(packed, x)
  expected = jax.jit(model.apply)({"params": ql.dequantize(packed)}, x)
  assert out.dtype == expected.dtype
  np.testing.assert_allclose(
    *(np.asarray(v, np.float32) for v in (out, expected)), rtol=2e-5, atol=2e-6
  )


def test_packed_weights_matter():
  model, x = MODELS["dense"]
  params = jax.jit(model.init)(jax.random.key(0), x)["params"]
  packed = ql.quantize(
    ql.by_path([("bias", ql.keep()), ("", ql.rtn(2))]), params
  )
  out = ql.apply(model, {"params": packed}, x)
  assert jnp.max(jnp.abs(out - model.apply({"params": params}, x))) > 1e-2


def test_no_dense_placeholder_under_jit():
  model = nn.Dense(256)
  x = jnp.ones((1, 256))
  params = jax.jit(model.init)(jax.random.key(0), x)["params"]
  packed = ql.quantize(
    ql.by_path([("bias", ql.keep()), ("", ql.rtn(4))]), params
  )
  text = (
    jax.jit(lambda q, x: ql.apply(model, {"params": q}, x))
    .lower(packed, x)
    .compile()
    .as_text()
  )
  assert "broadcast(f32[] %constant" not in text.split("ENTRY")[1]


def test_sums_and_mutable_collections():
  model = nn.Sequential([nn.Dense(8), nn.BatchNorm(use_running_average=False)])
  x = IMAGE[0]
  variables = jax.jit(model.init)(jax.random.key(0), x)
  plan = ql.by_path([("bias|scale", ql.keep()), ("", ql.easyquant(3, steps=5))])
  packed = ql.quantize(plan, variables["params"])
  assert isinstance(packed["layers_0"]["kernel"], ql.Sum)
  run = {**variables, "params": packed}
  out, stats = ql.apply(model, run, x, mutable=["batch_stats"])
  dense = {**variables, "params": ql.dequantize(packed)}
  expected, expected_stats = model.apply(dense, x, mutable=["batch_stats"])
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
  jax.tree.map(np.testing.assert_allclose, stats, expected_stats)


def test_other_methods_of_a_module():
  model = nn.Embed(10, 32)
  params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
  packed = ql.quantize(PLAN, params)
  query = jnp.ones((2, 32))
  out = ql.apply(model, {"params": packed}, query, method="attend")
  expected = model.apply(
    {"params": ql.dequantize(packed)}, query, method="attend"
  )
  np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_a_packed_table_is_a_head_without_its_dense_self():
  model, query = nn.Embed(256, 256), draws.normal((1, 256))
  table = {"params": {"embedding": draws.normal((256, 256), 1)}}
  packed = ql.quantize(ql.rtn(4, granularity=ql.per_channel(0)), table)

  def run(packed, query):
    return ql.apply(model, packed, query, method="attend")

  compiled = jax.jit(run).lower(packed, query).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * 256 * 256
  expected = query @ ql.dequantize(packed)["params"]["embedding"].T
  np.testing.assert_allclose(
    compiled(packed, query), expected, rtol=1e-4, atol=1e-3
  )


def test_embed_refuses_floats():
  params = jax.jit(nn.Embed(10, 32).init)(jax.random.key(0), TOKENS)["params"]
  with pytest.raises(ValueError, match="takes integers, got float32"):
    ql.apply(nn.Embed(10, 32), {"params": ql.quantize(PLAN, params)}, IMAGE)


def test_unquantized_variables_run_as_they_are():
  model, x = MODELS["conv"]
  variables = jax.jit(model.init)(jax.random.key(0), x)
  np.testing.assert_array_equal(
    ql.apply(model, variables, x), model.apply(variables, x)
  )
