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
        wall: seconds of the whole burst.
        cpu: CPU seconds that all threads of the engine spent in it.
        queued: seconds that its threads were ready to run and had no core, summed; 0 where the kernel does not tell.
        busy: CPU seconds that the whole machine spent in it, this engine's too; 0 where the kernel does not tell.
    """

    seconds: tuple[float, ...]
    wall: float
    cpu: float
    queued: float
    busy: float

    @property
    def lost(self) -> float:
        """Share of the burst in which the engine wanted to run and did not: its queues, or wall time over CPU time.

        The thread that calls works or is waited for by one that does, so CPU time is never far under wall time on a
        machine of its own, whatever the number of threads.
        """
        return max(self.queued, self.wall - self.cpu, 0.0) / self.wall


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
    seconds = []
    queued, busy, cpu, start = _queued_seconds(), _busy_seconds(), time.process_time(), time.perf_counter()
    for _ in range(calls):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    return Burst(tuple(seconds), wall, cpu, max(0.0, _queued_seconds() - queued), _busy_seconds() - busy)


def _queued_seconds() -> float:
    """How long this process's threads have been ready to run without a core, summed.

    The second number of a thread's schedstat is nanoseconds on a run queue (Linux, Documentation/scheduler/
    sched-stats.rst).
    """
    total = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended
            total += int(task.read_text().split()[1])
    return total * 1e-9


def _busy_seconds() -> float:
    """CPU seconds of the whole machine since it started, idle ones left out (proc(5), /proc/stat)."""
    try:
        ticks = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0.0
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # without idle and iowait
