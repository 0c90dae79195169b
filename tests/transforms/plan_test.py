import logging

from flax import nnx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.transforms import plan as plans
from tests import draws


def _params():
  w = draws.normal((32, 8))
  return {
    "Embed_0": {"embedding": w},
    "block": [{"kernel": w, "bias": jnp.zeros(8)}, {"kernel": 2 * w}],
    "step": jnp.array(3),
  }


PLAN = ql.by_path(
  [
    ("embed|bias|step", ql.keep()),
    (r"block/0/kernel$", ql.rtn(2)),
    ("", ql.rtn(8)),
  ]
)


def test_first_match_wins_and_kept_leaves_are_untouched():
  params = _params()
  q = ql.quantize(PLAN, params)
  assert q["Embed_0"]["embedding"] is params["Embed_0"]["embedding"]
  assert q["step"] is params["step"]
  assert q["block"][0]["kernel"].codes.bits == 2
  assert q["block"][1]["kernel"].codes.bits == 8
  assert jax.tree.structure(ql.dequantize(q)) == jax.tree.structure(params)


def test_state_is_a_dict_by_path():
  state = PLAN.init(_params())
  assert set(state.learned) == set(plans.leaves(_params()))
  assert set(state.stats) == set(plans.leaves(_params()))


def test_apply_is_what_a_training_step_reads():
  params = _params()
  state = PLAN.init(params)
  q, stats = jax.jit(PLAN.apply)(params, state, None)
  assert jax.tree.structure(stats) == jax.tree.structure(state.stats)
  stored = ql.dequantize(ql.quantize(PLAN, params))
  for a, b in zip(
    jax.tree.leaves(ql.dequantize(q)), jax.tree.leaves(stored), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_gradient_passes_straight_through():
  plan = ql.by_path([("kernel", ql.rtn(4)), ("", ql.keep())])
  params = {"kernel": jnp.linspace(-1, 1, 32).reshape(32, 1)}

  def loss(params):
    q, _ = plan.apply(params, plan.init(params), None)
    return jnp.sum(ql.dequantize(q)["kernel"] * jnp.arange(32.0)[:, None])

  gradient = jax.jit(jax.grad(loss))(params)["kernel"]
  np.testing.assert_allclose(
    gradient[5:27, 0], jnp.arange(5.0, 27.0), rtol=1e-5
  )


def test_unmatched_leaf_is_named():
  plan = ql.by_path([("kernel$", ql.rtn(4))])
  with pytest.raises(ValueError, match=r"Embed_0/embedding: matches no rule"):
    ql.quantize(plan, _params())


def test_unused_rules_are_found():
  rules = [("kernel", 0), ("gate", 1), ("", 2)]
  chosen, unused = plans.match(rules, ["a/kernel", "b"])
  assert chosen == {"a/kernel": 0, "b": 2}
  assert unused == ["gate"]


def test_invalid_pattern_is_named():
  with pytest.raises(ValueError, match=r"'\(' is not a pattern"):
    ql.quantize(ql.by_path([("(", ql.keep())]), _params())


def test_chain_of_plans_and_tensor_quantizers():
  halve = ql.stage(lambda q: ql.lift(q.dequantize() / 2))
  kernels = ql.by_path([("kernel", halve), ("", ql.keep())])
  rest = ql.by_path([("", ql.keep())])
  q = ql.quantize(ql.chain(kernels, rest), _params())
  np.testing.assert_array_equal(
    q["block"][1]["kernel"], _params()["block"][1]["kernel"] / 2
  )
  only = {"w": jnp.ones((32, 4))}
  q = ql.quantize(ql.chain(ql.by_path([("", halve)]), ql.rtn(4)), only)
  np.testing.assert_array_equal(q["w"].dequantize(), 0.5 * jnp.ones((32, 4)))


def test_tensor_quantizer_goes_on_every_leaf():
  q = ql.quantize(ql.rtn(4), {"a": jnp.ones((32, 4)), "b": jnp.ones((64, 4))})
  assert all(isinstance(x, ql.QTensor) for x in q.values())


@pytest.mark.parametrize(
  ("leaf", "kind", "message"),
  [
    (jnp.ones((4, 4)).at[1, 2].set(jnp.nan), ValueError, "NaN or Inf: 1 of 16"),
    (jnp.ones((4, 4)).at[0].set(-jnp.inf), ValueError, "NaN or Inf: 4 of 16"),
    (jnp.ones((0, 4)), ValueError, r"empty tensor, got shape=\(0, 4\)"),
    (jnp.ones((4, 4), int), TypeError, "only float arrays.*int32"),
    ("text", TypeError, "only float arrays.*str"),
  ],
)
def test_bad_leaves_are_named(leaf, kind, message):
  tree = {"good": jnp.ones((4, 4)), "layer": {"kernel": leaf}}
  with pytest.raises(kind, match=f"layer/kernel: .*{message}"):
    ql.quantize(ql.rtn(4), tree)


def test_block_that_does_not_divide_names_the_leaf():
  q = ql.rtn(4, granularity=ql.per_block(0, 48))
  with pytest.raises(ValueError, match=r"a/kernel: per_block.*64.*48"):
    ql.quantize(q, {"a": {"kernel": jnp.ones((64, 4))}})


def test_nnx_state():
  model = nnx.Linear(32, 8, rngs=nnx.Rngs(0))
  graph, state = nnx.split(model)
  plan = ql.by_path([("kernel$", ql.rtn(8)), ("bias$", ql.keep())])
  q = ql.quantize(plan, state)
  assert isinstance(q, nnx.State)
  assert ql.nbits(q) == 8 * 256 + 64 * 8 + 32 * 8
  restored = nnx.merge(graph, ql.dequantize(q))
  x = jnp.ones((1, 32))
  np.testing.assert_allclose(restored(x), model(x), atol=0.05)


def test_linen_partitioned_boxes():
  layer = nn.Dense(
    8, kernel_init=nn.with_partitioning(nn.initializers.normal(), ("x", None))
  )
  params = jax.jit(layer.init)(jax.random.key(0), jnp.ones((1, 32)))["params"]
  plan = ql.by_path([("kernel$", ql.rtn(8)), ("bias$", ql.keep())])
  q = ql.quantize(plan, params)
  assert q["kernel"].names == ("x", None)
  assert isinstance(q["kernel"].value, ql.QTensor)


def test_same_quantizer_and_shape_compile_once(caplog):
  q = ql.rtn(5)
  ql.quantize(q, jnp.ones((64, 3)))
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    ql.quantize(q, jnp.zeros((64, 3)))
  assert "Compiling" not in caplog.text
