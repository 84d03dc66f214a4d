from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hawq_tvm.core.errors import DataError
from hawq_tvm.sources import cifar10_batches
from hawq_tvm.sources.cifar10_batches import CLASSES
from hawq_tvm.sources.data import batches, load_data
from hawq_tvm.sources.options import DataOptions, Preprocessing
from hawq_tvm.sources.samples import Data

Pixels = NDArray[np.uint8]
EACH = 4  # images of a batch
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def noise(number: int) -> tuple[Pixels, list[int]]:
    """The images [N, 3, 32, 32] of a batch, and their labels, which do not come in order."""
    generator = np.random.default_rng(number)
    return generator.integers(0, 256, (EACH, 3, 32, 32), np.uint8), [(7 * i + number) % 10 for i in range(EACH)]


def records(images: Pixels, labels: list[int]) -> bytes:
    """A batch in the binary version."""
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))


def text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def python2(images: Pixels, labels: list[int], raw: bytes | None = None) -> bytes:
    """A batch as Python 2 and its numpy pickled it, opcode by opcode: the files that everybody downloads."""
    flat = images.reshape(len(images), -1)
    shape = b"J" + struct.pack("<i", len(flat)) + b"M" + struct.pack("<H", flat.shape[1]) + b"\x86"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04U\x01b\x87q\x05Rq\x06(K\x01"
    )
    dtype = b"cnumpy\ndtype\nq\x07U\x02u1q\x08K\x00K\x01\x87q\x09Rq\x0a(K\x03U\x01|NNN" + 2 * b"J\xff\xff\xff\xff"
    dtype += b"K\x00tb"
    raw = flat.tobytes() if raw is None else raw
    held = array + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    items = {b"batch_label": text(b"a batch"), b"labels": numbers, b"data": held, b"filenames": b"]"}
    return b"\x80\x02}q\x01(" + b"".join(text(key) + value for key, value in items.items()) + b"u."


def python3(images: Pixels, labels: list[int]) -> bytes:
    """A batch as somebody pickled it anew."""
    return pickle.dumps({"data": images.reshape(len(images), -1), "labels": labels}, protocol=4)


KINDS: dict[str, tuple[str, str, Callable[[Pixels, list[int]], bytes]]] = {
    "binary": ("cifar-10-batches-bin", ".bin", records),
    "pickled": ("cifar-10-batches-py", "", python2),
    "pickled anew": ("cifar-10-batches-py", "", python3),
}


def write(folder: Path, kind: str = "binary") -> Path:
    """The original files; returns their own folder."""
    name, suffix, make = KINDS[kind]
    inside = folder / name
    inside.mkdir(parents=True)
    (inside / "readme.html").write_text("hello")
    for number, batch in enumerate(NAMES):
        (inside / f"{batch}{suffix}").write_bytes(make(*noise(number)))
    return inside


