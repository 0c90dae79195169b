"""Numbers of CFWS: arXiv 2312.10588 and what follows from it."""

import functools
import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import base, numerics, sparse
from quantlab.methods import cfws
from quantlab.transforms import estimate, fit
from tests import draws


@functools.cache
def _kernel(sigma=0.05, seed=0, size=64):
  """A merged kernel: all taps narrow, a wide centre, an identity."""
  w = 0.02 * draws.normal((3, 3, size, size), (seed, 0))
  centre = sigma * draws.normal((size, size), (seed, 1)) + jnp.eye(size)
  return w.at[1, 1].add(centre)


def _sqnr(q, w):
  w = np.asarray(w)
  error = np.asarray(ql.dequantize(q)) - w
  return float(10 * np.log10(np.mean(w**2) / np.mean(error**2)))


def _parts(
  w,
  granularity=numerics.per_output,
  bits=8,
  extract=True,
  dtype=jnp.float32,
):
  """What the coarse and the fine part are of."""
  spec = base.IntSpec(bits, symmetric=True)
  grid = fit.fit(estimate.absmax, spec, granularity, dtype=dtype)
  splitter = cfws.rounded_off(grid, extract=extract)
  return jax.jit(lambda w: [x for x, _ in splitter(w, ql.lift(w).grid)])(w)


@pytest.mark.parametrize("extract", [True, False])
@pytest.mark.parametrize("granularity", [ql.per_channel(-1), ql.per_tensor])
def test_parts_add_up(granularity, extract):
  w = _kernel()
  coarse, fine = _parts(w, granularity=granularity, extract=extract)
  most = 2e-7 * float(jnp.max(jnp.abs(w)))
  np.testing.assert_allclose(coarse + fine, w, rtol=0, atol=most)
  step = jnp.max(jnp.abs(w), axis=(0, 1, 2) if extract else None) / 127
  taps = (jnp.arange(9) == 4).reshape(3, 3, 1, 1)
  if extract:
    assert not jnp.where(taps, 0, coarse).any()
    np.testing.assert_array_equal(
      jnp.where(taps, 0, fine), jnp.where(taps, 0, w)
    )
  left = jnp.abs(fine[1, 1] if extract else fine)
  assert float(jnp.max(left)) <= float(jnp.max(step)) / 2 * (1 + 1e-5)


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"coarse_granularity": ql.per_tensor},
    {"extract": False},
    {"extract": False, "coarse_granularity": ql.per_tensor},
    {"bits": 4},
    {"dtype": jnp.float16},
    pytest.param({"dtype": jnp.bfloat16}, marks=pytest.mark.study),
  ],
)
def test_coarse_part_is_exact_and_uses_all_codes(options):
  w = _kernel()
  q = ql.quantize(ql.cfws(**options), w)
  part, bits = q.parts[0], options.get("bits", 8)
  codes = part.part.codes if isinstance(part, ql.Window) else part.codes
  assert int(jnp.max(jnp.abs(codes.unpack()))) == 2 ** (bits - 1) - 1
  granularity = options.get("coarse_granularity", numerics.per_output)
  exact, _ = _parts(
    w,
    granularity=granularity,
    bits=bits,
    extract=options.get("extract", True),
    dtype=options.get("dtype", jnp.float32),
  )
  np.testing.assert_allclose(part.dequantize(), exact, rtol=1e-6, atol=0)


def test_coarse_scale_is_that_of_the_centre_taps():
  w = _kernel()
  centre = jnp.max(jnp.abs(w[1, 1]), axis=0) / 127
  scale = ql.quantize(ql.cfws(), w).parts[0].part.grid.scale
  np.testing.assert_allclose(scale.ravel(), centre, rtol=1e-6)
  # Not of the whole kernel, should the largest tap be elsewhere.
  q = ql.quantize(ql.cfws(), w.at[0, 0].multiply(1e3))
  np.testing.assert_allclose(
    q.parts[0].part.grid.scale.ravel(), centre, rtol=1e-6
  )
  q = ql.quantize(ql.cfws(coarse_granularity=ql.per_tensor), w)
  assert q.parts[0].part.grid.scale.shape == (1, 1, 1, 1)
  assert float(q.parts[0].part.grid.scale.squeeze()) == pytest.approx(
    float(jnp.max(centre)), rel=1e-6
  )


