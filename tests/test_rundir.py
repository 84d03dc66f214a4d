from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from hawq_tvm.core.errors import RunError
from hawq_tvm.runs import rundir
from hawq_tvm.runs.rundir import FORMAT, MANIFEST, Run, borrow_run, edit_run, open_run

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
    with pytest.raises(RunError, match=r"has no one.json; make it with hawq-tvm run MODEL -o "):
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
    with pytest.raises(RunError, match=r"bits.json: not valid JSON"):
        open_run(finished).json("bits.json")


def test_other_directories_are_refused(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(RunError, match="does not exist; make one with hawq-tvm run"):
        open_run(tmp_path / "nothing")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    with pytest.raises(RunError, match="is not a run directory"), edit_run(tmp_path / "photos", identity=IDENTITY):
        pass
    assert listing(tmp_path / "photos") == ["cat.jpg"]
    with pytest.raises(RunError, match=r"cat.jpg is not a run directory: it is a file; name another"):
        open_run(tmp_path / "photos" / "cat.jpg")
    other = {**IDENTITY, "model": "other"}
    with (
        pytest.raises(RunError, match=r"holds a run of m \(w\) on d, not of other \(w\) on d"),
        edit_run(finished, identity=other),
    ):
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


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": FORMAT}',
        '{"format": FORMAT, "versions": 3, "stages": {}}',
        '{"format": FORMAT, "versions": {"hawq_tvm": "0"}, "identity": "m", "stages": {}}',
        '{"format": FORMAT, "versions": {"hawq_tvm": "0"}, "identity": {"model": "m", "weights": "w"}, "stages": {}}',
        '{"format": FORMAT, "versions": {"hawq_tvm": "0"}, "identity": {"model": "m", "weights": "w", "data": "d"}, '
        '"stages": {"one": {"key": {"reads": {}}}}}',
    ],
)
def test_a_damaged_manifest_is_refused(finished: Path, text: str) -> None:
    (finished / MANIFEST).write_text(text.replace("FORMAT", str(FORMAT)))
    with pytest.raises(RunError, match=r"manifest.json is corrupted"):
        open_run(finished)


def test_a_swap_that_was_cut_off_is_completed(finished: Path) -> None:
    os.rename(finished, finished.with_name(f".{finished.name}.previous"))
    assert open_run(finished).json("one.json") == "a"
    os.rename(finished, finished.with_name(f".{finished.name}.previous"))
    with edit_run(finished) as run:
        assert run.json("one.json") == "a"
    assert listing(finished.parent) == ["r"]


@pytest.mark.parametrize("identity", [IDENTITY, None])
@pytest.mark.parametrize("name", ["bits.json", "one.json", "notes.txt"])
def test_what_a_person_changes_meanwhile_is_not_lost(finished: Path, name: str, identity: Any) -> None:
    with pytest.raises(RunError, match=r"was changed by hand"), edit_run(finished, identity=identity) as run:
        write_stage(run, "two", "b")
        aside = finished.parent / "aside"
        aside.write_text('"mine"')
        os.replace(aside, finished / name)
    assert (finished / name).read_text() == '"mine"'
    assert "two.json" not in open_run(finished)
    with edit_run(finished, identity=identity) as run:
        assert write_stage(run, "two", "c")
    assert (finished / name).read_text() == '"mine"'
    assert listing(finished.parent) == ["r"]


def test_work_in_hand_of_a_process_that_was_killed_is_removed(tmp_path: Path) -> None:
    fail_at(tmp_path / "r", option=0)
    (tmp_path / "r.partial" / ".compile-x.aside").mkdir()
    (tmp_path / "r.partial" / ".compile-x.aside" / "model.so").write_text("half")
    (tmp_path / "r.partial" / ".one.json.aside").write_text("half")
    with edit_run(tmp_path / "r", identity=IDENTITY) as run:
        assert not write_stage(run, "one", "b")
    assert listing(tmp_path / "r") == [MANIFEST, "one.json"]


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
    for place, said in (
        (tmp_path / "file" / "r", rf"cannot write .*/r: File exists \({tmp_path}/file\); choose another --output"),
        (tmp_path / ("r" * 300), r"cannot write .*: File name too long .*; choose another --output"),
        (Path("/proc/r"), r"cannot write /proc/r: .*; choose another --output"),
    ):
        with pytest.raises(RunError, match=said), edit_run(place, identity=IDENTITY):
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


def fail_at(path: Path, option: int) -> None:
    """A start that finishes a stage and then fails, so that its working copy stays."""
    with pytest.raises(ZeroDivisionError), edit_run(path, identity=IDENTITY) as run:
        write_stage(run, "one", "from the failed start", option=option)
        raise ZeroDivisionError


