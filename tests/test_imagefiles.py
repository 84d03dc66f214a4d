"""What lies in folders and zip files: names, links, limits, and what decides that it changed."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from hawq_tvm.core.errors import DataError
from hawq_tvm.sources import imagefiles
from hawq_tvm.sources.data import load_data
from hawq_tvm.sources.samples import Data

from .test_imagefolder import draw, options, zip_of


def opened(path: Path, **changes: object) -> Data:
    return load_data(f"imagefolder:{path}", options(**changes))


def labels(data: Data) -> list[int | None]:
    return [split.sample(index)[1] for split in (data.calibration, data.evaluation) for index in range(len(split))]


def png(value: int = 0) -> bytes:
    """A grey square."""
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path: Path, files: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def set_of(prefix: str = "", classes: tuple[str, ...] = ("a", "b", "c")) -> dict[str, bytes]:
    return {f"{prefix}{name}/{i}.png": png(10 * number + i) for number, name in enumerate(classes) for i in range(3)}


# names


@pytest.mark.parametrize("zipped", [False, True])
def test_every_folder_beside_a_class_counts(tmp_path: Path, zipped: bool) -> None:
    """Left out, an empty class would shift the labels of those behind it."""
    folder = draw(tmp_path / "images")
    (folder / "n01a").mkdir()
    path = tmp_path / "images.zip"
    for text in (None, "a.gif"):
        if text is not None:
            (folder / "n01a" / text).write_text("GIF89a")
        if zipped:
            zip_of(folder, path)
            with zipfile.ZipFile(path, "a") as archive:
                archive.write(folder / "n01a", "n01a/")
        with pytest.raises(DataError, match=r"the class folder .*n01a holds no images \(.jpg, .*may be others; put"):
            opened(path if zipped else folder)


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "set" / "train", each=5)
    (tmp_path / "set" / "val").mkdir()
    with pytest.raises(DataError, match=r"set/val holds no images"):
        opened(tmp_path / "set")
    draw(tmp_path / "set" / "val")
    (tmp_path / "set" / "train" / "n00b").mkdir()
    with pytest.raises(DataError, match=r"the class folder .*set/train/n00b holds no images"):
        opened(tmp_path / "set")


def test_zip_files_inside_are_not_opened(tmp_path: Path) -> None:
    folder = draw(tmp_path / "images")
    (folder / "n03").mkdir()
    zip_of(draw(tmp_path / "more", classes=1), folder / "n03" / "more.zip")
    with pytest.raises(DataError, match="the class folder .*n03 holds no images"):
        opened(folder)


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    folder = draw(tmp_path / "images")
    plain = sorted(labels(opened(folder)))  # type: ignore[type-var]
    (folder / "n01").rename(tmp_path / "elsewhere")
    (folder / "n01").symlink_to(tmp_path / "elsewhere")
    (folder / "n02" / "0.png").rename(tmp_path / "one.png")
    (folder / "n02" / "0.png").symlink_to(tmp_path / "one.png")
    data = opened(folder)
    assert (data.settings["images"], data.settings["classes"]) == (12, 3)
    assert sorted(labels(data)) == plain  # type: ignore[type-var]


def test_links_that_lead_nowhere_or_in_a_circle_are_refused(tmp_path: Path) -> None:
    folder = draw(tmp_path / "images")
    (folder / "n03").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"n03 is a link that leads nowhere.*mend it, or take it away"):
        opened(folder)
    (folder / "n03").unlink()
    (folder / "n02" / "up").symlink_to(folder)
    with pytest.raises(DataError, match=r"n02/up is a link to a folder that it lies in; take it away"):
        opened(folder)


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = draw(tmp_path / "images")
    real = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "n01":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="the folder .*n01/? cannot be read: Permission denied"):
        opened(folder)


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = draw(tmp_path / os.fsdecode(b"caf\xe9"))
    for old, new in ((b"n00", b"a"), (b"n01", b"z\xfc"), (b"n02", b"\xff")):
        (folder / os.fsdecode(old)).rename(folder / os.fsdecode(new))
    data = opened(folder)
    assert sorted(labels(data)) == [0] * 4 + [1] * 4 + [2] * 4  # type: ignore[type-var]
    assert data.name.endswith("caf\\xe9")
    json.dumps([data.name, data.settings, data.fingerprint], ensure_ascii=False).encode()
    (folder / os.fsdecode(b"\xff") / "0.png").write_text("no image")
    with pytest.raises(DataError, match=r"caf\\xe9/\\xff/0.png cannot be read") as raised:
        labels(opened(folder))
    str(raised.value).encode()
    (folder / os.fsdecode(b"\xfe")).mkdir()
    with pytest.raises(DataError, match=r"the class folder .*\\xfe holds no images") as raised:
        opened(folder)
    str(raised.value).encode()


def named(path: Path, name: bytes, *, utf8: bool) -> Path:
    """Write another name of the same length, in raw bytes, over ``n01`` in a zip file."""
    data = path.read_bytes().replace(b"n01/", name + b"/")
    with zipfile.ZipFile(path) as archive:
        starts = [(entry.header_offset, entry.filename) for entry in archive.infolist()]
    data = bytearray(data)
    central = data.find(b"PK\1\2")
    for offset, old in starts:
        flag = 0x08 if utf8 and old.startswith("n01/") else 0
        data[offset + 7] |= flag
        data[central + 9] |= flag
        central = data.find(b"PK\1\2", central + 4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["é1".encode(), b"m\x82p", b"\xc3\xbcx"])
def test_zip_names_in_other_code_pages(tmp_path: Path, name: bytes) -> None:
    path = named(zip_of(draw(tmp_path / "images"), tmp_path / "images.zip"), name, utf8=False)
    data = opened(path)
    assert sorted(labels(data)) == [0] * 4 + [1] * 4 + [2] * 4  # type: ignore[type-var]
    json.dumps([data.settings, data.fingerprint], ensure_ascii=False).encode()


def test_classes_of_a_zip_file_are_in_the_order_of_the_folders(tmp_path: Path) -> None:
    """Names are UTF-8 though the zip file does not say so, as macOS packs them: code page 437 would sort otherwise."""
    order = []
    for name in ("þ", "é"):
        path = tmp_path / f"{name}.zip"
        pack(path, {**set_of(classes=("n01x", "ê")), "plain/0.png": png()})
        data = path.read_bytes().replace(b"n01x/", f"{name}é".encode()[:4] + b"/")
        path.write_bytes(data)
        files = imagefiles.ZipFiles(path)
        order.append(list(files.folders))
    assert order == [["plain", "ê", "þé"], ["plain", "éé", "ê"]]


def test_a_name_that_is_marked_as_utf_8_and_is_not(tmp_path: Path) -> None:
    path = named(zip_of(draw(tmp_path / "images"), tmp_path / "images.zip"), b"m\x82p", utf8=True)
    with pytest.raises(DataError, match="images.zip has a name that is marked as UTF-8 and is not; unpack it"):
        opened(path)


def test_zip_files_packed_with_backslashes(tmp_path: Path) -> None:
    files = {name.replace("/", "\\"): data for name, data in set_of().items()}
    data = opened(pack(tmp_path / "set.zip", files))
    assert sorted(labels(data)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]  # type: ignore[type-var]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "set.zip", set_of())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/1.png", png(99))
    with pytest.raises(DataError, match="set.zip holds two files called a/1.png; pack it anew"):
        opened(path)


# limits


@pytest.mark.parametrize("zipped", [False, True])
def test_a_large_file_is_refused_before_any_is_read(tmp_path: Path, zipped: bool) -> None:
    folder = draw(tmp_path / "images")
    (folder / "n01" / "9.png").write_bytes(b"\0" * 20_000)
    path = zip_of(folder, tmp_path / "images.zip") if zipped else folder
    with pytest.raises(DataError, match=r"n01/9.png has 20,000 bytes, more than the 10,000 that max_image_bytes"):
        opened(path, max_image_bytes=10_000)
    assert len(opened(path, max_image_bytes=20_000).evaluation) == 9


def lying(path: Path, change: Callable[[bytearray, int, int], None]) -> Path:
    """Change the directory entry and the local header of ``a/0.png``."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        number = archive.namelist().index("a/0.png")
        local = archive.getinfo("a/0.png").header_offset
    central = data.find(b"PK\1\2")
    for _ in range(number):
        central = data.find(b"PK\1\2", central + 4)
    change(data, central, local)
    path.write_bytes(data)
    return path


