"""A worker's side of `benchmarks.turns`: bursts of calls when asked for, and what they took of the machine."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PDEATHSIG = 1  # prctl(2), PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Burst:
    """Some calls in a row.

    Attributes:
        seconds: of each call.
        lost: of each call, the share in which the engine wanted to run and did not: the time that its threads waited
            for a core, or by which CPU time fell short of wall time. The thread that calls works, or waits for one that
            does, so that CPU time is never far under wall time on a machine of its own, however many threads there are.
        wall: seconds of the whole burst.
        cpu: CPU seconds that all threads of the engine spent in it.
        busy: CPU seconds that the whole machine spent in it, this engine's too; 0 where the kernel does not tell.
    """

    seconds: tuple[float, ...]
    lost: tuple[float, ...]
    wall: float
    cpu: float
    busy: float

    def undisturbed(self, most_lost: float) -> list[float]:
        """Seconds of the calls that lost no larger share."""
        return [seconds for seconds, lost in zip(self.seconds, self.lost, strict=True) if lost <= most_lost]


class Channel:
    """A worker's side: make it before anything that prints, then `serve`. Standard output is the protocol's alone."""

    def __init__(self) -> None:
        with suppress(OSError, AttributeError):  # a stopped worker must not outlive the process that would go on
            ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def serve(self, call: Callable[[], object], about: Mapping[str, Any] | None = None) -> None:
        """Answer bursts until standard input ends.

        Args:
            call: of the engine, warmed up.
            about: what the engine is, such as versions and the instruction set that it took.
        """
        self._say({"about": dict(about or {})})
        while line := os.read(0, 64):
            call()  # wakes the engine's threads; not counted
            self._say(vars(_burst(call, int(line))))

    def _say(self, message: Mapping[str, Any]) -> None:
        print(json.dumps(message), file=self._out, flush=True)


def _burst(call: Callable[[], object], calls: int) -> Burst:
    seconds, lost = [], []
    with _Queues() as queues:
        busy, start, started = _busy_seconds(), time.perf_counter(), time.process_time()
        for _ in range(calls):
            queued, cpu, begun = queues.seconds(), time.process_time(), time.perf_counter()
            call()
            taken = time.perf_counter() - begun
            waited = max(queues.seconds() - queued, taken - (time.process_time() - cpu))
            seconds.append(taken)
            lost.append(max(0.0, waited / taken))
        cpu, wall = time.process_time() - started, time.perf_counter() - start
        return Burst(tuple(seconds), tuple(lost), wall, cpu, _busy_seconds() - busy)


class _Queues:
    """How long this process's threads have been ready to run without a core; nothing where the kernel does not tell.

    The second number of a thread's schedstat is nanoseconds on a run queue (Linux, Documentation/scheduler/
    sched-stats.rst). The files stay open over a burst, so that looking takes microseconds.
    """

    def __enter__(self) -> _Queues:
        self._files = []
        for path in Path("/proc/self/task").glob("*/schedstat"):
            with suppress(OSError):  # the thread has ended
                self._files.append(os.open(path, os.O_RDONLY))
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            os.close(file)

    def seconds(self) -> float:
        """Of all threads that were there when the burst began, summed."""
        total = 0
        for file in self._files:
            with suppress(OSError):
                total += int(os.pread(file, 100, 0).split()[1])
        return total * 1e-9


def _busy_seconds() -> float:
    """CPU seconds of the whole machine since it started, idle ones left out (proc(5), /proc/stat)."""
    try:
        ticks = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0.0
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # without idle and iowait
