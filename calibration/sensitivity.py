"""Sensitivity: how much the loss is predicted to rise when one layer's weights are quantised.

    Omega_i(b) = mean trace of the Hessian x ||Q_b(W_i) - W_i||_2^2

Q_b(W) are the weights as they are deployed, on their own scales and rounded as they will be. The layer's input has a
term of its own, in the same unit: `hawq_tvm.posttraining.fisher`.

Source: HAWQ-V2 (arXiv 1911.03852), equation 5; HAWQ-V3 (arXiv 2011.10680), section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping

from hawq_tvm.calibration.hessian import TraceEstimate
from hawq_tvm.core.codebook import WeightFormat


def sensitivities(
    squared_errors: Mapping[str, Mapping[WeightFormat, float]], traces: Mapping[str, TraceEstimate]
) -> dict[str, dict[WeightFormat, float]]:
    """Omega of every layer at every weight width.

    A trace that comes out negative is noise around a true value near 0 (or a network that is not at a minimum), and
    counts as 0: such a layer is predicted to lose nothing.

    Args:
        squared_errors: ``||Q_b(W) - W||_2^2`` by layer and width.
        traces: Hessian traces by layer.

    Returns:
        Omega by layer and width.
    """
    return {
        name: {bits: max(traces[name].mean, 0.0) * error for bits, error in row.items()}
        for name, row in squared_errors.items()
    }
