"""Kernels for x86 CPUs, each accepted by the instruction sets that it needs."""
