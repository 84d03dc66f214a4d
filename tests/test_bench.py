"""Timing within a deadline, on a clock that the contenders themselves move."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.measure import bench
from hawq_tvm.measure.bench import BenchReport, Latency, interleave, median_layers


class Clock:
    """Time that passes while contenders run, and only then."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def contender(self, name: str, seconds: Iterator[float] | float) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.now += seconds if isinstance(seconds, float) else next(seconds)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(bench, "time", found)
    return found


def run(clock: Clock, seconds: float, **contenders: Iterator[float] | float) -> dict[str, Latency]:
    calls = {name: clock.contender(name, taken) for name, taken in contenders.items()}
    return {item.name: item for item in interleave(calls, seconds=seconds)}


@given(
    seconds=st.floats(0.001, 20),
    taken=st.dictionaries(st.sampled_from("abcd"), st.floats(1e-3, 20), min_size=1),
)
def test_the_deadline_holds_as_far_as_one_call_of_each_allows(seconds: float, taken: Mapping[str, float]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "time", clock)
        found = run(clock, seconds, **taken)
    assert clock.now - 100 <= max(seconds, sum(taken.values())) + 1e-9
    assert set(clock.calls) == set(taken), "each is called at least once"
    for name, item in found.items():
        assert item.runs >= 1
        assert item.median_us == pytest.approx(taken[name] * 1e6)


def test_a_slow_contender_leaves_the_others_their_time(clock: Clock) -> None:
    found = run(clock, 5.0, fast=0.001, slow=1.0, middling=0.01)
    assert clock.now - 100 <= 5.0
    assert found["slow"].runs == 1
    assert found["fast"].runs == 1000, "as many as ever"
    assert found["middling"].runs > 100
    middle = clock.calls[len(clock.calls) // 4 : -len(clock.calls) // 4]
    assert {"fast", "middling"} <= set(middle), "they take turns"


def test_bursts_are_taken_in_turns_and_open_with_a_call_that_is_not_counted(clock: Clock) -> None:
    found = run(clock, 1.0, a=0.01, b=0.01)
    assert clock.calls[:8] == ["a", "b", "a", "a", "b", "b", "a", "a"], "first calls, warm-ups, then bursts"
    assert "".join(clock.calls[6:30]) == "aaaaaabbbbbb" * 2
    assert abs(found["a"].runs - found["b"].runs) <= 5, "the last burst is cut by the deadline"
    assert clock.calls.count("a") - found["a"].runs == 3 + -(-found["a"].runs // 5)


def test_a_cold_first_call_does_not_take_a_contender_out_of_the_run(clock: Clock) -> None:
    found = run(clock, 4.0, a=iter([1.9] + [0.001] * 9999), b=0.001)
    assert found["a"].runs > 100
    assert found["a"].median_us == pytest.approx(1000)


def test_a_contender_that_slows_down_is_cut_off_at_the_deadline(clock: Clock) -> None:
    quick_then_stuck = iter([0.001] * 10 + [3.0] * 100)
    run(clock, 2.0, a=quick_then_stuck, b=0.001)
    assert clock.now - 100 < 2.0 + 3.0, "what has begun is finished, and nothing begins after"


def test_progress_never_falls_and_ends_at_all(clock: Clock) -> None:
    seen: list[tuple[int, int]] = []
    calls = {"a": clock.contender("a", 0.01)}
    interleave(calls, seconds=2.0, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(set(seen))
    assert seen[-1] == (100, 100)


def test_layers_are_timed_within_what_is_left(clock: Clock) -> None:
    def measure() -> Mapping[str, float]:
        clock.now += 1.0
        clock.calls.append("layers")
        return {"conv": len(clock.calls) * 1e-6}

    assert median_layers(measure, seconds=-3.0) == {"conv": pytest.approx(1.0)}, "once, whatever it takes"
    assert median_layers(measure, seconds=3.5) == {"conv": pytest.approx(3.0)}, "runs 2, 3 and 4"
    assert clock.now == 104.0
    median_layers(measure, seconds=1000.0)
    assert clock.now == 113.0, "nine at most"


QUIET = Latency("peer", 10.0, 9.5, 12.0, 50)


def report(*contenders: Latency, machine: str = "a CPU") -> BenchReport:
    return BenchReport(machine, "llvm", 2, 1, 3, contenders, {}, {})


def note(latency: Latency, previous: BenchReport | None = None) -> str | None:
    return report(QUIET, latency).doubted(previous).contenders[1].note


def test_it_is_printed_with_a_line_for_each_contender() -> None:
    noisy = replace(QUIET, name="other", median_us=25.0, note="noisy, run again")
    assert str(report(QUIET, noisy)).splitlines() == [
        "a CPU, 2 threads, batch 1, target llvm",
        "peer: 10.0 us, 1.00 of peer's",
        "other: 25.0 us, 2.50 of peer's (noisy, run again)",
    ]


def test_quiet_numbers_carry_no_note() -> None:
    assert note(QUIET) is None
    assert note(QUIET, report(replace(QUIET, median_us=9.0))) is None
    assert note(QUIET, report(replace(QUIET, median_us=10_000.0))) is None, "faster than last time is no noise of now"


def test_a_wide_spread_is_said_beside_the_numbers() -> None:
    assert note(replace(QUIET, p90_us=68.0)) == (
        "noisy, run again: a tenth of its calls took over 6.8 times its median"
    )


def test_a_contender_far_slower_than_last_time_is_said_beside_the_numbers() -> None:
    slow = Latency("peer", 10_000.0, 9_900.0, 10_100.0, 50)
    expected = "noisy, run again: 1,000 times slower than last time (10.0 us)"
    assert note(slow, report(QUIET)) == expected
    assert note(slow, report(replace(QUIET, name="another"))) is None
    assert note(slow, report(QUIET, machine="another CPU")) is None, "another machine says nothing"


def test_few_calls_are_said() -> None:
    few = "in the time given, give it more seconds"
    assert note(replace(QUIET, runs=1)) == f"few calls: only 1 {few}"
    assert note(replace(QUIET, runs=4, p90_us=30.0)) == (
        f"noisy, run again: a tenth of its calls took over 3.0 times its median; few calls: only 4 {few}"
    )


def test_notes_are_stored_and_reports_from_before_there_were_any_are_read() -> None:
    found = report(QUIET, replace(QUIET, p90_us=68.0)).doubted()
    stored = json.loads(json.dumps(found.to_json()))
    assert BenchReport.from_json(stored) == found
    old = {**stored, "contenders": [{k: v for k, v in item.items() if k != "note"} for item in stored["contenders"]]}
    assert [item.note for item in BenchReport.from_json(old).contenders] == [None, None]
