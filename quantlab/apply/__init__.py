"""Runs linen models from packed weights, with quantized activations."""

from quantlab.apply.calibration import calibrate
from quantlab.apply.gradients import check_uses, grad_tap, overwritten
from quantlab.apply.linen import apply, grad_state, sites

__all__ = [
  "apply",
  "calibrate",
  "check_uses",
  "grad_state",
  "grad_tap",
  "overwritten",
  "sites",
]
