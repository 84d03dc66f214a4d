"""CIFAR-10's original files: five training batches and a test batch, binary or pickled, in a folder or a ``.tar.gz``.

A binary batch is records of 3,073 bytes: the label, then 32 x 32 bytes each of red, green and blue. A pickled one is a
dict with ``data``, an array uint8 [N, 3072] in that order, and ``labels``. Pickles may run any code, so none of theirs
is run here: only the opcodes and the three names that these files need are known, and the names are those of stand-ins
that keep what they are given.
"""

from __future__ import annotations

import gzip
import io
import pickle
import pickletools
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.errors import DataError, first_line
from hawq_tvm.sources.names import shown
from hawq_tvm.sources.splits import Labels

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""In CIFAR-10's order, which is the alphabet's too."""

SIDE = 32
"""Pixels of an image, both ways."""

_PIXELS = 3 * SIDE * SIDE
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = "test_batch"
_FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
_ARCHIVES = (".tar.gz", ".tgz")
_ADVICE = "download CIFAR-10 anew (https://www.cs.toronto.edu/~kriz/cifar.html)"

_MOST_BATCH_BYTES = 1 << 26  # twice what a batch of 10,000 images has
_MOST_ARCHIVE_BYTES = 1 << 29  # unpacked; CIFAR-10's are under 2^28

Images8 = NDArray[np.uint8]
Batch = tuple[Images8, Labels]


@dataclass(frozen=True, eq=False)
class Batches:
    """Both splits: images uint8 [N, 3, 32, 32], and labels int64 [N]."""

    train: Batch
    test: Batch


def find_batches(place: Path) -> Batches | None:
    """The original files at a place; None where there are none, and it may be a folder or zip file of images.

    Raises:
        DataError: some of them are missing, or one is damaged.
    """
    if place.is_file() and place.name.lower().endswith(_ARCHIVES):
        found = dict(_in_archive(place))
    elif place.is_dir():
        folder = next((place / name for name in _FOLDERS if any(map(_is_file, _named(place / name)))), None)
        if folder is None:
            return None
        found = {path.stem: _read(path.name, _bytes_of(path), path) for path in _named(folder) if _is_file(path)}
    else:
        return None
    missing = next((name for name in (*_TRAIN, _TEST) if name not in found), None)
    if missing is not None:
        raise DataError(f"{shown(place)} lacks CIFAR-10's {missing}; {_ADVICE}")
    images, labels = zip(*(found[name] for name in _TRAIN), strict=True)
    return Batches((np.concatenate(images), np.concatenate(labels)), found[_TEST])


def _named(folder: Path) -> list[Path]:
    """The files that batches may be; binary ones count where there are both."""
    return [folder / f"{name}{suffix}" for suffix in ("", ".bin") for name in (*_TRAIN, _TEST)]


def _is_file(path: Path) -> bool:
    return path.is_file()


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_BATCH_BYTES:
            raise _fault(path, f"has {path.stat().st_size:,} bytes, more than any batch of CIFAR-10")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read: {first_line(error)}") from error


class _Bounded(io.RawIOBase):
    """A stream that ends in an error where it unpacks to more than CIFAR-10 can have."""

    def __init__(self, stream: gzip.GzipFile, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._left = _MOST_ARCHIVE_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise _fault(self._path, f"unpacks to more than {_MOST_ARCHIVE_BYTES:,} bytes")
        return count


def _in_archive(path: Path) -> Iterator[tuple[str, Batch]]:
    """The batches in a ``.tar.gz``, by name; nothing is written to disk, and nothing else in it is looked at."""
    names = {file.name for file in _named(Path())}
    try:
        with gzip.open(path) as unpacked, tarfile.open(fileobj=_Bounded(unpacked, path), mode="r|") as archive:
            for member in archive:
                name = Path(member.name).name
                if not member.isfile() or name not in names:
                    continue
                inside = path / member.name
                if member.size > _MOST_BATCH_BYTES:
                    raise _fault(inside, f"has {member.size:,} bytes, more than any batch of CIFAR-10")
                stream = archive.extractfile(member)
                assert stream is not None
                yield Path(name).stem, _read(name, stream.read(), inside)
    except (OSError, EOFError, tarfile.TarError, zlib.error, ValueError) as error:
        raise _fault(path, f"cannot be read: {first_line(error)}") from error


def _read(name: str, data: bytes, path: Path) -> Batch:
    """A batch of either kind; `path` is for messages."""
    images, labels = _from_records(data, path) if name.endswith(".bin") else _from_pickle(data, path)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))
    if len(wrong):
        raise _fault(path, f"has the label {labels[wrong[0]]} at image {wrong[0]}, and CIFAR-10's are 0 to 9")
    return images.reshape(-1, 3, SIDE, SIDE), labels.astype(np.int64)


def _from_records(data: bytes, path: Path) -> tuple[Images8, NDArray[Any]]:
    size = 1 + _PIXELS
    if not data or len(data) % size:
        raise _fault(path, f"has {len(data):,} bytes, no whole number of records of {size:,}; it is truncated")
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    return records[:, 1:], records[:, 0]


def _fault(path: Path, what: str) -> DataError:
    return DataError(f"{shown(path)} {what}; {_ADVICE}")


# pickles


class _Array:
    """Stands for numpy's array, and for the function that makes an empty one: keeps what the pickle says it holds."""

    state: object = None

    def __init__(self, *_made_of: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Dtype:
    """Stands for numpy's dtype."""

    def __init__(self, code: object = None, *_flags: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass  # byte order and alignment, of which bytes have none


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}

_OPCODES = frozenset(
    {
        *("PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
        *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
    }
)
_MOST_OPCODES = 200_000  # a batch of 10,000 images takes about 50,000


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        found = _STAND_INS.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")
        return found


def _from_pickle(data: bytes, path: Path) -> tuple[Images8, NDArray[Any]]:
    try:
        _check_opcodes(data)
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
        images, labels = _pixels(fields["data"]), fields["labels"]
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise ValueError("its labels are no list of whole numbers")
        if len(labels) != len(images):
            raise ValueError(f"it has {len(images)} images and {len(labels)} labels")
        return images, np.array(labels, np.int64)
    except MemoryError:
        raise
    except Exception as error:  # unpickling raises many kinds
        raise _fault(path, f"is no batch of CIFAR-10: {first_line(error)}") from error


def _check_opcodes(data: bytes) -> None:
    """Refuse opcodes that no batch needs, and more of them, or higher places in the memo, than one has."""
    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name not in _OPCODES:
            raise ValueError(f"it has the opcode {opcode.name}, which no batch needs")
        place = argument if opcode.name == "LONG_BINPUT" else 0
        if max(number, place or 0) > _MOST_OPCODES:
            raise ValueError(f"it has more than {_MOST_OPCODES:,} opcodes")


def _pixels(held: object) -> Images8:
    """The array uint8 [N, 3072] that a stand-in was told."""
    match held.state if isinstance(held, _Array) else None:
        case (
            int(),
            (int() as count, int() as width),
            _Dtype(code="u1" | b"u1"),
            bool() as columns_first,
            bytes() as raw,
        ):
            if width != _PIXELS or count < 1 or count * width != len(raw):
                raise ValueError(f"its array [{count}, {width}] has {len(raw):,} bytes, expected [N, {_PIXELS:,}]")
            return np.frombuffer(raw, np.uint8).reshape((count, width), order="F" if columns_first else "C")
    raise ValueError("its data are no array of bytes")
