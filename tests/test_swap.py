"""Writers that are killed in the middle of a swap, readers that look on meanwhile, locks, directories that are gone."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from hawq_tvm.core.errors import RunError
from hawq_tvm.runs import swap
from hawq_tvm.runs.manifest import read_manifest
from hawq_tvm.runs.rundir import Run, edit_run, open_run, read_run
from hawq_tvm.runs.swap import locked, previous_of

IDENTITY = {"model": "m", "weights": "w", "data": "d"}
STAGES = ("bits", "one", "two")  # bits.json may be edited by hand, and so is not held to its hash


def write(run: Run, version: int) -> list[str]:
    """Three stages that each write their version; returns those that were not done yet."""
    return [
        name
        for name in STAGES
        if run.stage(
            name,
            lambda name=name: run.write_json(f"{name}.json", version),
            options={"version": version},
            writes=[f"{name}.json"],
        )
    ]


def versions_in(run: Run) -> set[int]:
    return {run.json(f"{name}.json") for name in STAGES}


MOVES = ("rename", "replace", "rmdir")


def killed(path: Path, version: int, *, resumable: bool, fatal: int, moves: Sequence[str] = MOVES) -> bool:
    """Write a version in a process that is killed before its `fatal`-th of these moves; whether it came to that."""
    process = os.fork()
    if process == 0:
        try:
            count = itertools.count(1)
            for name in moves:
                setattr(os, name, dying(getattr(os, name), count, fatal))
            with edit_run(path, identity=IDENTITY if resumable else None) as run:
                write(run, version)
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def dying(real: Callable[..., None], count: Iterator[int], fatal: int) -> Callable[..., None]:
    def call(*arguments: object, **options: object) -> None:
        if next(count) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments, **options)

    return call


def done(path: Path, version: int) -> set[str]:
    """The stages of a version that the manifest in a folder lists."""
    try:
        stages = read_manifest(path)["stages"]
    except RunError:
        return set()
    return {name for name, record in stages.items() if record["key"]["options"] == {"version": version}}


@pytest.mark.parametrize(("standing", "resumable"), [(True, True), (True, False), (False, True)])
def test_no_kill_loses_a_finished_stage_or_shows_half_a_run(tmp_path: Path, standing: bool, resumable: bool) -> None:
    """Killed at each rename, replacement and removal of a folder in turn, until a writer gets through."""
    for fatal in range(1, 100):
        path = tmp_path / str(fatal) / "r"
        if standing:
            with edit_run(path, identity=IDENTITY) as run:
                write(run, 1)
        if not killed(path, 2, resumable=resumable, fatal=fatal):
            break
        finished = done(path, 2)
        if resumable:
            finished |= done(swap.working_copy(path, resumable=True), 2)
        whole = is_whole(swap.working_copy(path, resumable=resumable))
        reader = tmp_path / f"{fatal} reader" / "r"
        shutil.copytree(path.parent, reader.parent, copy_function=shutil.copy2)
        if standing or path.exists() or whole:
            assert versions_in(open_run(reader)) in ({1}, {2}), "a reader sees one whole run"
        with edit_run(path, identity=IDENTITY if resumable else None) as run:
            again = write(run, 2)
        assert not finished & set(again), f"killed at {fatal}: repeated"
        assert not (whole and again), f"killed at {fatal}: all was done"
        assert versions_in(open_run(path)) == {2}
        assert sorted(os.listdir(path.parent)) == ["r"]
    assert fatal > 8, "killed at every write and every rename"


def is_whole(copy: Path) -> bool:
    """Whether a working copy is whole."""
    try:
        return bool(read_manifest(copy).get("whole"))
    except RunError:
        return False


def test_a_whole_working_copy_does_not_undo_an_edit_made_after_the_kill(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with edit_run(path, identity=IDENTITY) as run:
        write(run, 1)
    assert killed(path, 2, resumable=True, fatal=1, moves=["rename"])
    assert is_whole(swap.working_copy(path, resumable=True))
    (path / "bits.json").write_text("77")
    with edit_run(path) as run:
        assert run.json("bits.json") == 77
        assert run.json("one.json") == 1
    assert open_run(path).json("bits.json") == 77


def test_readers_see_the_old_run_or_the_new_one_and_never_both(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with edit_run(path, identity=IDENTITY) as run:
        write(run, 0)
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.test_swap import *\n"
        "for version in range(1, 60):\n"
        "    with edit_run(Path(sys.argv[1]), identity=IDENTITY) as run:\n"
        "        write(run, version)\n"
    )
    seen: list[set[int]] = []
    faults: list[BaseException] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            try:
                seen.append(read_run(path, versions_in))
            except BaseException as error:
                faults.append(error)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    status = subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode
    over.set()
    for reader in readers:
        reader.join()
    assert status == 0
    assert faults == []
    assert {len(versions) for versions in seen} == {1}
    assert len({min(versions) for versions in seen}) > 1, "the writer was seen at work"


@pytest.mark.parametrize("name", ["bits.json", "one.json"])
def test_a_run_that_was_replaced_since_it_was_opened_says_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / "r"
    with edit_run(path, identity=IDENTITY) as run:
        write(run, 1)
    opened = open_run(path)
    assert opened.json(name) == 1
    with edit_run(path, identity=IDENTITY) as run:
        write(run, 2)
    with pytest.raises(RunError, match=f"was replaced by another process while {name} was read; read it again"):
        opened.json(name)


def test_a_reader_that_may_not_write_waits_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r"
    with edit_run(path, identity=IDENTITY) as run:
        write(run, 1)
    os.rename(path, previous_of(path))
    real = Path.open

    def refuse(self: Path, *arguments: object, **options: object) -> object:
        if self.name.endswith(".lock"):
            raise PermissionError(13, "Permission denied")
        return real(self, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("hawq_tvm.runs.rundir._SWAP_WAIT", 0.001)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        with pytest.raises(RunError, match="is being replaced by another process; wait for it"):
            open_run(path)
    assert versions_in(open_run(path)) == {1}


# the lock


def test_a_lock_whose_file_went_before_it_was_ours_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner removes the file after we have opened it: a lock on a file without a name keeps nobody out."""
    name, real, calls = tmp_path / ".r.lock", fcntl.flock, list[int]()

    def late(lock: object, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            name.unlink()
        real(lock, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path / "r"):
        assert len(calls) == 2
        assert name.exists(), "what we hold has a name"
        with pytest.raises(RunError, match="another process is working on"), locked(tmp_path / "r"):
            pass
    assert os.listdir(tmp_path) == []


def test_a_lock_that_another_process_took_meanwhile_is_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner removes the file after we have opened it, and a third process makes and holds a new one."""
    name, real, calls = tmp_path / ".r.lock", fcntl.flock, list[int]()
    third = (tmp_path / "third").open("w")

    def late(lock: object, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            real(third, fcntl.LOCK_EX)
            os.replace(tmp_path / "third", name)
        real(lock, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(RunError, match="another process is working on"), locked(tmp_path / "r"):
        pass
    assert name.exists(), "theirs is left alone"
    third.close()


# a working directory that was deleted


def test_absolute_paths_work_from_a_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    path = tmp_path / "r"
    with edit_run(path, identity=IDENTITY) as run:
        write(run, 1)
    with edit_run(path) as run:
        write(run, 2)
    assert versions_in(open_run(path)) == {2}
    for attempt in (open_run, lambda path: edit_run(path, identity=IDENTITY).__enter__()):
        with pytest.raises(RunError, match="the working directory was deleted, so 'r' leads nowhere"):
            attempt(Path("r"))
