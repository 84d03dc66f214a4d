"""Observers: what range an activation is quantised over, from the values that calibration samples give it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite

import torch
from torch import Tensor

from hawq_tvm.calibration.histogram import Histogram
from hawq_tvm.calibration.limits import METHODS, Method, within
from hawq_tvm.core.errors import CalibrationError
from hawq_tvm.core.quantizer import Range, RangeTable

Tap = Callable[[str, Tensor], None]
Run = Callable[[Tensor, Tap], object]
"""Runs a network on a batch, float32 [N, ...]; calls the tap with each value's name and tensor, the input's first."""

WIDTHS = range(2, 9)
"""The bits that a value can be stored or read at."""

AUTO = "auto"
CANDIDATES = ("percentile:99.999", "max", "mse", "kl")
"""What ``auto`` compares on the network's output; of equals, the first.

The percentiles 99.99 and 99.9 were worse than ``mse`` at 4 and at 8 bits on each network that was measured.
"""


@dataclass(frozen=True)
class Observer:
    """A way to find ranges.

    Attributes:
        name: as users write it.
        limit: where a range ends; see `hawq_tvm.calibration.limits`.
    """

    name: str
    limit: Method

    def range(self, histogram: Histogram, bits: int, *, signed: bool) -> Range:
        """The range of a value at some bits: as far as the limit on both sides, and no further than what was seen."""
        limit = self.limit(histogram, bits, signed)
        return Range(max(histogram.lo, -limit), min(histogram.hi, limit))

    def ranges(self, histogram: Histogram, *, signed: bool) -> Range | dict[int, Range]:
        """The ranges of a value at every width; one where they are all equal."""
        by_width = {bits: self.range(histogram, bits, signed=signed) for bits in WIDTHS}
        return by_width[8] if len(set(by_width.values())) == 1 else by_width


def make_observer(spec: str) -> Observer:
    """Read an observer as users write it: ``max``, ``percentile``, ``percentile:99.9``, ``mse`` or ``kl``.

    Raises:
        CalibrationError: no such observer.
    """
    name, colon, argument = spec.partition(":")
    if name not in METHODS or (colon and name != "percentile"):
        known = ", ".join(METHODS)
        raise CalibrationError(f"unknown observer '{spec}'; known: {AUTO}, {known}, percentile:99.9")
    return Observer(spec, partial(within, percent=_percent(argument)) if colon else METHODS[name])


def make_observers(spec: str) -> tuple[Observer, ...]:
    """As `make_observer`; ``auto`` stands for several, to be compared.

    Raises:
        CalibrationError: no such observer.
    """
    return tuple(make_observer(name) for name in (CANDIDATES if spec == AUTO else (spec,)))


def _percent(text: str) -> float:
    try:
        percent = float(text)
    except ValueError:
        percent = 0.0
    if not 0 < percent <= 100:
        raise CalibrationError(f"a percentile lies above 0 and at most at 100, got '{text}'; write percentile:99.9")
    return percent


class NetworkHistograms:
    """A histogram of every value of a network over some samples.

    Attributes:
        values: by name, the input's first.
        samples: how many were seen.
    """

    def __init__(self, first: int = 0) -> None:
        """Begin.

        Args:
            first: the number of the first sample, for messages.
        """
        self.values: dict[str, Histogram] = {}
        self.samples = 0
        self._first = first

    @torch.no_grad()
    def observe(self, run: Run, batch: Tensor) -> None:
        """Run the network on a batch and take in all that it computes.

        Args:
            run: the network.
            batch: float32 [N, ...].

        Raises:
            CalibrationError: NaN or infinity in a sample, or in a value, by name.
        """
        seen: list[str] = []

        def tap(name: str, x: Tensor) -> None:
            seen.append(name)
            if not all(isfinite(bound) for bound in torch.aminmax(x)):
                raise CalibrationError(
                    f"layer '{name}' computes NaN or infinity on finite samples; check its weights"
                    if len(seen) > 1
                    else f"calibration samples {start} to {start + len(batch) - 1} hold NaN or infinity"
                )
            self.values.setdefault(name, Histogram()).observe(x)

        start = self._first + self.samples
        if len(batch):
            run(batch, tap)
            self.samples += len(batch)

    def merge(self, other: NetworkHistograms) -> None:
        """Take in what another has seen of the same network."""
        for name, histogram in other.values.items():
            self.values.setdefault(name, Histogram()).merge(histogram)
        self.samples += other.samples

    def check(self) -> None:
        """Raise `CalibrationError` where no range can be found: no sample, or a value that is always 0, by name."""
        if not self.samples:
            raise CalibrationError("the calibration set is empty; give it at least one sample")
        for index, (name, histogram) in enumerate(self.values.items()):
            if histogram.magnitude == 0.0:
                what = f"layer '{name}' is dead: its output" if index else "the input"
                raise CalibrationError(
                    f"{what} is 0 over all {self.samples} calibration samples; check weights and data"
                )

    def ranges(self, observer: Observer, nonnegative: Mapping[str, bool]) -> RangeTable:
        """The ranges that an observer finds.

        Args:
            observer: which.
            nonnegative: which values are quantised without a sign; those not named have one.

        Raises:
            CalibrationError: as `check`.
        """
        self.check()
        return {
            name: observer.ranges(histogram, signed=not nonnegative.get(name, False))
            for name, histogram in self.values.items()
        }


def observe_ranges(
    run: Run, batches: Iterable[Tensor], observer: Observer, nonnegative: Mapping[str, bool] | None = None
) -> RangeTable:
    """Ranges of every value of a network over a calibration set, on this thread.

    Args:
        run: the network.
        batches: float32 [N, ...] each.
        observer: how ranges are found.
        nonnegative: see `NetworkHistograms.ranges`.

    Returns:
        One range a value where all widths have the same, as of ``max`` and ``percentile``; one a width elsewhere.

    Raises:
        CalibrationError: no sample at all, NaN or infinity in a sample or a value, or a value that is always 0 (a dead
            layer), by name.
    """
    histograms = NetworkHistograms()
    for batch in batches:
        histograms.observe(run, batch)
    return histograms.ranges(observer, nonnegative or {})
