"""Numbers of SplitQuant: arXiv 2501.12428 and what follows from it."""

import functools
import statistics

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from tests import draws

NORMAL = statistics.NormalDist()


@functools.cache
def _gauss(seed=0, size=128):
  return draws.normal((size, size), seed)


@functools.cache
def _branches(seed=0, size=128):
  q = ql.quantize(ql.splitquant(ql.keep()), _gauss(seed, size))
  return [part.dequantize() for part in q.parts]


@functools.partial(jax.jit, static_argnums=1)
def _clusters(x, k):
  return ql.clusters(k)(x, jnp.array(True))


def _error(quantizer, w):
  out = ql.dequantize(ql.quantize(quantizer, w))
  return float(np.mean((np.asarray(out) - np.asarray(w)) ** 2))


def _gain(inner, seed=0):
  w = _gauss(seed)
  return _error(inner, w) / _error(ql.splitquant(inner), w)


def test_three_level_lloyd_max_constants():
  # The border b is the middle between 0 and the mean of the tail beyond b.
  b = 0.612
  for _ in range(200):
    b = NORMAL.pdf(b) / (1 - NORMAL.cdf(b)) / 2
  assert b == pytest.approx(0.6120, abs=1e-4)
  assert 1 - NORMAL.cdf(b) == pytest.approx(0.2703, abs=1e-4)


@pytest.mark.parametrize(
  ("size", "border", "mass"),
  [
    (128, 0.07, 0.025),
    pytest.param(1024, 0.01, 0.005, marks=pytest.mark.study),
  ],
)
def test_clusters_of_a_gaussian(size, border, mass):
  lower, middle, upper = _branches(0, size)
  assert float(jnp.max(lower[lower != 0])) == pytest.approx(-0.612, abs=border)
  assert float(jnp.min(upper[upper != 0])) == pytest.approx(0.612, abs=border)
  assert float(jnp.mean(lower != 0)) == pytest.approx(0.2703, abs=mass)
  assert float(jnp.mean(upper != 0)) == pytest.approx(0.2703, abs=mass)
  # The borders lie halfway between the clusters' means.
  means = [float(jnp.sum(b) / jnp.sum(b != 0)) for b in (lower, middle, upper)]
  np.testing.assert_allclose(means, [-1.224, 0, 1.224], atol=2 * border)
  assert float(jnp.max(middle)) <= (means[1] + means[2]) / 2 + 1e-6
  assert float(jnp.min(upper[upper != 0])) >= (means[1] + means[2]) / 2 - 1e-6


@pytest.mark.parametrize(
  ("shape", "dtype"),
  [
    ((96, 20), jnp.bfloat16),
    pytest.param((3, 3, 16, 5), jnp.float32, marks=pytest.mark.study),
    pytest.param((64,), jnp.float16, marks=pytest.mark.study),
  ],
)
def test_branches_add_up_and_do_not_overlap(shape, dtype):
  w = draws.student_t(shape, 3.0, 1).astype(dtype)
  q = ql.quantize(ql.splitquant(ql.keep()), w)
  branches = [part.dequantize() for part in q.parts]
  np.testing.assert_array_equal(sum(branches[1:], branches[0]), w)
  np.testing.assert_array_equal(q.dequantize(), w)
  assert int(jnp.max(sum((b != 0).astype(int) for b in branches))) == 1
  assert q.dtype == dtype


def test_ranges_shrink():
  spans = []
  for seed in range(5):  # one program for all
    w = _gauss(seed)
    span = [jnp.max(b) - jnp.min(b) for b in (w, *_branches(seed))]
    spans.append([float(s / span[0]) for s in span[1:]])
  lower, middle, upper = np.mean(spans, axis=0)
  # Four standard errors of the five samples.
  assert lower == pytest.approx(0.50, abs=0.036)
  assert upper == pytest.approx(0.50, abs=0.036)
  assert middle == pytest.approx(0.156, abs=0.016)


@pytest.mark.parametrize(
  ("inner", "least", "most"),
  [
    pytest.param(
      ql.rtn(4, exact_zero=True, granularity=ql.per_tensor),
      *(6.1, 7.2),
      marks=pytest.mark.study,
    ),
    (ql.rtn(4, exact_zero=True), 6.1, 7.2),
    (ql.rtn(4), 4.4, 6.2),
    (ql.rtn(4, symmetric=True), 1.9, 2.4),
  ],
)
@pytest.mark.parametrize(
  "seed", [0, *(pytest.param(i, marks=pytest.mark.study) for i in (1, 2))]
)
def test_gain_at_four_bits(inner, least, most, seed):
  assert least < _gain(inner, seed) < most


