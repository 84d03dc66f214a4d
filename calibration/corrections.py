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


@dataclass(frozen=True)
class ResultSums:
    """Sums over a layer's results, before residual, clip and bias; float64.

    Attributes:
        weight: [out], how much was summed.
        sums: [4, out], of the wanted results and their squares, of the quantised ones and theirs.
        drift: [out], of what else the bias is to make up for: the error that a residual brings.
    """

    weight: Tensor
    sums: Tensor
    drift: Tensor

    @classmethod
    def of(
        cls, wanted: Tensor, got: Tensor, drift: Tensor | None = None, importance: Tensor | None = None
    ) -> ResultSums:
        """Sums over one batch.

        Args:
            wanted: float32 [N, out, ...], of the float layer on float inputs.
            got: float32 of that shape, of the integers on quantised inputs.
            drift: float32 of that shape: float less quantised residual.
            importance: float32 of that shape, how much each counts; None for all alike.
        """
        over = tuple(dim for dim in range(wanted.dim()) if dim != 1)
        counted = torch.ones_like(wanted) if importance is None else importance

        def total(value: Tensor) -> Tensor:
            return (value.double() * counted).sum(over)

        parts = (wanted, wanted.double().square(), got, got.double().square())
        weight = counted.double().sum(over)
        return cls(
            weight, torch.stack([*map(total, parts)]), torch.zeros_like(weight) if drift is None else total(drift)
        )

    def __add__(self, other: ResultSums) -> ResultSums:
        return ResultSums(self.weight + other.weight, self.sums + other.sums, self.drift + other.drift)


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
    wanted, wanted_squares, got, got_squares = sums.sums / sums.weight
    factor = torch.ones_like(got)
    if slope:
        ratio = ((wanted_squares - wanted.square()) / (got_squares - got.square())).sqrt()
        factor = torch.where((ratio > _LEAST_SLOPE) & (ratio < _MOST_SLOPE), ratio, factor)  # NaN compares false
    offset = wanted + sums.drift / sums.weight - factor * got
    return factor, offset if bias else torch.zeros_like(offset)
