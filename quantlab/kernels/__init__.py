"""Products with quantized weights: a kernel knows layouts, never papers.

ops:            the entry: dot, dot_general, conv, einsum, take.
products:       weights of which kernels take a part at least.
backends:       which kernel multiplies, by platform.
form:           what kernels read, and how stored weights get there.
planes:         the layout of packed codes as kernels see it.
scan:           CPU, plain XLA.
triton:         GPU, by Pallas Triton; triton_kernel, triton_decode; tuned.
mosaic_gpu:     GPU, by Pallas Mosaic; mosaic_decode.
mosaic_tpu:     TPU, by Pallas Mosaic; mosaic_tpu_kernel, mosaic_tpu_decode.
integer_rnn:    recurrent layers in integers; integer_cells, fixed_point.
"""
