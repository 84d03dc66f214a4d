"""Samples as users name them: ``digits``, ``imagefolder:PATH``, ``cifar10:PATH``, ``random`` or ``file.py:factory``.

A `Data` has two splits: calibration samples set ranges and sensitivities, evaluation samples measure accuracy and are
what `verify` runs on. Of one set a part is held out, so that accuracy is never measured on what calibrated; they
overlap only where the user names the same samples for both, and then `Data.note` says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from hawq_tvm.core.errors import DataError
from hawq_tvm.sources.cifar10 import open_cifar10
from hawq_tvm.sources.factory import call_factory
from hawq_tvm.sources.imagefolder import open_imagefolder
from hawq_tvm.sources.names import CIFAR10, IMAGE_FOLDER, check_data_name, shown
from hawq_tvm.sources.options import DataOptions, Preprocessing
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


def numbered(batches: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
    """Each batch with the number of its first sample."""
    first = 0
    for batch in batches:
        yield first, batch
        first += len(batch.images)


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


def load_data(spec: str, options: DataOptions, *, calibrates: bool = True) -> Data:
    """Find samples by name.

    Args:
        spec: ``digits``, ``imagefolder:PATH``, ``cifar10:PATH``, ``random`` or ``file.py:factory``.
        options: how many, which and how.
        calibrates: whether calibration samples are needed; see `as_data`.

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
    elif spec.startswith(f"{CIFAR10}:"):
        data = open_cifar10(spec.partition(":")[2], options)
    else:
        torch.manual_seed(options.seed)  # a factory that draws samples draws the same ones every time
        made, text = call_factory(spec, "data")
        source = hashlib.sha256(text.encode()).hexdigest()
        data = as_data(made, name=shown(spec), options=options, source=source, calibrates=calibrates)
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
    return replace(data, calibration=calibration, evaluation=evaluation, settings=settings)


def as_data(made: Any, *, name: str, options: DataOptions, source: str = "", calibrates: bool = True) -> Data:
    """What a user's factory or an argument of the API holds.

    Args:
        made: a `Data`; calibration and evaluation samples, as a dict with these keys or as a pair; or one set of
            samples, of which a part is held out. A set is a tensor or array [N, ...], a tuple (images, labels), a
            PyTorch dataset, a list of samples, or an iterable of batches, such as a DataLoader. A pair is two of those
            in a tuple, where neither is a tensor or array alone; two datasets or loaders may also be in a list.
        name: for messages.
        options: limits how much of an iterable is read; says how many samples calibrate, and the seed that draws them.
        source: see `Data`.
        calibrates: False where a run that is calibrated already is measured: one set is then evaluated whole.

    Raises:
        DataError: none of these, or one set with a single sample.
    """
    if isinstance(made, Data):
        two = _two_sets(made.name, made.calibration, made.evaluation, options)
        settings, note = {**made.settings, **two.settings}, " ".join(filter(None, (made.note, two.note)))
        return replace(made, calibration=two.calibration, evaluation=two.evaluation, settings=settings, note=note)
    if isinstance(made, Mapping):
        if set(made) != {"calibration", "evaluation"}:
            raise DataError(
                f"'{name}': a mapping needs the keys 'calibration' and 'evaluation', got {sorted(map(str, made))}"
            )
        made = (made["calibration"], made["evaluation"])
    elif not _is_pair_of_sets(made):
        most = options.evaluation_samples
        if not calibrates:
            whole = as_split(made, name, most)
            note = "one set of samples was named anew, and all of it is evaluated; other samples calibrated this run"
            return Data(name, whole, whole, {"named_anew": True}, note, source)
        limit = None if most is None else most + options.calibration_samples
        return replace(hold_out(as_split(made, name, limit), name, options), source=source)
    calibration, evaluation = made
    return replace(_two_sets(name, calibration, evaluation, options), source=source)


def _is_pair_of_sets(made: Any) -> bool:
    """Whether two objects side by side are calibration and evaluation samples, rather than images and labels."""
    if not isinstance(made, tuple | list) or len(made) != 2:
        return False
    if all(isinstance(part, Dataset | DataLoader) for part in made):
        return True
    return isinstance(made, tuple) and not any(isinstance(part, torch.Tensor | np.ndarray) for part in made)


