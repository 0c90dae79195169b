"""Speed on this machine, as ratios in one run: `python -m launch.bench`.

timing:       times cases in turn.
quantizers:   quantizers and bit codes of a matrix.
steps:        training steps; steps_torch has PyTorch's.
kernels:      products with packed weights; peers has those of other libraries.
tune:         the best tiles of the Triton kernel; ways says what each costs.
"""
