"""How a finished working copy takes its run's place, whoever dies meanwhile.

    .NAME.lock                     held by whoever works on the run, reader's repairs included
    NAME.partial or .NAME.edit     the working copy; its manifest says what it is based on, and when it is whole
    .NAME.previous                 the run that stood there, between the two renames of a swap

A working copy becomes whole by one write of its manifest. From then on the swap can be carried on by anyone who holds
the lock, as long as the run that it is based on is as it was.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hawq_tvm.core.errors import RunError
from hawq_tvm.runs.manifest import read_manifest, state


def resolved(path: Path) -> Path:
    """Where a run really lies: links and dots followed, since the directory itself is replaced.

    Raises:
        RunError: that is the root of all, or the working directory, which the path starts from, was deleted.
    """
    try:
        place = Path(os.path.realpath(path))
    except FileNotFoundError as error:
        raise RunError(
            f"the working directory was deleted, so '{path}' leads nowhere; start from another one, or name an "
            "absolute path"
        ) from error
    if not place.name:
        raise RunError(f"'{path}' cannot be a run directory; name one, such as runs/mine")
    return place


def holds_working_directory(place: Path) -> bool:
    """Whether this process works inside a run."""
    try:
        return Path.cwd().is_relative_to(place)
    except FileNotFoundError:  # it was deleted
        return False


def working_copy(place: Path, *, resumable: bool) -> Path:
    """Where a run is worked on: in sight where it is kept after a failure."""
    return place.with_name(f"{place.name}.partial" if resumable else f".{place.name}.edit")


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Hold a run for this process, whatever is done to it: one lock beside it, gone afterwards.

    Raises:
        RunError: another process holds it, or its folder takes no files, as those of /proc do.
    """
    name = place.with_name(f".{place.name}.lock")
    while True:
        try:
            lock = name.open("w")
        except FileNotFoundError:
            raise RunError(f"cannot write {place}: {place.parent} takes no files; choose another --output") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"another process is working on {place}; wait for it or choose another --output"
                ) from None
            if not _is_at(lock.fileno(), name):
                continue  # its owner let go and removed it after we had opened it: what we hold guards nothing
            try:
                yield
            finally:
                name.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def swap(copy: Path, place: Path) -> None:
    """Put a whole working copy in the run's place; the lock is held."""
    previous = previous_of(place)
    if place.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(place, previous)
    os.rename(copy, place)
    shutil.rmtree(previous, ignore_errors=True)


def is_cut_off(place: Path) -> bool:
    """Whether there is no run, but one whose writer is, or died, on the way to its place."""
    return not place.exists() and (previous_of(place).exists() or _whole_copy(place) is not None)


def complete_swap(place: Path) -> None:
    """Carry on the swap that a writer was cut off in; the lock is held.

    Without a whole working copy, the run that stood there comes back.
    """
    copy = _whole_copy(place)
    if copy is not None:
        swap(copy, place)
    elif not place.exists() and previous_of(place).exists():
        os.rename(previous_of(place), place)


def _whole_copy(place: Path) -> Path | None:
    """The working copy that only has to be put in its place: whole, and the run it is based on is as it was."""
    standing = place if place.exists() else previous_of(place)
    for copy in (working_copy(place, resumable=True), working_copy(place, resumable=False)):
        try:
            manifest = read_manifest(copy)
        except RunError:
            continue
        if manifest.get("whole") and manifest.get("based_on") == state(standing):
            return copy
    return None


def previous_of(place: Path) -> Path:
    """Where the run that stood there lies during a swap."""
    return place.with_name(f".{place.name}.previous")