def bomb(path: Path, says: int) -> Path:
    """A zip file whose first image unpacks to 50 MB of zeros and says another size."""
    pack(path, {**set_of(), "a/0.png": b"\0" * 50_000_000}, compression=zipfile.ZIP_DEFLATED)

    def change(data: bytearray, central: int, local: int) -> None:
        struct.pack_into("<I", data, central + 24, says)
        struct.pack_into("<I", data, local + 22, says)

    return lying(path, change)


def test_a_zip_entry_that_understates_its_size_is_cut_off_and_told(tmp_path: Path) -> None:
    files = imagefiles.ZipFiles(bomb(tmp_path / "set.zip", 1000))
    tracemalloc.start()
    try:
        with pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
            files.read("a/0.png")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000, "the rest of the 50 MB is never unpacked"
    finally:
        tracemalloc.stop()
    with pytest.raises(DataError, match=r"set.zip/a/0.png cannot be read: Bad CRC-32"):
        labels(opened(tmp_path / "set.zip"))


def test_a_zip_entry_that_overstates_its_size_is_told(tmp_path: Path) -> None:
    path = bomb(tmp_path / "set.zip", 50_000_001)
    with pytest.raises(DataError, match=r"its entry says 50,000,001 bytes, and it holds 50,000,000"):
        labels(opened(path))
    path = bomb(tmp_path / "set.zip", 80_000_000)
    with pytest.raises(DataError, match=r"a/0.png unpacks from [\d,]+ bytes to 80,000,000, which cannot be"):
        opened(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packings_are_refused(tmp_path: Path, method: int) -> None:
    """Python unpacks them without a limit."""
    with pytest.raises(
        DataError, match=f"packs a/0.png by method {method}; read are stored and deflated files, unpack"
    ):
        opened(pack(tmp_path / "set.zip", set_of(), compression=method))


def test_a_huge_directory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "set.zip", set_of())
    monkeypatch.setattr(imagefiles, "_MOST_DIRECTORY_BYTES", 100)
    with pytest.raises(DataError, match=r"set.zip lists [\d,]+ bytes of entries, and 100 are the most that are read"):
        opened(path)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)  # from here on zipfile writes zip64
    with pytest.raises(DataError, match=r"set64.zip lists [\d,]+ bytes of entries"):
        opened(pack(tmp_path / "set64.zip", set_of()))


