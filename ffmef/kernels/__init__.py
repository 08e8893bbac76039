"""GPU kernels written in Triton, one file per operator."""
