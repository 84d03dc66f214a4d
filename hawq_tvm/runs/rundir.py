"""Run directories: every file of a run, with a manifest that says what made it and what it must hash to.

A run is worked on in a directory beside its own and takes its place when it is whole, so that a directory of the given
name is always complete. A stage records the options, the versions and the files that it was made from; while those are
the same and its own files are as it left them, it is not repeated. What was made from files that have changed since is
stale: it stays where it is, and is not shown as if it were of this network.

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
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from hawq_tvm.core.aside import ASIDE
from hawq_tvm.core.errors import RunError
from hawq_tvm.core.hashing import file_sha256
from hawq_tvm.core.version import VERSION

FORMAT = 1
"""The layout of run directories; another one is refused."""

MANIFEST = "manifest.json"
EDITABLE = ("bits.json", "costs.json", "ranges.json")
_SWAP_TRIES, _SWAP_WAIT = 20, 0.05  # seconds; between two renames lies far less
_PACKAGES = ("hawq_tvm", "torch", "numpy", "onnx", "onnxruntime", "apache-tvm", "apache-tvm-ffi", "pulp")


class Run:
    """A run directory, open for reading, or for writing inside `edit_run`."""

    def __init__(self, path: Path, manifest: dict[str, Any], *, name: Path | None = None) -> None:
        """Take up the files at `path`; messages call the run `name`, which is where it will lie."""
        self.path = path
        self.manifest = manifest
        self.name = name or path
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
            raise RunError(f"{self.name} has no {name}; run the stage that makes it (hawq-tvm run, or compile)")
        if name not in EDITABLE and self._hash(path) != expected:
            raise RunError(
                f"{self.name}/{name} is corrupted: it does not hash to what the manifest says; make it again"
            )
        return path

    def fresh(self, name: str) -> Path:
        """The path of a file, intact and made from the files that are there now.

        Raises:
            RunError: as for `file`, or a file that it was made from has changed since.
        """
        path = self.file(name)
        changed = self._changed_since(name)
        if changed:
            raise RunError(
                f"{self.name}/{name} was made from another {changed}; "
                "bring it up to date with hawq-tvm compile, verify or bench"
            )
        return path

    def is_intact(self, name: str) -> bool:
        """Whether a file is there as its stage wrote it."""
        return name in self._recorded() and name in self and not self.edited(name)

    def is_fresh(self, name: str) -> bool:
        """Whether a file is there and was made from the files that are there now."""
        return name in self._recorded() and name in self and not self._changed_since(name)

    def _changed_since(self, name: str) -> str | None:
        """A file that has changed since `name` was made from it."""
        record = next(stage for stage in self.manifest["stages"].values() if name in stage["files"])
        for source, digest in record["key"]["reads"].items():
            path = self.path / source
            if not path.is_file() or self._hash(path) != digest:
                return str(source)
        return None

    def json(self, name: str) -> Any:
        """A JSON file of the run, parsed."""
        path = self.file(name)
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise RunError(f"{self.name}/{name} is not valid JSON ({error}); mend it or make it again") from error

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
        aside = path.with_name(f".{path.name}{ASIDE}")
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
        sources = {item: self._hash(self.file(item)) for item in reads}
        key = {"options": dict(options), "versions": dict(versions()), "reads": sources}
        key = json.loads(json.dumps(key))  # as it will be read back
        record = self.manifest["stages"].get(name)
        same = record is not None and record["key"] == key
        edited = [item for item in writes if item in EDITABLE and self.edited(item)]
        if edited and same and not force:
            return False
        if edited:
            raise RunError(
                f"{self.name}/{edited[0]} was edited by hand, and this would decide it anew; "
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
        files = {item: self._hash(self.path / item) for item in names}
        if record is None or not same or record["files"] != files:
            seconds = round(time.perf_counter() - started, 3)
            self.manifest["stages"][name] = {"key": key, "seconds": seconds, "files": files}
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
    place = _resolved(path)
    for _ in range(_SWAP_TRIES):
        if place.exists() or not _previous(place).exists():
            break
        try:
            with _locked(place):  # not while a writer is between its two renames
                _complete_swap(place)
        except RunError:
            time.sleep(_SWAP_WAIT)
    return Run(place, _read_manifest(path), name=path)


def is_writable(path: Path) -> bool:
    """Whether a run can be written: its directory is replaced, so it is the one around it that counts."""
    return os.access(_resolved(path).parent, os.W_OK)


@contextmanager
def borrow_run(path: Path) -> Iterator[Run]:
    """Work on a copy of a run that goes when the block ends; for runs that cannot be written."""
    source = open_run(path)
    with tempfile.TemporaryDirectory(prefix="hawq_tvm-") as scratch:
        copy = Path(scratch) / "run"
        shutil.copytree(source.path, copy, copy_function=lambda old, new: os.symlink(os.path.abspath(old), new))
        yield Run(copy, source.manifest, name=path)


def _resolved(path: Path) -> Path:
    """Where a run really lies: links and dots followed, since the directory itself is replaced."""
    place = Path(os.path.realpath(path))
    if not place.name:
        raise RunError(f"'{path}' cannot be a run directory; name one, such as runs/mine")
    return place


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        what = "is not a run directory: it has no manifest.json" if path.exists() else "does not exist"
        raise RunError(f"{path} {what}; make one with hawq-tvm run MODEL --output {path}")
    try:
        manifest = json.loads(file.read_text())
        found, version = manifest["format"], manifest["versions"]["hawq_tvm"]
        if found == FORMAT:
            _check_manifest(manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file} is corrupted ({error!r}); start the run again into another directory") from error
    if found != FORMAT:
        raise RunError(
            f"{path} was made by hawq_tvm {version} in format {found}, and this is {versions()['hawq_tvm']} with "
            f"format {FORMAT}; start the run again into another directory"
        )
    assert isinstance(manifest, dict)
    return manifest


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise `KeyError` or `TypeError` where a manifest lacks what is read from it later."""
    parts = [manifest["identity"]["model"], manifest["identity"]["weights"], manifest["identity"]["data"]]
    for stage in manifest["stages"].values():
        parts += [*stage["files"].values(), *stage["key"]["reads"].values()]
    wrong = [part for part in parts if not isinstance(part, str)]
    if wrong:
        raise TypeError(f"{wrong[0]!r} is no text")


