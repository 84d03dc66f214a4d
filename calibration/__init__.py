"""Ranges and sensitivities of a float network. Imported as `hawq_tvm.calibration`."""

from __future__ import annotations

from hawq_tvm.calibration.hessian import TraceEstimate, hutchinson_traces
from hawq_tvm.calibration.observers import OBSERVERS, Observer, make_observer, observe_ranges
from hawq_tvm.calibration.sensitivity import sensitivities

__all__ = [
    "OBSERVERS",
    "Observer",
    "TraceEstimate",
    "hutchinson_traces",
    "make_observer",
    "observe_ranges",
    "sensitivities",
]
