"""Latency of a compiled network beside its peers, all in one interleaved run.

Contenders take turns in short bursts, A B C A B C, so that a machine that slows down slows all of them. Each burst
starts with a call that is not counted, in which the other contenders' threads fall asleep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hawq_tvm.core.errors import RunError
from hawq_tvm.core.strict_json import JsonReader

_BURST = 5


@dataclass(frozen=True)
class Latency:
    """Seconds a call of one contender, in microseconds.

    Attributes:
        name: the contender.
        median_us: its median.
        p10_us: tenth percentile.
        p90_us: ninetieth percentile.
        runs: how many calls were counted.
    """

    name: str
    median_us: float
    p10_us: float
    p90_us: float
    runs: int


@dataclass(frozen=True)
class BenchReport:
    """One interleaved run.

    Attributes:
        machine: the CPU's name.
        target: what the library was compiled for.
        threads: that every contender may use.
        batch: samples a call.
        warmup: calls of each contender before the run.
        contenders: the compiled network first, then its peers.
        layers_us: median microseconds of each kernel call, by layer.
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

    def ratio(self, name: str) -> float:
        """How many times as long as the compiled network a peer takes."""
        return next(peer.median_us for peer in self.contenders if peer.name == name) / self.contenders[0].median_us

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
        seconds: about how long the whole takes; never fewer than 5 rounds.
        warmup: calls of each before any is counted.
        progress: called with rounds done and rounds in all.

    Returns:
        One latency a contender, in the order given.
    """
    round_seconds = 0.0
    for call in contenders.values():
        for _ in range(warmup):
            start = time.perf_counter()
            call()
            last = time.perf_counter() - start
        round_seconds += last * (_BURST + 1)
    rounds = int(np.clip(seconds / max(round_seconds, 1e-6), 5, 200))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for done in range(rounds):
        for name, call in contenders.items():
            call()
            for _ in range(_BURST):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
        if progress is not None:
            progress(done + 1, rounds)
    return tuple(_summary(name, taken) for name, taken in times.items())


def _summary(name: str, seconds: Sequence[float]) -> Latency:
    low, median, high = (float(value) * 1e6 for value in np.percentile(seconds, (10, 50, 90)))
    return Latency(name, median, low, high, len(seconds))


def median_layers(measure: Callable[[], Mapping[str, float]], *, repeats: int = 9) -> dict[str, float]:
    """Median microseconds by layer over several runs of `CompiledModule.call_times`."""
    runs = [measure() for _ in range(repeats)]
    return {name: float(np.median([run[name] for run in runs])) * 1e6 for name in runs[0]}