@contextmanager
def edit_run(path: Path, *, identity: Mapping[str, Any] | None = None) -> Iterator[Run]:
    """Work on a run; it takes its place at `path` when the block ends well.

    When the block fails, the directory at `path` is as it was. With `identity` (a new run or one started again) the
    stages that were finished are kept beside it, in ``<path>.partial``, and found again next time, unless the run at
    `path` has changed since.

    Args:
        path: of the run directory.
        identity: model and data of the run; None to extend the run that is there.

    Raises:
        RunError: the path is taken by something else or by a run of another model or data, another process is working
            on it, or the disk is full.
    """
    resumable, place = identity is not None, _resolved(path)
    partial = place.with_name(f"{place.name}.partial" if resumable else f".{place.name}.edit")
    if Path.cwd().is_relative_to(place):
        raise RunError(
            f"{place} is replaced as a whole and cannot be worked in; start from another directory, as cd .."
        )
    try:
        if resumable:
            place.parent.mkdir(parents=True, exist_ok=True)
        elif not place.exists() and not _previous(place).exists():
            _read_manifest(path)  # says that there is none
        with _locked(place):
            _complete_swap(place)
            run = _prepare(path, place, partial, identity)
            try:
                yield run
                if run.manifest["based_on"] != _state(place):
                    raise RunError(
                        f"{path} was changed by hand while this worked on it; start again, and the change is taken up"
                    )
            except BaseException:
                if not (resumable and run.manifest["stages"]):
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            del run.manifest["based_on"]
            run.save_manifest()
            _swap(partial, place)
    except OSError as error:
        refuse_full_disk(error, path)
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
            raise RunError(f"cannot write {path}: {error.strerror or error}; choose another --output") from error
        raise


