from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.apply import cost
from quantlab.models import cnn
from tests import tiny_models as tiny


def _shapes(model, *args):
  return jax.eval_shape(model.init, jax.random.key(0), *args)


def _shape(*dims):
  return jax.ShapeDtypeStruct(dims, jnp.float32)


def _layers(model, *dims):
  return cost.layers(model, _shapes(model, _shape(*dims)), _shape(*dims))


def _uniform(found, bits, input_bits=8):
  weights = dict.fromkeys(found, bits)
  acts = {path: bits for path in found if path not in cost.first(found)}
  return cost.bops(found, weights, acts, input_bits=input_bits)


@pytest.fixture(scope="module")
def lenet():
  return _layers(cnn.LeNet5(), 1, 28, 28, 1)


def test_lenet_by_the_published_numbers(lenet):
  weights = [int(np.prod(layer.weights)) for layer in lenet.values()]
  assert weights == [800, 51_200, 524_288, 5_120]
  macs = [layer.macs for layer in lenet.values()]
  assert macs == [460_800, 3_276_800, 524_288, 5_120]
  assert cost.bops(lenet, {}, {}, input_bits=32) == 4_369_416_192
  assert cost.first(lenet) == ["conv_0"]
  for bits, input_bits, bops, share in (
    (2, 8, 22_597_632, 0.0051718),
    (8, 8, 273_088_512, 0.0625),
    (2, 2, 17_068_032, 0.00390625),
  ):
    found = _uniform(lenet, bits, input_bits)
    assert found == bops
    assert cost.share(found, lenet) == pytest.approx(share, abs=5e-8)


def test_digits_by_the_numbers_of_hand():
  found = _layers(cnn.Mlp((64, 32)), 1, 64)
  first, second, third = found
  assert cost.bops(found, {}, {}, input_bits=32) == 6_619_136
  assert _uniform(found, 2) == 75_008
  assert cost.share(_uniform(found, 8), found) == 0.0625
  weights = {first: 2, second: 4, third: 8}
  mixed = cost.bops(found, weights, {second: 4, third: 8})
  assert mixed == 65_536 + 32_768 + 20_480 == 118_784


def test_each_product_is_charged_the_bits_of_its_own_weight_and_unit():
  found = _layers(nn.Dense(2), 1, 3)
  weights = np.array([[2, 4], [8, 2], [16, 32]])
  for acts in (np.array([8, 2, 4]), np.array([[8, 2, 4]])):
    assert cost.bops(found, {"": weights}, {"": acts}, inputs=()) == 260
  per_output = cost.bops(found, {"": np.array([2, 3])}, {}, input_bits=1)
  assert per_output == 3 * (2 + 3)


def _brute(x, kernel, strides, pads, dilation, groups):
  """Charges each product of a convolution on its own."""
  window, (inputs, outputs) = kernel.shape[:-2], kernel.shape[-2:]
  spans = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
  sizes = [
    (n + lo + hi - span) // s + 1
    for n, (lo, hi), span, s in zip(x.shape, pads, spans, strides, strict=False)
  ]
  total, widest = 0, int(x.max())
  for place in np.ndindex(*sizes, *kernel.shape):
    at, offset, (i, o) = np.split(np.array(place), [len(sizes), -2])
    channel = o // (outputs // groups) * inputs + i
    unit = at * strides + offset * dilation - [lo for lo, _ in pads]
    inside = np.all(unit >= 0) and np.all(unit < x.shape[:-1])
    bits = int(x[(*unit, channel)]) if inside else widest
    total += bits * int(kernel[(*offset, i, o)])
  return total


@pytest.mark.parametrize(
  ("conv", "shape", "pads"),
  [
    (nn.Conv(4, (3, 3), strides=2), (5, 6, 2), [(1, 1), (0, 1)]),
    (
      nn.Conv(2, (2, 3), strides=(1, 2), padding="VALID"),
      (4, 7, 1),
      [(0, 0)] * 2,
    ),
    (
      nn.Conv(4, (3,), padding=2, feature_group_count=2, kernel_dilation=2),
      (6, 4),
      [(2, 2)],
    ),
    (
      nn.Conv(2, (2, 1, 2), padding=[(0, 1), 1, (2, 0)], feature_group_count=2),
      (2, 1, 3, 2),
      [(0, 1), (1, 1), (2, 0)],
    ),
    (nn.Conv(3, (3,), padding="CAUSAL"), (5, 2), [(2, 0)]),
  ],
)
def test_convolutions_equal_a_count_one_by_one(conv, shape, pads):
  layer = _layers(conv, 1, *shape)[""]
  rank = len(shape) - 1

  def each(value):
    return (value,) * rank if isinstance(value, int) else value

  rest = (
    each(conv.strides),
    pads,
    each(conv.kernel_dilation),
    conv.feature_group_count,
  )
  ones = np.ones(shape, int), np.ones(layer.weights, int)
  assert layer.macs == _brute(*ones, *rest)
  rng = np.random.default_rng(0)
  x, kernel = (rng.choice([2, 4, 8, 16, 32], one.shape) for one in ones)
  assert layer.bops(kernel, x) == _brute(x, kernel, *rest)
  assert layer.bops(kernel, 4) == _brute(4 * ones[0], kernel, *rest)
  assert layer.bops(2, x) == _brute(x, 2 * ones[1], *rest)


