"""Simulated accelerators of few-bit integers: sizes of a layer and a pair of bits in, microseconds and microjoules out.

An accelerator is a page of data (`pages.py`) that follows the rules of its kind: `bit_serial` or `bit_fusion`.
"""

from __future__ import annotations

from hawq_tvm.core.errors import AllocationError
from hawq_tvm.ilp.simulators.accelerator import Accelerator, Simulated
from hawq_tvm.ilp.simulators.pages import BISMO_CLOUD, BISMO_EDGE, BITFUSION
from hawq_tvm.ilp.simulators.workload import Workload, workload_of, workloads

ACCELERATORS: dict[str, Accelerator] = {
    "bismo-edge": BISMO_EDGE,
    "bismo-cloud": BISMO_CLOUD,
    "bitfusion": BITFUSION,
}
"""Every accelerator by the name that ``--latency-from`` takes."""


def find_accelerator(name: str) -> Accelerator:
    """The accelerator of that name.

    Raises:
        AllocationError: there is none.
    """
    if name not in ACCELERATORS:
        raise AllocationError(f"unknown accelerator '{name}'; known: {', '.join(ACCELERATORS)}")
    return ACCELERATORS[name]


__all__ = ["ACCELERATORS", "Accelerator", "Simulated", "Workload", "find_accelerator", "workload_of", "workloads"]
