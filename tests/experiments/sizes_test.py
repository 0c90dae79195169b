import jax
import jax.numpy as jnp
import pytest

import quantlab as ql
from quantlab.experiments import configs, sizes, variants
from quantlab.transforms import plan
from tests import draws

PARAMS = {
  "a": {"kernel": draws.student_t((384, 256), 4.0)},
  "b": {"kernel": draws.normal((1024, 128), 1)},
  "norm": jnp.ones(7, jnp.bfloat16),
}
LEAVES = plan.leaves(PARAMS)
SHAPES = {
  path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in LEAVES.items()
}


def _variant(method, **arguments):
  config = {
    "rules": [["norm", "keep"], ["kernel$", "weights"]],
    "methods": {method: {"method": method, **arguments}},
    "weights": {"method": method, "bits": 3},
  }
  return variants.variants(config)[0]


def _real(variant):
  rules = [(rule.pattern, rule.quantizer) for rule in variant.rules]
  return plan.leaves(ql.quantize(ql.by_path(rules), PARAMS))


def test_sizes_of_rtn_are_exact():
  variant = _variant("rtn", dtype="float16")
  found, real = sizes.sizes(variant, SHAPES), _real(variant)
  assert {s.path: s.bits for s in found} == {
    path: ql.nbits(q) for path, q in real.items()
  }
  assert [s.kept for s in found] == [False, False, True]
  assert {s.sure for s in found} == {sizes.EXACT}
  # 3 bits of 2 kernels, scale and zero of each column, 7 kept.
  assert found[0].bits == 384 * 256 * 3 + 256 * 32
  assert found[2].bits == found[2].float_bits == 7 * 16


@pytest.mark.parametrize(("ratio", "gap_bits"), [(0.05, 6), (0.1, 4)])
def test_sizes_of_icquant_are_as_expected(ratio, gap_bits):
  inner = {"method": "rtn", "dtype": "float16"}
  variant = _variant("icquant", inner=inner, ratio=ratio, gap_bits=gap_bits)
  found, real = sizes.sizes(variant, SHAPES), _real(variant)
  for size in found[:2]:
    assert size.sure == sizes.EXPECTED
    assert size.bits == pytest.approx(ql.nbits(real[size.path]), rel=0.01)
  total = sum(size.bits for size in found)
  assert total == pytest.approx(ql.nbits(list(real.values())), rel=0.01)
  # The worst case, which tracing gives, would not do.
  worst = ql.nbits(sizes.shape_of(variant.rules[1], SHAPES["a/kernel"]))
  assert worst > 1.015 * found[0].bits


def test_sizes_of_easyquant_are_lower_bounds():
  variant = _variant("easyquant", steps=2)
  found, real = sizes.sizes(variant, SHAPES), _real(variant)
  for size in found[:2]:
    assert size.sure == sizes.AT_LEAST
    grid, exact = real[size.path].parts
    assert size.bits == ql.nbits(grid)
    assert ql.nbits(real[size.path]) == size.bits + 64 * exact.values.size
  assert sizes.least_sure(found) == sizes.AT_LEAST
  assert sizes.least_sure(found[2:]) == sizes.EXACT


def test_peak_is_the_weights_and_four_of_the_largest_quantized():
  found = sizes.sizes(_variant("rtn"), SHAPES)
  floats = (384 * 256 + 1024 * 128) * 4 + 7 * 2
  packed = sum(size.bits for size in found[:2]) / 8
  peak = sizes.peak_bytes(found)
  assert peak == floats + packed + 4 * (1024 * 128 * 4)


def test_a_leaf_that_does_not_fit_is_named():
  variant = _variant("rtn", granularity=["per_block", 0, 256])
  with pytest.raises(configs.InputError, match=r"^a/kernel: per_block: .*256"):
    sizes.sizes(variant, SHAPES)