def test_an_unfinished_start_does_not_undo_what_was_done_since(finished: Path) -> None:
    fail_at(finished, option=1)
    (finished / "bits.json").write_text('"mine"')
    with edit_run(finished, identity=IDENTITY) as run:
        assert run.json("bits.json") == "mine"
        assert run.json("one.json") == "a"
    fail_at(finished, option=1)
    with edit_run(finished) as run:
        write_stage(run, "two", "done since")
    with edit_run(finished, identity=IDENTITY) as run:
        assert run.json("two.json") == "done since"
    assert listing(finished.parent) == ["r"]


def test_an_edit_can_be_given_up_by_deleting_the_file(finished: Path) -> None:
    (finished / "bits.json").write_text('"mine"')
    with pytest.raises(RunError, match="delete it first") as caught, edit_run(finished, identity=IDENTITY) as run:
        write_stage(run, "one", "c", option=1)
        write_stage(run, "bits", "c", option=1)
    assert str(finished / "bits.json") in str(caught.value), "the file that the user sees"
    (finished / "bits.json").unlink()
    with edit_run(finished, identity=IDENTITY) as run:
        assert write_stage(run, "bits", "c", option=1)
    assert open_run(finished).json("bits.json") == "c"


def test_a_stranger_in_the_working_copys_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "r.partial").mkdir()
    (tmp_path / "r.partial" / "thesis.txt").write_text("years")
    with (
        pytest.raises(RunError, match=r"r.partial is not a run directory"),
        edit_run(tmp_path / "r", identity=IDENTITY),
    ):
        pass
    assert (tmp_path / "r.partial" / "thesis.txt").read_text() == "years"


def test_an_unfinished_run_of_another_network_is_left_alone(tmp_path: Path) -> None:
    fail_at(tmp_path / "r", option=0)
    other = {**IDENTITY, "weights": "other"}
    with pytest.raises(RunError, match=r"r.partial holds a run of m \(w\)"), edit_run(tmp_path / "r", identity=other):
        pass
    assert listing(tmp_path) == ["r.partial"]


def test_what_was_made_from_older_files_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with edit_run(path, identity=IDENTITY) as run:
        write_stage(run, "one", "a")
        write_stage(run, "two", "b", reads=("one.json",))
        assert run.is_fresh("two.json")
        write_stage(run, "one", "changed", option=1)
        assert not run.is_fresh("two.json")
    run = open_run(path)
    assert run.json("two.json") == "b"
    with pytest.raises(RunError, match=r"two.json was made from another one.json; bring it up to date"):
        run.fresh("two.json")
    assert not run.is_fresh("three.json")


def test_another_version_of_a_package_makes_stages_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with edit_run(tmp_path / "r", identity=IDENTITY) as run:
        write_stage(run, "one", "a")
    monkeypatch.setattr(rundir, "versions", lambda: {"hawq_tvm": "0.1.1"})
    with edit_run(tmp_path / "r", identity=IDENTITY) as run:
        assert write_stage(run, "one", "b")
        assert run.manifest["versions"] == {"hawq_tvm": "0.1.1"}


def test_paths_with_dots_and_links(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with edit_run(finished / ".." / "r") as run:
        write_stage(run, "two", "b")
    link = tmp_path / "latest"
    link.symlink_to(finished)
    with edit_run(link) as run:
        write_stage(run, "three", "c")
    assert link.is_symlink()
    assert open_run(link).json("three.json") == open_run(finished).json("three.json") == "c"
    assert listing(tmp_path) == ["latest", "r"]
    monkeypatch.chdir(finished)
    assert open_run(Path()).json("two.json") == "b"
    with pytest.raises(RunError, match="start from another directory"), edit_run(Path()):
        pass
    with pytest.raises(RunError, match="cannot be a run directory"), edit_run(Path("/"), identity=IDENTITY):
        pass


def test_one_lock_for_every_kind_of_work(finished: Path) -> None:
    with (
        edit_run(finished, identity=IDENTITY),
        pytest.raises(RunError, match="another process is working on"),
        edit_run(finished),
    ):
        pass
    assert listing(finished.parent) == ["r"]


def test_a_borrowed_run_is_not_changed(finished: Path) -> None:
    with borrow_run(finished) as run:
        assert write_stage(run, "two", "b")
        assert run.json("one.json") == "a"
    assert "two.json" not in open_run(finished)
    assert not open_run(finished).edited("bits.json")
