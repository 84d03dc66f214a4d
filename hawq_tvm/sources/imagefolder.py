"""ImageNet-style folders of images: ``CLASS/name.jpg``, in a folder or a zip file, read as they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np

from hawq_tvm.core.errors import DataError
from hawq_tvm.sources.decoding import preprocess, read_image
from hawq_tvm.sources.imagefiles import SUFFIXES, ImageFiles, check_sizes, open_image_files, reading
from hawq_tvm.sources.names import IMAGE_FOLDER, check_data_name, path_of, shown
from hawq_tvm.sources.options import DataOptions
from hawq_tvm.sources.samples import Data
from hawq_tvm.sources.splits import Images, Subset

_TRAIN = ("train", "training")
_EVALUATION = ("val", "valid", "validation", "test")


class _ImageSplit:
    """Images below one folder of a source, with the index of their class where they lie in class folders."""

    def __init__(
        self, files: ImageFiles, base: str, names: Sequence[str], classes: Sequence[str], options: DataOptions
    ) -> None:
        numbers = {name: number for number, name in enumerate(classes)}
        found = {name: class_of(name, base) for name in names}
        loose = [name for name, folder in found.items() if folder is None]
        if loose and len(loose) < len(names):
            raise DataError(
                f"{shown(files.path / base)} holds images in class folders and beside them, such as {shown(loose[0])}; "
                "move it into its class's folder, or away"
            )
        self._files = files
        self._names = names
        self._labels = {name: None if folder is None else numbers[folder] for name, folder in found.items()}
        self._options = options

    def __len__(self) -> int:
        return len(self._names)

    def sample(self, index: int) -> tuple[Images, int | None]:
        name = self._names[index]
        most = self._options.max_image_pixels
        with reading(self._files, name) as data:
            return preprocess(read_image(data, most), self._options.preprocessing, most), self._labels[name]

    def identity(self, indices: Sequence[int]) -> Iterator[bytes]:
        """What the files hold, their labels, and how they are prepared."""
        names = [self._names[index] for index in indices]
        yield f"{self._options.preprocessing} {[self._labels[name] for name in names]}".encode()
        yield from self._files.identity(names)


def open_imagefolder(path: str, options: DataOptions) -> Data:
    """Images by class folder, split into calibration and evaluation.

    With folders ``train`` and ``val`` (or ``test``) on top, calibration samples are drawn from the first and evaluation
    is on the second. Otherwise they are drawn from all images, and evaluation is on the rest. A single folder around
    all others is passed through. Images without class folders have no labels. Every folder beside a class is a class,
    numbered in the order of their names: one without images is refused, since leaving it out could shift the numbers
    of those behind it, and so could counting it.

    Args:
        path: a folder or a zip file; ``~`` is the home folder.
        options: how many samples, preprocessing, seed, limits.

    Raises:
        DataError: no such folder, no images, too few for both splits, a class folder without images, an image larger
            than the limits.
    """
    how = options.preprocessing
    if how.crop > how.resize:
        raise DataError(f"the crop of {how.crop} pixels is larger than the resized short side of {how.resize}")
    check_data_name(f"{IMAGE_FOLDER}:{path}")
    files = open_image_files(path_of(path))
    generator = np.random.default_rng(options.seed)
    names = list(files.sizes)
    base = wrapper(files)
    tops = {top.lower(): f"{base}{top}/" for top in subfolders(files, base)}
    train = next((tops[top] for top in _TRAIN if top in tops), None)
    held_out = next((tops[top] for top in _EVALUATION if top in tops), None)
    if train is not None and held_out is not None:
        below = {top: [name for name in names if name.startswith(top)] for top in (train, held_out)}
        classes = sorted({name for top in below for name in _classes(files, top)})
        splits = {top: _ImageSplit(files, top, below[top], classes, options) for top in below}
        order = generator.permutation(len(splits[train]))
        calibration = Subset(splits[train], order[: options.calibration_samples])
        evaluation = Subset(splits[held_out], range(len(splits[held_out])))
        rule = f"calibration from {shown(train)}, evaluation on {shown(held_out)}"
        names = [*below[train], *below[held_out]]
    else:
        if options.calibration_samples >= len(names):
            raise DataError(
                f"{shown(path)} holds {len(names)} images, too few to calibrate on {options.calibration_samples} and "
                "evaluate on the rest; ask for fewer with --calibration-samples"
            )
        classes = _classes(files, base)
        whole = _ImageSplit(files, base, names, classes, options)
        order = generator.permutation(len(names))
        calibration = Subset(whole, order[: options.calibration_samples])
        evaluation = Subset(whole, np.sort(order[options.calibration_samples :]))
        rule = "calibration drawn from all images, evaluation on the rest"
    check_sizes(files, names, options.max_image_bytes)
    settings = {**asdict(how), "images": len(names), "classes": len(classes), "split": rule, "seed": options.seed}
    return Data(shown(f"{IMAGE_FOLDER}:{path}"), calibration, evaluation, settings, rule, preprocessing=how)


def wrapper(files: ImageFiles) -> str:
    """The folders, if any, that hold all else: each holds one folder and no image, and that folder holds folders."""
    base = ""
    while True:
        inside = subfolders(files, base)
        inner = f"{base}{inside[0]}/" if inside else ""
        if len(inside) != 1 or any(class_of(name, at) is None for name in files.sizes for at in (base, inner)):
            return base
        base = inner


def subfolders(files: ImageFiles, base: str) -> list[str]:
    """The folders directly below `base`, whatever they hold, by name."""
    below = (name[len(base) :] for name in files.folders if name.startswith(base))
    return sorted(name for name in below if "/" not in name)


def _classes(files: ImageFiles, base: str) -> list[str]:
    """The class folders below `base`; none where its images lie in no folders.

    Raises:
        DataError: `base` or one of them holds no image.
    """
    folders = subfolders(files, base)
    filled = {class_of(name, base) for name in files.sizes if name.startswith(base)}
    if not filled:
        raise DataError(f"{shown(files.path / base)} holds no images ({', '.join(SUFFIXES)})")
    if filled == {None}:
        return []
    empty = next((folder for folder in folders if folder not in filled), None)
    if empty is not None:
        raise DataError(
            f"the class folder {shown(files.path / base / empty)} holds no images ({', '.join(SUFFIXES)}), and without "
            "it the numbers of the classes may be others; put images in, or take it away if it is no class"
        )
    return folders


def class_of(name: str, base: str) -> str | None:
    """The first folder below `base` that an image lies in, as in torchvision's ImageFolder."""
    folder, slash, _ = name[len(base) :].partition("/")
    return folder if slash else None
