"""Image files are read as torchvision reads them, within limits."""

from __future__ import annotations

import importlib
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hawq_tvm.core.errors import DataError
from hawq_tvm.sources.data import load_data
from hawq_tvm.sources.decoding import preprocess, read_image
from hawq_tvm.sources.imagefiles import SUFFIXES
from hawq_tvm.sources.models import load_model

from .test_imagefolder import SMALL, draw, options

MOST = 10**6
NOISE = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".ppm": "PPM", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
         ".webp": "WEBP", ".pgm": "PPM"}  # fmt: skip
MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "P", "RGBA", "LA", "1"),
    "PPM": ("RGB", "L", "1"),
    "BMP": ("RGB", "L", "P", "RGBA", "1"),
    "TIFF": ("RGB", "L", "P", "RGBA", "CMYK", "1"),
    "WEBP": ("RGB", "RGBA"),
}
"""What files of each kind hold, as Pillow names it."""


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_suffixes_and_pixels_are_torchvisions() -> None:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    load_model("torchvision:squeezenet1_1", "random")  # imports it beside a PyTorch for CPUs
    folder = importlib.import_module("torchvision.datasets.folder")
    assert SUFFIXES == folder.IMG_EXTENSIONS
    assert set(KINDS) == set(SUFFIXES)


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, kind in KINDS.items() for mode in MODES[kind]])
def test_every_kind_is_read_as_torchvision_reads_it(tmp_path: Path, suffix: str, mode: str) -> None:
    data = encoded(Image.fromarray(NOISE).convert(mode), KINDS[suffix])
    (tmp_path / f"x{suffix}").write_bytes(data)
    with (tmp_path / f"x{suffix}").open("rb") as stream:
        expected = Image.open(stream).convert("RGB")
    assert np.array_equal(np.asarray(read_image(data, MOST)), np.asarray(expected))


@pytest.mark.parametrize("suffix", [".pgm", ".tif", ".tiff"])
def test_folders_of_other_kinds_are_read(tmp_path: Path, suffix: str) -> None:
    folder = draw(tmp_path / "images")
    for file in list(folder.rglob("*.png")):
        image = Image.open(file).convert("L")
        file.with_suffix(suffix).write_bytes(encoded(image, KINDS[suffix]))
        file.unlink()
    data = load_data(f"imagefolder:{folder}", options())
    assert (data.settings["images"], data.settings["classes"]) == (12, 3)
    assert data.evaluation.sample(7)[0].shape == (3, 16, 16)


LEVELS = np.array([[0, 128, 129, 255, 256, 257, 30_000, 32_768, 65_406, 65_407, 65_535]], np.uint16)
SCALED = [0, 0, 1, 1, 1, 1, 117, 128, 254, 255, 255]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(Image.fromarray(LEVELS), "PNG"), id="png"),
        pytest.param(encoded(Image.fromarray(LEVELS), "TIFF"), id="tiff"),
        pytest.param(encoded(Image.fromarray(LEVELS.astype(">u2")), "TIFF"), id="tiff big endian"),
        pytest.param(b"P5\n11 1\n65535\n" + LEVELS.astype(">u2").tobytes(), id="pgm"),
    ],
)
def test_sixteen_bit_greys_are_scaled_and_not_saturated(data: bytes) -> None:
    pixels = np.asarray(read_image(data, MOST))
    assert pixels.shape == (1, 11, 3)
    exact = [int(level) * 255 / 65535 for level in LEVELS[0]]
    assert [abs(value - real) <= 0.5 for value, real in zip(SCALED, exact, strict=True)] == [True] * 11
    for channel in range(3):
        assert pixels[0, :, channel].tolist() == SCALED


def test_ten_bit_greys_are_scaled_by_their_own_maximum() -> None:
    data = b"P5\n3 1\n1023\n" + np.array([0, 512, 1023], ">u2").tobytes()
    assert np.asarray(read_image(data, MOST))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_greys_without_a_known_range_are_refused(dtype: type) -> None:
    data = encoded(Image.fromarray(np.full((4, 4), 3, dtype)), "TIFF")
    with pytest.raises(DataError, match=r"its grey levels \(Pillow's mode [IF]\) have no known range"):
        read_image(data, MOST)


def huge_png(width: int, height: int) -> bytes:
    """A PNG file of a few bytes whose header claims a size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def only(tmp_path: Path, data: bytes, **changes: object) -> None:
    """Read a file in a folder of images."""
    folder = draw(tmp_path / "images")
    for file in folder.rglob("*.png"):
        file.write_bytes(data)
    load_data(f"imagefolder:{folder}", options(**changes)).calibration.sample(0)


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        ((10_000, 9_000), {}, "it has 10000 x 9000 pixels, more than the 89,478,485 that max_image_pixels allows"),
        ((100, 90), {"max_image_pixels": 8_999}, "it has 100 x 90 pixels, more than the 8,999 that max_image_pixels"),
        (
            (60_000, 60_000),
            {"max_image_pixels": 10**12},
            r"Image size \(3600000000 pixels\) exceeds limit of 178956970",
        ),
    ],
)
def test_pixels_are_counted_before_they_are_decoded(
    tmp_path: Path, size: tuple[int, int], changes: dict[str, object], message: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=f"png cannot be read: {message}"):
            only(tmp_path, huge_png(*size), **changes)


def test_a_strip_that_would_be_huge_when_resized_is_refused(tmp_path: Path) -> None:
    strip = encoded(Image.new("L", (30_000, 1)), "PNG")
    message = "resized to a short side of 20 it has 600000 x 20 pixels, more than the 1,000,000 that max_image_pixels"
    with pytest.raises(DataError, match=message):
        only(tmp_path, strip, max_image_pixels=10**6)
    only(tmp_path / "again", strip, max_image_pixels=12 * 10**6)
    assert preprocess(Image.new("RGB", (300, 1)), SMALL).shape == (3, 16, 16)


def test_other_kinds_of_content_are_not_decoded(tmp_path: Path) -> None:
    """Pillow would start Ghostscript for this one."""
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "EPS")
    with pytest.raises(DataError, match="cannot be read: it is no image of a known kind"):
        only(tmp_path, buffer.getvalue())
