"""The manifest of a run: what made it, of which network and data, and what every file must hash to."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, TypedDict

from hawq_tvm.core.errors import RunError
from hawq_tvm.core.hashing import file_sha256
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.core.version import VERSION

FORMAT = 3
"""The layout of run directories; another one is refused."""

MANIFEST = "manifest.json"
EDITABLE = ("bits.json", "costs.json", "ranges.json")
_PACKAGES = ("hawq_tvm", "torch", "numpy", "onnx", "onnxruntime", "apache-tvm", "apache-tvm-ffi", "pulp")


class _Head(TypedDict):
    """What every format of the manifest has."""

    format: int
    versions: Mapping[str, str]


class _Key(TypedDict):
    """What decides a stage, as far as it is looked into."""

    reads: Mapping[str, str]


class _Stage(TypedDict):
    key: _Key
    files: Mapping[str, str]


class _Identity(TypedDict):
    model: str
    weights: str
    data: str


class _Manifest(_Head):
    identity: _Identity
    stages: Mapping[str, _Stage]
    based_on: NotRequired[Mapping[str, str] | None]
    whole: NotRequired[bool]
    making: NotRequired[tuple[str, ...]]


def read_manifest(path: Path, *, name: Path | None = None) -> dict[str, Any]:
    """The manifest of a run.

    Args:
        path: of the run directory.
        name: as messages call it.

    Raises:
        RunError: there is none, it is not a run, it is damaged, or another version made it.
    """
    name = name or path
    file = path / MANIFEST
    if not file.is_file():
        if not path.exists():
            raise RunError(f"{name} does not exist; make one with hawq-tvm run MODEL --output {name}")
        what = "it has no manifest.json" if path.is_dir() else "it is a file"
        raise RunError(f"{name} is not a run directory: {what}; name another, as hawq-tvm run MODEL --output makes it")
    reader = JsonReader(f"{name / MANIFEST} is corrupted", RunError, "start the run again into another directory")
    manifest: dict[str, Any] = reader.read(file)
    head = reader.take(manifest, _Head)
    if head["format"] != FORMAT:
        raise RunError(
            f"{name} was made by hawq_tvm {head['versions'].get('hawq_tvm')} in format {head['format']}, and this is "
            f"{versions()['hawq_tvm']} with format {FORMAT}; start the run again into another directory"
        )
    for title, stage in reader.take(manifest, _Manifest)["stages"].items():
        outside = [item for item in (*stage["files"], *stage["key"]["reads"]) if not _lies_inside(item)]
        if outside:
            raise reader.fault(f"stage {title!r} names {outside[0]!r}, which is no file of a run")
    return manifest


def _lies_inside(name: str) -> bool:
    """Whether a name leads to a file in the run and not out of it."""
    path = PurePosixPath(name)
    return name.isprintable() and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def same_identity(path: Path, manifest: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise `RunError` where a run is of another network or other data."""
    if manifest["identity"] != identity:
        raise RunError(
            f"{path} holds a run of {_described(manifest['identity'])}, not of {_described(identity)}; "
            "choose another --output, or delete it"
        )


def _described(identity: Mapping[str, Any]) -> str:
    return f"{identity.get('model')} ({identity.get('weights')}) on {identity.get('data')}"


def state(path: Path) -> dict[str, str]:
    """What says whether a run has changed: hashes of what people edit and of the manifest, times of everything else."""
    found = {}
    for item in path.iterdir() if path.exists() else ():
        if item.name in (MANIFEST, *EDITABLE) and item.is_file():
            found[item.name] = file_sha256(item)
        elif not item.name.startswith("."):
            found[item.name] = str(item.lstat().st_mtime_ns)
    return found


Generation = tuple[int, int, int]


def generation(path: Path) -> Generation | None:
    """What tells the run at a path from any other that takes its place; None where there is none.

    A run is never written in place, and each has a manifest file of its own.
    """
    try:
        status = os.stat(path / MANIFEST)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


@cache
def versions() -> Mapping[str, str]:
    """The versions that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = VERSION if package == "hawq_tvm" else "not installed"
    return found
