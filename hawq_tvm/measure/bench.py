"""Latency of a compiled network beside its peers, all in one interleaved run within a deadline.

Contenders take turns in short bursts, so that a machine that slows down slows all of them. Whoever has had the least
time goes next: all get equal time, spread over the whole run, and a slow one does not keep the others from theirs. Each
burst starts with a call that is not counted, in which the other contenders' threads fall asleep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hawq_tvm.core.errors import RunError
from hawq_tvm.core.specs import counted
from hawq_tvm.core.strict_json import JsonReader

_BURST, _MOST_CALLS = 5, 1000
_FEW_CALLS = 5  # fewer show no spread
_WIDE_SPREAD = 2.0  # p90 per median; a quiet machine stays under 1.3
_SLOWED_DOWN = 3.0  # median per that of last time; bits and kernels alone change less


@dataclass(frozen=True)
class Latency:
    """What a call of one contender takes, in microseconds.

    Attributes:
        name: the contender.
        median_us: its median.
        p10_us: tenth percentile.
        p90_us: ninetieth percentile.
        runs: how many calls were counted.
        note: why these numbers are not to be relied on; None where nothing speaks against them.
    """

    name: str
    median_us: float
    p10_us: float
    p90_us: float
    runs: int
    note: str | None = None

    def doubts(self, previous: Latency | None) -> str | None:
        """Why not to rely on these numbers: few calls, a wide spread, or far slower than last time."""
        noisy, few = [], []
        if self.p90_us > _WIDE_SPREAD * self.median_us:
            noisy.append(f"a tenth of its calls took over {self.p90_us / self.median_us:,.1f} times its median")
        if previous is not None and self.median_us > _SLOWED_DOWN * previous.median_us > 0:
            slower = self.median_us / previous.median_us
            noisy.append(f"{slower:,.0f} times slower than last time ({previous.median_us:,.1f} us)")
        if self.runs < _FEW_CALLS:
            few.append(f"few calls: only {self.runs} in the time given, give it more seconds")
        return "; ".join([*([f"noisy, run again: {', '.join(noisy)}"] if noisy else []), *few]) or None


@dataclass(frozen=True)
class BenchReport:
    """One interleaved run.

    Attributes:
        machine: the CPU's name.
        target: what the library was compiled for.
        threads: that every contender may use.
        batch: samples a call.
        warmup: calls of each contender before the run, as far as its time allowed.
        contenders: the compiled network first, then its peers.
        layers_us: median microseconds of each kernel call inside the running library, by layer.
        kernels: the kernel of each layer.
    """

    machine: str
    target: str
    threads: int
    batch: int
    warmup: int
    contenders: tuple[Latency, ...]
    layers_us: Mapping[str, float]
    kernels: Mapping[str, str]

    @property
    def where(self) -> str:
        """What it was taken on, for the reader."""
        return f"{self.machine}, {counted(self.threads, 'thread')}, batch {self.batch}, target {self.target}"

    def __str__(self) -> str:
        """Where it was taken, then a line for each contender."""
        lines = [
            f"{item.name}: {item.median_us:,.1f} us, {self.ratio(item.name):.2f} of {self.contenders[0].name}'s"
            f"{f' ({item.note})' if item.note else ''}"
            for item in self.contenders
        ]
        return "\n".join([self.where, *lines])

    def ratio(self, name: str) -> float:
        """How many times as long as the compiled network a peer takes."""
        return next(peer.median_us for peer in self.contenders if peer.name == name) / self.contenders[0].median_us

    def doubted(self, previous: BenchReport | None = None) -> BenchReport:
        """This report with a note beside each contender whose numbers are not to be relied on.

        Args:
            previous: the last one of this run; it counts where it was taken on the same machine in the same way.
        """
        earlier: dict[str, Latency] = {}
        if previous is not None and previous._conditions == self._conditions:
            earlier = {item.name: item for item in previous.contenders}
        return replace(
            self, contenders=tuple(replace(item, note=item.doubts(earlier.get(item.name))) for item in self.contenders)
        )

    @property
    def _conditions(self) -> tuple[str, str, int, int]:
        return self.machine, self.target, self.threads, self.batch

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, name: str = "the benchmark") -> BenchReport:
        """Read what `to_json` wrote.

        Args:
            data: as `JsonReader` parses it.
            name: of the file, for messages.

        Raises:
            RunError: anything else.
        """
        reader = JsonReader(name, RunError, "make it again with hawq-tvm bench")
        found: BenchReport = reader.take(data, cls)
        if not found.contenders:
            raise reader.fault("contenders is empty")
        return found


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 5.0,
    warmup: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Latency, ...]:
    """Time contenders in turns.

    Args:
        contenders: a call of each, by name.
        seconds: within which everything is done, warm-ups included; passed only by a call that has begun, and where one
            call of each contender takes longer.
        warmup: calls of each before any is counted: the second where there is time, more where they fit into half of
            the contender's share.
        progress: called with the share of the time that is gone, in percent, and 100.

    Returns:
        One latency a contender, in the order given. Where there was no time to count any, it is of the last call of the
        warm-up.
    """
    started = time.perf_counter()
    share = seconds / len(contenders)
    last: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    shown = 0

    def left() -> float:
        return started + seconds - time.perf_counter()

    def timed(name: str) -> float:
        begun = time.perf_counter()
        contenders[name]()
        last[name] = time.perf_counter() - begun
        return last[name]

    spent = {name: timed(name) for name in contenders}
    for name in contenders:
        for done in range(1, warmup):
            cold = done == 1  # the first call tells little of the next
            if last[name] <= left() and (cold or spent[name] + last[name] <= share / 2):
                spent[name] += timed(name)
    pace, spent = dict(last), dict.fromkeys(contenders, 0.0)
    share = left() / len(contenders)

    def turn(name: str) -> tuple[bool, float]:
        """Whoever would pass its share waits until the others have had theirs; then whoever has had the least time."""
        return spent[name] + 2 * pace[name] > share, spent[name]

    waiting = list(contenders)
    while waiting:
        name = min(waiting, key=turn)
        burst = min(_BURST, int(left() / max(pace[name], 1e-9)) - 1)
        if burst < 1 or len(times[name]) >= _MOST_CALLS:
            waiting.remove(name)
            continue
        spent[name] += timed(name)
        for _ in range(burst):
            if last[name] > left():  # slower than it was
                break
            times[name].append(timed(name))
            spent[name] += last[name]
        pace[name] = float(np.median(times[name][-burst:] or last[name]))
        gone = min(99, int(100 * (1 - left() / seconds)))
        if progress is not None and gone > shown:  # drawing takes time, too
            shown = gone
            progress(gone, 100)
    if progress is not None:
        progress(100, 100)
    return tuple(latency_of(name, taken or [last[name]]) for name, taken in times.items())


def latency_of(name: str, seconds: Sequence[float]) -> Latency:
    """What the counted calls of a contender come to."""
    low, median, high = (float(value) * 1e6 for value in np.percentile(seconds, (10, 50, 90)))
    return Latency(name, median, low, high, len(seconds))


def median_layers(measure: Callable[[], Mapping[str, float]], *, seconds: float, repeats: int = 9) -> dict[str, float]:
    """Median microseconds by layer over several runs of `CompiledModule.call_times`.

    Args:
        measure: one run.
        seconds: after which no further run begins; the first one is made whatever it takes.
        repeats: at most so many.
    """
    started = time.perf_counter()
    runs = [measure()]
    while len(runs) < repeats and time.perf_counter() - started < seconds * len(runs) / (len(runs) + 1):
        runs.append(measure())
    return {name: float(np.median([run[name] for run in runs])) * 1e6 for name in runs[0]}
