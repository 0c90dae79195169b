"""RepVGG image classifiers in plain `flax.linen`, branched and fused.

Shape letters: B batch, H height, W width, I input and O output channels, G
groups, C classes. Images are NHWC, kernels HWIO.

A block learns as three branches and runs as one convolution, which `fuse`
computes. Both forms have the same modules down to the block:

    stage_2/block_0/{conv_3x3,conv_1x1}/kernel                   branched
    stage_2/block_0/{norm_3x3,norm_1x1,norm_identity}/{scale,bias}
    stage_2/block_0/conv/{kernel,bias}                           fused
    head/{kernel,bias}
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

EPSILON = 1e-5
"""Added to the variance inside each BatchNorm."""

_MOMENTUM = 0.9  # The authors' framework writes it as 1 - 0.9.


@dataclasses.dataclass(frozen=True)
class RepVGGConfig:
  """Sizes of a network.

  Attributes:
    widths: output channels of each stage; the first is the stem.
    depths: blocks of each stage.
    strides: of each stage's first block; the others have 1.
    groups: G of the blocks 2, 4, 6, ... of the network, counted from 0.
    classes: C.
  """

  widths: tuple[int, ...]
  depths: tuple[int, ...]
  strides: tuple[int, ...]
  groups: int = 1
  classes: int = 1000

  def __post_init__(self) -> None:
    if not len(self.widths) == len(self.depths) == len(self.strides) > 0:
      raise ValueError(
        f"widths={self.widths}, depths={self.depths} and "
        f"strides={self.strides} must have one entry per stage"
      )
    if any(width % self.groups for width in self.widths):
      raise ValueError(
        f"widths={self.widths} must be divisible by groups={self.groups}"
      )


def _published(
  a: float, b: float, depths: tuple[int, ...], groups: int = 1
) -> RepVGGConfig:
  """Scales the widths by the paper's a and, for the last one, b."""
  widths = (min(64, 64 * a), 64 * a, 128 * a, 256 * a, 512 * b)
  return RepVGGConfig(
    tuple(map(int, widths)), (1, *depths, 1), (2, 2, 2, 2, 2), groups
  )


CONFIGS: Mapping[str, RepVGGConfig] = {
  "a0": _published(0.75, 2.5, (2, 4, 14)),
  "a1": _published(1, 2.5, (2, 4, 14)),
  "b0": _published(1, 2.5, (4, 6, 16)),
  "b1": _published(2, 4, (4, 6, 16)),
  "b1g4": _published(2, 4, (4, 6, 16), groups=4),
  "digits": RepVGGConfig((32, 64, 128), (1, 3, 3), (1, 2, 2), classes=10),
}
"""Those of the paper's Tables 2 and 3, and one for 8x8 images of digits."""


