"""GPU kernels written in Triton, one file an operator."""
