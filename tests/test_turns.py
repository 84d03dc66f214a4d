"""Engines in turns: order, numbers, disturbed runs, engines that end, hang or lie; with tiny engines of a few lines."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import turns
from benchmarks.bursts import Burst
from benchmarks.turns import Contender, Disturbed, EngineFailed, Worker, summarize, take_turns

ROOT = Path(__file__).parent.parent

_ENGINE = """
import sys, time
from pathlib import Path
from benchmarks.bursts import Channel
channel = Channel()
print("what an engine prints goes to standard error")
log = Path({log!r})
count = 0
def call():
    global count
    count += 1
    with log.open("a") as file:
        file.write({name!r} + "\\n")
    {body}
channel.serve(call, {{"cpu": {name!r}}})
"""

IGNORED = {"most_lost": 1e9, "most_foreign": 1e9}  # bounds of tests that are not about them: CI's machine is busy


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "calls"


def engine(name: str, log: Path, body: str = "pass") -> Contender:
    text = _ENGINE.format(log=str(log), name=name, body=body)
    return Contender(name, (sys.executable, "-c", text), {"PYTHONPATH": str(ROOT)})


def runs_of(calls: list[str]) -> list[str]:
    """The engines in the order of their turns."""
    return [name for index, name in enumerate(calls) if index == 0 or calls[index - 1] != name]


def test_engines_take_turns_and_each_turn_opens_with_a_call_that_is_not_counted(log: Path) -> None:
    found = take_turns([engine(name, log) for name in "abc"], rounds=4, seconds=0, **IGNORED)
    calls = log.read_text().split()
    assert runs_of(calls) == list("abc") * 5, "one turn to see how long a call takes, then four"
    assert {name: timing.calls for name, timing in found.timings.items()} == dict.fromkeys("abc", 4 * 3)
    assert {name: calls.count(name) for name in "abc"} == dict.fromkeys("abc", (1 + 1) + 4 * (1 + 3))
    assert {name: about["cpu"] for name, about in found.about.items()} == {name: name for name in "abc"}
    assert found.failed == {}


def test_a_turn_holds_as_many_calls_as_fill_it(log: Path) -> None:
    found = take_turns([engine("a", log, "time.sleep(0.01)")], rounds=1, seconds=0.2, **IGNORED)
    timing = found.timings["a"]
    assert 3 <= timing.calls <= 20
    assert timing.min_ms >= 10
    assert timing.min_ms <= timing.p10_ms <= timing.median_ms <= timing.p90_ms


def test_an_engine_that_does_not_start_is_named_with_its_last_words(log: Path) -> None:
    broken = Contender("broken", (sys.executable, "-c", "raise SystemExit('no weights here')"), {})
    found = take_turns([engine("a", log), broken], rounds=1, seconds=0, **IGNORED)
    assert list(found.timings) == ["a"]
    assert found.failed == {"broken": "broken ended with status 1: no weights here"}


def test_an_engine_that_crashes_is_named_and_the_others_go_on(log: Path) -> None:
    crashes = engine("crashes", log, "import os; count < 7 or os.abort()")
    found = take_turns([engine("a", log), crashes], rounds=3, seconds=0, **IGNORED)
    assert found.timings["a"].bursts == 3
    assert list(found.failed) == ["crashes"]
    assert found.failed["crashes"].startswith("crashes ended with status -6")


def test_an_engine_that_hangs_is_named(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_BURST_SECONDS", 0.2)
    with Worker(engine("hangs", log, "count < 3 or time.sleep(600)")) as worker:
        worker.wait_ready()
        worker.burst(1)
        with pytest.raises(EngineFailed, match="hangs did not answer for 0 s"):
            worker.burst(1)


def test_a_worker_is_stopped_while_it_is_not_its_turn_and_gone_afterwards(log: Path) -> None:
    spins = engine(
        "spins",
        log,
        "threading = __import__('threading'); "
        "count > 1 or threading.Thread(target=lambda: exec('while True: pass'), daemon=True).start()",
    )
    with Worker(spins) as worker:
        worker.wait_ready()
        worker.burst(1)
        pid = worker._process.pid
        before = _cpu_ticks(pid)
        time.sleep(0.3)
        assert _cpu_ticks(pid) == before, "its thread spins, and would take a core from the engine whose turn it is"
    assert not Path(f"/proc/{pid}").exists()


def _cpu_ticks(pid: int) -> list[str]:
    deadline = time.monotonic() + 60
    while (fields := Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split())[0] != "T":
        assert time.monotonic() < deadline, "it is not stopped"
        time.sleep(0.01)
    return fields[11:13]


def burst(*milliseconds: float, lost: float = 0.0, foreign: float = 0.0) -> Burst:
    """A burst of one thread that waited for a core for a share of its time, beside others that took `foreign`."""
    wall = sum(milliseconds) / 1e3
    cpu = wall * (1 - lost)
    return Burst(tuple(value / 1e3 for value in milliseconds), wall, cpu, lost * wall, cpu + foreign * wall)


def test_time_lost_is_seen_in_wall_time_and_in_the_queue() -> None:
    assert Burst((1.0,), 1.0, 0.8, 0.0, 0.0).lost == pytest.approx(0.2), "one thread that had no core"
    assert Burst((1.0,), 1.0, 1.9, 0.1, 0.0).lost == pytest.approx(0.1), "two threads, one of them kept waiting"
    assert Burst((1.0,), 1.0, 2.0, 0.0, 0.0).lost == 0


def test_disturbed_turns_do_not_count() -> None:
    found = summarize([burst(10, 11, 12), burst(50, 60, lost=0.5), burst(13, 14)], most_lost=0.03)
    assert (found.median_ms, found.min_ms) == pytest.approx((12, 10))
    assert (found.calls, found.clean, found.bursts) == (5, 2, 3)
    assert found.lost == pytest.approx(0.5 * 110 / 170)


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=50))
def test_statistics_are_those_of_the_calls(milliseconds: list[float]) -> None:
    found = summarize([burst(*milliseconds)])
    assert found.median_ms == pytest.approx(statistics.median(milliseconds))
    assert found.min_ms == pytest.approx(min(milliseconds))
    assert found.min_ms <= found.p10_ms <= found.p90_ms <= max(milliseconds) * (1 + 1e-9)
    assert found.spread >= 0


class Scripted:
    """Stands in for `Worker`: hands out bursts that a test wrote down."""

    def __init__(self, contender: Contender) -> None:
        self.name = contender.name
        self.about: Mapping[str, str] = {}
        self._bursts = iter([burst(1), *SCRIPT[contender.name]])

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait_ready(self) -> None:
        pass

    def burst(self, calls: int) -> Burst:
        return next(self._bursts)


SCRIPT: dict[str, list[Burst]] = {}


def scripted(monkeypatch: pytest.MonkeyPatch, rounds: int = 2, **script: list[Burst]) -> turns.Outcome:
    monkeypatch.setattr(turns, "Worker", Scripted)
    monkeypatch.setitem(globals(), "SCRIPT", script)
    return take_turns([Contender(name, (), {}) for name in script], rounds=rounds, seconds=0)


def test_a_disturbed_turn_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scripted(
        monkeypatch,
        a=[burst(10), burst(90, lost=0.9), burst(12)],
        b=[burst(20), burst(20), burst(20)],
    )
    assert (found.timings["a"].clean, found.timings["a"].bursts) == (2, 3)
    assert found.timings["a"].median_ms == pytest.approx(11)
    assert found.timings["b"].bursts == 3, "whoever was undisturbed takes its turn as well"


def test_a_run_of_disturbed_turns_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = [burst(10), *[burst(10, lost=0.2)] * 5]
    with pytest.raises(Disturbed) as caught:
        scripted(monkeypatch, a=[burst(10)] * 6, b=waits)
    assert str(caught.value) == (
        "b had its cores to itself in 1 of 6 turns, 2 are wanted (it waited 20% of the time, at most 3% is believed); "
        "nothing is reported: run again on a quiet machine"
    )


def test_a_run_beside_busy_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    quiet = scripted(monkeypatch, a=[burst(10, foreign=0.1)] * 2)
    assert quiet.foreign == pytest.approx(0.05)
    with pytest.raises(Disturbed, match="other processes took 40% of the machine, at most 10% is believed"):
        scripted(monkeypatch, a=[burst(10, foreign=0.8)] * 2)


def test_a_burst_crosses_the_pipe_as_it_is() -> None:
    found = burst(1.5, 2.5, lost=0.1)
    sent = json.loads(json.dumps(vars(found)))
    assert Burst(**{**sent, "seconds": tuple(sent["seconds"])}) == found
