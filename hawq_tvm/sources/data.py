"""Samples as users name them: ``digits``, ``imagefolder:PATH``, ``random`` or ``file.py:factory``.

A `Data` has two splits: calibration samples set ranges and sensitivities, evaluation samples measure accuracy and are
what `verify` runs on. They do not overlap unless the user gives one set for both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hawq_tvm.core.errors import DataError
from hawq_tvm.sources.factory import call_factory
from hawq_tvm.sources.imagefolder import open_imagefolder
from hawq_tvm.sources.names import IMAGE_FOLDER, check_data_name
from hawq_tvm.sources.options import DataOptions
from hawq_tvm.sources.samples import Batch, Data
from hawq_tvm.sources.splits import ArraySplit, Images, Split, Subset, as_split


def batches(split: Split, size: int, *, limit: int | None = None) -> Iterator[Batch]:
    """Consecutive batches of a split.

    Args:
        split: the samples.
        size: samples a batch; the last may have fewer.
        limit: at most so many samples; None for all.

    Raises:
        DataError: samples of several shapes.
    """
    count = len(split) if limit is None else min(limit, len(split))
    shape: tuple[int, ...] | None = None
    for start in range(0, count, size):
        samples = [split.sample(index) for index in range(start, min(start + size, count))]
        for index, (image, _) in enumerate(samples, start):
            shape = image.shape if shape is None else shape
            if image.shape != shape:
                raise DataError(
                    f"samples have several shapes: sample 0 has {shape}, sample {index} has {image.shape}; resize or "
                    "crop them to one"
                )
        labels = [label for _, label in samples if label is not None]
        stacked = torch.from_numpy(np.stack([image for image, _ in samples]).astype(np.float32))
        yield Batch(stacked, torch.tensor(labels) if len(labels) == len(samples) else None)


def check_labels(batch: Batch, classes: int, first: int = 0) -> None:
    """Refuse labels that a network has no class for.

    Args:
        batch: samples, with labels or without.
        classes: how many the network tells apart.
        first: the number of the batch's first sample, for the message.

    Raises:
        DataError: a label below 0 or not below `classes`.
    """
    if batch.labels is None:
        return
    index = int(batch.labels.argmax())
    if int(batch.labels[index]) < classes:
        index = int(batch.labels.argmin())
    if not 0 <= int(batch.labels[index]) < classes:
        raise DataError(
            f"sample {first + index}: a label is {int(batch.labels[index])}, and the network has {classes} classes, "
            f"0 to {classes - 1}; give labels that match the network's order of classes, or none"
        )


def load_data(spec: str, options: DataOptions) -> Data:
    """Find samples by name.

    Args:
        spec: ``digits``, ``imagefolder:PATH``, ``random`` or ``file.py:factory``.
        options: how many, which and how.

    Raises:
        DataError: an unknown name, a folder without images, a split without samples.
        ModelError: a factory that fails.
    """
    check_data_name(spec)
    if spec == "digits":
        data = _digits(options)
    elif spec == "random":
        data = _random(options)
    elif spec.startswith(f"{IMAGE_FOLDER}:"):
        data = open_imagefolder(spec.partition(":")[2], options)
    else:
        made, source = call_factory(spec, "data")
        data = as_data(made, name=spec, options=options, fingerprint=hashlib.sha256(source.encode()).hexdigest())
    return limited(data, options)


def limited(data: Data, options: DataOptions) -> Data:
    """At most as many samples as the options ask for.

    Raises:
        DataError: a split without samples.
    """
    evaluation = data.evaluation
    if options.evaluation_samples is not None and options.evaluation_samples < len(evaluation):
        evaluation = Subset(evaluation, range(options.evaluation_samples))
    calibration = data.calibration
    if options.calibration_samples < len(calibration):
        calibration = Subset(calibration, range(options.calibration_samples))
    for what, split in (("calibration", calibration), ("evaluation", evaluation)):
        if len(split) == 0:
            raise DataError(f"'{data.name}' leaves no {what} samples; give more data or ask for fewer samples")
    settings = {**data.settings, "calibration_samples": len(calibration), "evaluation_samples": len(evaluation)}
    return Data(data.name, calibration, evaluation, settings, data.fingerprint)


def as_data(made: Any, *, name: str, options: DataOptions, fingerprint: str = "") -> Data:
    """What a user's factory or an argument of the API holds.

    Args:
        made: a `Data`; a dict with ``calibration`` and ``evaluation``; or one of what each of those may be: a tensor or
            array [N, ...], a tuple (images, labels), a PyTorch dataset, or an iterable of batches. One alone serves as
            both splits.
        name: for messages.
        options: limits how much of an iterable is read.
        fingerprint: of the source, where there is one.

    Raises:
        DataError: none of these.
    """
    most = options.evaluation_samples
    if isinstance(made, Data):
        calibration = as_split(made.calibration, made.name, options.calibration_samples)
        return replace(made, calibration=calibration, evaluation=as_split(made.evaluation, made.name, most))
    if isinstance(made, Mapping):
        if set(made) != {"calibration", "evaluation"}:
            raise DataError(
                f"'{name}': a mapping needs the keys 'calibration' and 'evaluation', got {sorted(map(str, made))}"
            )
        calibration = as_split(made["calibration"], name, options.calibration_samples)
        return Data(name, calibration, as_split(made["evaluation"], name, most), {}, fingerprint)
    split = as_split(made, name, None if most is None else max(most, options.calibration_samples))
    return Data(name, split, split, {"same_samples_for_both": True}, fingerprint)


def _digits(options: DataOptions) -> Data:
    """Scikit-learn's 1,797 scanned digits, scaled to 3 x 16 x 16; 1,257 to calibrate from, 540 held out."""
    images, labels = digits_images()
    train, held_out = digits_split(labels)
    chosen = np.random.default_rng(options.seed).permutation(train)
    whole = ArraySplit(images, labels)
    settings = {"scaled_to": [3, 16, 16], "mean": DIGITS_MEAN, "std": DIGITS_STD, "held_out": len(held_out)}
    return Data("digits", Subset(whole, chosen), Subset(whole, held_out), settings, f"digits {options.seed}")


