"""The image files below a folder or inside a zip file, and the folders that they lie in, before any is decoded.

Hidden files and folders and macOS's ``__MACOSX`` are passed over, and so are files of other kinds. Links are followed.
Names are relative, with ``/`` between folders; those of a file system whose bytes are not UTF-8 carry them as Python's
surrogate escapes.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from hawq_tvm.core.errors import DataError, first_line
from hawq_tvm.sources.names import shown
from hawq_tvm.sources.splits import spread

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision's ImageFolder reads."""

HASHED_WHOLE = 2**29  # bytes of image files that are all read for a fingerprint
HASHED_FILES = 512  # of more bytes than that, so many files are read
MOST_ENTRIES = 4_000_000  # files and folders; ImageNet has 1.3 million

_ENCRYPTED = 0x1  # bit 0 of a zip entry's flags, APPNOTE.TXT section 4.4.4
_UTF8 = 0x800  # bit 11: the name is UTF-8; without it the name's code page is not known, and zipfile reads 437
_END, _END_64 = b"PK\5\6", b"PK\6\6"
_MOST_DIRECTORY_BYTES = 2**28  # of a zip file's list of entries, which zipfile reads whole
_MOST_DEFLATED = 1032  # to one: deflate cannot pack closer (zlib's technical details)


class ImageFiles(Protocol):
    """Image files by name.

    Attributes:
        path: of the folder or zip file.
        sizes: bytes of every image file, by its name, folder by folder in order.
        folders: the names of all folders, whether or not they hold images.
    """

    path: Path
    sizes: Mapping[str, int]
    folders: Sequence[str]

    def read(self, name: str) -> bytes:
        """The bytes of a file; of any exception that reading raises."""

    def identity(self, names: Sequence[str]) -> Iterator[bytes]:
        """Bytes that change when these files do; see `Data.fingerprint`."""


def open_image_files(path: Path) -> ImageFiles:
    """The image files below a folder or inside a zip file.

    Raises:
        DataError: neither, no images in it, a folder that cannot be read, a link that leads nowhere or in a circle, a
            zip file that is encrypted, damaged or packed to hurt.
    """
    files: ImageFiles
    if path.is_dir():
        files = FolderFiles(path)
    elif path.is_file():
        files = ZipFiles(path)
    else:
        raise DataError(f"the image folder {shown(path)} does not exist")
    if not files.sizes:
        raise DataError(f"{shown(path)} holds no images ({', '.join(SUFFIXES)})")
    return files


@contextmanager
def reading(files: ImageFiles, name: str) -> Iterator[bytes]:
    """The bytes of an image file; whatever is wrong with them, or found wrong inside, is told with the file's name.

    Raises:
        DataError: for any exception.
    """
    try:
        yield files.read(name)
    except MemoryError:
        raise
    except Exception as error:  # zip files and Pillow's decoders raise many kinds
        file = shown(files.path / name)
        raise DataError(f"the image {file} cannot be read: {first_line(error)}; mend it, or take it away") from error


def check_sizes(files: ImageFiles, names: Sequence[str], most: int) -> None:
    """Refuse an image file of more bytes than `most`, before any is read."""
    large = next((name for name in names if files.sizes[name] > most), None)
    if large is not None:
        raise DataError(
            f"the image {shown(files.path / large)} has {files.sizes[large]:,} bytes, more than the {most:,} that "
            "max_image_bytes allows; raise it, or take the image away"
        )


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _in_order(names: Sequence[str]) -> list[str]:
    """Folder by folder, as sorted folders that hold sorted files come."""
    return sorted(names, key=lambda name: name.split("/"))


class FolderFiles:
    """The image files below a folder; see `ImageFiles`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found: dict[str, os.stat_result] = {}
        folders: list[str] = []
        for name, status in _walk(path):
            if stat.S_ISDIR(status.st_mode):
                folders.append(name)
            elif stat.S_ISREG(status.st_mode) and _is_image(name):
                found[name] = status
            if len(found) + len(folders) > MOST_ENTRIES:
                raise DataError(f"{shown(path)} holds more than {MOST_ENTRIES:,} images and folders; name a part of it")
        names = _in_order(list(found))
        self.sizes: Mapping[str, int] = {name: found[name].st_size for name in names}
        self.folders: Sequence[str] = _in_order(folders)
        self._changed = {name: found[name].st_mtime_ns for name in names}

    def read(self, name: str) -> bytes:
        """The file's bytes; no more than were listed and one, should it have grown."""
        with (self.path / name).open("rb") as stream:
            return stream.read(self.sizes[name] + 1)

    def identity(self, names: Sequence[str]) -> Iterator[bytes]:
        """Every byte where that is cheap, else times of change and some of the bytes."""
        whole = sum(self.sizes[name] for name in names) <= HASHED_WHOLE
        read = {*names} if whole else {names[position] for position in spread(len(names), HASHED_FILES)}
        for name in names:
            yield f"{name} {self.sizes[name]} {'' if whole else self._changed[name]}".encode("utf-8", "surrogateescape")
            if name in read:
                try:
                    yield hashlib.sha256(self.read(name)).digest()
                except OSError as error:
                    file = shown(self.path / name)
                    raise DataError(
                        f"the image {file} cannot be read: {error.strerror}; mend it, or take it away"
                    ) from error