class Block(nn.Module):
  """ReLU over the sum of three branches, or over the one they fuse into.

  Attributes:
    features: O.
    stride: of both convolutions; the identity needs 1, and O = I.
    groups: G.
    fused: whether the block is one convolution.
  """

  features: int
  stride: int = 1
  groups: int = 1
  fused: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[B, H, W, I]` to `[B, ceil(H / stride), ceil(W / stride), O]`."""
    if self.fused:
      return nn.relu(self._conv(3, "conv", use_bias=True)(x))
    y = self._norm("norm_3x3")(self._conv(3, "conv_3x3")(x))
    y = y + self._norm("norm_1x1")(self._conv(1, "conv_1x1")(x))
    if x.shape[-1] == self.features and self.stride == 1:
      y = y + self._norm("norm_identity")(x)
    return nn.relu(y)

  def _conv(self, size: int, name: str, use_bias: bool = False) -> nn.Conv:
    # Not "SAME": that pads even images at the far end only under stride 2,
    # and the 1x1 kernel would not lie on the centre tap.
    return nn.Conv(
      self.features,
      (size, size),
      strides=self.stride,
      padding=size // 2,
      feature_group_count=self.groups,
      use_bias=use_bias,
      name=name,
    )

  def _norm(self, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(
      use_running_average=not self.is_mutable_collection("batch_stats"),
      momentum=_MOMENTUM,
      epsilon=EPSILON,
      name=name,
    )


class Stage(nn.Module):
  """Blocks of one width, the first of which may have a stride.

  Attributes:
    features: O.
    stride: of the first block.
    groups: G of each block.
    fused: as in `Block`.
  """

  features: int
  stride: int
  groups: tuple[int, ...]
  fused: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[B, H, W, I]` to `[B, ceil(H / stride), ceil(W / stride), O]`."""
    for i, groups in enumerate(self.groups):
      stride = 1 if i else self.stride
      name = f"block_{i}"
      x = Block(self.features, stride, groups, self.fused, name=name)(x)
    return x


class RepVGG(nn.Module):
  """The classifier: images in, logits out.

  BatchNorm takes the statistics of the batch where the caller collects them,
  `model.apply(variables, images, mutable=["batch_stats"])`, and the running
  ones everywhere else.

  Attributes:
    config: the sizes.
    fused: whether each block is one convolution.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from quantlab.models import repvgg
    >>> config = repvgg.RepVGGConfig((4, 8), (1, 1), (1, 2), classes=10)
    >>> model = repvgg.RepVGG(config)
    >>> images = jnp.ones((2, 8, 8, 1))
    >>> variables = jax.jit(model.init)(jax.random.key(0), images)
    >>> fused = repvgg.fuse(variables)
    >>> model.clone(fused=True).apply(fused, images).shape
    (2, 10)
    >>> fused["params"]["stage_1"]["block_0"]["conv"]["kernel"].shape
    (3, 3, 4, 8)

  References:
    Ding et al., arXiv:2101.03697, Section 3.
  """

  config: RepVGGConfig
  fused: bool = False

  @nn.compact
  def __call__(self, images: Array) -> Array:
    """Maps `[B, H, W, I]` images to `[B, C]` logits."""
    c, x, first = self.config, images, 0
    for i, depth in enumerate(c.depths):
      # A block with groups follows one without, so that channels mix.
      blocks = range(first, first + depth)
      groups = tuple(c.groups if b and b % 2 == 0 else 1 for b in blocks)
      stage = Stage(
        c.widths[i], c.strides[i], groups, self.fused, name=f"stage_{i}"
      )
      x, first = stage(x), first + depth
    return nn.Dense(c.classes, name="head")(x.mean(axis=(1, 2)))


def fuse(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Merges the branches of every block into one convolution.

  Each branch becomes a 3x3 kernel with its BatchNorm folded in, and kernels
  and biases add up:

      W' = W * scale / sqrt(var + eps)
      b' = bias - mean * scale / sqrt(var + eps)

  where W of the 1x1 branch is its kernel at the centre tap, and W of the
  identity is 1 at the centre tap from each channel to itself.

  Args:
    variables: `params` and `batch_stats` of a branched `RepVGG`.

  Returns:
    `{"params": ...}` of the fused `RepVGG` with the same outputs.

  Raises:
    ValueError: there are no `batch_stats`, as in a fused network.

  References:
    Ding et al., arXiv:2101.03697, Section 3.3.
  """
  if "batch_stats" not in variables:
    raise ValueError(
      f"fuse takes the params and batch_stats of branches; got {[*variables]}"
    )
  params, stats = variables["params"], variables["batch_stats"]
  stages = {
    stage: {
      name: {"conv": _merge(block, stats[stage][name])}
      for name, block in params[stage].items()
    }
    for stage in stats
  }
  return {"params": {**stages, "head": params["head"]}}


def _merge(params: Mapping[str, Any], stats: Mapping[str, Any]):
  """The kernel `[3, 3, I / G, O]` and bias `[O]` of a block."""
  kernel, bias = _fold(params["conv_3x3"]["kernel"], "norm_3x3", params, stats)
  centres = {"norm_1x1": params["conv_1x1"]["kernel"]}
  if "norm_identity" in params:
    centres["norm_identity"] = _identity(kernel)
  for norm, centre in centres.items():
    centre, shift = _fold(centre, norm, params, stats)
    kernel, bias = kernel.at[1, 1].add(centre[0, 0]), bias + shift
  return {"kernel": kernel, "bias": bias}


def _fold(kernel: Array, norm: str, params, stats) -> tuple[Array, Array]:
  """Puts the BatchNorm behind a kernel `[..., O]` into it and a bias `[O]`."""
  factor = params[norm]["scale"] * jax.lax.rsqrt(stats[norm]["var"] + EPSILON)
  bias = params[norm]["bias"] - stats[norm]["mean"] * factor
  return kernel * factor[None, None, None], bias


def _identity(like: Array) -> Array:
  """The 1x1 kernel `[1, 1, I / G, O]` that maps each channel to itself."""
  _, _, inputs, outputs = like.shape
  own = jnp.arange(outputs) % inputs  # The place of a channel in its group.
  return jax.nn.one_hot(own, inputs, axis=0, dtype=like.dtype)[None, None]
