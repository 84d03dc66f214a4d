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
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hawq_tvm.core.aside import ASIDE
from hawq_tvm.core.errors import HawqError, RunError
from hawq_tvm.core.hashing import file_sha256
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.runs.manifest import (
    EDITABLE,
    FORMAT,
    MANIFEST,
    Generation,
    generation,
    read_manifest,
    same_identity,
    state,
    versions,
)
from hawq_tvm.runs.swap import (
    complete_swap,
    holds_working_directory,
    is_cut_off,
    locked,
    resolved,
    swap,
    working_copy,
)
from hawq_tvm.runs.verbs import how_to_make

_SWAP_TRIES, _SWAP_WAIT = 20, 0.05  # seconds; between two renames lies far less
_NOT_THERE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
"""Errors of a place that no run can be written at."""

_T = TypeVar("_T")


class Run:
    """A run directory, open for reading, or for writing inside `edit_run`."""

    def __init__(
        self, path: Path, manifest: dict[str, Any], *, name: Path | None = None, generation: Generation | None = None
    ) -> None:
        """Take up the files at `path`; messages call the run `name`, which is where it will lie.

        A run that others may replace has a `generation`.
        """
        self.path = path
        self.manifest = manifest
        self.name = name or path
        self._generation = generation
        self._hashes: dict[tuple[Path, int, int, int], str] = {}

    def __contains__(self, name: str) -> bool:
        return (self.path / name).exists()

    # reading

    def is_current(self) -> bool:
        """Whether the files at `path` are still those of this run, and not of one that took its place since."""
        return self._generation is None or generation(self.path) == self._generation

    def read(self, name: str, look: Callable[[Path], _T]) -> _T:
        """What `look` makes of a file, intact and of this run.

        Raises:
            RunError: as for `file`, or the run was replaced meanwhile.
        """
        try:
            found = look(self.file(name))
        except (HawqError, OSError):
            if self.is_current():
                raise
        else:
            if self.is_current():
                return found
        raise RunError(f"{self.name} was replaced by another process while {name} was read; read it again")

    def file(self, name: str) -> Path:
        """The path of a file that a stage wrote, intact.

        Raises:
            RunError: it is missing, or it does not hash to what the manifest says.
        """
        path = self.path / name
        expected = self._recorded().get(name)
        if expected is None or not path.is_file():
            raise RunError(f"{self.name} has no {name}; make it with {self.how_to_make(name)}")
        if name not in EDITABLE and self._hash(path) != expected:
            raise RunError(
                f"{self.name}/{name} is corrupted: it does not hash to what the manifest says; make it again with "
                f"{self.how_to_make(name)}"
            )
        return path

    def how_to_make(self, name: str) -> str:
        """The commands that are still to be called for a file."""
        there = [file for file in self._recorded() if file in self]
        return how_to_make(name, self.name, there)

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

    def made_from(self, name: str) -> Mapping[str, str]:
        """The files that a file of the manifest was made from, with their hashes at that time."""
        reads: Mapping[str, str] = self._key(name)["reads"]
        return reads

    def options(self, name: str) -> Mapping[str, Any]:
        """What else decided a file of the manifest, as its stage was asked for it."""
        options: Mapping[str, Any] = self._key(name)["options"]
        return options

    def _key(self, name: str) -> Mapping[str, Any]:
        key: Mapping[str, Any] = next(
            stage["key"] for stage in self.manifest["stages"].values() if name in stage["files"]
        )
        return key

    def _changed_since(self, name: str) -> str | None:
        """A file that has changed since `name` was made from it."""
        for source, digest in self.made_from(name).items():
            path = self.path / source
            if not path.is_file() or self._hash(path) != digest:
                return str(source)
        return None

    def json(self, name: str) -> Any:
        """A JSON file of the run, parsed."""
        return self.read(name, self.reader(name).read)

    def reader(self, name: str) -> JsonReader:
        """Who reads a JSON file of the run, and tells its faults."""
        return JsonReader(f"{self.name}/{name}", RunError, "mend it or make it again")

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
        key = path, status.st_ino, status.st_mtime_ns, status.st_size
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
        self.manifest["making"] = list(writes)  # so that what is left of a kill is not taken for an edit by hand
        self.save_manifest()
        self._remove_folders(writes)
        make()
        del self.manifest["making"]
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
    place = resolved(path)
    for _ in range(_SWAP_TRIES):
        found = generation(place)
        if is_cut_off(place):
            try:
                with locked(place):  # not while a writer is between its two renames
                    complete_swap(place)
            except (RunError, OSError):  # OSError: whose place this reader may not write
                time.sleep(_SWAP_WAIT)
            continue
        try:
            manifest = read_manifest(place, name=path)
        except RunError:
            if generation(place) == found:
                raise
            continue
        if generation(place) == found:
            return Run(place, manifest, name=path, generation=found)
    raise RunError(f"{path} is being replaced by another process; wait for it and start again")


