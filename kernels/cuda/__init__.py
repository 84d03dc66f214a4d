"""Kernels for NVIDIA GPUs, all of them TIR: a simple exact family for every operator, and Tensor Core ones."""

from __future__ import annotations
