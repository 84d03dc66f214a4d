"""Kernels: one TIR function a graph node, offered from an ordered table. Imported as `hawq_tvm.kernels`."""

from __future__ import annotations

from hawq_tvm.kernels.interface import (
    BuiltKernel,
    Converter,
    ConvertRequest,
    Decline,
    Kernel,
    Offer,
    Parameters,
    Request,
    Variant,
)
from hawq_tvm.kernels.registry import CONVERTERS, KERNELS, QUANTIZERS, collect_offers, offer_conversion, unit_of

__all__ = [
    "CONVERTERS",
    "KERNELS",
    "QUANTIZERS",
    "BuiltKernel",
    "ConvertRequest",
    "Converter",
    "Decline",
    "Kernel",
    "Offer",
    "Parameters",
    "Request",
    "Variant",
    "collect_offers",
    "offer_conversion",
    "unit_of",
]
