"""How samples are chosen and prepared: plain settings, which load neither PyTorch nor images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from numbers import Integral, Real

from hawq_tvm.core.errors import DataError
from hawq_tvm.settings import check_seed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

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

    calibration_samples: int = 256
    evaluation_samples: int | None = None
    input_shape: tuple[int, ...] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    seed: int = 0
    max_image_bytes: int = 2**28
    max_image_pixels: int = 89_478_485  # a quarter of a gigabyte of RGB: from here Pillow warns

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