def test_a_huge_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagefiles, "MOST_ENTRIES", 10)
    with pytest.raises(DataError, match="holds more than 10 images and folders; name a part of it"):
        opened(draw(tmp_path / "images"))


# fingerprints


@pytest.mark.parametrize("zipped", [False, True])
def test_the_bytes_of_files_decide_the_fingerprint(tmp_path: Path, zipped: bool) -> None:
    folder = draw(tmp_path / "images")

    def found() -> str:
        return opened(zip_of(folder, tmp_path / "images.zip") if zipped else folder).fingerprint

    before = found()
    file = folder / "n01" / "2.png"
    data, status = bytearray(file.read_bytes()), file.stat()
    os.utime(file, (1_700_000_000, 1_700_000_000))
    assert found() == before, "the time alone is no change where bytes are read"
    data[-20] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert found() != before, "the same size and time, another byte"
    data[-20] ^= 1
    file.write_bytes(data)
    assert found() == before
    (folder / "n01").rename(folder / "n09")
    assert found() != before, "another class"


def test_of_many_files_times_count_and_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = draw(tmp_path / "images")
    monkeypatch.setattr(imagefiles, "HASHED_WHOLE", 100)
    monkeypatch.setattr(imagefiles, "HASHED_FILES", 2)
    before = opened(folder).fingerprint
    assert opened(folder).fingerprint == before
    read: list[str] = []
    real = imagefiles.FolderFiles.read
    monkeypatch.setattr(imagefiles.FolderFiles, "read", lambda files, name: read.append(name) or real(files, name))
    assert opened(folder).fingerprint == before
    assert len(read) == 4, "two of each split"
    os.utime(folder / "n01" / "2.png", (1_700_000_000, 1_700_000_000))
    assert opened(folder).fingerprint != before


def test_how_images_are_prepared_counts(tmp_path: Path) -> None:
    folder = draw(tmp_path / "images")
    how = options().preprocessing
    assert opened(folder).fingerprint != opened(folder, preprocessing=type(how)(resize=24, crop=16)).fingerprint


def test_a_file_that_went_is_told(tmp_path: Path) -> None:
    folder = draw(tmp_path / "images")
    data = opened(folder)
    (folder / "n01" / "2.png").unlink()
    with pytest.raises(DataError, match=r"n01/2.png cannot be read: No such file or directory; mend it"):
        _ = data.fingerprint