def test_wrapped_and_spread_inputs():
  rng = np.random.default_rng(0)
  x, kernel = rng.integers(1, 9, (4, 1)), rng.integers(1, 9, (3, 1, 1))
  wrapped = _layers(nn.Conv(1, (3,), padding="CIRCULAR"), 1, 4, 1)[""]
  around = np.pad(x, ((1, 1), (0, 0)), mode="wrap")
  rest = (1,), [(0, 0)], (1,), 1
  assert wrapped.bops(kernel, x) == _brute(around, kernel, *rest)
  apart = nn.Conv(1, (3,), padding=[(2, 1)], input_dilation=2)
  spread = np.full((7, 1), x.max())
  spread[::2] = x
  found = _layers(apart, 1, 4, 1)[""].bops(kernel, x)
  assert found == _brute(spread, kernel, (1,), [(2, 1)], (1,), 1)


@pytest.mark.parametrize(
  ("model", "shape", "equation"),
  [
    (nn.Dense(3), (1, 4, 2), "abi,io->"),
    (nn.DenseGeneral((2, 3), axis=(1, -1)), (1, 4, 5, 2), "aibj,ijop->"),
    (nn.DenseGeneral(3, batch_dims=0), (1, 2), "ai,aio->"),
    (nn.Einsum((2, 3, 5), "...id,idk->...ik"), (1, 4, 2, 3), "abid,idk->"),
    (nn.Einsum((2, 5), "a...c, ck -> a...k"), (1, 4, 3, 2), "axyc,ck->"),
  ],
)
def test_contractions_equal_einsum_and_uniform_arrays_equal_numbers(
  model, shape, equation
):
  layer = _layers(model, *shape)[""]
  assert layer.input == shape
  rng = np.random.default_rng(0)
  x, kernel = (rng.integers(0, 33, size) for size in (shape, layer.weights))
  ones = np.ones(shape, int), np.ones(layer.weights, int)
  assert layer.macs == np.einsum(equation, *ones)
  assert layer.bops(kernel, x) == np.einsum(equation, x, kernel)
  assert layer.bops(2 * ones[1], 8 * ones[0]) == 16 * layer.macs


def test_uniform_arrays_equal_numbers(lenet):
  weights = {path: np.full(layer.weights, 4) for path, layer in lenet.items()}
  acts = {
    path: np.full(layer.input, 8)
    for path, layer in lenet.items()
    if not layer.first
  }
  same = cost.bops(lenet, dict.fromkeys(lenet, 4), dict.fromkeys(acts, 8))
  assert cost.bops(lenet, weights, acts) == same


@pytest.mark.parametrize("cell", [nn.GRUCell(4), nn.LSTMCell(4)])
def test_a_cell_counts_every_step_of_time(cell):
  steps, width = 7, 3
  found = _layers(nn.RNN(cell), 1, steps, width)
  gates = len(found) // 2
  assert gates == (3 if isinstance(cell, nn.GRUCell) else 4)
  for path, layer in found.items():
    reads = 4 if path.startswith("cell/h") else width
    assert layer.outputs == steps
    assert layer.macs == steps * reads * 4
    assert layer.kernel == f"{path}/kernel"
    assert layer.first == path.startswith("cell/i")


def test_attention_has_its_projections_and_two_products_of_activations():
  model, x = nn.MultiHeadDotProductAttention(2), _shape(1, 5, 8)
  variables = _shapes(model, x)
  found = cost.layers(model, variables, x)
  assert {path: layer.macs for path, layer in found.items()} == dict.fromkeys(
    ("query", "key", "value", "out"), 5 * 8 * 8
  )
  assert cost.first(found) == ["query", "key", "value"]
  everything = cost.products(model, variables, x)
  assert everything == 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8


def test_products_of_a_model_without_others_are_its_layers():
  model, x = cnn.LeNet5(), _shape(1, 28, 28, 1)
  assert cost.products(model, _shapes(model, x), x) == 4_267_008


