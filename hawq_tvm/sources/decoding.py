"""From an image file's bytes to a tensor: torchvision's reading and its evaluation transform, within limits."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from hawq_tvm.core.errors import DataError
from hawq_tvm.sources.options import Preprocessing
from hawq_tvm.sources.splits import Images

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""What is decoded, whatever a file is called. Pillow knows more kinds, and starts Ghostscript for one of them."""


def read_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an image to RGB, as torchvision's `pil_loader` does, but for 16-bit greys, which that saturates.

    Args:
        data: the file.
        max_pixels: the most that are decoded.

    Raises:
        DataError: no image of a known kind, more pixels than that, or grey levels without a known range; the message is
            the reason alone.
        Exception: whatever Pillow's decoders raise for a damaged file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels says how many are too many
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise DataError("it is no image of a known kind") from error
    with image:
        width, height = image.size
        _check_pixels(width, height, max_pixels, "it has")
        if image.mode in ("F", "I") and not (image.mode == "I" and image.format in ("PNG", "PPM")):
            raise DataError(
                f"its grey levels (Pillow's mode {image.mode}) have no known range, save it with 16 or 8 bits"
            )
        if image.mode.startswith("I"):
            return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
        return image.convert("RGB")


def _to_8_bits(levels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """16-bit levels 0 to 65535 onto 0 to 255, rounded: 65535 is 257 times 255."""
    return ((levels.astype(np.int64) + 128) // 257).astype(np.uint8)


def _check_pixels(width: int, height: int, most: int, what: str) -> None:
    if width * height > most:
        raise DataError(f"{what} {width} x {height} pixels, more than the {most:,} that max_image_pixels allows")


def preprocess(image: Image.Image, how: Preprocessing, max_pixels: int | None = None) -> Images:
    """Resize the short side, crop the centre, normalise: float32 [3, crop, crop].

    Args:
        image: RGB.
        how: sizes, mean and standard deviation.
        max_pixels: the most that the resized image may have: that of a long strip is far larger than the strip.

    Raises:
        DataError: more pixels than that; the message is the reason alone.
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
        if max_pixels is not None:
            _check_pixels(*size, max_pixels, f"resized to a short side of {how.resize} it has")
        image = image.resize(size, Image.Resampling.BILINEAR)
    width, height = image.size
    left, top = round((width - how.crop) / 2), round((height - how.crop) / 2)
    return normalise(np.asarray(image.crop((left, top, left + how.crop, top + how.crop))), how)


def normalise(pixels: NDArray[np.uint8], how: Preprocessing) -> Images:
    """Pixels uint8 [H, W, 3] divided by 255, less the mean, by the standard deviation: float32 [3, H, W]."""
    shares = np.asarray(pixels, np.float32) / 255
    normal = (shares - np.asarray(how.mean, np.float32)) / np.asarray(how.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))
