from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from hawq_tvm.errors import RunError
from hawq_tvm.rundir import FORMAT, MANIFEST, Run, edit_run, open_run

IDENTITY = {"model": "m", "weights": "w", "data": "d"}


def write_stage(run: Run, name: str, text: str, *, option: int = 0, reads: tuple[str, ...] = ()) -> bool:
    """A stage that writes ``<name>.json``."""
    file = f"{name}.json"
    return run.stage(
        name, lambda: run.write_json(file, text), options={"option": option}, reads=list(reads), writes=[file]
    )


def listing(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


def test_a_run_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    with edit_run(path, identity=IDENTITY) as run:
        assert write_stage(run, "one", "a")
        assert not path.exists()
    assert listing(path) == [MANIFEST, "one.json"]
    assert listing(path.parent) == ["r"]
    assert open_run(path).json("one.json") == "a"
    assert open_run(path).manifest["versions"]["numpy"]


def test_finished_stages_are_not_repeated(tmp_path: Path) -> None:
    with edit_run(tmp_path / "r", identity=IDENTITY) as run:
        assert write_stage(run, "one", "a")
        assert not write_stage(run, "one", "b")
        assert write_stage(run, "one", "c", option=1), "another option"
        assert write_stage(run, "two", "d", reads=("one.json",))
        assert not write_stage(run, "two", "e", reads=("one.json",))
    with edit_run(tmp_path / "r", identity=IDENTITY) as run:
        assert not write_stage(run, "one", "x", option=1)
        assert write_stage(run, "one", "y", option=2)
        assert write_stage(run, "two", "f", reads=("one.json",)), "what it reads has changed"
        (run.path / "two.json").unlink()
        assert write_stage(run, "two", "g", reads=("one.json",)), "its file is gone"


def test_a_failure_leaves_the_run_as_it_was_and_finished_stages_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with edit_run(path, identity=IDENTITY) as run:
        write_stage(run, "one", "a")
    before = (path / MANIFEST).read_bytes()
    with pytest.raises(ZeroDivisionError), edit_run(path, identity=IDENTITY) as run:
        write_stage(run, "one", "b", option=1)
        raise ZeroDivisionError
    assert (path / MANIFEST).read_bytes() == before
    assert open_run(path).json("one.json") == "a"
    with edit_run(path, identity=IDENTITY) as run:
        assert not write_stage(run, "one", "c", option=1), "finished before the failure"
    assert open_run(path).json("one.json") == "b"
    assert listing(tmp_path) == ["r"]


def test_a_new_run_that_fails_before_any_stage_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), edit_run(tmp_path / "r", identity=IDENTITY):
        raise ZeroDivisionError
    assert listing(tmp_path) == []


def test_extending_a_run_that_fails_leaves_nothing_beside_it(tmp_path: Path) -> None:
    with edit_run(tmp_path / "r", identity=IDENTITY) as run:
        write_stage(run, "one", "a")
    with pytest.raises(ZeroDivisionError), edit_run(tmp_path / "r") as run:
        write_stage(run, "two", "b")
        raise ZeroDivisionError
    assert listing(tmp_path) == ["r"]
    assert "two.json" not in open_run(tmp_path / "r")


