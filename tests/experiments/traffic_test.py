"""The table of arXiv 2105.04246, and the bounds of its formula."""

import pytest

from quantlab.experiments import traffic

conv = traffic.Layer.conv
TABLE = {
  "ResNet18 3x3": (conv((3, 3), (64, 64), (56, 56)), 428, 1996, 366),
  "MobileNetV2 1x1": (conv((1, 1), (16, 96), (112, 112)), 1374, 10782, 685),
  "MobileNetV2 depthwise": (
    conv((3, 3), (96, 96), (112, 112), groups=96),
    *(2353, 11761, 400),
  ),
}


@pytest.mark.parametrize("name", TABLE)
def test_table(name):
  layer, static, dynamic, overhead = TABLE[name]
  assert round(layer.static()) == static
  assert round(layer.dynamic()) == dynamic
  found = 100 * (layer.dynamic() / layer.static() - 1)
  assert found == pytest.approx(overhead, abs=0.5)


def test_bounds():
  # Nothing but outputs: 9 times; nothing but weights: once.
  outputs = traffic.Layer(0, 0, 1000)
  assert outputs.dynamic() == pytest.approx(9 * outputs.static())
  weights = traffic.Layer(10**9, 0, 1)
  assert weights.dynamic() == pytest.approx(weights.static(), rel=1e-6)


def test_backward_swaps_inputs_and_outputs():
  layer = conv((3, 3), (8, 16), (32, 32), strides=2)
  assert layer == traffic.Layer(9 * 8 * 16, 32 * 32 * 8, 16 * 16 * 16)
  assert layer.backward() == traffic.Layer(
    9 * 8 * 16, 16 * 16 * 16, 32 * 32 * 8
  )
  assert layer.backward().backward() == layer


def test_fewer_bits():
  layer = traffic.Layer(100, 200, 300)
  assert layer.static(weight_bits=4, act_bits=4) == layer.static() / 2
  wide = layer.dynamic(accumulator_bits=16) - layer.static()
  assert wide == pytest.approx(2 * 2 * 300 / 1024)
