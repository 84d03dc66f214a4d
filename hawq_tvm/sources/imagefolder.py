"""ImageNet-style folders of images: ``CLASS/name.jpg``, in a folder or a zip file, read as they are needed."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePath, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from hawq_tvm.core.errors import DataError, first_line
from hawq_tvm.sources.options import DataOptions, Preprocessing
from hawq_tvm.sources.samples import Data
from hawq_tvm.sources.splits import Images, Subset

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
_TRAIN = ("train", "training")
_EVALUATION = ("val", "valid", "validation", "test")
_ENCRYPTED = 0x1  # bit 0 of a zip entry's flags, APPNOTE.TXT section 4.4.4


class _Source:
    """The image files below a folder or inside a zip; hidden ones and macOS's ``__MACOSX`` are passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._archive: zipfile.ZipFile | None = None
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _is_image(file.relative_to(path)) and file.is_file())
            self.sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
        elif path.is_file():
            self._archive, self.sizes = _open_zip(path)
        else:
            raise DataError(f"the image folder {path} does not exist")
        if not self.sizes:
            raise DataError(f"{path} holds no images ({', '.join(SUFFIXES)})")

    def read(self, name: str) -> bytes:
        if self._archive is None:
            return (self.path / name).read_bytes()
        with self._lock:
            return self._archive.read(name)

    def fingerprint(self) -> str:
        listing = "\n".join(f"{name} {size}" for name, size in self.sizes.items())
        return hashlib.sha256(listing.encode()).hexdigest()


