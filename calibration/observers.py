"""Observers: what range an activation is quantised over, from the values that calibration samples give it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hawq_tvm.core.errors import CalibrationError
from hawq_tvm.core.quantizer import Range

Tap = Callable[[str, Tensor], None]


class Observer(Protocol):
    """Sees an activation batch by batch and ends with a range."""

    def observe(self, x: Tensor) -> None:
        """Take in one batch, float32 of any shape, finite."""

    def range(self) -> Range:
        """The range so far."""


class MaxAbs:
    """The smallest and the largest value seen: nothing is clipped."""

    def __init__(self) -> None:
        self._lo = 0.0
        self._hi = 0.0

    def observe(self, x: Tensor) -> None:
        self._lo = min(self._lo, float(x.min()))
        self._hi = max(self._hi, float(x.max()))

    def range(self) -> Range:
        return Range(self._lo, self._hi)


class Percentile:
    """The magnitude that a share of all values stays within; the rest is clipped.

    Magnitudes are counted in a histogram whose width doubles when a larger one comes, merging bins in pairs, so that
    the result does not depend on how the samples are cut into batches. It is off by at most a bin, 2^-12 of the range.
    """

    _BINS = 8192

    def __init__(self, percentile: float = 99.999) -> None:
        """Observe.

        Args:
            percentile: share of values within the range, in percent, above 0 and at most 100.

        Raises:
            CalibrationError: another percentile.
        """
        if not 0 < percentile <= 100:
            raise CalibrationError(f"a percentile lies above 0 and at most at 100, got {percentile}")
        self._share = percentile / 100
        self._extremes = MaxAbs()
        self._width = 0.0
        self._counts = torch.zeros(self._BINS, dtype=torch.int64)

    def observe(self, x: Tensor) -> None:
        self._extremes.observe(x)
        magnitudes = x.detach().abs().flatten().double()
        largest = float(magnitudes.max())
        if largest == 0.0:
            self._counts[0] += magnitudes.numel()
            return
        if self._width == 0.0:
            self._width = 2.0 ** np.ceil(np.log2(largest))
        while largest > self._width:
            pairs = self._counts.reshape(-1, 2).sum(1)
            self._counts = torch.cat([pairs, torch.zeros_like(pairs)])
            self._width *= 2
        bins = (magnitudes * (self._BINS / self._width)).long().clamp_(max=self._BINS - 1)
        self._counts += torch.bincount(bins, minlength=self._BINS)

    def range(self) -> Range:
        extremes = self._extremes.range()
        total = int(self._counts.sum())
        if total == 0 or self._width == 0.0:
            return extremes
        within = torch.cumsum(self._counts, 0)
        index = int(torch.searchsorted(within, int(np.ceil(self._share * total))))
        limit = (index + 1) * self._width / self._BINS
        return Range(max(extremes.lo, -limit), min(extremes.hi, limit))


OBSERVERS: dict[str, Callable[..., Observer]] = {"max": MaxAbs, "percentile": Percentile}
"""Every observer by its name."""


def make_observer(spec: str) -> Callable[[], Observer]:
    """Read an observer as users write it: ``max``, ``percentile`` or ``percentile:99.9``.

    Returns:
        A function that makes a fresh observer for each activation.

    Raises:
        CalibrationError: no such observer.
    """
    name, _, argument = spec.partition(":")
    try:
        arguments = (float(argument),) if argument else ()
        OBSERVERS[name](*arguments)  # a wrong argument should fail here, not after minutes of calibration
    except (KeyError, TypeError, ValueError):
        raise CalibrationError(f"unknown observer '{spec}'; known: max, percentile, percentile:99.9") from None
    return lambda: OBSERVERS[name](*arguments)


def observe_ranges(
    run: Callable[[Tensor, Tap], object], batches: Iterable[Tensor], make: Callable[[], Observer]
) -> dict[str, Range]:
    """Ranges of every value of a network over a calibration set.

    Args:
        run: runs the network on a batch and calls the tap with every value's name and tensor.
        batches: float32 [N, ...] each.
        make: a fresh observer.

    Returns:
        Range by value name.

    Raises:
        CalibrationError: no sample at all, NaN or infinity in a sample or a value, or a value that is always 0 (a dead
            layer), by name.
    """
    observers: dict[str, Observer] = {}
    samples = 0

    def tap(name: str, x: Tensor) -> None:
        if not torch.isfinite(x).all():
            if name == first:
                raise CalibrationError(f"calibration samples {samples} to {samples + len(x) - 1} hold NaN or infinity")
            raise CalibrationError(f"layer '{name}' computes NaN or infinity on finite samples; check its weights")
        observers.setdefault(name, make()).observe(x)

    first = ""
    with torch.no_grad():
        for batch in batches:
            if len(batch) == 0:
                continue
            first = first or _first_value(run, batch)
            run(batch, tap)
            samples += len(batch)
    if samples == 0:
        raise CalibrationError("the calibration set is empty; give it at least one sample")
    ranges = {name: observer.range() for name, observer in observers.items()}
    for name, found in ranges.items():
        if found.magnitude == 0.0:
            what = "the input" if name == first else f"layer '{name}' is dead: its output"
            raise CalibrationError(f"{what} is 0 over all {samples} calibration samples; check weights and data")
    return ranges


def _first_value(run: Callable[[Tensor, Tap], object], batch: Tensor) -> str:
    """The input's name: the first value that the network taps."""
    names: list[str] = []
    run(batch[:1], lambda name, x: names.append(name))
    return names[0]
