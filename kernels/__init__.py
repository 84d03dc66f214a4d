"""Kernels: one TIR function a graph node, chosen from an ordered table. Imported as `hawq_tvm.kernels`."""

from __future__ import annotations

from hawq_tvm.kernels.registry import KERNELS, BuiltKernel, Decline, Kernel, Request, select_kernel

__all__ = ["KERNELS", "BuiltKernel", "Decline", "Kernel", "Request", "select_kernel"]
