"""Arm CPUs' instructions for the kernels of `hawq_tvm.kernels.dot`."""
