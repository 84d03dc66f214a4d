"""Kernels in plain TIR that run on any CPU that LLVM knows: exact first, and fast enough to work with.

They multiply int8 values widened to int32, vectorised over output channels (or over pixels where a group has few), with
the rescale fused behind the accumulators; LLVM chooses the instructions.
"""
