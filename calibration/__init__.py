"""Ranges and sensitivities of a float network. Imported as `hawq_tvm.calibration`."""

from __future__ import annotations

from hawq_tvm.calibration.eigenvalue import Eigenvalue, Progress, top_eigenvalues
from hawq_tvm.calibration.hessian import TraceEstimate, hutchinson_traces
from hawq_tvm.calibration.histogram import Histogram
from hawq_tvm.calibration.observers import (
    AUTO,
    NetworkHistograms,
    Observer,
    make_observer,
    make_observers,
    observe_ranges,
)
from hawq_tvm.calibration.sensitivity import Estimate, mean_trace, top_eigenvalue

__all__ = [
    "AUTO",
    "Eigenvalue",
    "Estimate",
    "Histogram",
    "NetworkHistograms",
    "Observer",
    "Progress",
    "TraceEstimate",
    "hutchinson_traces",
    "make_observer",
    "make_observers",
    "mean_trace",
    "observe_ranges",
    "top_eigenvalue",
    "top_eigenvalues",
]
