"""Checkpoints of quantized trees: `save` and `restore`."""

from quantlab.checkpoint.folder import CheckpointError, restore, save