def test_per_tensor_symmetric_gain():
  inner = ql.rtn(4, symmetric=True, granularity=ql.per_tensor)
  gains = [_gain(inner, seed) for seed in range(5)]
  # Four standard errors.
  assert np.mean(gains) == pytest.approx(1.85, abs=4 * 0.14 / 5**0.5)


@pytest.mark.parametrize("seed", range(3))
def test_a_level_at_zero_gains_more_than_none(seed):
  assert _gain(ql.rtn(4), seed) < _gain(ql.rtn(4, exact_zero=True), seed)


@pytest.mark.study
def test_gain_follows_the_closed_form():
  # High resolution: errors go with the squared range of each branch.
  w = _gauss()
  a = float(jnp.max(w) - jnp.min(w)) / 2
  closed = 1 / (0.5405 * 0.5**2 + 0.4595 * (0.612 / a) ** 2)
  inner = ql.rtn(8, exact_zero=True, granularity=ql.per_tensor)
  assert _gain(inner) == pytest.approx(closed, rel=0.08)


@functools.cache
def _masked_branches_error():
  """Per row, float shift, each branch masked after dequantization."""
  w = _gauss()
  out = jnp.zeros_like(w)
  for branch in _branches():
    part = ql.dequantize(ql.quantize(ql.rtn(4), branch))
    out += jnp.where(branch != 0, part, 0)
  return float(jnp.mean((out - w) ** 2))


def test_masking_recovers_what_a_real_zero_point_loses():
  plain = _error(ql.rtn(4), _gauss())
  assert plain / _masked_branches_error() == pytest.approx(6.3, rel=0.06)


@pytest.mark.parametrize("bits", [pytest.param(2, marks=pytest.mark.study), 4])
def test_labels_are_better_and_smaller_than_branches(bits):
  w, row = _gauss(), ql.rtn(bits)
  one = ql.quantize(ql.clusterquant(row), w)
  three = ql.quantize(ql.splitquant(row), w)
  assert ql.nbits(one) < ql.nbits(three)
  # Its grids need not cover a zero: ranges of about 0.42 in place of 0.5.
  if bits == 4:
    assert _error(ql.clusterquant(row), w) < _masked_branches_error()
  better = _error(ql.splitquant(ql.rtn(bits, exact_zero=True)), w)
  assert _error(ql.clusterquant(row), w) < better


def test_bits_of_both_forms():
  w = _gauss()
  branches = ql.quantize(ql.splitquant(ql.rtn(4, exact_zero=True)), w)
  # A step in float32 and a zero point of one byte per output.
  assert ql.nbits(branches) == 3 * (4 * w.size + 128 * 40)
  labels = ql.quantize(ql.clusterquant(ql.rtn(4)), w)
  # 20 labels of three to a word of 32 bits: seven words for 128 weights.
  assert ql.nbits(labels) == 4 * w.size + 128 * 7 * 32 + 3 * 128 * 64


def test_same_bits_as_labels_say_the_same_thing():
  # Of disjoint parts, k codes and one code with a label decode alike.
  w, inner = _gauss(), ql.rtn(4, symmetric=True)
  np.testing.assert_allclose(
    ql.dequantize(ql.quantize(ql.clusterquant(inner), w)),
    ql.dequantize(ql.quantize(ql.splitquant(inner), w)),
    atol=1e-6,
  )


@pytest.mark.parametrize("method", [ql.splitquant, ql.clusterquant])
@pytest.mark.parametrize("k", [pytest.param(2, marks=pytest.mark.study), 3])
def test_constant_tensor(method, k):
  quantizer = method(ql.rtn(2, exact_zero=True), k=k)
  for value in (0.0, 0.3, -7.0):
    w = jnp.full((32, 8), value)
    out = ql.dequantize(ql.quantize(quantizer, w))
    np.testing.assert_allclose(out, w, rtol=1e-6)


def test_constant_tensor_is_in_one_branch_only():
  w = jnp.full((128, 128), 0.3, jnp.float32)  # not doubled
  np.testing.assert_array_equal(
    ql.dequantize(ql.quantize(ql.splitquant(ql.keep()), w)), w
  )


