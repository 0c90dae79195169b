import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import qtensor
from tests import draws


def test_lift_and_lower_are_inverse():
  x = jnp.ones((2, 3), jnp.bfloat16)
  lifted = ql.lift(x)
  np.testing.assert_array_equal(lifted.dequantize(), x)
  assert lifted.dequantize().dtype == jnp.bfloat16
  assert qtensor.lower(lifted) is lifted.codes
  assert ql.lift(lifted) is lifted


@pytest.mark.parametrize("x", [jnp.ones(3, int), [1.0], None, "w"])
def test_only_float_arrays_are_lifted(x):
  with pytest.raises(TypeError, match="only float arrays"):
    ql.lift(x)


def test_nbits_counts_arrays_and_shapes_alike():
  tree = {"q": ql.quantize(ql.rtn(3), jnp.ones((64, 8))), "b": jnp.ones(8)}
  expected = 3 * 64 * 8 + 2 * 8 * 32 + 8 * 32
  assert ql.nbits(tree) == expected
  shapes = jax.eval_shape(lambda t: t, tree)
  assert ql.nbits(shapes) == expected
  assert ql.bits_per_weight(tree) == expected / (64 * 8 + 8)


def test_dequantize_leaves_arrays_alone():
  bias = jnp.ones(8)
  tree = {"w": ql.quantize(ql.rtn(8), jnp.eye(8)), "b": bias, "n": 3}
  out = ql.dequantize(tree)
  assert out["b"] is bias
  assert out["n"] == 3
  np.testing.assert_allclose(out["w"], jnp.eye(8), atol=4e-3)


def test_sum_adds_its_parts():
  w = draws.normal((64, 8))
  q = ql.quantize(ql.easyquant(4, sigmas=1.0), w)
  grid, exact = q.parts
  np.testing.assert_array_equal(
    q.dequantize(), grid.dequantize() + exact.dequantize()
  )
  assert (q.shape, q.ndim, q.size, q.dtype) == (w.shape, 2, 512, w.dtype)


@pytest.mark.parametrize(
  "quantizer",
  [ql.splitquant(ql.rtn(2)), ql.exact_outliers(ql.rtn(3))],
  ids=["parts", "remainder"],
)
def test_a_sum_has_the_same_bits_in_every_program(quantizer):
  def optimized(function, argument):
    # Products and sums are contracted here, if they can be.
    options = {
      "xla_backend_optimization_level": 3,
      "xla_llvm_disable_expensive_passes": False,
    }
    if "fusion_emitters" in os.environ.get("XLA_FLAGS", ""):
      options["xla_cpu_use_fusion_emitters"] = True
    program = jax.jit(function).lower(argument).compile(options)
    return program(argument)

  def training_step(w):
    return quantizer.apply(w, quantizer.init(w))[0].dequantize()

  draws = np.random.default_rng(0).standard_t(4, (512, 256))
  w = jnp.asarray(draws, jnp.float32)
  q = ql.quantize(quantizer, w)
  found = q.dequantize()
  np.testing.assert_array_equal(optimized(ql.dequantize, q), found)
  np.testing.assert_array_equal(optimized(training_step, w), found)