def archive(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as made:
        made.add(folder, folder.name)
    return path


def draw(folder: Path) -> Path:
    """Image folders: three images a class in train, two in test, their red the number of the class."""
    for split, each in (("train", 3), ("test", 2)):
        for number, name in enumerate(CLASSES):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(each):
                pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
                pixels[0, 0, 0] = number
                Image.fromarray(pixels).save(place / f"{i:04}.png")
    return folder


def zipped(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for file in sorted(folder.rglob("*.png")):
            made.write(file, f"{prefix}{file.relative_to(folder)}")
    return path


PLAIN = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def load(path: Path, **changes: Any) -> Data:
    return load_data(f"cifar10:{path}", DataOptions(**{"calibration_samples": 6, "preprocessing": PLAIN, **changes}))


def contents(data: Data, split: str) -> dict[bytes, int | None]:
    """Every image's bytes, with its label."""
    chosen = getattr(data, split)
    samples = (chosen.sample(index) for index in range(len(chosen)))
    return {np.round(image * 255).astype(np.uint8).tobytes(): label for image, label in samples}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["folder", "folder around it", "archive"])
def test_the_original_files(kind: str, way: str, tmp_path: Path) -> None:
    folder = write(tmp_path, kind)
    path = {"folder": folder, "folder around it": tmp_path, "archive": tmp_path / "cifar-10.tar.gz"}[way]
    if way == "archive":
        archive(folder, path)
    data = load(path, calibration_samples=100)
    train = [noise(number) for number in range(5)]
    for split, made in (("calibration", train), ("evaluation", [noise(5)])):
        assert contents(data, split) == {
            image.tobytes(): label for images, labels in made for image, label in zip(images, labels, strict=True)
        }
    assert data.name == f"cifar10:{path}"
    assert data.settings["images"] == [5 * EACH, EACH]
    assert data.sample_shape == (3, 32, 32)


def test_pickles_written_down_by_hand_are_what_python_reads() -> None:
    images, labels = noise(0)
    found = pickle.loads(python2(images, labels), encoding="latin1")
    assert np.array_equal(found["data"], images.reshape(EACH, -1))
    assert found["labels"] == labels


@pytest.mark.parametrize("way", ["folder", "zip file", "zip file with a folder around"])
def test_images_in_class_folders(way: str, tmp_path: Path) -> None:
    path = draw(tmp_path / "images")
    if way != "folder":
        path = zipped(path, tmp_path / "images.zip", "CIFAR-10-images-master/" if "around" in way else "")
    data = load(path, calibration_samples=100)
    assert (len(data.calibration), len(data.evaluation)) == (30, 20)
    for split in (data.calibration, data.evaluation):
        (batch,) = batches(split, 100)
        assert batch.labels is not None
        assert np.array_equal(np.round(batch.images[:, 0, 0, 0].numpy() * 255), batch.labels.numpy())
        assert len(set(batch.labels[:10].tolist())) > 3, "drawn order: the first ones are not all of one class"


def test_samples_are_drawn_with_the_seed_and_normalised(tmp_path: Path) -> None:
    path = zipped(draw(tmp_path / "images"), tmp_path / "images.zip")
    first, again, other = load(path), load(path), load(path, seed=1)
    assert first.key == again.key == json.loads(json.dumps(first.key)), "as a manifest has it, read back or not"
    assert contents(first, "calibration") == contents(again, "calibration") != contents(other, "calibration")
    assert contents(first, "evaluation") == contents(other, "evaluation")
    assert (len(first.calibration), len(first.evaluation)) == (6, 20)
    assert "drawn with seed 0; accuracy is measured on the test images" in first.note
    normal = load(path, preprocessing=Preprocessing())
    plain, made = first.calibration.sample(2)[0], normal.calibration.sample(2)[0]
    wanted = (plain - np.reshape((0.485, 0.456, 0.406), (3, 1, 1))) / np.reshape((0.229, 0.224, 0.225), (3, 1, 1))
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-5)
    assert normal.fingerprint != first.fingerprint


@pytest.mark.parametrize("kind", ["binary", "images"])
def test_the_fingerprint_follows_what_the_samples_hold(kind: str, tmp_path: Path) -> None:
    folder = draw(tmp_path / "images") if kind == "images" else write(tmp_path)
    every = {"calibration_samples": 100}
    before = load(folder, **every)
    assert load(folder, **every).fingerprint == before.fingerprint
    assert load(folder, calibration_samples=3).fingerprint != before.fingerprint
    if kind == "images":
        Image.new("RGB", (32, 32)).save(folder / "train" / "deer" / "0000.png")
    else:
        file = folder / "data_batch_2.bin"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    changed = load(folder, **every)
    assert changed.fingerprint != before.fingerprint
    if kind == "binary":
        data[0] = (data[0] + 1) % 10
        file.write_bytes(data)
        assert load(folder, **every).fingerprint != changed.fingerprint, "labels count"


def test_sizes_to_resize_or_crop_to_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    for name in ("resize", "crop"):
        with pytest.raises(DataError, match=f"are taken as they are; leave out --{name} 28$"):
            load(folder, preprocessing=Preprocessing(**{name: 28}))
    load(folder, preprocessing=Preprocessing(resize=32, crop=32))


# what is refused