DIGITS_MEAN = 0.3
DIGITS_STD = 0.35


def digits_images() -> tuple[Images, NDArray[np.int64]]:
    """All digits, normalised: float32 [1797, 3, 16, 16], and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images.astype(np.float32) / 16)[:, None]
    large = torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
    images = ((large - DIGITS_MEAN) / DIGITS_STD).repeat(1, 3, 1, 1)
    return images.numpy(), digits.target.astype(np.int64)


def digits_split(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the training digits and of the held-out ones: 30%, the same share of each class, always the same."""
    from sklearn.model_selection import train_test_split

    train, held_out = train_test_split(np.arange(len(labels)), test_size=0.3, random_state=0, stratify=labels)
    return np.asarray(train), np.asarray(held_out)


def _random(options: DataOptions) -> Data:
    """Seeded normal noise without labels."""
    shape = options.input_shape
    if shape is None:
        raise DataError(
            "random data needs a sample shape, and the network does not tell one; give --input-shape 3x224x224"
        )
    evaluation = 32 if options.evaluation_samples is None else options.evaluation_samples
    splits = [
        _NoiseSplit(count, shape, options.seed, stream)
        for stream, count in enumerate((options.calibration_samples, evaluation))
    ]
    return Data("random", splits[0], splits[1], {"input_shape": list(shape)}, f"random {options.seed} {shape}")


class _NoiseSplit:
    """Normal noise, each sample from a generator of its own, so that none needs the others."""

    def __init__(self, count: int, shape: tuple[int, ...], seed: int, stream: int) -> None:
        self._count = count
        self._shape = shape
        self._make: Callable[[int], np.random.Generator] = lambda index: np.random.default_rng((seed, stream, index))

    def __len__(self) -> int:
        return self._count

    def sample(self, index: int) -> tuple[Images, int | None]:
        return self._make(index).standard_normal(self._shape, dtype=np.float32), None
