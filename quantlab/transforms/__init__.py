"""Quantizer primitives, each a pure function of a quantized tensor."""
