"""Accuracy of the integer network beside the float one, on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from hawq_tvm.core.errors import DataError
from hawq_tvm.measure.accuracy import Accuracy
from hawq_tvm.sources.data import check_labels
from hawq_tvm.sources.samples import Batch


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
