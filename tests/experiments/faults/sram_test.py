import math

import numpy as np
import pytest

from quantlab.experiments.faults import sram

# Voltage, rate and energy, as the figure has them.
TABLE = [
  (0.757, 0.2, 0.57),
  (0.804, 0.055, 0.63),
  (0.848, 0.0115, 0.70),
  (0.891, 0.0012, 0.77),
  (0.904, 0.0005, 0.79),
  (0.946, 1.7e-5, 0.87),
  (0.961, 4e-6, 0.90),
]


@pytest.mark.parametrize(("volt", "rate", "energy"), TABLE)
def test_points_of_the_figure(volt, rate, energy):
  assert sram.rate(volt) == pytest.approx(rate)
  assert sram.voltage(rate) == pytest.approx(volt)
  assert sram.energy(volt) == pytest.approx(energy)


def test_between_the_points():
  assert sram.energy(1.0) == 1.0
  # The mean of two voltages has the geometric mean of their rates.
  middle = math.sqrt(0.2 * 0.055)
  assert sram.rate((0.757 + 0.804) / 2) == pytest.approx(middle)
  assert sram.voltage(middle) == pytest.approx((0.757 + 0.804) / 2)
  # The more errors, the less energy.
  rates = np.geomspace(4e-6, 0.2, 30)
  energies = [sram.energy(sram.voltage(p)) for p in rates]
  assert np.all(np.diff(energies) < 0)
  # The energy of an access goes as V**2.1 to V**2.3.
  for volt, _, energy in TABLE:
    assert 1.9 < math.log(energy) / math.log(volt) < 2.7


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: sram.rate(1.0), "voltage=1 is outside"),
    (lambda: sram.rate(0.7), "voltage=0.7 is outside"),
    (lambda: sram.voltage(0.0), "rate=0 is outside"),
    (lambda: sram.voltage(0.3), "rate=0.3 is outside"),
    (lambda: sram.energy(1.01), "voltage=1.01 is outside"),
  ],
)
def test_refuses_what_the_figure_does_not_show(call, message):
  with pytest.raises(ValueError, match=message):
    call()
