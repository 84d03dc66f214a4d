"""Accuracy of the integer network beside the float one, on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.threads import iterate_pieces
from hawq_tvm.core.errors import DataError
from hawq_tvm.measure.accuracy import Accuracy
from hawq_tvm.sources.data import check_labels, numbered
from hawq_tvm.sources.samples import Batch


@dataclass(frozen=True)
class _Outcome:
    """One batch: where both name the same class, and where each is right, [2, N]; None without labels."""

    samples: int
    agreement: Tensor
    right: Tensor | None


def measure_accuracy(
    float_network: Callable[[Tensor], Tensor],
    integer_network: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    *,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Accuracy:
    """Run both networks on every sample.

    Args:
        float_network: float32 [N, ...] to logits [N, classes].
        integer_network: the same.
        batches: samples.
        threads: batches that run side by side.
        progress: called with the number of samples done.

    Raises:
        DataError: no samples, one with a NaN or an infinity, or labels that the network has no class for.
    """

    def look(item: tuple[int, Batch]) -> _Outcome:
        first, batch = item
        with torch.no_grad():
            _check_finite(batch, first)
            logits = float_network(batch.images).flatten(1)
            expected, got = logits.argmax(1), integer_network(batch.images).flatten(1).argmax(1)
        right = None
        if batch.labels is not None:
            check_labels(batch, logits.shape[1], first=first)
            right = torch.stack([expected == batch.labels, got == batch.labels])
        return _Outcome(len(batch.images), expected == got, right)

    outcomes: list[_Outcome] = []
    samples = 0
    for outcome in iterate_pieces(look, numbered(batches), threads):
        outcomes.append(outcome)
        samples += outcome.samples
        if progress is not None:
            progress(samples)
    if not samples:
        raise DataError("there are no evaluation samples")
    agreement = float(torch.cat([outcome.agreement for outcome in outcomes]).double().mean())
    labelled = [outcome.right for outcome in outcomes if outcome.right is not None]
    if len(labelled) != len(outcomes):
        return Accuracy(samples, None, None, None, None, agreement)
    right = torch.cat(labelled, dim=1).double()
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