def replaced(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


BAD_BATCHES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no training batch": (lambda f: (f / "data_batch_3.bin").unlink(), "lacks CIFAR-10's data_batch_3; download"),
    "no test batch": (lambda f: (f / "test_batch.bin").unlink(), "lacks CIFAR-10's test_batch; download"),
    "truncated": (
        lambda f: replaced(f, "test_batch.bin", records(*noise(5))[:-7]),
        r"test_batch.bin has 12,285 bytes, no whole number of records of 3,073; it is truncated; download",
    ),
    "empty": (lambda f: replaced(f, "data_batch_1.bin", b""), "has 0 bytes"),
    "another label": (
        lambda f: replaced(f, "data_batch_1.bin", records(noise(0)[0], [1, 2, 10, 3])),
        "data_batch_1.bin has the label 10 at image 2, and CIFAR-10's are 0 to 9",
    ),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_damaged_binary_files_are_refused(case: str, tmp_path: Path) -> None:
    folder = write(tmp_path)
    change, message = BAD_BATCHES[case]
    change(folder)
    with pytest.raises(DataError, match=message):
        load(folder)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code has run",)


IMAGES, LABELS = noise(0)
GOOD = python2(IMAGES, LABELS)
BAD_PICKLES: dict[str, tuple[bytes, str]] = {
    "code": (pickle.dumps({"data": Evil(), "labels": LABELS}, protocol=4), "it names builtins.print, which could run"),
    "code, an old opcode": (b"\x80\x02ibuiltins\nprint\n.", "it has the opcode INST, which no batch needs"),
    "an object of a class": (b"\x80\x02cnumpy\nndarray\n)\x81.", "it has the opcode NEWOBJ"),
    "an extension": (b"\x80\x02\x82\x01.", "it has the opcode EXT1"),
    "too many opcodes": (b"\x80\x02" + b"N" * 200_001 + b".", "more than 200,000 opcodes"),
    "a memo without end": (b"\x80\x02Nr\xff\xff\xff\x7f.", "more than 200,000 opcodes"),
    "truncated": (GOOD[:-40], "test_batch is no batch of CIFAR-10"),
    "no pickle": (b"\x00hello", "is no batch of CIFAR-10"),
    "nothing": (b"", "is no batch of CIFAR-10"),
    "no dict": (pickle.dumps([1], protocol=4), "is no batch of CIFAR-10"),
    "no labels": (pickle.dumps({"data": IMAGES}, protocol=4), "is no batch of CIFAR-10"),
    "no array": (pickle.dumps({"data": [1], "labels": LABELS}, protocol=4), "its data are no array of bytes"),
    "other numbers": (
        pickle.dumps({"data": IMAGES.reshape(4, -1).astype(np.int32), "labels": LABELS}, protocol=4),
        "no array of bytes",
    ),
    "of another width": (
        pickle.dumps({"data": IMAGES.reshape(8, -1), "labels": LABELS}, protocol=4),
        r"its array \[8, 1536\] has 12,288 bytes, expected \[N, 3,072\]",
    ),
    "fewer bytes than it says": (python2(IMAGES, LABELS, IMAGES.tobytes()[1:]), r"\[4, 3072\] has 12,287 bytes"),
    "labels that are no numbers": (python3(IMAGES, ["1"] * 4), "no list of whole numbers"),  # type: ignore[list-item]
    "labels too few": (python3(IMAGES, LABELS[:3]), "4 images and 3 labels"),
    "another label": (python3(IMAGES, [0, 1, -1, 3]), "the label -1 at image 2"),
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_pickles_run_no_code_and_fill_no_memory(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, message = BAD_PICKLES[case]
    folder = write(tmp_path, "pickled")
    replaced(folder, "test_batch", data)
    with pytest.raises(DataError, match=message):
        load(folder)
    assert capsys.readouterr().out == ""


def test_columns_first(tmp_path: Path) -> None:
    """Numpy pickles an array in the order that it has in memory."""
    folder = write(tmp_path, "pickled")
    images, labels = noise(5)
    turned = np.asfortranarray(images.reshape(EACH, -1))
    replaced(folder, "test_batch", pickle.dumps({"data": turned, "labels": labels}, protocol=4))
    assert contents(load(folder), "evaluation") == {
        image.tobytes(): label for image, label in zip(images, labels, strict=True)
    }


def test_archives_that_are_none_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(b"hello")
    with pytest.raises(DataError, match=r"cifar.tar.gz cannot be read: .*; download CIFAR-10 anew"):
        load(path)
    folder = write(tmp_path)
    whole = archive(folder, path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cifar.tar.gz cannot be read"):
        load(path)
    path.write_bytes(whole)
    load(path)
    monkeypatch.setattr(cifar10_batches, "_MOST_BATCH_BYTES", 12_000)
    for place in (path, folder):
        with pytest.raises(DataError, match=r"batch_\w+.bin has 12,292 bytes, more than any batch"):
            load(place)
    monkeypatch.undo()
    monkeypatch.setattr(cifar10_batches, "_MOST_ARCHIVE_BYTES", 30_000)
    with pytest.raises(DataError, match="unpacks to more than 30,000 bytes"):
        load(path)


def test_links_in_an_archive_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "cifar.tgz"
    (tmp_path / "secret").write_bytes(records(*noise(5)))
    with tarfile.open(path, "w:gz") as made:
        for number, name in enumerate(NAMES[:-1]):
            member = tarfile.TarInfo(f"x/{name}.bin")
            member.size = len(records(*noise(number)))
            made.addfile(member, io.BytesIO(records(*noise(number))))
        link = tarfile.TarInfo("x/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        made.addfile(link)
    with pytest.raises(DataError, match="lacks CIFAR-10's test_batch"):
        load(path)


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no test": (lambda f: (f / "test").rename(f / "other"), "holds no folder 'test' and none of CIFAR-10's original"),
    "no train": (lambda f: (f / "train").rename(f / "other"), "holds no folder 'train'"),
    "a class missing": (lambda f: (f / "test" / "deer").rename(f / "deer"), "test holds no images of the class 'deer'"),
    "a class without images": (
        lambda f: [file.unlink() for file in (f / "train" / "frog").iterdir()], "train holds no images of the class 'f",
    ),
    "another class": (
        lambda f: (f / "train" / "cow").mkdir() or Image.new("RGB", (32, 32)).save(f / "train" / "cow" / "1.png"),
        "train holds train/cow/1.png, which is of none; CIFAR-10 has one folder for each of airplane, automobile",
    ),
    "loose images": (
        lambda f: Image.new("RGB", (32, 32)).save(f / "test" / "1.png"), "test holds test/1.png, which is of none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_other_folders_are_refused(case: str, tmp_path: Path) -> None:
    folder = draw(tmp_path / "images")
    change, message = BAD_FOLDERS[case]
    change(folder)
    with pytest.raises(DataError, match=message):
        load(folder)


def test_an_image_of_another_size_is_refused_when_it_is_read(tmp_path: Path) -> None:
    folder = draw(tmp_path / "images")
    Image.new("RGB", (32, 28)).save(folder / "test" / "deer" / "0001.png")
    data = load(folder)
    with pytest.raises(DataError, match=r"deer/0001.png cannot be read: it has 32 x 28 pixels, and CIFAR-10's have 32"):
        contents(data, "evaluation")
    (folder / "test" / "deer" / "0001.png").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"deer/0001.png cannot be read: it is no image"):
        contents(load(folder), "evaluation")
    with pytest.raises(DataError, match="more than the 100 that max_image_bytes allows"):
        load(folder, max_image_bytes=100)


SHARED = Path(__file__).parents[2] / "shared" / "data" / "cifar10.zip"
"""CIFAR-10 as JPEG images, beside the repository where it is at hand; not part of it."""


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared CIFAR-10 images are not at hand")
def test_all_of_cifar10() -> None:
    data = load(SHARED)
    assert data.settings["images"] == [50_000, 10_000]
    assert len(data.evaluation) == 10_000
    image, label = data.evaluation.sample(0)
    assert image.shape == (3, 32, 32)
    assert label in range(10)
