"""Run directories: every file of a run, with a manifest that says what made it and what it must hash to.

A run is worked on in a directory beside its own and takes its place when it is whole, so that a directory of the given
name is always complete. A stage records the options and the files that it was made from; while those are the same and
its own files are as it left them, it is not repeated.

    bits.json costs.json ranges.json    may be edited by hand; later stages follow the edit
    manifest.json                       versions, model, data, settings, stages, hashes
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import hawq_tvm
from hawq_tvm.errors import RunError
from hawq_tvm.hashing import file_sha256

FORMAT = 1
"""The layout of run directories; another one is refused."""

MANIFEST = "manifest.json"
EDITABLE = ("bits.json", "costs.json", "ranges.json")
_LOCK = ".lock"
_PACKAGES = ("hawq_tvm", "torch", "numpy", "onnx", "onnxruntime", "apache-tvm", "apache-tvm-ffi", "pulp")


class Run:
    """A run directory, open for reading, or for writing inside `edit_run`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._hashes: dict[tuple[Path, int, int], str] = {}

    def __contains__(self, name: str) -> bool:
        return (self.path / name).exists()

    # reading

    def file(self, name: str) -> Path:
        """The path of a file that a stage wrote, intact.

        Raises:
            RunError: it is missing, or it does not hash to what the manifest says.
        """
        path = self.path / name
        expected = self._recorded().get(name)
        if expected is None or not path.is_file():
            raise RunError(f"{self.path} has no {name}; run the stage that makes it (hawq-tvm run, or compile)")
        if name not in EDITABLE and self._hash(path) != expected:
            raise RunError(f"{path} is corrupted: it does not hash to what the manifest says; make it again")
        return path

    def json(self, name: str) -> Any:
        """A JSON file of the run, parsed."""
        path = self.file(name)
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise RunError(f"{path} is not valid JSON ({error}); mend it or make it again") from error

    def edited(self, name: str) -> bool:
        """Whether a person changed a file since its stage wrote it."""
        expected = self._recorded().get(name)
        path = self.path / name
        return expected is not None and path.is_file() and self._hash(path) != expected

    def _recorded(self) -> dict[str, str]:
        stages = self.manifest["stages"].values()
        return {name: digest for stage in stages for name, digest in stage["files"].items()}

    def _hash(self, path: Path) -> str:
        status = path.stat()
        key = path, status.st_mtime_ns, status.st_size
        if key not in self._hashes:
            self._hashes[key] = file_sha256(path)
        return self._hashes[key]

    # writing

    def write(self, name: str, make: Callable[[Path], object]) -> None:
        """Write a file aside, then put it in its place.

        Args:
            name: within the run.
            make: writes to the path that it is given.
        """
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        aside = path.with_name(f".{path.name}.aside")
        try:
            make(aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    def write_json(self, name: str, data: Any) -> None:
        """Write a JSON file whole."""
        text = json.dumps(data, indent=1) + "\n"
        self.write(name, lambda path: path.write_text(text))

    def stage(
        self,
        name: str,
        make: Callable[[], None],
        *,
        options: Mapping[str, Any],
        reads: Sequence[str] = (),
        writes: Sequence[str],
        force: bool = False,
    ) -> bool:
        """Do a stage, unless it is done.

        Args:
            name: of the stage.
            make: does it, with `write` and `write_json`.
            options: JSON values that decide the result.
            reads: files of the run that decide it too.
            writes: files that it makes; a name that ends in ``/`` means all files in that folder.
            force: do it even if it is done.

        Returns:
            Whether it was done now.

        Raises:
            RunError: a file of `writes` was edited by hand and would be lost.
        """
        key = {"options": dict(options), "reads": {item: self._hash(self.file(item)) for item in reads}}
        key = json.loads(json.dumps(key))  # as it will be read back
        record = self.manifest["stages"].get(name)
        same = record is not None and record["key"] == key
        edited = [item for item in writes if item in EDITABLE and self.edited(item)]
        if edited and same and not force:
            return False
        if edited:
            raise RunError(
                f"{self.path / edited[0]} was edited by hand, and this would decide it anew; "
                "build it as it stands with hawq-tvm compile, or delete it first"
            )
        if record is not None and same and not force:
            files = record["files"]
            if all((self.path / item).is_file() and self._hash(self.path / item) == files[item] for item in files):
                return False
        started = time.perf_counter()
        self._remove_folders(writes)
        make()
        names = [item for pattern in writes for item in self._expand(pattern)]
        self.manifest["stages"][name] = {
            "key": key,
            "seconds": round(time.perf_counter() - started, 3),
            "files": {item: self._hash(self.path / item) for item in names},
        }
        self.save_manifest()
        return True

    def save_manifest(self) -> None:
        self.write_json(MANIFEST, self.manifest)

    def _remove_folders(self, writes: Sequence[str]) -> None:
        for pattern in writes:
            if pattern.endswith("/"):
                shutil.rmtree(self.path / pattern, ignore_errors=True)

    def _expand(self, pattern: str) -> list[str]:
        if not pattern.endswith("/"):
            return [pattern]
        return sorted(f"{pattern}{path.name}" for path in (self.path / pattern).iterdir())


def open_run(path: Path) -> Run:
    """Open a run directory for reading.

    Raises:
        RunError: there is none, it is not a run, or another version made it.
    """
    if not path.exists() and _previous(path).exists():
        os.rename(_previous(path), path)  # a swap was cut off between its two renames
    manifest = _read_manifest(path)
    return Run(path, manifest)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        what = "is not a run directory: it has no manifest.json" if path.exists() else "does not exist"
        raise RunError(f"{path} {what}; make one with hawq-tvm run MODEL --output {path}")
    try:
        manifest = json.loads(file.read_text())
        found, version = manifest["format"], manifest["versions"]["hawq_tvm"]
        manifest["stages"].values()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file} is corrupted ({error!r}); start the run again into another directory") from error
    if found != FORMAT:
        raise RunError(
            f"{path} was made by hawq_tvm {version} in format {found}, and this is {versions()['hawq_tvm']} with "
            f"format {FORMAT}; start the run again into another directory"
        )
    assert isinstance(manifest, dict)
    return manifest