def read_run(path: Path, look: Callable[[Run], _T]) -> _T:
    """What `look` finds in a run: all of it in the old one or all in the new one, where a writer replaces it meanwhile.

    Args:
        path: of the run directory.
        look: reads; it is called again where the run was replaced before it was done.

    Raises:
        RunError: as `open_run`, and what `look` raises.
    """
    for _ in range(_SWAP_TRIES):
        run = open_run(path)
        try:
            found = look(run)
        except (HawqError, OSError):
            if run.is_current():
                raise
            continue
        if run.is_current():
            return found
    raise RunError(f"{path} is replaced by other processes faster than it can be read; wait for them and start again")


def is_writable(path: Path) -> bool:
    """Whether a run can be written: its directory is replaced, so it is the one around it that counts."""
    return os.access(resolved(path).parent, os.W_OK)


@contextmanager
def borrow_run(path: Path) -> Iterator[Run]:
    """Work on a copy of a run that goes when the block ends; for runs that cannot be written."""
    source = open_run(path)
    with tempfile.TemporaryDirectory(prefix="hawq_tvm-") as scratch:
        copy = Path(scratch) / "run"
        shutil.copytree(source.path, copy, copy_function=lambda old, new: os.symlink(os.path.abspath(old), new))
        yield Run(copy, source.manifest, name=path)


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
    resumable, place = identity is not None, resolved(path)
    partial = working_copy(place, resumable=resumable)
    if holds_working_directory(place):
        raise RunError(
            f"{place} is replaced as a whole and cannot be worked in; start from another directory, as cd .."
        )
    try:
        if resumable:
            place.parent.mkdir(parents=True, exist_ok=True)
        elif not place.exists() and not is_cut_off(place):
            read_manifest(path)  # says that there is none
        with locked(place):
            complete_swap(place)
            run = _prepare(path, place, partial, identity)
            try:
                yield run
                if run.manifest["based_on"] != state(place):
                    raise RunError(
                        f"{path} was changed by hand while this worked on it; start again, and the change is taken up"
                    )
            except BaseException:
                if not (resumable and run.manifest["stages"]):
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            run.manifest.pop("making", None)
            run.manifest["whole"] = True
            run.save_manifest()
            swap(partial, place)
    except OSError as error:
        refuse_full_disk(error, path)
        if error.errno in _NOT_THERE:
            at = f" ({error.filename})" if error.filename else ""
            raise RunError(f"cannot write {path}: {error.strerror or error}{at}; choose another --output") from error
        raise


def refuse_full_disk(error: OSError, path: Path) -> None:
    """Raise `RunError` where `error` says that there is no room; a `shutil.Error` hides that in its text."""
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if error.errno == code or (isinstance(error, shutil.Error) and os.strerror(code) in str(error)):
            raise RunError(
                f"no room to write {path}: {os.strerror(code)}; free some space and start again "
                "(what was there before is unchanged)"
            ) from error


def _prepare(name: Path, place: Path, partial: Path, identity: Mapping[str, Any] | None) -> Run:
    """The working copy: the one that was cut off, or the run as it stands, or a new one."""
    standing = read_manifest(name) if place.exists() else None
    if standing is not None and identity is not None:
        same_identity(name, standing, identity)
    based_on = state(place)
    if identity is not None and partial.exists() and any(not item.name.startswith(".") for item in partial.iterdir()):
        found = read_manifest(partial)
        same_identity(partial, found, identity)
        if found.get("based_on") == based_on:
            for half_made in set(EDITABLE).intersection(found.pop("making", ())):
                (partial / half_made).unlink(missing_ok=True)
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
        # says whose folder this is, if cut off while copying
        Run(partial, {**standing, "based_on": None, "whole": False}).save_manifest()
        # hard links, since no file is ever written in place
        ignore = shutil.ignore_patterns(MANIFEST)
        shutil.copytree(place, partial, copy_function=_link_or_copy, ignore=ignore, dirs_exist_ok=True)
        manifest = {**standing, "versions": dict(versions())}
    run = Run(partial, json.loads(json.dumps({**manifest, "based_on": based_on, "whole": False})), name=name)
    run.save_manifest()
    return run


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
