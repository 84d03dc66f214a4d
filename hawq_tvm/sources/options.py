"""How samples are chosen and prepared: plain settings, which load neither PyTorch nor images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from numbers import Integral, Real

from hawq_tvm.core.errors import DataError
from hawq_tvm.core.option import option
from hawq_tvm.settings import SAMPLES, check_seed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


IMAGES = "Image files"
"""The heading of the options that are about image files."""


def parse_three(text: str, flag: str) -> tuple[float, float, float]:
    """Three numbers, or one for all channels, as ``0.485,0.456,0.406``.

    Raises:
        DataError: anything else.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) == 1:
        values *= 3
    if len(values) != 3:
        raise DataError(f"{flag} takes one number or three, as 0.485,0.456,0.406; got '{text}'")
    return values[0], values[1], values[2]


def parse_shape(text: str) -> tuple[int, ...]:
    """A sample's shape, as ``3x224x224``.

    Raises:
        DataError: anything else.
    """
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise DataError(f"--input-shape is written 3x224x224, got '{text}'")
    return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes a tensor: torchvision's evaluation transform.

    Attributes:
        resize: the short side after a bilinear resize, in pixels.
        crop: the side of the centre crop.
        mean: subtracted per channel, after division by 255.
        std: divided by per channel, above 0.

    Raises:
        DataError: a size below 1, a mean or standard deviation that is not finite, a standard deviation not above 0.
    """

    resize: int = option(256, "short side after resizing, in pixels", panel=IMAGES, least=1)
    crop: int = option(224, "side of the centre crop, in pixels", panel=IMAGES, least=1)
    mean: tuple[float, float, float] = option(
        IMAGENET_MEAN, "subtracted per channel, after /255", panel=IMAGES, parse=partial(parse_three, flag="--mean")
    )
    std: tuple[float, float, float] = option(
        IMAGENET_STD, "divided by per channel", panel=IMAGES, parse=partial(parse_three, flag="--std")
    )

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            object.__setattr__(self, name, _count(getattr(self, name), name))
        for name in ("mean", "std"):
            object.__setattr__(self, name, _three(getattr(self, name), name))
        if min(self.std) <= 0:
            raise DataError(f"the standard deviations are divided by and must be above 0, got std={self.std}")


@dataclass(frozen=True)
class DataOptions:
    """What the command line and `load_data` take beside the name.

    Attributes:
        calibration_samples: how many samples are drawn for calibration.
        evaluation_samples: at most how many evaluation samples are used; None for all.
        input_shape: of ``random`` samples.
        preprocessing: of image files.
        seed: of the choice and of random samples.
        max_image_bytes: the largest image file that is read, unpacked from its zip file.
        max_image_pixels: the most pixels that an image may have, before and after it is resized. Pillow has a limit of
            its own, twice ``PIL.Image.MAX_IMAGE_PIXELS``.

    Raises:
        DataError: a count or a dimension below 1.
        HawqError: a seed that is no whole number from 0 to 2^63 - 1.
    """

    calibration_samples: int = option(256, "samples drawn for ranges", panel=SAMPLES, least=1)
    evaluation_samples: int | None = option(None, "at most so many; default all", panel=SAMPLES, least=1)
    input_shape: tuple[int, ...] | None = option(
        None, "of random samples, as 3x224x224", panel=SAMPLES, parse=parse_shape
    )
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    seed: int = 0
    max_image_bytes: int = option(2**28, "largest image file that is read, in bytes", panel=IMAGES, least=1)
    max_image_pixels: int = option(  # a quarter of a gigabyte of RGB: from here Pillow warns
        89_478_485, "most pixels of an image, before and after resizing", panel=IMAGES, least=1
    )

    def __post_init__(self) -> None:
        for name in ("calibration_samples", "max_image_bytes", "max_image_pixels"):
            object.__setattr__(self, name, _count(getattr(self, name), name))
        if self.evaluation_samples is not None:
            object.__setattr__(self, "evaluation_samples", _count(self.evaluation_samples, "evaluation_samples"))
        if self.input_shape is not None:
            if not isinstance(self.input_shape, tuple | list):
                raise DataError(f"input_shape is a tuple of dimensions, got {self.input_shape!r}")
            shape = tuple(_count(size, "every dimension of input_shape") for size in self.input_shape)
            object.__setattr__(self, "input_shape", shape)
        object.__setattr__(self, "seed", check_seed(self.seed))


def _count(value: object, name: str) -> int:
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1:
        return int(value)
    raise DataError(f"{name} must be a whole number of at least 1, got {value!r}")


def _three(values: object, name: str) -> tuple[float, float, float]:
    parts = list(values) if isinstance(values, Iterable) else []
    numbers = [float(part) for part in parts if isinstance(part, Real) and isfinite(part)]
    if len(numbers) != 3 or len(parts) != 3:
        raise DataError(f"{name} must be three finite numbers, one a channel, got {values}")
    return numbers[0], numbers[1], numbers[2]
