"""Runs linen models from packed weights, with quantized activations."""

from quantlab.apply.calibration import calibrate
from quantlab.apply.linen import apply, sites

__all__ = ["apply", "calibrate", "sites"]
