"""Engines take turns, each in a process of its own, and each turn says whether the machine was disturbed.

The process that measures starts one worker an engine (`Worker`), and asks each for a burst of calls, round after round,
so that a machine that slows down slows all of them. A worker is stopped (SIGSTOP) while it is not its turn: threads
that wait by spinning would take the cores of the others. The worker's side is `benchmarks.bursts`.

A call's time is believed only where the process had its cores to itself: on a busy machine, minima over thousands of
calls still gave ratios that were wrong by half. `Burst.lost` is the share of each call in which the engine wanted to
run and did not; calls that lost more than a bound are dropped, and where too few are left nothing is reported.
"""

from __future__ import annotations

import json
import os
import select
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

from benchmarks.bursts import Burst

MOST_LOST = 0.03
"""The largest share of a call that an engine may wait for a core."""

MOST_FOREIGN = 0.10
"""The largest share of the machine that other processes may take while the engines run."""

LEAST_UNDISTURBED = 0.5
"""The smallest share of an engine's calls that must be undisturbed."""

_FEWEST_CALLS = 3  # of a burst
_START_SECONDS, _BURST_SECONDS = 900.0, 120.0  # after which an engine hangs


class EngineFailed(Exception):
    """An engine ended, hung or answered nonsense; the message names it and says its last words."""


class Disturbed(Exception):
    """The machine was not quiet, so that no number of this run is to be believed."""


@dataclass(frozen=True)
class Timing:
    """What an engine's undisturbed calls say; milliseconds a call.

    Attributes:
        median_ms: the median.
        min_ms: the fastest call.
        p10_ms: tenth percentile.
        p90_ms: ninetieth percentile.
        calls: how many were undisturbed, which alone are counted.
        disturbed: how many were not.
        lost: share of all calls' time in which the engine waited for a core.
    """

    median_ms: float
    min_ms: float
    p10_ms: float
    p90_ms: float
    calls: int
    disturbed: int
    lost: float

    @property
    def spread(self) -> float:
        """What separates the slow calls from the quick ones, as a share of the median."""
        return (self.p90_ms - self.p10_ms) / self.median_ms


@dataclass(frozen=True)
class Contender:
    """An engine to start.

    Attributes:
        name: for tables and messages.
        command: starts its worker.
        environment: variables beside those of this process.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


class Worker:
    """An engine's process as the measuring one sees it; a context manager that ends it."""

    def __init__(self, contender: Contender) -> None:
        self.name = contender.name
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            contender.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **contender.environment},
            bufsize=0,
        )
        self._rest = b""
        self.about: Mapping[str, Any] = {}

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # SIGKILL ends a stopped process too
        self._process.communicate()
        self._errors.close()

    def wait_ready(self) -> None:
        """Until the engine has loaded and warmed up; it is stopped then.

        Raises:
            EngineFailed: it ended or hung.
        """
        self.about = self._answer(_START_SECONDS)["about"]
        self._process.send_signal(signal.SIGSTOP)

    def burst(self, calls: int) -> Burst:
        """Let the engine run, and stop it again.

        Raises:
            EngineFailed: it ended or hung.
        """
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # its end is told by `_answer`
            self._process.stdin.write(b"%d\n" % calls)
        found = self._answer(_BURST_SECONDS)
        self._process.send_signal(signal.SIGSTOP)
        return Burst(**{**found, "seconds": tuple(found["seconds"]), "lost": tuple(found["lost"])})

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise EngineFailed(f"{self.name} did not answer for {seconds:.0f} s")
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                raise EngineFailed(f"{self.name} ended with status {self._process.wait()}: {self._last_words()}")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"


@dataclass(frozen=True)
class Outcome:
    """One interleaved run.

    Attributes:
        timings: of the engines that ran, in order.
        about: what each said of itself.
        failed: why engines are missing, by name.
        foreign: share of the machine that other processes took.
    """

    timings: Mapping[str, Timing]
    about: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, str]
    foreign: float