@pytest.mark.parametrize("k", [2, 3])
def test_one_value_is_all_in_the_lowest_cluster(k):
  w = jnp.full((128, 128), 0.3, jnp.float32)
  assert not _clusters(w, k).any()


@pytest.mark.parametrize("method", [ql.splitquant, ql.clusterquant])
def test_two_distinct_values(method):
  quantizer = method(ql.rtn(2, exact_zero=True))
  for values in ((-1.0, 2.0), (0.0, 0.5), (3.0, 3.5)):
    w = jnp.where(jnp.arange(256).reshape(32, 8) % 3 == 0, *values)
    out = ql.dequantize(ql.quantize(quantizer, w))
    np.testing.assert_allclose(out, w, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
  "inner",
  [
    pytest.param(ql.rtn(2, exact_zero=True), marks=pytest.mark.study),
    ql.rtn(4),
    pytest.param(ql.rtn(4, symmetric=True), marks=pytest.mark.study),
  ],
)
@pytest.mark.parametrize("method", [ql.splitquant, ql.clusterquant])
def test_rows_without_lower_or_upper_elements(method, inner):
  # Per-tensor clusters, per-row scales: column 0 lies in the middle only,
  # column 1 in the upper part only, column 2 misses the lower one.
  w = _gauss()
  w = w.at[:, 0].multiply(1e-3).at[:, 1].set(2 + jnp.abs(w[:, 1]) / 10)
  w = w.at[:, 2].set(jnp.abs(w[:, 2]))
  out = ql.dequantize(ql.quantize(method(inner), w))
  assert jnp.isfinite(out).all()
  plain = ql.dequantize(ql.quantize(inner, w))
  error, most = (
    np.mean(np.square(np.asarray(x) - np.asarray(w)), axis=0)[:3]
    for x in (out, plain)
  )
  assert np.all(error < 1.01 * most)


@pytest.mark.parametrize("method", [ql.splitquant, ql.clusterquant])
def test_kernels_with_fewer_outputs_than_clusters_are_not_split(method):
  w = _gauss()[:, :2]
  assert isinstance(ql.quantize(method(ql.rtn(4)), w), ql.QTensor)
  np.testing.assert_array_equal(
    ql.dequantize(ql.quantize(method(ql.rtn(4)), w)),
    ql.dequantize(ql.quantize(ql.rtn(4), w)),
  )
  # Whether it is split is known from the shape.
  three, _ = jax.eval_shape(
    lambda w: method(ql.rtn(4)).apply(w, method(ql.rtn(4)).init(w)),
    jax.ShapeDtypeStruct((128, 3), jnp.float32),
  )
  parts = three.parts if method is ql.splitquant else three.grid.grids
  assert len(parts) == 3


def test_convolutions_are_clustered_per_output_kernel():
  scale = jnp.array([1.0, 8.0, 0.125, 64.0]).reshape(1, 1, 1, 4)
  w = draws.normal((3, 3, 16, 1), 2) * scale
  q = ql.quantize(ql.splitquant(ql.keep()), w)
  for branch in q.parts:  # of each kernel the same elements
    found = branch.dequantize() / scale
    np.testing.assert_array_equal(found, found[..., :1].repeat(4, -1))
  # All of a dense kernel is clustered at once.
  w = _gauss() * jnp.tile(scale.ravel(), 32)[None]
  upper = ql.quantize(ql.splitquant(ql.keep()), w).parts[2].dequantize()
  assert jnp.mean(upper[:, 3::4] != 0) > 0.1
  assert not upper[:, 2::4].any()


def test_rows_can_be_chosen():
  w = _gauss()[:, :4] * jnp.array([[1.0, 10.0, 0.1, 1.0]])
  q = ql.quantize(ql.splitquant(ql.keep(), rows=ql.per_channel(-1)), w)
  found = jnp.mean(q.parts[2].dequantize() != 0, axis=0)
  np.testing.assert_allclose(found, 0.27, atol=0.1)


MODELS = {
  "dense": (nn.Dense(12), (4, 24)),
  "dense_no_bias": (nn.Dense(12, use_bias=False), (4, 24)),
  "conv": (nn.Conv(12, (3, 3)), (2, 8, 8, 4)),
  "conv_strides": (nn.Conv(12, (3, 3), strides=2), (2, 9, 8, 4)),
  "conv_valid": (nn.Conv(12, (3, 3), padding="VALID"), (2, 8, 8, 4)),
  "conv_groups": (nn.Conv(12, (3, 3), feature_group_count=4), (2, 8, 8, 4)),
  "conv_1d": (nn.Conv(12, (5,), kernel_dilation=2), (2, 16, 4)),
}


