"""Sensitivity: how much the loss is predicted to rise when one layer's weights are quantised, and how sure that is.

    Omega_i(b) = mean trace of the Hessian x ||Q_b(W_i) - W_i||_2^2        HAWQ-V2, HAWQ-V3
    Omega_i(b) = top eigenvalue of the Hessian x ||Q_b(W_i) - W_i||_2^2    HAWQ
    S_i        = top eigenvalue / number of weights                        HAWQ's order of bits, at no width

Q_b(W) are the weights as they are deployed, on their own scales and rounded as they will be.

Source: HAWQ-V2 (arXiv 1911.03852), equation 5; HAWQ-V3 (arXiv 2011.10680), section 3.4; HAWQ (arXiv 1905.03696), its
definitions of S_i and Omega_i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from hawq_tvm.calibration.eigenvalue import Eigenvalue
from hawq_tvm.calibration.hessian import TraceEstimate
from hawq_tvm.core.errors import SensitivityError


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error.

    Attributes:
        value: may fall below 0 where the truth is near it.
        error: at least 0.
    """

    value: float
    error: float

    def __mul__(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.error * abs(factor))

    @classmethod
    def mean_of(cls, samples: Tensor) -> Estimate:
        """The mean over samples.

        Args:
            samples: float64 [samples].

        Raises:
            SensitivityError: one sample or none, which shows no error.
        """
        _check(samples)
        return cls(float(samples.mean()), float(samples.std(correction=1)) / math.sqrt(len(samples)))

    @classmethod
    def ratio_of(cls, above: Tensor, below: Tensor) -> Estimate:
        """The ratio of two sums over samples, its error by the delta method (Cochran, Sampling Techniques, 6.4).

        Args:
            above: float64 [samples].
            below: float64 [samples], at least 0 each.

        Raises:
            SensitivityError: one sample or none, which shows no error.
        """
        _check(above)
        whole = float(below.sum())
        if whole == 0:
            return cls(0.0, 0.0)
        ratio = float(above.sum()) / whole
        left = above - ratio * below
        return cls(ratio, math.sqrt(float(left.square().sum()) * len(above) / (len(above) - 1)) / whole)


def _check(samples: Tensor) -> None:
    if len(samples) < 2:
        raise SensitivityError(
            f"a sensitivity over {len(samples)} samples shows no error; give at least 2, with --hessian-samples or "
            "--loss-samples"
        )


def mean_trace(found: TraceEstimate) -> Estimate:
    """What HAWQ-V2 and V3 call the average trace."""
    return Estimate(found.mean, found.standard_error / found.parameters)


def top_eigenvalue(found: Eigenvalue) -> Estimate:
    """The magnitude of the top eigenvalue; the residual stands for its error, and bounds it."""
    return Estimate(found.magnitude, found.residual)
