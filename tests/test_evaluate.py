from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hawq_tvm.core.errors import DataError
from hawq_tvm.measure.evaluate import measure_accuracy
from hawq_tvm.sources.data import check_labels
from hawq_tvm.sources.samples import Batch


def pick(x: Tensor) -> Tensor:
    return x


def batches_of(images: Tensor, labels: Tensor | None = None) -> list[Batch]:
    parts = [None] * 2 if labels is None else list(labels.split(3))
    return [Batch(image, label) for image, label in zip(images.split(3), parts, strict=True)]


def test_accuracy_counts_what_is_right() -> None:
    result = measure_accuracy(pick, lambda x: x.roll(1, 1), batches_of(torch.eye(6), torch.arange(6)))
    assert (result.float_top1, result.integer_top1, result.agreement, result.samples) == (1, 0, 0, 6)
    assert measure_accuracy(pick, pick, batches_of(torch.eye(6))).float_top1 is None


def test_the_standard_error_is_that_of_paired_samples() -> None:
    """Integer minus float is 0, -1, 0, 0: a mean of -1/4, a variance of (3/4) / 3 = 1/4, an error of sqrt(1/4 / 4)."""
    images, labels = torch.eye(4), torch.arange(4)

    def second_wrong(x: Tensor) -> Tensor:
        return torch.where(x[:, 1:2] == 1, x.roll(1, 1), x)

    result = measure_accuracy(pick, second_wrong, batches_of(images, labels))
    assert (result.float_top1, result.integer_top1, result.difference) == (1.0, 0.75, -0.25)
    assert result.standard_error == 0.25, "0.2165 where the variance is divided by 4"
    alone = measure_accuracy(pick, second_wrong, [Batch(images[1:2], labels[1:2])])
    assert (alone.difference, alone.standard_error) == (-1.0, 0.0), "one sample shows no spread"


@pytest.mark.parametrize("label", [-1, 6, 2**62])
def test_labels_outside_the_classes_are_refused(label: int) -> None:
    labels = torch.tensor([0, 1, 2, 3, label, 5])
    message = f"sample 4: a label is {label}, and the network has 6 classes, 0 to 5"
    with pytest.raises(DataError, match=message):
        measure_accuracy(pick, pick, batches_of(torch.eye(6), labels))
    with pytest.raises(DataError, match=message):
        check_labels(Batch(torch.eye(6), labels), 6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_samples_that_are_not_finite_are_refused_by_number(value: float) -> None:
    images = torch.eye(6)
    images[4, 2] = value
    with pytest.raises(DataError, match="evaluation sample 4 holds a NaN or an infinity"):
        measure_accuracy(pick, pick, batches_of(images, torch.arange(6)))


def test_no_samples_are_refused() -> None:
    with pytest.raises(DataError, match="no evaluation samples"):
        measure_accuracy(pick, pick, [])