def test_coarse_part_is_a_small_kernel():
  q = ql.quantize(ql.cfws(), _kernel())
  coarse, fine = q.parts
  assert isinstance(coarse, ql.Window)
  assert coarse.part.shape == (1, 1, 64, 64)
  assert coarse.shape == fine.shape == q.shape == (3, 3, 64, 64)
  dense = coarse.dequantize()
  np.testing.assert_array_equal(dense[1, 1], coarse.part.dequantize()[0, 0])
  assert int(jnp.sum(dense != 0)) == int(jnp.sum(dense[1, 1] != 0))
  # A tenth more codes, and two sets of scales.
  codes = 8 * 64 * 64
  assert ql.nbits(q) == 10 * codes + 2 * (64 * 32 + 8)


def test_rounding_goldens():
  # Centre taps in units of the step, a power of 2: ties are ties.
  halves = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 127.0]
  w = jnp.zeros((3, 3, 7, 1)).at[1, 1, :, 0].set(jnp.array(halves) / 128)
  q = ql.quantize(ql.cfws(), w)
  codes = q.parts[0].part.codes.unpack().ravel()
  assert codes.tolist() == [-2, -1, 0, 1, 2, 3, 127]
  np.testing.assert_allclose(
    _parts(w)[1][1, 1, :, 0] * 128, [-0.5] * 6 + [0], atol=1e-6
  )
  w = jnp.zeros((3, 3, 4, 1))
  taps = jnp.array([1.27, -0.334, 0.00501, -0.00499])
  w = w.at[1, 1, :, 0].set(taps)
  coarse = ql.quantize(ql.cfws(), w).parts[0].part
  assert coarse.codes.unpack().ravel().tolist() == [127, -33, 1, 0]
  residual = _parts(w)[1][1, 1, :, 0]
  expected = [0, -0.004, -0.00499, -0.00499]
  np.testing.assert_allclose(residual, expected, atol=1e-7)


@pytest.mark.parametrize(
  "bits", [2, pytest.param(4, marks=pytest.mark.study), 8]
)
@pytest.mark.parametrize("sigma", [0.05, 1.0])
def test_error_bound_per_channel(bits, sigma):
  most = 2 ** (bits - 1) - 1
  for seed in range(2):
    w = _kernel(sigma, seed, 32)
    around = jnp.max(jnp.abs(w.at[1, 1].set(0)), axis=(0, 1, 2))
    step = jnp.max(jnp.abs(w[1, 1]), axis=0) / most
    bound = jnp.maximum(around, step / 2) / (2 * most)
    error = jnp.abs(ql.dequantize(ql.quantize(ql.cfws(bits), w)) - w)
    error = jnp.max(error, axis=(0, 1, 2))
    assert bool(jnp.all(error <= bound * (1 + 1e-4) + 1e-7))
    # And no better; with 3 codes hardly a residual is near half a step.
    assert bits == 2 or float(jnp.max(error / bound)) > 0.9


@pytest.mark.parametrize(
  ("sigma", "naive", "ours", "whole", "dropped", "tolerance"),
  [(0.05, 26.7, 50.4, 74.8, 36.2, 0.4), (1.0, 35.0, 67.1, 83.1, 44.4, 0.8)],
)
def test_sqnr(sigma, naive, ours, whole, dropped, tolerance):
  w = _kernel(sigma)

  def found(quantizer):
    return _sqnr(ql.quantize(quantizer, w), w)

  plain = found(ql.rtn(8, symmetric=True))
  assert plain == pytest.approx(naive, abs=tolerance)
  assert found(ql.cfws()) == pytest.approx(ours, abs=tolerance)
  gain = {0.05: (23.7, 0.5), 1.0: (32.3, 0.8)}[sigma]
  assert found(ql.cfws()) - plain == pytest.approx(gain[0], abs=gain[1])
  tensor = ql.cfws(coarse_granularity=ql.per_tensor)
  assert found(tensor) == pytest.approx(ours, abs=tolerance)
  without = ql.cfws(extract=False)
  assert found(without) == pytest.approx(whole, abs=tolerance)
  # Negative control: the centre's residual is not put back.
  coarse, fine = ql.quantize(ql.cfws(), w).parts
  wrong = coarse.dequantize() + fine.dequantize().at[1, 1].set(0)
  assert _sqnr(wrong, w) == pytest.approx(dropped, abs=tolerance)


