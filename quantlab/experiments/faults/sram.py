"""What a memory saves at a low voltage, and how many of its bits are wrong.

Read off the figure of voltage, rate and energy in arXiv 2006.13977 (14 nm
SRAM): the paper's numbers, not measured here.
"""

from collections.abc import Sequence
import math

import numpy as np

# Voltage over the lowest one without errors; rate; energy of an access over
# that at this voltage.
_CURVE = (
  (0.757, 0.2, 0.57),
  (0.804, 0.055, 0.63),
  (0.848, 0.0115, 0.70),
  (0.891, 0.0012, 0.77),
  (0.904, 0.0005, 0.79),
  (0.946, 1.7e-5, 0.87),
  (0.961, 4e-6, 0.90),
)
_VOLTAGES, _RATES, _ENERGIES = zip(*_CURVE, strict=True)


def rate(voltage: float) -> float:
  """The bit error rate of an SRAM at a voltage.

  Read off a figure (voltage ± 0.005, rate ± 15 %), linear in its logarithm in
  between.

  Args:
    voltage: over the lowest one without errors, 0.757 to 0.961.

  Raises:
    ValueError: it is outside the figure.

  Example:
    >>> round(rate(0.848), 4), round(rate(0.87), 5)
    (0.0115, 0.00362)

  References:
    arXiv 2006.13977, the figure of voltage, rate and energy (14 nm SRAM).
    Reconstruction: the numbers, and the line between them.
  """
  return math.exp(_at(voltage, _VOLTAGES, np.log(_RATES)))


def voltage(rate: float) -> float:
  """The voltage at which an SRAM has a bit error rate; inverse of `rate`.

  Args:
    rate: 4e-6 to 0.2.

  Returns:
    Over the lowest voltage without errors.

  Raises:
    ValueError: it is outside the figure.

  Example:
    >>> round(voltage(0.01), 3)
    0.851
  """
  if not _RATES[-1] <= rate <= _RATES[0]:
    raise ValueError(
      f"{rate=:.6g} is outside the figure, {_RATES[-1]:.6g} to {_RATES[0]:.6g}"
    )
  return float(np.interp(-math.log(rate), -np.log(_RATES), _VOLTAGES))


def energy(voltage: float) -> float:
  """The energy of an access at a voltage.

  Read off the figure of `rate`, ± 0.01.

  Args:
    voltage: over the lowest one without errors, 0.757 to 1.

  Returns:
    Over the energy at the lowest voltage without errors.

  Raises:
    ValueError: it is outside the figure.

  Example:
    >>> round(energy(voltage(0.01)), 3), energy(1.0)
    (0.704, 1.0)
  """
  return _at(voltage, (*_VOLTAGES, 1.0), (*_ENERGIES, 1.0))


def _at(
  voltage: float, known: Sequence[float], values: Sequence[float] | np.ndarray
) -> float:
  if not known[0] <= voltage <= known[-1]:
    raise ValueError(
      f"{voltage=:.6g} is outside the figure, {known[0]} to {known[-1]}"
    )
  return float(np.interp(voltage, known, values))
