"""Sensitivity: how much the loss is predicted to rise when one layer's weights are quantised.

    Omega_i(b) = mean trace of the Hessian x ||Q_b(W_i) - W_i||_2^2

Source: HAWQ-V2 (arXiv 1911.03852), equation 5; HAWQ-V3 (arXiv 2011.10680), section 3.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hawq_tvm.calibration.hessian import TraceEstimate
from hawq_tvm.core.quantizer import FloatArray, weight_error


def sensitivities(
    weights: Mapping[str, FloatArray], traces: Mapping[str, TraceEstimate], weight_bits: Iterable[int]
) -> dict[str, dict[int, float]]:
    """Omega of every layer at every weight width.

    A trace that comes out negative is noise around a true value near 0 (or a network that is not at a minimum), and
    counts as 0: such a layer is predicted to lose nothing.

    Args:
        weights: float32 [out, ...] by layer.
        traces: Hessian traces by layer.
        weight_bits: widths, 2 to 8.

    Returns:
        Omega by layer and width.
    """
    widths = sorted(set(weight_bits))
    return {
        name: {bits: max(traces[name].mean, 0.0) * weight_error(weight, bits) for bits in widths}
        for name, weight in weights.items()
    }