def test_gain_follows_the_ratio_of_ranges():
  for sigma in (0.05, 1.0):
    w = _kernel(sigma)
    around = jnp.max(jnp.abs(w.at[1, 1].set(0)))
    fine = jnp.maximum(around, jnp.max(jnp.abs(w[1, 1])) / 254)
    closed = float(20 * jnp.log10(jnp.max(jnp.abs(w)) / fine))
    gain = _sqnr(ql.quantize(ql.cfws(), w), w)
    gain -= _sqnr(ql.quantize(ql.rtn(8, symmetric=True), w), w)
    assert gain == pytest.approx(closed, abs=4)


def test_dead_centre():
  w = _kernel(0.05).at[1, 1].set(0)
  w = w.at[1, 1, :, 0].set(1.0)  # one channel lives
  q = ql.quantize(ql.cfws(), w)
  assert jnp.isfinite(q.parts[0].part.grid.scale).all()
  assert bool(jnp.all(q.parts[0].part.grid.scale > 0))
  assert not q.parts[0].dequantize()[..., 1:].any()
  np.testing.assert_allclose(q.dequantize(), w, atol=0.1 / 127)
  nothing = ql.quantize(ql.cfws(), jnp.zeros((3, 3, 4, 4)))
  assert not nothing.dequantize().any()


@pytest.mark.parametrize(
  "shape",
  [
    (8, 4),
    (1, 1, 8, 4),
    (2, 2, 8, 4),
    (3, 2, 8, 4),
    (4, 8, 4),
    (1, 8, 4),
    (9,),
  ],
)
@pytest.mark.parametrize("extract", [True, False])
def test_refuses_what_has_no_centre_tap(shape, extract):
  tree = {"layer": {"kernel": jnp.ones(shape)}}
  message = rf"layer/kernel: cfws splits the centre.*{re.escape(str(shape))}"
  with pytest.raises(ValueError, match=message):
    ql.quantize(ql.cfws(extract=extract), tree)


@pytest.mark.parametrize(
  ("shape", "centre"),
  [
    pytest.param((5, 5, 8, 4), (2, 2), marks=pytest.mark.study),
    ((1, 3, 8, 4), (0, 1)),
    ((7, 8, 4), (3,)),
    ((3, 3, 3, 8, 4), (1, 1, 1)),
    pytest.param((3, 3, 1, 8), (1, 1), marks=pytest.mark.study),
  ],
)
def test_windows_of_any_odd_size(shape, centre):
  w = 0.02 * draws.normal(shape).at[centre].add(50.0)
  q = ql.quantize(ql.cfws(), w)
  coarse = q.parts[0]
  assert coarse.start == (*centre, 0, 0)
  assert coarse.part.shape == (*(1 for _ in centre), *shape[-2:])
  naive = ql.quantize(ql.rtn(8, symmetric=True), w)
  assert _sqnr(q, w) > _sqnr(naive, w) + 10


@pytest.mark.parametrize(
  "bits",
  [
    pytest.param(bits, marks=[pytest.mark.study] * (bits not in (2, 5, 8)))
    for bits in range(2, 9)
  ],
)
def test_other_widths(bits):
  w = _kernel(0.05, size=32)
  q = ql.quantize(ql.cfws(bits), w)
  naive = ql.quantize(ql.rtn(bits, symmetric=True), w)
  assert _sqnr(q, w) > _sqnr(naive, w)
  assert ql.nbits(q) == 10 * bits * 32 * 32 + 2 * (32 * 32 + 8)