def hold_out(split: Split, name: str, options: DataOptions) -> Data:
    """Two parts of one set that share no sample, drawn with the seed: the same ones every time.

    As many samples calibrate as the options ask for, but no more than half of them, or than the evaluation samples that
    were asked for leave. Evaluation has the rest, in drawn order too: of samples sorted by class, the first few are not
    all of one class.

    Args:
        split: all samples.
        name: for messages.
        options: how many samples, and the seed.

    Raises:
        DataError: a single sample.
    """
    total = len(split)
    if total == 1:
        raise DataError(
            f"'{name}' holds one sample, too few to calibrate on some and measure accuracy on others; give more, or "
            "name it for both, as {'calibration': x, 'evaluation': x}"
        )
    left = 0 if options.evaluation_samples is None else total - options.evaluation_samples
    count = min(options.calibration_samples, max(total // 2, left))
    order = np.random.default_rng(options.seed).permutation(total)
    apart = {"of": total, "calibration": count, "evaluation": total - count, "seed": options.seed}
    note = (
        f"one set of {total} samples was given: {count} of them, drawn with seed {options.seed}, calibrate, and "
        "accuracy is measured on others"
    )
    return Data(name, Subset(split, order[:count]), Subset(split, order[count:]), {"held_out": apart}, note)


def _two_sets(name: str, calibration: Any, evaluation: Any, options: DataOptions) -> Data:
    """Both sets as the user gives them; samples that are in both are allowed, and told."""
    sets = (
        as_split(calibration, name, options.calibration_samples),
        as_split(evaluation, name, options.evaluation_samples),
    )
    calibrating = min(len(sets[0]), options.calibration_samples)
    measured = len(sets[1]) if options.evaluation_samples is None else min(len(sets[1]), options.evaluation_samples)
    if isinstance(sets[0], ArraySplit) and isinstance(sets[1], ArraySplit):
        shared = _shared(sets[0], calibrating, sets[1], measured)
    else:  # samples that are computed one by one are not compared
        shared = min(calibrating, measured) if calibration is evaluation else 0
    if not shared:
        return Data(name, *sets)
    which = "all" if shared == measured else f"{shared} of the {measured}"
    note = f"{which} evaluation samples are calibration samples too, as the data gives them for both"
    return Data(name, *sets, {"evaluation_samples_in_calibration": shared}, note)


def _shared(calibration: Split, calibrating: int, evaluation: Split, measured: int) -> int:
    """How many of the first evaluation samples are among the first calibration samples."""

    def some(image: Images) -> bytes:
        return image.reshape(-1)[:: max(1, image.size // 64)].tobytes()

    seen: dict[bytes, list[Images]] = {}
    for index in range(calibrating):
        image = calibration.sample(index)[0]
        seen.setdefault(some(image), []).append(image)
    images = (evaluation.sample(index)[0] for index in range(measured))
    return sum(
        any(np.array_equal(image, other, equal_nan=True) for other in seen.get(some(image), ())) for image in images
    )


def _digits(options: DataOptions) -> Data:
    """Scikit-learn's 1,797 scanned digits, scaled to 3 x 16 x 16; 1,257 to calibrate from, 540 held out."""
    images, labels = digits_images()
    train, held_out = digits_split(labels)
    chosen = np.random.default_rng(options.seed).permutation(train)
    whole = ArraySplit(images, labels)
    apart = {"of": len(labels), "calibration": len(train), "evaluation": len(held_out), "seed": options.seed}
    settings = {"scaled_to": [3, 16, 16], "mean": DIGITS_MEAN, "std": DIGITS_STD, "held_out": apart}
    note = f"calibrated on training digits, drawn with seed {options.seed}; accuracy is measured on digits held out"
    how = Preprocessing(resize=16, crop=16, mean=(DIGITS_MEAN,) * 3, std=(DIGITS_STD,) * 3)
    return Data("digits", Subset(whole, chosen), Subset(whole, held_out), settings, note, preprocessing=how)


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
    return Data("random", splits[0], splits[1], {"input_shape": list(shape)})


class _NoiseSplit:
    """Normal noise, each sample from a generator of its own, so that none needs the others."""

    def __init__(self, count: int, shape: tuple[int, ...], seed: int, stream: int) -> None:
        self._count = count
        self._shape = shape
        self._stream = (seed, stream)

    def __len__(self) -> int:
        return self._count

    def sample(self, index: int) -> tuple[Images, int | None]:
        return np.random.default_rng((*self._stream, index)).standard_normal(self._shape, dtype=np.float32), None

    def identity(self, indices: Sequence[int]) -> Iterator[bytes]:
        """What the noise is drawn from."""
        yield f"noise {self._stream} {self._shape} {list(indices)}".encode()