@contextmanager
def edit_run(path: Path, *, identity: Mapping[str, Any] | None = None) -> Iterator[Run]:
    """Work on a run; it takes its place at `path` when the block ends well.

    When the block fails, the directory at `path` is as it was. With `identity` (a new run or one started again) the
    stages that were finished are kept beside it, in ``<path>.partial``, and found again next time.

    Args:
        path: of the run directory.
        identity: model and data of the run; None to extend the run that is there.

    Raises:
        RunError: the path is taken by something else or by a run of another model or data, another process is working
            on it, or the disk is full.
    """
    resumable = identity is not None
    partial = path.with_name(f"{path.name}.partial" if resumable else f".{path.name}.edit")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resumable or path.exists() or _previous(path).exists():
            run = open_run(path)
            if identity is not None and run.manifest["identity"] != identity:
                raise RunError(
                    f"{path} holds a run of {_describe(run.manifest['identity'])}, not of {_describe(identity)}; "
                    "choose another --output"
                )
        with _locked(partial):
            run = _prepare(path, partial, identity)
            try:
                yield run
            except BaseException:
                if not (resumable and run.manifest["stages"]):
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            run.save_manifest()
            _swap(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunError(
                f"no room to write {path}: {os.strerror(error.errno)}; free some space and start again "
                "(what was there before is unchanged)"
            ) from error
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
            raise RunError(f"cannot write {path}: {error.strerror or error}; choose another --output") from error
        raise


def _describe(identity: Mapping[str, Any]) -> str:
    return f"{identity.get('model')} on {identity.get('data')}"


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold the working directory for this process."""
    partial.mkdir(exist_ok=True)
    with (partial / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another process is working on {partial}; wait for it or choose another --output") from None
        yield


def _prepare(path: Path, partial: Path, identity: Mapping[str, Any] | None) -> Run:
    """The working copy: the one that was cut off, or the run as it stands, or a new one."""
    if identity is not None:
        try:
            manifest = _read_manifest(partial)
            if manifest["identity"] == identity:
                return Run(partial, manifest)
        except RunError:
            pass
    for item in partial.iterdir():
        if item.name != _LOCK:
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    if path.exists():
        # hard links, since no file is ever written in place
        shutil.copytree(path, partial, copy_function=_link_or_copy, dirs_exist_ok=True)
        manifest = _read_manifest(partial)
        manifest["versions"] = versions()
    else:
        assert identity is not None
        manifest = {"format": FORMAT, "versions": versions(), "identity": dict(identity), "settings": {}, "stages": {}}
    run = Run(partial, json.loads(json.dumps(manifest)))
    run.save_manifest()
    return run


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _swap(partial: Path, path: Path) -> None:
    """Put the working copy in the run's place."""
    previous = _previous(path)
    shutil.rmtree(previous, ignore_errors=True)
    (partial / _LOCK).unlink()
    if path.exists():
        os.rename(path, previous)
    os.rename(partial, path)
    shutil.rmtree(previous, ignore_errors=True)


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def versions() -> dict[str, str]:
    """The versions that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = hawq_tvm.__version__ if package == "hawq_tvm" else "not installed"
    return found