def take_turns(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    seconds: float,
    most_lost: float = MOST_LOST,
    most_foreign: float = MOST_FOREIGN,
) -> Outcome:
    """Start all engines, and let them run in turns.

    Args:
        contenders: in the order of their turns.
        rounds: turns of each.
        seconds: of a burst, about; at least three calls.
        most_lost: bound of `Burst.lost`.
        most_foreign: bound of `Outcome.foreign`.

    Raises:
        Disturbed: too few undisturbed calls of an engine, or other processes took too much of the machine.
    """
    with ExitStack() as stack:
        run = _Run()
        for contender in contenders:  # one after the other: loading is heavy
            run.start(stack.enter_context(Worker(contender)))
        for _ in range(rounds):
            for name in tuple(run.workers):
                run.turn(name, seconds)
    taken = run.bursts
    foreign = _foreign([burst for bursts in taken.values() for burst in bursts])
    _refuse_if_disturbed(taken, foreign, most_lost, most_foreign)
    timings = {name: summarize(bursts, most_lost) for name, bursts in taken.items()}
    return Outcome(timings, {name: worker.about for name, worker in run.workers.items()}, run.failed, foreign)


class _Run:
    """The engines that are still in the run, their bursts so far, and why others are not."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self.bursts: dict[str, list[Burst]] = {}
        self.failed: dict[str, str] = {}
        self._pace: dict[str, float] = {}  # seconds a call

    def start(self, worker: Worker) -> None:
        """Let an engine load, and see how long a call takes."""
        try:
            worker.wait_ready()
            self._pace[worker.name] = worker.burst(1).seconds[0]
        except EngineFailed as error:
            self.failed[worker.name] = str(error)
            return
        self.workers[worker.name] = worker
        self.bursts[worker.name] = []

    def turn(self, name: str, seconds: float) -> None:
        """One burst; an engine that fails is out."""
        try:
            burst = self.workers[name].burst(max(_FEWEST_CALLS, round(seconds / max(self._pace[name], 1e-6))))
        except EngineFailed as error:
            self.failed[name] = str(error)
            del self.workers[name], self.bursts[name]
            return
        self._pace[name] = statistics.median(burst.seconds)
        self.bursts[name].append(burst)


def summarize(bursts: Sequence[Burst], most_lost: float = MOST_LOST) -> Timing:
    """What the undisturbed calls of an engine say, of which there must be one."""
    calls = sorted(1e3 * seconds for burst in bursts for seconds in burst.undisturbed(most_lost))
    low, high = (calls[round(share * (len(calls) - 1))] for share in (0.1, 0.9))
    disturbed = sum(len(burst.seconds) for burst in bursts) - len(calls)
    return Timing(statistics.median(calls), calls[0], low, high, len(calls), disturbed, _lost(bursts))


def _lost(bursts: Sequence[Burst]) -> float:
    """Share of all calls' time in which the engine waited for a core."""
    waited = sum(seconds * lost for burst in bursts for seconds, lost in zip(burst.seconds, burst.lost, strict=True))
    return waited / sum(seconds for burst in bursts for seconds in burst.seconds)


def _foreign(bursts: Sequence[Burst]) -> float:
    """Share of the machine's cores that went to other processes."""
    wall = sum(burst.wall for burst in bursts)
    others = sum(burst.busy - burst.cpu for burst in bursts)
    return max(0.0, others / (wall * (os.cpu_count() or 1))) if wall else 0.0


def _refuse_if_disturbed(
    taken: Mapping[str, Sequence[Burst]], foreign: float, most_lost: float, most_foreign: float
) -> None:
    for name, bursts in taken.items():
        calls = sum(len(burst.seconds) for burst in bursts)
        quiet = sum(len(burst.undisturbed(most_lost)) for burst in bursts)
        if quiet < LEAST_UNDISTURBED * calls:
            others = _foreign(bursts)
            own = (
                f"; other processes took only {others:.0%} of the machine then: its own threads may have shared a core"
            )
            raise Disturbed(
                f"{name} had its cores to itself in {quiet} of {calls} calls (it waited {_lost(bursts):.0%} of the "
                f"time; calls that wait over {most_lost:.0%} do not count, and half must be left); nothing is "
                f"reported: run again on a quiet machine{own if others < MOST_FOREIGN else ''}"
            )
    if foreign > most_foreign:
        raise Disturbed(
            f"other processes took {foreign:.0%} of the machine, at most {most_foreign:.0%} is believed; nothing is "
            "reported: run again on a quiet machine"
        )
