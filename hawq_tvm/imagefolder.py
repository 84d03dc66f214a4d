"""ImageNet-style folders of images: ``CLASS/name.jpg``, in a folder or a zip file, read as they are needed."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from hawq_tvm.data import Data, DataOptions, Images, Preprocessing, Subset
from hawq_tvm.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
_TRAIN = ("train", "training")
_EVALUATION = ("val", "valid", "validation", "test")


class _Source:
    """The files below a folder or inside a zip."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        if path.is_dir():
            self._archive = None
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            self.sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
        elif zipfile.is_zipfile(path):
            self._archive = zipfile.ZipFile(path)
            entries = sorted(self._archive.infolist(), key=lambda entry: entry.filename)
            self.sizes = {
                entry.filename: entry.file_size
                for entry in entries
                if PurePosixPath(entry.filename).suffix.lower() in SUFFIXES
            }
        else:
            what = "is neither a folder nor a zip file" if path.exists() else "does not exist"
            raise DataError(f"the image folder {path} {what}")
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


class _ImageSplit:
    """Images with the index of their class, sorted by class and name."""

    def __init__(self, source: _Source, names: Sequence[str], classes: Sequence[str], how: Preprocessing) -> None:
        self._source = source
        self._names = names
        self._labels = {name: classes.index(_class_of(name)) for name in names}
        self._how = how

    def __len__(self) -> int:
        return len(self._names)

    def sample(self, index: int) -> tuple[Images, int | None]:
        name = self._names[index]
        try:
            with Image.open(io.BytesIO(self._source.read(name))) as image:
                return preprocess(image.convert("RGB"), self._how), self._labels[name]
        except (UnidentifiedImageError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"the image {self._source.path}/{name} cannot be read: {error}") from error


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
    is on the second. Otherwise they are drawn from all images, and evaluation is on the rest.

    Args:
        path: a folder or a zip file.
        options: how many samples, preprocessing, seed.

    Raises:
        DataError: no such folder, no images, or too few for both splits.
    """
    how = options.preprocessing
    if how.crop > how.resize:
        raise DataError(f"the crop of {how.crop} pixels is larger than the resized short side of {how.resize}")
    source = _Source(Path(path))
    generator = np.random.default_rng(options.seed)
    tops = {PurePosixPath(name).parts[0].lower() for name in source.sizes}
    train = next((top for top in _TRAIN if top in tops), None)
    held_out = next((top for top in _EVALUATION if top in tops), None)
    names = list(source.sizes)
    classes = sorted({_class_of(name) for name in names})
    if train is not None and held_out is not None:
        by_top = {
            top: _ImageSplit(source, [name for name in names if name.lower().startswith(f"{top}/")], classes, how)
            for top in (train, held_out)
        }
        order = generator.permutation(len(by_top[train]))
        calibration, evaluation = Subset(by_top[train], order[: options.calibration_samples]), by_top[held_out]
        rule = f"calibration from {train}/, evaluation on {held_out}/"
        evaluation_split = Subset(evaluation, range(len(evaluation)))
    else:
        if options.calibration_samples >= len(names):
            raise DataError(
                f"{path} holds {len(names)} images, too few to calibrate on {options.calibration_samples} and evaluate "
                "on the rest; ask for fewer with --calibration-samples"
            )
        whole = _ImageSplit(source, names, classes, how)
        order = generator.permutation(len(names))
        calibration = Subset(whole, order[: options.calibration_samples])
        evaluation_split = Subset(whole, np.sort(order[options.calibration_samples :]))
        rule = "calibration drawn from all images, evaluation on the rest"
    settings = {**asdict(how), "images": len(names), "classes": len(classes), "split": rule, "seed": options.seed}
    return Data(f"imagefolder:{path}", calibration, evaluation_split, settings, source.fingerprint())


def _class_of(name: str) -> str:
    """The folder that an image lies in."""
    return PurePosixPath(name).parent.name
