"""Small classifiers of images for quantization-aware training.

  mlp, mlp_wide  dense layers and ReLU
  lenet5         of 28x28 images, as in Bayesian Bits (arXiv 2005.07093)
  resnet8        ReLU; three residual blocks (He et al., arXiv 1512.03385)
  mobilenet      ReLU6; inverted residuals (MobileNetV2, arXiv 1801.04381)
  efficientnet   Swish; the same with squeeze-and-excitation (arXiv 1905.11946)

The blocks are the papers'; the sizes are for images of 8 to 32 pixels.

Shape letters: B batch, H height, W width, I input and O output channels, C
classes. Images are NHWC.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import flax.linen as nn
import jax

Array = jax.Array


class ConvNorm(nn.Module):
  """A convolution without bias, and a BatchNorm.

  The norm takes the statistics of the batch where the collection `batch_stats`
  is mutable, and the running ones elsewhere.

  Attributes:
    features: O.
    window: side of the kernel.
    stride: of the convolution.
    depthwise: a kernel for each channel.
  """

  features: int
  window: int = 3
  stride: int = 1
  depthwise: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[B, H, W, I]` to `[B, H / stride, W / stride, O]`."""
    x = nn.Conv(
      self.features,
      (self.window, self.window),
      strides=self.stride,
      padding=self.window // 2,
      feature_group_count=x.shape[-1] if self.depthwise else 1,
      use_bias=False,
      name="conv",
    )(x)
    running = not self.is_mutable_collection("batch_stats")
    return nn.BatchNorm(use_running_average=running, momentum=0.9, name="norm")(
      x
    )


class Residual(nn.Module):
  """Two convolutions beside a shortcut.

  Attributes:
    features: O.
    stride: of the first convolution.
  """

  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[B, H, W, I]` to `[B, H / stride, W / stride, O]`."""
    y = nn.relu(ConvNorm(self.features, stride=self.stride, name="first")(x))
    y = ConvNorm(self.features, name="second")(y)
    if x.shape != y.shape:
      x = ConvNorm(self.features, 1, self.stride, name="shortcut")(x)
    return nn.relu(x + y)


class Inverted(nn.Module):
  """Wider inside, depthwise there, and linear at its ends.

  Attributes:
    features: O.
    stride: of the depthwise convolution.
    expand: width inside, in input channels.
    squeeze: channels of the squeeze, as a part of the input's; 0 for none.
    act: the activation function.
  """

  features: int
  stride: int
  expand: int
  squeeze: float
  act: Callable[[Array], Array]

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps `[B, H, W, I]` to `[B, H / stride, W / stride, O]`."""
    wide = self.expand * x.shape[-1]
    y = self.act(ConvNorm(wide, 1, name="expand")(x))
    y = ConvNorm(wide, 3, self.stride, depthwise=True, name="depthwise")(y)
    y = self.act(y)
    if self.squeeze:
      narrow = max(1, round(self.squeeze * x.shape[-1]))
      z = nn.Conv(narrow, (1, 1), name="squeeze")(
        y.mean(axis=(1, 2), keepdims=True)
      )
      y = y * nn.sigmoid(nn.Conv(wide, (1, 1), name="excite")(self.act(z)))
    y = ConvNorm(self.features, 1, name="project")(y)
    return x + y if x.shape == y.shape else y


class CNN(nn.Module):
  """A stem, blocks and a linear head.

  Attributes:
    stem: its channels.
    blocks: `(features, stride)` of each.
    block: makes one.
    act: activation function of the stem.
    last: channels of a 1x1 convolution before the head; 0 for none.
    classes: C.
  """

  stem: int
  blocks: tuple[tuple[int, int], ...]
  block: Callable[..., nn.Module]
  act: Callable[[Array], Array]
  last: int = 0
  classes: int = 10

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps images `[B, H, W, I]` to logits `[B, C]`."""
    x = self.act(ConvNorm(self.stem, name="stem")(x))
    for i, (features, stride) in enumerate(self.blocks):
      x = self.block(features, stride, name=f"block_{i}")(x)
    if self.last:
      x = self.act(ConvNorm(self.last, 1, name="last")(x))
    return nn.Dense(self.classes, name="head")(x.mean(axis=(1, 2)))


class Mlp(nn.Module):
  """Dense layers with ReLU in between.

  Attributes:
    widths: of the hidden layers.
    classes: C.
  """

  widths: tuple[int, ...]
  classes: int = 10

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps images `[B, H, W, I]` to logits `[B, C]`."""
    he = nn.initializers.he_normal()
    x = x.reshape(x.shape[0], -1)
    for i, width in enumerate(self.widths):
      x = nn.relu(nn.Dense(width, kernel_init=he, name=f"hidden_{i}")(x))
    return nn.Dense(self.classes, kernel_init=he, name="head")(x)


class LeNet5(nn.Module):
  """Two convolutions with pooling, two dense layers, ReLU.

  Attributes:
    classes: C.

  References:
    The variant of Bayesian Bits, arXiv 2005.07093, for 28x28 images.
  """

  classes: int = 10

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps images `[B, 28, 28, 1]` to logits `[B, C]`."""
    for i, features in enumerate((32, 64)):
      conv = nn.Conv(features, (5, 5), padding="VALID", name=f"conv_{i}")
      x = nn.max_pool(nn.relu(conv(x)), (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(nn.Dense(512, name="hidden")(x))
    return nn.Dense(self.classes, name="head")(x)


_MOBILE: Mapping[str, Any] = {
  "stem": 16,
  "blocks": ((16, 1), (24, 2), (24, 1), (32, 2)),
  "last": 64,
}

NETWORKS: Mapping[str, CNN | Mlp | LeNet5] = {
  "mlp": Mlp((64, 32)),
  "mlp_wide": Mlp((128, 128)),
  "lenet5": LeNet5(),
  "resnet8": CNN(16, ((16, 1), (32, 2), (64, 2)), Residual, nn.relu),
  "mobilenet": CNN(
    block=functools.partial(Inverted, expand=3, squeeze=0, act=nn.relu6),
    act=nn.relu6,
    **_MOBILE,
  ),
  "efficientnet": CNN(
    block=functools.partial(Inverted, expand=3, squeeze=0.25, act=nn.swish),
    act=nn.swish,
    **_MOBILE,
  ),
}
"""By name; `network.clone(classes=...)` fits one to a task."""