def refuse_full_disk(error: OSError, path: Path) -> None:
    """Raise `RunError` where `error` says that there is no room; a `shutil.Error` hides that in its text."""
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if error.errno == code or (isinstance(error, shutil.Error) and os.strerror(code) in str(error)):
            raise RunError(
                f"no room to write {path}: {os.strerror(code)}; free some space and start again "
                "(what was there before is unchanged)"
            ) from error


def _describe(identity: Mapping[str, Any]) -> str:
    return f"{identity.get('model')} ({identity.get('weights')}) on {identity.get('data')}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a run for this process, whatever is done to it: one lock beside it, gone afterwards."""
    name = path.with_name(f".{path.name}.lock")
    with name.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = name.exists() and os.path.samestat(os.fstat(lock.fileno()), name.stat())
        except BlockingIOError:
            held = False
        if not held:  # or another process has just let go and removed the file that we opened
            raise RunError(f"another process is working on {path}; wait for it or choose another --output")
        try:
            yield
        finally:
            name.unlink(missing_ok=True)


def _prepare(name: Path, place: Path, partial: Path, identity: Mapping[str, Any] | None) -> Run:
    """The working copy: the one that was cut off, or the run as it stands, or a new one."""
    standing = _read_manifest(name) if place.exists() else None
    if standing is not None and identity is not None:
        _same_identity(name, standing, identity)
    based_on = _state(place)
    if identity is not None and partial.exists() and any(not item.name.startswith(".") for item in partial.iterdir()):
        found = _read_manifest(partial)
        _same_identity(partial, found, identity)
        if found.get("based_on") == based_on:
            for item in partial.glob(f".*{ASIDE}"):
                if item.is_dir():
                    shutil.rmtree(item)
                else:
                    item.unlink()
            return Run(partial, {**found, "versions": dict(versions())}, name=name)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    manifest: dict[str, Any] = {"format": FORMAT, "versions": dict(versions()), "identity": identity, "stages": {}}
    if standing is not None:
        Run(partial, {**standing, "based_on": None}).save_manifest()  # whose folder this is, if cut off while copying
        # hard links, since no file is ever written in place
        ignore = shutil.ignore_patterns(MANIFEST)
        shutil.copytree(place, partial, copy_function=_link_or_copy, ignore=ignore, dirs_exist_ok=True)
        manifest = {**standing, "versions": dict(versions())}
    run = Run(partial, json.loads(json.dumps({**manifest, "based_on": based_on})), name=name)
    run.save_manifest()
    return run


def _same_identity(path: Path, manifest: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    if manifest["identity"] != identity:
        raise RunError(
            f"{path} holds a run of {_describe(manifest['identity'])}, not of {_describe(identity)}; "
            "choose another --output, or delete it"
        )


def _state(path: Path) -> dict[str, str]:
    """What says whether a run has changed: hashes of what people edit and of the manifest, times of everything else."""
    found = {}
    for item in path.iterdir() if path.exists() else ():
        if item.name in (MANIFEST, *EDITABLE) and item.is_file():
            found[item.name] = file_sha256(item)
        elif not item.name.startswith("."):
            found[item.name] = str(item.lstat().st_mtime_ns)
    return found


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _swap(partial: Path, path: Path) -> None:
    """Put the working copy in the run's place."""
    previous = _previous(path)
    shutil.rmtree(previous, ignore_errors=True)
    if path.exists():
        os.rename(path, previous)
    os.rename(partial, path)
    shutil.rmtree(previous, ignore_errors=True)


def _complete_swap(path: Path) -> None:
    """Bring back a run whose writer was cut off between its two renames."""
    if not path.exists() and _previous(path).exists():
        os.rename(_previous(path), path)


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


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