def _walk(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below a folder that is not hidden, links followed, in no order."""
    top = path.stat()
    waiting = [("", frozenset({(top.st_dev, top.st_ino)}))]
    while waiting:
        base, above = waiting.pop()
        try:
            with os.scandir(path / base) as entries:
                visible = [entry for entry in entries if not _is_hidden(entry.name)]
        except OSError as error:
            raise DataError(f"the folder {shown(path / base)} cannot be read: {error.strerror}") from error
        for entry in visible:
            try:
                status = entry.stat()
            except OSError as error:
                raise DataError(
                    f"{shown(entry.path)} is a link that leads nowhere, or cannot be looked at ({error.strerror}); "
                    "mend it, or take it away"
                ) from error
            if stat.S_ISDIR(status.st_mode):
                place = (status.st_dev, status.st_ino)
                if place in above:
                    raise DataError(f"{shown(entry.path)} is a link to a folder that it lies in; take it away")
                waiting.append((f"{base}{entry.name}/", above | {place}))
            yield f"{base}{entry.name}", status


class ZipFiles:
    """The image files inside a zip file, of which nothing is written to disk; see `ImageFiles`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            _check_directory(path)
            self._archive = zipfile.ZipFile(path)
        except UnicodeDecodeError as error:
            raise DataError(
                f"the zip file {shown(path)} has a name that is marked as UTF-8 and is not; unpack it, and name the "
                "folder"
            ) from error
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
            raise DataError(
                f"the image folder {shown(path)} is neither a folder nor a zip file that can be read"
            ) from error
        except OSError as error:
            raise DataError(f"the zip file {shown(path)} cannot be read: {first_line(error)}") from error
        entries: dict[str, zipfile.ZipInfo] = {}
        folders: dict[str, None] = {}
        for entry in self._archive.infolist():
            name = _entry_name(entry)
            parts = name.split("/")
            if any(map(_is_hidden, parts)):
                continue
            folders.update(dict.fromkeys("/".join(parts[:depth]) for depth in range(1, len(parts))))
            if _is_image(name):
                if name in entries:
                    raise DataError(f"the zip file {shown(path)} holds two files called {shown(name)}; pack it anew")
                self._check(entry, shown(name))
                entries[name] = entry
        self._entries = {name: entries[name] for name in _in_order(list(entries))}
        self.sizes: Mapping[str, int] = {name: entry.file_size for name, entry in self._entries.items()}
        self.folders: Sequence[str] = _in_order(list(folders))

    def _check(self, entry: zipfile.ZipInfo, name: str) -> None:
        """Refuse an entry that cannot be read, or whose unpacked size nothing holds to what it says."""
        advice = "unpack it, and name the folder"
        if entry.flag_bits & _ENCRYPTED:
            raise DataError(f"the zip file {shown(self.path)} is encrypted ({name} is); {advice}")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"the zip file {shown(self.path)} packs {name} by method {entry.compress_type}; read are stored and "
                f"deflated files, {advice}"
            )
        if entry.file_size > _MOST_DEFLATED * max(1, entry.compress_size):
            raise DataError(
                f"the zip file {shown(self.path)} says that {name} unpacks from {entry.compress_size:,} bytes to "
                f"{entry.file_size:,}, which cannot be; it is damaged, or made to fill the memory"
            )

    def read(self, name: str) -> bytes:
        """The file's bytes; never more than its entry says, whatever is packed there."""
        entry = self._entries[name]
        with self._lock, self._archive.open(entry) as stream:
            data = stream.read(entry.file_size + 1)
        if len(data) != entry.file_size:
            raise zipfile.BadZipFile(f"its entry says {entry.file_size:,} bytes, and it holds {len(data):,}")
        return data

    def identity(self, names: Sequence[str]) -> Iterator[bytes]:
        """The checksums that the zip file's directory holds, which reading checks."""
        for name in names:
            entry = self._entries[name]
            yield f"{name} {entry.file_size} {entry.CRC}".encode()


def _entry_name(entry: zipfile.ZipInfo) -> str:
    """An entry's name: UTF-8 where its bytes are, marked or not, and ``/`` where the packer wrote only backslashes."""
    name = entry.filename
    if not entry.flag_bits & _UTF8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name if "/" in name else name.replace("\\", "/")


def _check_directory(path: Path) -> None:
    """Refuse a zip file whose directory alone would fill the memory, before zipfile reads it.

    The end record names the directory's size, and where there is a zip64 record in front of it, that does (APPNOTE.TXT
    sections 4.3.14 to 4.3.16). Both are looked for where zipfile looks.
    """
    with path.open("rb") as stream:
        length = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, length - 22 - 2**16 - 76))
        tail = stream.read()
    plain = tail[-22:-18] == _END and tail[-2:] == b"\0\0"  # without a comment behind it
    end = len(tail) - 22 if plain else tail.rfind(_END)
    if end < 0 or end + 22 > len(tail):
        return  # zipfile says what is wrong
    (size,) = struct.unpack_from("<I", tail, end + 12)
    wide = end - 20 - 56  # a locator of 20 bytes lies between
    if wide >= 0 and tail[wide : wide + 4] == _END_64:
        (size,) = struct.unpack_from("<Q", tail, wide + 40)
    if size > _MOST_DIRECTORY_BYTES:
        raise DataError(
            f"the zip file {shown(path)} lists {size:,} bytes of entries, and {_MOST_DIRECTORY_BYTES:,} are the most "
            "that are read; unpack it, and name the folder"
        )