def test_a_lookup_and_a_norm_compute_no_products():
  model, tokens = tiny.Transformer(), jax.ShapeDtypeStruct((1, 5), jnp.int32)
  found = cost.layers(model, _shapes(model, tokens), tokens)
  assert len(found) == 8
  assert cost.first(found) == []  # what a layer reads has been looked up


def test_shared_layers_count_every_call():
  class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = nn.Dense(3, name="dense")
      return dense(dense(x)), dense(x[:, :2]), nn.Dense(9)(x)[:, :0]

  layer = _layers(Twice(), 1, 4, 3)["dense"]
  assert layer.outputs == 4 + 4 + 2
  assert not layer.first
  assert layer.bops(2, np.array([1, 2, 3])) == 10 * 3 * 2 * 6
  with pytest.raises(ValueError, match=r"\(4, 3\).*not of shape=\(1, 2, 3\)"):
    layer.bops(2, np.ones((4, 3), int))


class _Broadcast(nn.Module):
  @nn.compact
  def __call__(self, carry, x, whole):
    return carry + nn.Dense(3)(whole), x


def test_transforms_of_flax():
  scan = nn.scan(
    _Broadcast,
    variable_broadcast="params",
    split_rngs={"params": False},
    in_axes=(0, nn.broadcast),
  )

  class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
      return scan(name="scan")(jnp.zeros(3), x[0], x[0, 0])

  class Mapped(nn.Module):
    @nn.compact
    def __call__(self, x):
      copies = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
      dense = nn.vmap(nn.Dense, in_axes=None, axis_size=4, **copies)
      x = nn.remat(nn.Dense)(3, name="remat")(nn.jit(nn.Dense)(3)(x))
      return dense(2, name="ensemble")(x)

  found = _layers(Scanned(), 1, 5, 3)
  assert {p: layer.outputs for p, layer in found.items()} == {"scan/Dense_0": 5}
  found = _layers(Mapped(), 1, 3)
  outputs = {path: layer.outputs for path, layer in found.items()}
  assert outputs == {"JitDense_0": 1, "remat": 1, "ensemble": 4}
  found = _layers(tiny.Stack(), 1, 4)
  assert found["block/Dense_0"].macs == 3 * 4 * 4


def test_a_pooled_input_is_an_input_and_a_normed_one_is_not():
  class Pooled(nn.Module):
    norm: bool

    @nn.compact
    def __call__(self, x):
      x = nn.LayerNorm()(x) if self.norm else nn.max_pool(x, (2,))
      return nn.Dense(2, name="dense")(jax.nn.relu(x).reshape(1, -1))

  assert cost.first(_layers(Pooled(False), 1, 4, 3)) == ["dense"]
  assert cost.first(_layers(Pooled(True), 1, 4, 3)) == []


def test_packed_weights_count_as_the_float_ones():
  model, x = tiny.Mlp(), tiny.normal(1, 6)
  variables = model.init(jax.random.key(0), x)
  packed = ql.quantize(
    ql.by_path([("kernel", ql.rtn(4)), ("", ql.keep())]), variables
  )
  counts = [
    {path: layer.macs for path, layer in cost.layers(model, v, x).items()}
    for v in (variables, packed)
  ]
  assert counts[0] == counts[1] == {"Dense_0": 48, "Dense_1": 24}


def test_bad_input(lenet):
  with pytest.raises(ValueError, match="batch of one example, got one of 2"):
    _layers(nn.Dense(1), 2, 3)
  with pytest.raises(ValueError, match="kernel of ConvTranspose"):
    _layers(nn.ConvTranspose(1, (3,)), 1, 4, 2)
  with pytest.raises(ValueError, match=r"weight_bits: \['x'\] are not among"):
    cost.bops(lenet, {"x": 2}, {})
  with pytest.raises(ValueError, match=r"\['conv_0'\] read .*input_bits=8"):
    cost.bops(lenet, {}, {"conv_0": 2})
  for bits in (2.0, -1, np.ones(10), True):
    with pytest.raises(ValueError, match=r"head: .*integers of at least 0"):
      cost.bops(lenet, {"head": bits}, {})
  with pytest.raises(ValueError, match=r"head: .*\(2,\)"):
    cost.bops(lenet, {"head": np.array([1, 2])}, {})


def test_calls_that_cannot_be_counted():
  class Jitted(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = nn.jit(nn.Dense)
      return dense(3)(dense(3)(x))

  with pytest.raises(ValueError, match=r"count the model without nn\.jit"):
    _layers(Jitted(), 1, 3)

  class Looped(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = nn.Dense(3, name="dense")
      if self.is_initializing():
        return dense(x)
      return nn.while_loop(
        lambda module, x: jnp.sum(x) < 1, lambda module, x: dense(x), self, x
      )

  with pytest.raises(ValueError, match="dense: in a while loop"):
    _layers(Looped(), 1, 3)
