"""Kernels around an instruction that adds dot products of bytes to 32-bit lanes, on whichever CPU has one."""