# Each is a linear function of its kernel.
ALIKE = ("conv_strides", "conv_valid", "conv_groups", "conv_1d")


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.study] * (name in ALIKE))
    for name in MODELS
  ],
)
def test_float_layer_is_the_sum_of_its_branches(name):
  model, shape = MODELS[name]
  model = model.clone(precision="highest")
  x = draws.normal(shape)
  params = jax.jit(model.init)(jax.random.key(1), x)["params"]
  if "bias" in params:
    params["bias"] = draws.normal((12,), 2)
  run = jax.jit(lambda params: ql.apply(model, {"params": params}, x))
  expected = run(params)
  split = ql.quantize(ql.splitquant(ql.keep()), params)
  np.testing.assert_allclose(run(split), expected, atol=1e-5)
  # As the paper runs it: three layers, each with its own share of the bias.
  total = jnp.zeros_like(expected)
  for i in range(3):
    branch = {k: v.parts[i].dequantize() for k, v in split.items()}
    total += run(branch)
  np.testing.assert_allclose(total, expected, atol=1e-5)


def test_bias_is_split_on_its_own():
  params = {"kernel": _gauss(), "bias": 10 + _gauss(1)[0]}
  q = ql.quantize(ql.splitquant(ql.keep()), params)
  shares = [part.dequantize() != 0 for part in q["bias"].parts]
  np.testing.assert_array_equal(sum(s.astype(int) for s in shares), 1)
  # By the clusters of the bias, not of the kernel (all would be upper).
  assert all(0.1 < float(jnp.mean(share)) < 0.8 for share in shares)
  zero = ql.quantize(ql.splitquant(ql.keep()), jnp.zeros(128))
  assert len(zero.parts) == 3  # not left out, as the authors' code does
  assert not zero.dequantize().any()


def test_activations_in_three_chunks():
  x = draws.normal((5, 12))
  x *= jnp.repeat(jnp.array([1.0, 100.0, 0.01]), 4)[None]

  def values(quantizer, x):
    return quantizer.apply(x, quantizer.init(x))[0].dequantize()

  thirds = ql.rtn(8, granularity=ql.per_block(-1, 12 // 3))
  found = jax.jit(functools.partial(values, thirds))(x)
  alone = functools.partial(values, ql.rtn(8, granularity=ql.per_tensor))
  # A scale per example and chunk.
  expected = jax.jit(jax.vmap(jax.vmap(alone)))(x.reshape(5, 3, 4))
  for i in range(3):
    chunk = slice(4 * i, 4 * i + 4)
    np.testing.assert_allclose(
      found[:, chunk],
      expected[:, i],
      rtol=1e-5,
      atol=1e-7 * float(jnp.max(jnp.abs(x[:, chunk]))),
    )


@pytest.mark.study
def test_branches_keep_their_zeros_with_a_sensitivity():
  # A branch's zeros are values to store, whatever tables make of zeros.
  w, inner = _gauss(), ql.lloyd(2)
  plain = ql.quantize(ql.splitquant(inner), w)
  same = ql.quantize(ql.splitquant(inner), w, sensitivity=jnp.ones_like(w))
  a, b = (float(jnp.mean((q.dequantize() - w) ** 2)) for q in (plain, same))
  assert b == pytest.approx(a, rel=1e-3)


def test_same_clusters_every_time():
  # No random start: the same tensor in another place has the same clusters.
  w = _gauss()
  again = _clusters(np.asarray(w), 3)
  np.testing.assert_array_equal(_clusters(w, 3), again)
  order = np.random.default_rng(5).permutation(128)
  shuffled = np.asarray(w)[order]
  np.testing.assert_array_equal(_clusters(shuffled, 3), again[order])


@pytest.mark.parametrize("method", [ql.splitquant, ql.clusterquant])
@pytest.mark.parametrize("k", [-1, 0, 1])
def test_refuses_fewer_than_two_clusters(method, k):
  with pytest.raises(ValueError, match=f"at least two clusters, got count={k}"):
    method(ql.rtn(4), k=k)
