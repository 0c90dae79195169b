"""The table of arXiv 2105.04246, and the bounds of its formula."""

import pytest

from quantlab.experiments import traffic

conv = traffic.Layer.conv
# KiB and overhead in percent: the paper's, in the order of `traffic.LAYERS`.
TABLE = [(428, 1996, 366), (1374, 10782, 685), (2353, 11761, 400)]


@pytest.mark.parametrize(
  ("layer", "row"), [*zip(traffic.LAYERS.values(), TABLE, strict=True)]
)
def test_table(layer, row):
  static, dynamic, overhead = row
  assert round(layer.static()) == static
  assert round(layer.dynamic()) == dynamic
  found = 100 * (layer.dynamic() / layer.static() - 1)
  assert found == pytest.approx(overhead, abs=0.5)


def test_shows_both_directions(capsys):
  traffic.show()
  out = capsys.readouterr().out
  assert "10782" in out
  assert out.count("backward") == len(traffic.LAYERS)


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
