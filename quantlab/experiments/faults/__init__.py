"""Weights in a memory that flips bits: scores, chips, and what breaks."""