def _is_image(path: PurePath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _open_zip(path: Path) -> tuple[zipfile.ZipFile, dict[str, int]]:
    """A zip file and the sizes of the images in it."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"the image folder {path} is neither a folder nor a zip file that can be read") from error
    entries = sorted(archive.infolist(), key=lambda entry: entry.filename)
    images = [entry for entry in entries if _is_image(PurePosixPath(entry.filename)) and not entry.is_dir()]
    locked = next((entry.filename for entry in images if entry.flag_bits & _ENCRYPTED), None)
    if locked is not None:
        raise DataError(f"the zip file {path} is encrypted ({locked} is); unpack it, and name the folder")
    return archive, {entry.filename: entry.file_size for entry in images}


class _ImageSplit:
    """Images below one folder of a source, with the index of their class where they lie in class folders."""

    def __init__(
        self, source: _Source, base: str, names: Sequence[str], classes: Sequence[str], how: Preprocessing
    ) -> None:
        numbers = {name: number for number, name in enumerate(classes)}
        found = {name: _class_of(name, base) for name in names}
        loose = [name for name, folder in found.items() if folder is None]
        if loose and len(loose) < len(names):
            raise DataError(
                f"{source.path}/{base} holds images in class folders and beside them, such as {loose[0]}; move it into "
                "its class's folder, or away"
            )
        self._source = source
        self._names = names
        self._labels = {name: None if folder is None else numbers[folder] for name, folder in found.items()}
        self._how = how

    def __len__(self) -> int:
        return len(self._names)

    def sample(self, index: int) -> tuple[Images, int | None]:
        name = self._names[index]
        try:
            with Image.open(io.BytesIO(self._source.read(name))) as image:
                return preprocess(image.convert("RGB"), self._how), self._labels[name]
        except UnidentifiedImageError as error:
            raise self._unreadable(name, "it is no image of a known kind") from error
        except MemoryError:
            raise
        except Exception as error:  # zip files and Pillow's decoders raise many kinds
            raise self._unreadable(name, first_line(error)) from error

    def _unreadable(self, name: str, why: str) -> DataError:
        return DataError(f"the image {self._source.path}/{name} cannot be read: {why}; mend it, or take it away")


def preprocess(image: Image.Image, how: Preprocessing) -> Images:
    """Resize the short side, crop the centre, normalise: float32 [3, crop, crop].

    Args:
        image: RGB.
        how: sizes, mean and standard deviation.
    """
    width, height = image.size
    scale = how.resize / min(width, height)
    if scale != 1:  # torchvision truncates the long side
        size = (
            (how.resize, int(how.resize * height / width))
            if width <= height
            else (
                int(how.resize * width / height),
                how.resize,
            )
        )
        image = image.resize(size, Image.Resampling.BILINEAR)
    width, height = image.size
    left, top = round((width - how.crop) / 2), round((height - how.crop) / 2)
    pixels = np.asarray(image.crop((left, top, left + how.crop, top + how.crop)), np.float32) / 255
    normal = (pixels - np.asarray(how.mean, np.float32)) / np.asarray(how.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def open_imagefolder(path: str, options: DataOptions) -> Data:
    """Images by class folder, split into calibration and evaluation.

    With folders ``train`` and ``val`` (or ``test``) on top, calibration samples are drawn from the first and evaluation
    is on the second. Otherwise they are drawn from all images, and evaluation is on the rest. A single folder around
    all others is passed through. Images without class folders have no labels.

    Args:
        path: a folder or a zip file; ``~`` is the home folder.
        options: how many samples, preprocessing, seed.

    Raises:
        DataError: no such folder, no images, or too few for both splits.
    """
    how = options.preprocessing
    if how.crop > how.resize:
        raise DataError(f"the crop of {how.crop} pixels is larger than the resized short side of {how.resize}")
    if not path.strip():
        raise DataError("imagefolder: names no folder; write imagefolder:PATH")
    source = _Source(Path(os.path.expanduser(path)))
    generator = np.random.default_rng(options.seed)
    names = list(source.sizes)
    base = _wrapper(names)
    tops = {top.lower(): f"{base}{top}/" for name in names for top in _folders(name, base)[:1]}
    train = next((tops[top] for top in _TRAIN if top in tops), None)
    held_out = next((tops[top] for top in _EVALUATION if top in tops), None)
    if train is not None and held_out is not None:
        below = {top: [name for name in names if name.startswith(top)] for top in (train, held_out)}
        classes = sorted({folder for top in below for name in below[top] for folder in _folders(name, top)[:1]})
        splits = {top: _ImageSplit(source, top, below[top], classes, how) for top in below}
        order = generator.permutation(len(splits[train]))
        calibration = Subset(splits[train], order[: options.calibration_samples])
        evaluation = Subset(splits[held_out], range(len(splits[held_out])))
        rule = f"calibration from {train}, evaluation on {held_out}"
        names = [*below[train], *below[held_out]]
    else:
        if options.calibration_samples >= len(names):
            raise DataError(
                f"{path} holds {len(names)} images, too few to calibrate on {options.calibration_samples} and evaluate "
                "on the rest; ask for fewer with --calibration-samples"
            )
        classes = sorted({folder for name in names for folder in _folders(name, base)[:1]})
        whole = _ImageSplit(source, base, names, classes, how)
        order = generator.permutation(len(names))
        calibration = Subset(whole, order[: options.calibration_samples])
        evaluation = Subset(whole, np.sort(order[options.calibration_samples :]))
        rule = "calibration drawn from all images, evaluation on the rest"
    settings = {**asdict(how), "images": len(names), "classes": len(classes), "split": rule, "seed": options.seed}
    return Data(f"imagefolder:{path}", calibration, evaluation, settings, source.fingerprint())


def _wrapper(names: Sequence[str]) -> str:
    """The folders, if any, that hold all else: each holds one folder and no image, and that folder holds folders."""
    base = ""
    while True:
        tops = {_class_of(name, base) for name in names}
        inner = f"{base}{next(iter(tops))}/"
        if len(tops) > 1 or None in tops or not all(_folders(name, inner) for name in names):
            return base
        base = inner


def _folders(name: str, base: str) -> list[str]:
    """The folders between `base` and an image."""
    return name[len(base) :].split("/")[:-1]


def _class_of(name: str, base: str) -> str | None:
    """The first folder below `base` that an image lies in, as in torchvision's ImageFolder."""
    return next(iter(_folders(name, base)), None)
