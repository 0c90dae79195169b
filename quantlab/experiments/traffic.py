"""Memory traffic of a layer whose outputs are quantized.

A range that is fixed beforehand (static) lets the accumulator's values be
quantized as they leave it. One that is computed from the output (dynamic) has
them written as they are, wide, and read back.

References:
  Fournarakis and Nagel, arXiv 2105.04246, whose comparison this is. The formula
  is derived; it gives the paper's table, as far as that is known.
"""

from collections.abc import Sequence
import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Layer:
  """Elements that a layer reads and writes for one example.

  Attributes:
    weights: read once.
    inputs: read.
    outputs: written.
  """

  weights: int
  inputs: int
  outputs: int

  @classmethod
  def conv(
    cls,
    window: Sequence[int],
    channels: tuple[int, int],
    image: Sequence[int],
    *,
    strides: int = 1,
    groups: int = 1,
  ) -> "Layer":
    """A convolution with padding.

    Args:
      window: its size along each axis.
      channels: in and out.
      image: size of the input along each axis.
      strides: along each axis.
      groups: of channels; as many as there are for a depthwise one.
    """
    inside, outside = channels
    small = math.prod(-(-n // strides) for n in image)
    return cls(
      math.prod(window) * inside * outside // groups,
      math.prod(image) * inside,
      small * outside,
    )

  def backward(self) -> "Layer":
    """The product with the weights in the backward pass."""
    return Layer(self.weights, self.outputs, self.inputs)

  def static(self, *, weight_bits: int = 8, act_bits: int = 8) -> float:
    """KiB with ranges that are known beforehand."""
    bits = weight_bits * self.weights + act_bits * (self.inputs + self.outputs)
    return bits / 8 / 1024

  def dynamic(
    self, *, weight_bits: int = 8, act_bits: int = 8, accumulator_bits: int = 32
  ) -> float:
    """KiB with ranges that are computed from the outputs.

    Example:
      >>> layer = Layer.conv((3, 3), (64, 64), (56, 56))
      >>> f"{layer.static():.0f} {layer.dynamic():.0f}"
      '428 1996'
    """
    wide = 2 * accumulator_bits * self.outputs / 8 / 1024
    return self.static(weight_bits=weight_bits, act_bits=act_bits) + wide


LAYERS = {
  "ResNet18, 3x3, 64 to 64, 56x56": Layer.conv((3, 3), (64, 64), (56, 56)),
  "MobileNetV2, 1x1, 16 to 96, 112x112": Layer.conv(
    (1, 1), (16, 96), (112, 112)
  ),
  "MobileNetV2, depthwise 3x3, 96, 112x112": Layer.conv(
    (3, 3), (96, 96), (112, 112), groups=96
  ),
}
"""The layers of the paper's table."""


def show() -> None:
  """Prints the traffic of `LAYERS`, forward and backward."""
  from rich import console, table

  out = table.Table(title="KiB per image, W8 A8, 32-bit accumulator")
  out.add_column("layer")
  for column in ("static", "dynamic", "overhead"):
    out.add_column(column, justify="right")
  for name, layer in LAYERS.items():
    for way, each in ((name, layer), ("  backward", layer.backward())):
      static, dynamic = each.static(), each.dynamic()
      out.add_row(
        way, f"{static:.0f}", f"{dynamic:.0f}", f"+{dynamic / static - 1:.0%}"
      )
  console.Console().print(out)
