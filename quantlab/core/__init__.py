"""Numbers and data: specs, bit layouts, grids, quantized tensors."""