def test_a_file_half_written_is_removed(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise ZeroDivisionError

    with edit_run(tmp_path / "r", identity=IDENTITY) as run:
        write_stage(run, "one", "a")
        with pytest.raises(ZeroDivisionError):
            run.write("one.json", fail)
        assert run.json("one.json") == "a"
    assert listing(tmp_path / "r") == [MANIFEST, "one.json"]


def test_folders_are_stages_files_too(tmp_path: Path) -> None:
    def make(count: int) -> Any:
        def write() -> None:
            for i in range(count):
                run.write_json(f"golden/{i}.json", i)

        return write

    with edit_run(tmp_path / "r", identity=IDENTITY) as run:
        run.stage("golden", make(3), options={"n": 3}, writes=["golden/"])
        run.stage("golden", make(2), options={"n": 2}, writes=["golden/"])
    assert listing(tmp_path / "r" / "golden") == ["0.json", "1.json"]
    assert open_run(tmp_path / "r").json("golden/1.json") == 1


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    path = tmp_path / "r"
    with edit_run(path, identity=IDENTITY) as run:
        write_stage(run, "one", "a")
        write_stage(run, "bits", "b")
    return path


def test_a_damaged_file_is_refused(finished: Path) -> None:
    (finished / "one.json").write_text('"x"\n')
    with pytest.raises(RunError, match=r"one.json is corrupted: it does not hash"):
        open_run(finished).json("one.json")
    (finished / "one.json").unlink()
    with pytest.raises(RunError, match=r"has no one.json; run the stage that makes it"):
        open_run(finished).file("one.json")


def test_bits_may_be_edited_by_hand_and_are_not_lost(finished: Path) -> None:
    (finished / "bits.json").write_text('"mine"')
    run = open_run(finished)
    assert run.edited("bits.json")
    assert not run.edited("one.json")
    assert run.json("bits.json") == "mine"
    with edit_run(finished, identity=IDENTITY) as run:
        assert not write_stage(run, "bits", "b"), "the same options keep the edit"
    with pytest.raises(RunError, match=r"bits.json was edited by hand"), edit_run(finished, identity=IDENTITY) as run:
        write_stage(run, "bits", "c", option=1)
    assert json.loads((finished / "bits.json").read_text()) == "mine"
    (finished / "bits.json").write_text("{broken")
    with pytest.raises(RunError, match=r"bits.json is not valid JSON"):
        open_run(finished).json("bits.json")


def test_other_directories_are_refused(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(RunError, match="does not exist; make one with hawq-tvm run"):
        open_run(tmp_path / "nothing")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    with pytest.raises(RunError, match="is not a run directory"), edit_run(tmp_path / "photos", identity=IDENTITY):
        pass
    assert listing(tmp_path / "photos") == ["cat.jpg"]
    other = {**IDENTITY, "model": "other"}
    with pytest.raises(RunError, match="holds a run of m on d, not of other on d"), edit_run(finished, identity=other):
        pass
    assert listing(tmp_path) == ["photos", "r"]


def test_another_version_is_refused(finished: Path) -> None:
    manifest = json.loads((finished / MANIFEST).read_text())
    manifest["format"] = FORMAT + 1
    manifest["versions"]["hawq_tvm"] = "9.9"
    (finished / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=rf"was made by hawq_tvm 9.9 in format {FORMAT + 1}, and this is"):
        open_run(finished)
    with pytest.raises(RunError, match="was made by hawq_tvm 9.9"), edit_run(finished, identity=IDENTITY):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "versions": 3, "stages": {}}'])
def test_a_damaged_manifest_is_refused(finished: Path, text: str) -> None:
    (finished / MANIFEST).write_text(text)
    with pytest.raises(RunError, match=r"manifest.json is corrupted"):
        open_run(finished)


def test_a_swap_that_was_cut_off_is_completed(finished: Path) -> None:
    os.rename(finished, finished.with_name(f".{finished.name}.previous"))
    assert open_run(finished).json("one.json") == "a"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_run_as_it_was(finished: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_text

    def full(self: Path, text: str, *args: Any, **kwargs: Any) -> int:
        if "two.json" in self.name:
            real(self, text[:1])
            raise OSError(code, os.strerror(code), str(self))
        return real(self, text, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match="no room to write .*free some space"), edit_run(finished) as run:
        write_stage(run, "two", "b")
    assert listing(finished.parent) == ["r"]
    assert listing(finished) == ["bits.json", MANIFEST, "one.json"]


def test_a_read_only_place_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"), edit_run(tmp_path / "file" / "r", identity=IDENTITY):
        pass


def hold(path: Path, ready: Any, done: Any) -> None:
    with edit_run(path, identity=IDENTITY) as run:
        write_stage(run, "one", "a")
        ready.set()
        done.wait(30)


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "r", ready, done))
    process.start()
    assert ready.wait(60)
    with pytest.raises(RunError, match="another process is working on"), edit_run(tmp_path / "r", identity=IDENTITY):
        pass
    done.set()
    process.join(60)
    assert process.exitcode == 0
    assert open_run(tmp_path / "r").json("one.json") == "a"
