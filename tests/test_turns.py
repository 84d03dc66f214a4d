"""Engines in turns: order, numbers, disturbed runs, engines that end, hang or lie; with tiny engines of a few lines."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import bursts, turns
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
    assert found.timings["a"].calls == 3 * 3
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
    """Calls that each waited for a core for a share of their time, beside others that took `foreign` of a core."""
    seconds = tuple(value / 1e3 for value in milliseconds)
    wall = sum(seconds)
    return Burst(seconds, (lost,) * len(seconds), wall, wall * (1 - lost), wall * (1 - lost + foreign))


def test_a_call_that_sleeps_has_lost_the_core() -> None:
    found = bursts._burst(lambda: time.sleep(0.02), 3)
    assert all(lost > 0.5 for lost in found.lost), "wall time passes, CPU time does not"
    assert found.undisturbed(0.5) == []


def test_a_call_that_waits_in_the_queue_has_lost_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    queued = iter([1.0, 1.5, 7.0, 7.0])  # before and after each call
    monkeypatch.setattr(bursts._Queues, "seconds", lambda self: next(queued))
    clock = iter([0.0, 10.0, 12.0, 20.0, 22.0, 30.0])
    cpu = iter([0.0, 0.0, 4.0, 4.0, 8.0, 8.0])  # two threads that work all the time
    stand_in = SimpleNamespace(perf_counter=lambda: next(clock), process_time=lambda: next(cpu))
    monkeypatch.setattr(bursts, "time", stand_in)
    found = bursts._burst(lambda: None, 2)
    assert found.seconds == (2.0, 2.0)
    assert found.lost == (0.25, 0.0)
    assert (found.wall, found.cpu) == (30.0, 8.0)


def test_threads_that_wait_for_a_core_are_seen() -> None:
    """Two processes' worth of work on one core: each waits about half of the time."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    rival = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        end = time.monotonic() + 60
        while not any(bursts._burst(lambda: sum(range(1_000_000)), 5).lost):
            assert time.monotonic() < end, "the kernel shows no waiting"
    finally:
        rival.kill()
        rival.wait()
        os.sched_setaffinity(0, cores)


def test_disturbed_calls_do_not_count() -> None:
    found = summarize([burst(10, 11, 12), burst(50, 60, lost=0.5), burst(13, 14)], most_lost=0.03)
    assert (found.median_ms, found.min_ms) == pytest.approx((12, 10))
    assert (found.calls, found.disturbed) == (5, 2)
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


def scripted(monkeypatch: pytest.MonkeyPatch, **script: list[Burst]) -> turns.Outcome:
    monkeypatch.setattr(turns, "Worker", Scripted)
    monkeypatch.setitem(globals(), "SCRIPT", script)
    contenders = [Contender(name, (), {}) for name in script]
    return take_turns(contenders, rounds=len(script["a"]), seconds=0)


def test_a_run_that_was_disturbed_now_and_then_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scripted(monkeypatch, a=[burst(10), burst(90, lost=0.9), burst(12)], b=[burst(20)] * 3)
    assert (found.timings["a"].calls, found.timings["a"].disturbed) == (2, 1)
    assert found.timings["a"].median_ms == pytest.approx(11)
    assert found.timings["b"].calls == 3


def test_a_run_of_disturbed_calls_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(Disturbed) as caught:
        scripted(monkeypatch, a=[burst(10)] * 3, b=[burst(10), *[burst(10, lost=0.3, foreign=1.3)] * 2])
    assert str(caught.value) == (
        "b had its cores to itself in 1 of 3 calls (it waited 20% of the time; calls that wait over 3% do not count, "
        "and half must be left); nothing is reported: run again on a quiet machine"
    )


def test_threads_that_are_in_their_own_way_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen of TVM's: the thread that calls floats, and lands on the core that a worker is pinned to."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    ending = "other processes took only 5% of the machine then: its own threads may have shared a core"
    with pytest.raises(Disturbed, match=f"on a quiet machine; {ending}$"):
        scripted(monkeypatch, a=[burst(10, lost=0.5, foreign=0.1)])


def test_a_run_beside_busy_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    quiet = scripted(monkeypatch, a=[burst(10, foreign=0.1)] * 2)
    assert quiet.foreign == pytest.approx(0.05)
    with pytest.raises(Disturbed, match="other processes took 40% of the machine, at most 10% is believed"):
        scripted(monkeypatch, a=[burst(10, foreign=0.8)] * 2)


def test_a_burst_crosses_the_pipe_as_it_is() -> None:
    found = burst(1.5, 2.5, lost=0.1)
    sent = json.loads(json.dumps(vars(found)))
    assert Burst(**{**sent, "seconds": tuple(sent["seconds"]), "lost": tuple(sent["lost"])}) == found
