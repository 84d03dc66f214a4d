"""Accuracy of the integer network beside the float one, on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hawq_tvm.core.errors import DataError, RunError
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.sources.data import check_labels
from hawq_tvm.sources.samples import Batch


@dataclass(frozen=True)
class Accuracy:
    """Top-1 over a set of samples; None where they have no labels.

    Attributes:
        samples: how many.
        float_top1: share that the float network gets right.
        integer_top1: share that the integer network gets right.
        difference: integer minus float.
        standard_error: of that difference, from the paired outcomes.
        agreement: share of samples on which both name the same class, right or wrong.
    """

    samples: int
    float_top1: float | None
    integer_top1: float | None
    difference: float | None
    standard_error: float | None
    agreement: float

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Any, name: str = "the accuracy") -> Accuracy:
        """Read what `to_json` wrote.

        Args:
            data: as `JsonReader` parses it.
            name: of the file, for messages.

        Raises:
            RunError: anything else.
        """
        reader = JsonReader(name, RunError, "make it again with hawq-tvm compile")
        found: Accuracy = reader.take(data, cls, signed=("difference",))
        return found

    def __str__(self) -> str:
        if self.float_top1 is None or self.integer_top1 is None:
            return f"same class on {self.agreement:.2%} of {self.samples} samples (no labels)"
        assert self.difference is not None and self.standard_error is not None
        return (
            f"top-1 fp32 {self.float_top1:.2%}, integer {self.integer_top1:.2%}, "
            f"difference {100 * self.difference:+.2f} +- {100 * self.standard_error:.2f} points "
            f"on {self.samples} samples"
        )


def measure_accuracy(
    float_network: Callable[[Tensor], Tensor],
    integer_network: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    *,
    progress: Callable[[int], None] | None = None,
) -> Accuracy:
    """Run both networks on every sample.

    Args:
        float_network: float32 [N, ...] to logits [N, classes].
        integer_network: the same.
        batches: samples.
        progress: called with the number of samples done.

    Raises:
        DataError: no samples, one with a NaN or an infinity, or labels that the network has no class for.
    """
    outcomes: list[Tensor] = []
    agreements: list[Tensor] = []
    samples = 0
    with torch.no_grad():
        for batch in batches:
            _check_finite(batch, samples)
            logits = float_network(batch.images).flatten(1)
            expected, got = logits.argmax(1), integer_network(batch.images).flatten(1).argmax(1)
            agreements.append(expected == got)
            if batch.labels is not None:
                check_labels(batch, logits.shape[1], first=samples)
                right = torch.stack([expected == batch.labels, got == batch.labels])
                outcomes.append(right)
            samples += len(batch.images)
            if progress is not None:
                progress(samples)
    if not samples:
        raise DataError("there are no evaluation samples")
    agreement = float(torch.cat(agreements).double().mean())
    if sum(outcome.shape[1] for outcome in outcomes) != samples:
        return Accuracy(samples, None, None, None, None, agreement)
    right = torch.cat(outcomes, dim=1).double()
    paired = right[1] - right[0]
    error = float(paired.std(correction=1)) / samples**0.5 if samples > 1 else 0.0
    return Accuracy(samples, float(right[0].mean()), float(right[1].mean()), float(paired.mean()), error, agreement)


def _check_finite(batch: Batch, first: int) -> None:
    """Both networks give some class to a NaN, and it would count as an outcome."""
    finite = torch.isfinite(batch.images).flatten(1).all(1)
    if not finite.all():
        raise DataError(
            f"evaluation sample {first + int(finite.logical_not().nonzero()[0])} holds a NaN or an infinity; mend it, "
            "or leave it out"
        )