@pytest.mark.parametrize("bits", [1, 9])
def test_refuses_other_widths(bits):
  with pytest.raises(ValueError, match=f"bits={bits}"):
    ql.cfws(bits)


@pytest.mark.parametrize(
  "fine",
  [
    ql.rtn(4),
    ql.rtn(4, granularity=ql.per_block(2, 16)),
    *(
      pytest.param(fine, marks=pytest.mark.study)
      for fine in (
        ql.lloyd(3),
        ql.icquant(ql.rtn(4), ratio=0.05),
        ql.easyquant(4, steps=5),
        ql.splitquant(ql.rtn(4, exact_zero=True)),
      )
    ),
    ql.keep(),
  ],
)
def test_fine_part_takes_any_method(fine):
  w = _kernel(0.05, size=32)
  q = ql.quantize(ql.cfws(fine=fine), w)
  assert isinstance(q.parts[0], ql.Window)
  assert fine is ql.keep() or _sqnr(q, w) > _sqnr(ql.quantize(fine, w), w)
  # What the fine part is of: the kernel less the coarse part.
  rest = _parts(w)[1]
  alone = ql.dequantize(ql.quantize(fine, rest))
  np.testing.assert_allclose(
    q.parts[1].dequantize(), alone, rtol=1e-4, atol=2e-5
  )
  if fine is ql.keep():
    assert isinstance(q.parts[1], sparse.Sparse)
    np.testing.assert_allclose(q.dequantize(), w, atol=2e-7)


@pytest.mark.parametrize(
  "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.study)]
)
def test_half_precision_kernels(dtype):
  w = _kernel().astype(dtype)
  q = ql.quantize(ql.cfws(), w)
  assert q.dtype == dtype
  # Rounded to the kernel's own type once per part.
  error = jnp.abs(q.dequantize().astype(jnp.float32) - w.astype(jnp.float32))
  bound = 0.1 / 127 / 2 + 2 * float(jnp.finfo(dtype).eps) * jnp.abs(w)
  assert bool(jnp.all(error <= bound))


def test_a_stack_of_kernels():
  stack = jnp.stack([_kernel(0.05, 0, 32), _kernel(1.0, 1, 32)])
  q = ql.quantize(ql.stacked(ql.cfws()), stack)
  assert q.shape == stack.shape
  for i in range(2):
    alone = ql.quantize(ql.cfws(), stack[i])
    np.testing.assert_allclose(
      q.dequantize()[i], alone.dequantize(), rtol=1e-5, atol=1e-7
    )
    # As lax.scan over layers slices it.
    one = jax.tree.map(lambda leaf, i=i: leaf[i], q)
    assert one.shape == stack[i].shape
    np.testing.assert_array_equal(one.dequantize(), q.dequantize()[i])


def test_logits_of_a_small_network():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      for _ in range(2):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
      return nn.Conv(5, (3, 3))(x).mean(axis=(1, 2))

  x = draws.normal((4, 8, 8, 16))
  params = jax.jit(Net().init)(jax.random.key(1), x)["params"]
  for layer in params.values():
    size = layer["kernel"].shape[-2:]
    layer["kernel"] = (0.1 * layer["kernel"]).at[1, 1].add(jnp.eye(*size))
  expected = jax.jit(Net().apply)({"params": params}, x)
  run = jax.jit(lambda q: ql.apply(Net(), {"params": q}, x))
  error = {}
  methods = {"cfws": ql.cfws(), "naive": ql.rtn(8, symmetric=True)}
  for name, method in methods.items():
    plan = ql.by_path([("bias", ql.keep()), ("kernel", method)])
    out = run(ql.quantize(plan, params))
    error[name] = float(jnp.mean((out - expected) ** 2))
  assert error["cfws"] < error["naive"] / 10
