"""Each output channel's slope and offset, so that quantised results have the spread and the mean of the float ones.

Rounding moves the mean of a channel, and clipping and least squares shrink it; layer upon layer that ends in noise.
With ``y`` the wanted results of a channel and ``z`` those of its integers,

    slope = std(y) / std(z)        bias = mean(y) - slope mean(z)

The ratio of standard deviations, not the regression of y on z, which would shrink once more. The slope goes into the
channel's weight scale, so neither costs anything in the integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_SLOPE, _MOST_SLOPE = 0.25, 4.0  # outside, a channel is all but dead, and a ratio of its noise is no correction
_CONSTANT = 1e-9  # of the mean square: a variance under it is the noise of float32


@dataclass(frozen=True)
class ResultSums:
    """Sums over a layer's results, before residual, clip and bias; float64.

    Attributes:
        count: elements a channel.
        sums: [4, out], of the wanted results and their squares, of the quantised ones and theirs.
        drift: [out], of what else the bias is to make up for: the error that a residual brings.
    """

    count: int
    sums: Tensor
    drift: Tensor

    @classmethod
    def of(cls, wanted: Tensor, got: Tensor, drift: Tensor | None = None) -> ResultSums:
        """Sums over one batch.

        Args:
            wanted: float32 [N, out, ...], of the float layer on float inputs.
            got: float32 of that shape, of the integers on quantised inputs.
            drift: float32 of that shape: float less quantised residual.
        """
        over = tuple(dim for dim in range(wanted.dim()) if dim != 1)
        parts = (wanted.double(), got.double())
        sums = torch.stack([value.sum(over) for part in parts for value in (part, part.square())])
        none = torch.zeros(wanted.shape[1], dtype=torch.float64)
        count = wanted.numel() // wanted.shape[1]
        return cls(count, sums, none if drift is None else drift.double().sum(over))

    def __add__(self, other: ResultSums) -> ResultSums:
        return ResultSums(self.count + other.count, self.sums + other.sums, self.drift + other.drift)


def corrections(sums: ResultSums, *, slope: bool, bias: bool) -> tuple[Tensor, Tensor]:
    """Factor and offset of each output channel.

    Args:
        sums: over the calibration samples.
        slope: whether spreads are matched; else every factor is 1.
        bias: whether means are matched; else every offset is 0.

    Returns:
        float64 [out] each. A channel that is all but constant, or whose spread is off by more than a factor of 4, keeps
        the factor 1.
    """
    wanted, wanted_squares, got, got_squares = sums.sums / sums.count
    factor = torch.ones_like(got)
    if slope:
        variances = [squares - mean.square() for mean, squares in ((wanted, wanted_squares), (got, got_squares))]
        varies = (variances[0] > _CONSTANT * wanted_squares) & (variances[1] > _CONSTANT * got_squares)
        ratio = (variances[0] / variances[1]).sqrt()
        factor = torch.where(varies & (ratio > _LEAST_SLOPE) & (ratio < _MOST_SLOPE), ratio, factor)
    offset = wanted + sums.drift / sums.count - factor * got
    return factor, offset if bias else torch.zeros_like(offset)
