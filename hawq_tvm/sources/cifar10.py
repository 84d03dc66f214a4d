"""CIFAR-10 as users have it: a zip file or folder of images, or the original files, binary or pickled.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009); the files are described on
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.errors import DataError
from hawq_tvm.sources.cifar10_batches import CLASSES, SIDE, Batches, find_batches
from hawq_tvm.sources.decoding import normalise, read_image
from hawq_tvm.sources.imagefiles import ImageFiles, check_sizes, open_image_files, reading
from hawq_tvm.sources.imagefolder import class_of, subfolders, wrapper
from hawq_tvm.sources.names import CIFAR10, check_data_name, path_of, shown
from hawq_tvm.sources.options import DataOptions, Preprocessing
from hawq_tvm.sources.samples import Data
from hawq_tvm.sources.splits import Images, Labels, Split, Subset

_SPLITS = ("train", "test")


def open_cifar10(path: str, options: DataOptions) -> Data:
    """Calibration samples drawn from the training images, evaluation on all test images, both in drawn order.

    Args:
        path: a zip file or folder of images in ``train/CLASS`` and ``test/CLASS``; ``cifar-10-batches-bin`` or
            ``cifar-10-batches-py``, or a folder around it; or the ``.tar.gz`` that either came in. ``~`` is the home
            folder.
        options: how many samples, mean and standard deviation, seed, limits. Images are neither resized nor cropped.

    Raises:
        DataError: none of these, a split or a class that is missing, a damaged file, sizes to resize or crop to.
    """
    check_data_name(f"{CIFAR10}:{path}")
    how = options.preprocessing
    _check_unresized(how)
    place = path_of(path)
    batches = find_batches(place)
    splits = _image_splits(place, options) if batches is None else _batch_splits(batches, how)
    generator = np.random.default_rng(options.seed)
    calibration, evaluation = (Subset(split, generator.permutation(len(split))) for split in splits)
    rule = f"calibrated on training images, drawn with seed {options.seed}; accuracy is measured on the test images"
    settings = {"mean": how.mean, "std": how.std, "images": [len(split) for split in splits], "seed": options.seed}
    how = replace(options.preprocessing, resize=SIDE, crop=SIDE)
    return Data(shown(f"{CIFAR10}:{path}"), calibration, evaluation, settings, rule, preprocessing=how)


def _check_unresized(how: Preprocessing) -> None:
    plain = Preprocessing()
    for name, given, default in (("resize", how.resize, plain.resize), ("crop", how.crop, plain.crop)):
        if given not in (default, SIDE):
            raise DataError(
                f"CIFAR-10's images have {SIDE} x {SIDE} pixels and are taken as they are; leave out --{name} {given}"
            )


class _BatchSplit:
    """Images in memory, as bytes."""

    def __init__(self, images: NDArray[np.uint8], labels: Labels, how: Preprocessing) -> None:
        self._images = images
        self._labels = labels
        self._how = how

    def __len__(self) -> int:
        return len(self._images)

    def sample(self, index: int) -> tuple[Images, int | None]:
        return normalise(self._images[index].transpose(1, 2, 0), self._how), int(self._labels[index])

    def identity(self, indices: Sequence[int]) -> Iterator[bytes]:
        """Every byte, the labels, and how the images are normalised."""
        chosen = np.asarray(indices, np.int64)
        yield f"{self._how.mean} {self._how.std} {self._labels[chosen].tolist()}".encode()
        yield self._images[chosen].tobytes()


def _batch_splits(batches: Batches, how: Preprocessing) -> tuple[Split, Split]:
    return _BatchSplit(*batches.train, how), _BatchSplit(*batches.test, how)


class _FileSplit:
    """Image files in class folders."""

    def __init__(self, files: ImageFiles, names: Sequence[str], labels: Sequence[int], options: DataOptions) -> None:
        self._files = files
        self._names = names
        self._labels = labels
        self._options = options

    def __len__(self) -> int:
        return len(self._names)

    def sample(self, index: int) -> tuple[Images, int | None]:
        with reading(self._files, self._names[index]) as data:
            image = read_image(data, self._options.max_image_pixels)
            if image.size != (SIDE, SIDE):
                raise DataError(f"it has {image.width} x {image.height} pixels, and CIFAR-10's have {SIDE} x {SIDE}")
            return normalise(np.asarray(image), self._options.preprocessing), self._labels[index]

    def identity(self, indices: Sequence[int]) -> Iterator[bytes]:
        """What the files hold, their labels, and how they are normalised."""
        how = self._options.preprocessing
        yield f"{how.mean} {how.std} {[self._labels[index] for index in indices]}".encode()
        yield from self._files.identity([self._names[index] for index in indices])


def _image_splits(place: Path, options: DataOptions) -> tuple[Split, Split]:
    files = open_image_files(place)
    base = "" if set(_SPLITS) & set(subfolders(files, "")) else wrapper(files)
    found = subfolders(files, base)
    missing = next((split for split in _SPLITS if split not in found), None)
    if missing is not None:
        raise DataError(
            f"{shown(place / base)} holds no folder '{missing}' and none of CIFAR-10's original files; name a folder "
            "or zip file with train/CLASS and test/CLASS, or cifar-10-batches-bin or -py"
        )
    train, test = (_class_folders(files, f"{base}{split}/", options) for split in _SPLITS)
    return train, test


def _class_folders(files: ImageFiles, top: str, options: DataOptions) -> _FileSplit:
    """The images below a split's ten class folders."""
    names = [name for name in files.sizes if name.startswith(top)]
    classes = [class_of(name, top) or "" for name in names]
    missing = next((name for name in CLASSES if name not in classes), None)
    strange = next((name for name, folder in zip(names, classes, strict=True) if folder not in CLASSES), None)
    if missing is not None or strange is not None:
        what = f"no images of the class '{missing}'" if missing is not None else f"{shown(strange)}, which is of none"
        where = shown(files.path / top)
        raise DataError(f"{where} holds {what}; CIFAR-10 has one folder for each of {', '.join(CLASSES)}")
    check_sizes(files, names, options.max_image_bytes)
    return _FileSplit(files, names, [CLASSES.index(name) for name in classes], options)
