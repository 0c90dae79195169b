"""Quantization-aware training, as a job."""

from quantlab.experiments.qat.job import Stopped, run, show

__all__ = ["Stopped", "run", "show"]
