"""Sums of a value's signal and of what is wrong with it in integers, and the ratios that they come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hawq_tvm.core.ir import TensorType

VIEWS = ("accumulated", "alone", "inputs", "weights", "output")
"""What a value is compared as; `hawq_tvm.measure.sqnr` tells what each is."""

Sums = NDArray[np.float64]


@dataclass(eq=False)
class Meter:
    """Sums over the samples of one value, by channel [C], in float64.

    Attributes:
        type: of the value in integers.
        signal: of the squared float values.
        noise: of the squared differences, by view.
        clipped_noise: the part of the output's noise that elements beyond the range make.
        clipped: how many those are.
        elements: how many were seen.
        largest: magnitude.
        levels: how often each integer was met that the float value quantises to, from the type's least on; zeros of the
            float value are not counted. Of the 32-bit result, and of no other, it is empty.
    """

    type: TensorType
    signal: Sums
    noise: dict[str, Sums]
    clipped_noise: float = 0.0
    clipped: int = 0
    elements: int = 0
    largest: float = 0.0
    levels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, type: TensorType) -> Meter:
        """A meter that has seen nothing."""
        channels, dtype = type.shape[0], type.dtype
        count = dtype.hi - dtype.lo + 1 if dtype.bits <= 8 else 0
        noise = {view: np.zeros(channels) for view in VIEWS}
        return cls(type, np.zeros(channels), noise, levels=np.zeros(count, np.int64))

    def add(self, y: Tensor, q: Tensor, views: Mapping[str, Tensor]) -> None:
        """Take in a batch.

        Args:
            y: the float value, float32 [N, C, ...].
            q: the integers that it quantises to.
            views: what stands in its place, float32, by view; the output's among them.
        """
        self.signal += _squares(y)
        for view, other in views.items():
            self.noise[view] += _squares(other - y)
        self.elements += y.numel()
        lo, hi = float(y.min()), float(y.max())
        self.largest = max(self.largest, hi, -lo)
        if not len(self.levels):
            return
        dtype, scale = self.type.dtype, self.type.scale
        bounds = (dtype.lo - 0.5) * scale, (dtype.hi + 0.5) * scale
        if lo < bounds[0] or hi >= bounds[1]:
            beyond = (y < bounds[0]) | (y >= bounds[1])
            self.clipped += int(beyond.sum())
            self.clipped_noise += float((views["output"] - y)[beyond].double().square().sum())
        self._count(y, q)

    def _count(self, y: Tensor, q: Tensor) -> None:
        """Count levels, of at most so many elements, evenly picked."""
        step = max(1, y.numel() // _MOST_COUNTED)
        some, integers = y.reshape(-1)[::step], q.reshape(-1)[::step]
        dtype = self.type.dtype
        counts = torch.bincount(integers[some != 0].long() - dtype.lo, minlength=len(self.levels))
        self.levels += counts.numpy()

    # what the sums come to

    def db(self, view: str, channels: slice = slice(None)) -> float | None:
        """Signal to noise of a view in dB, of some channels; None where either is 0."""
        return decibels(float(self.signal[channels].sum()), float(self.noise[view][channels].sum()))

    @property
    def clipped_share(self) -> float:
        return self.clipped / max(self.elements, 1)

    @property
    def limit(self) -> float:
        """The largest magnitude of its type."""
        return self.type.scale * self.type.dtype.hi

    @property
    def range_use(self) -> float | None:
        """The largest magnitude over the type's; None of the result, which has no range."""
        return self.largest / self.limit if len(self.levels) else None

    @property
    def bulk(self) -> int | None:
        """The integer that 99.9% of the elements stay within, zeros left out; None of the result, or of nothing."""
        if not self.levels.any():
            return None
        magnitudes = np.abs(np.arange(len(self.levels)) + self.type.dtype.lo)
        within = np.cumsum(np.bincount(magnitudes, self.levels))
        return int(np.searchsorted(within, _BULK * within[-1]))

    @property
    def effective_bits(self) -> float | None:
        """Bits of a type that would do for the bulk."""
        if self.bulk is None:
            return None
        return float(np.log2((2 if self.type.dtype.signed else 1) * self.bulk + 1))

    @property
    def levels_used(self) -> float | None:
        """Share of the type's integers that were met; None of the result."""
        return float((self.levels > 0).mean()) if len(self.levels) else None

    @property
    def live(self) -> NDArray[np.bool_]:
        """Which channels carry a signal, [C]."""
        return np.asarray(self.signal > _DEAD * self.signal.max(initial=0.0))

    @property
    def channel_spread(self) -> float:
        """Root mean square of the strongest channel over that of the weakest that is alive; 1 of a dead value."""
        alive = self.signal[self.live]
        return float(np.sqrt(alive.max() / alive.min())) if len(alive) else 1.0


_BULK = 0.999
_DEAD = 1e-12
"""Of the strongest channel's power: what float32 makes of 0."""


def decibels(signal: float, noise: float) -> float | None:
    """``10 log10(signal / noise)``; None where either is 0."""
    return 10.0 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else None


_MOST_COUNTED = 1 << 17
"""Elements of a value and a batch whose levels are counted: enough for the last thousandth of them."""


def _squares(x: Tensor) -> Sums:
    """Sums of squares by channel: within a sample in float32, over the samples in float64."""
    by_sample = x.square().flatten(2).sum(2) if x.ndim > 2 else x.square()
    return np.asarray(by_sample.double().sum(0).numpy())
