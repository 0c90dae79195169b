"""Models of a few parameters, and a quantizer whose state can be read."""

from flax import linen as nn
import jax.numpy as jnp

import quantlab as ql
from quantlab.core import grids
from tests import draws

INT8 = ql.IntSpec(8, symmetric=True)


def _grid(largest, rank):
  scale = (largest / INT8.hi).reshape((1,) * rank)
  return grids.Affine(scale, jnp.zeros((1,) * rank, jnp.int8), INT8)


def _track(q, state, key=None):
  del key
  q = ql.lift(q)
  x = q.dequantize().astype(jnp.float32)
  now = jnp.max(jnp.abs(x))
  # Before there is any, the range of the tensor itself.
  grid = _grid(jnp.where(state.stats > 0, state.stats, now), x.ndim)
  q = ql.QTensor(grid.encode(x), grid, q.dtype)
  return q, jnp.maximum(state.stats, now)


running_max = ql.chain(
  ql.Quantizer(lambda q: ql.State(stats=jnp.zeros(())), _track), ql.nearest()
)
"""Int8, out to the largest magnitude of earlier calls."""


def largest(stats):
  """The one statistic of `running_max`."""
  return stats[0]


def fake_quantized(x, largest):
  """What `running_max` makes of `x`, written by hand."""
  scale = largest / 127
  return jnp.clip(jnp.round(x / scale), -127, 127) * scale


def on(pattern, quantizer=running_max):
  """A plan that quantizes some sites and keeps the others."""
  return ql.by_path([(pattern, quantizer), ("", ql.keep())])


class Mlp(nn.Module):
  """Two layers, compact."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(8)(x))
    return nn.Dense(3)(x)


class ConvNet(nn.Module):
  """A convolution, a norm with running statistics and a dense layer."""

  def setup(self):
    self.conv = nn.Conv(4, (3, 3))
    self.norm = nn.BatchNorm(momentum=0.5)
    self.head = nn.Dense(3)

  def __call__(self, x, *, train=False):
    x = nn.relu(self.norm(self.conv(x), use_running_average=not train))
    return self.head(jnp.mean(x, (1, 2)))


class Transformer(nn.Module):
  """Two layers of attention on tokens."""

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(10, 8)(tokens)
    for _ in range(2):
      x += nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
    return x


class Block(nn.Module):
  """A layer of a stack."""

  @nn.compact
  def __call__(self, x, _=None):
    return nn.tanh(nn.Dense(4)(x)), None


class Stack(nn.Module):
  """Three layers under `nn.scan`, which may lift the states of activations."""

  lifted: bool = True

  @nn.compact
  def __call__(self, x):
    axes = {"params": 0, "acts": 0} if self.lifted else {"params": 0}
    scan = nn.scan(
      Block, variable_axes=axes, split_rngs={"params": True}, length=3
    )
    return scan(name="block")(x, None)[0]


class Custom(nn.Module):
  """Reads a parameter by itself, beside submodules with state and keys."""

  def setup(self):
    self.w = self.param("w", nn.initializers.normal(1.0), (4, 4))
    self.dense = nn.Dense(3)
    self.norm = nn.BatchNorm(use_running_average=False)
    self.dropout = nn.Dropout(0.5, deterministic=False)

  def __call__(self, x):
    y = self.dense(x @ self.w)
    self.sow("intermediates", "y", y)
    return self.dropout(self.norm(y))


class Wrapped(nn.Module):
  """`Custom` as a part of a model."""

  @nn.compact
  def __call__(self, x):
    return Custom(name="custom")(x)


def normal(*shape, seed=0):
  """Normal values."""
  return draws.normal(shape, seed)
