"""What this machine can do at most, measured: INT8 operations and bytes read a second, and how near its cores are.

The peak of an instruction set is that of its product of unsigned and signed bytes in registers alone, loads and stores
left out: no kernel comes above it. The bandwidth is that of reading a buffer again and again; its size decides which
cache that comes from, so it is asked for the sizes that matter. How long one core takes to see what another has
written depends on which caches they share; the host of a virtual machine may move it from one core to another at any
time, and change that number several times over.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hawq_tvm.backends.tvm.host import find_c_compiler, instruction_sets, usable_cores
from hawq_tvm.core.errors import CompileError

PEAKS = {"amx": "amx_int8", "avx512_vnni": "avx512_vnni", "avx_vnni": "avx_vnni", "avx2": "avx2"}
"""What is measured, the strongest first, and the flag in /proc/cpuinfo without which it is not."""

_SOURCE = Path(__file__).with_suffix(".c")
_SECONDS = 0.12  # for each number
_REPETITION = 4e-3  # seconds; the quickest of all counts, since a ceiling is a maximum
_LEAST_BYTES, _LINE = 256, 64  # of a buffer, and its alignment
_HAND_OVERS, _TRIES = 500, 20  # each way in a try; of these the quickest counts


@dataclass(frozen=True)
class Ceilings:
    """The most that so many threads of this machine do together.

    Attributes:
        threads: how many.
        gops: 10^9 INT8 operations a second, two a product and its sum, by a name in `PEAKS`.
        read_gbs: 10^9 bytes read a second, by the bytes of the buffer, of all threads together.
        hand_over_ns: until a thread sees what the first one has written, of the thread for which that takes longest;
            None of one thread, and where there are more threads than cores.
    """

    threads: int
    gops: Mapping[str, float]
    read_gbs: Mapping[int, float]
    hand_over_ns: float | None = None

    @property
    def strongest(self) -> str | None:
        """The instruction set with the highest peak; None where none was measured."""
        return max(self.gops, key=lambda name: self.gops[name], default=None)

    @property
    def peak_gops(self) -> float | None:
        """Of the strongest."""
        return None if self.strongest is None else self.gops[self.strongest]


def measure_ceilings(threads: int, sizes: Sequence[int]) -> Ceilings:
    """Measure, `_SECONDS` for each number.

    Args:
        threads: that work at once.
        sizes: bytes of the buffers to read; each is divided among the threads.

    Returns:
        Peaks of the instruction sets that this machine has; none on other machines than x86-64.

    Raises:
        CompileError: there is no C compiler, or it fails.
    """
    probe = _Probe(threads)
    return Ceilings(
        threads,
        {name: probe.gops(name) for name in probe.peaks},
        {size: probe.read_gbs(size) for size in sizes},
        probe.hand_over_ns(),
    )


def measure_hand_over(threads: int) -> float | None:
    """Measure `Ceilings.hand_over_ns` alone.

    Raises:
        CompileError: as of `measure_ceilings`.
    """
    return _Probe(threads).hand_over_ns()


class _Probe:
    """The compiled functions, called by several threads at once; ctypes lets other threads run meanwhile."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        present = instruction_sets()
        self._library = _compile(present)
        self.peaks = [name for name, flag in PEAKS.items() if flag in present and hasattr(self._library, name)]
        if "amx" in self.peaks and self._library.ask_for_amx() != 0:
            self.peaks.remove("amx")  # the kernel does not let this process have its tiles

    def gops(self, name: str) -> float:
        """10^9 operations a second."""
        function = getattr(self._library, name)
        function.argtypes, function.restype = [ctypes.c_int64], ctypes.c_int64
        return self._rate([lambda rounds: int(function(rounds))] * self._threads) / 1e9

    def read_gbs(self, size: int) -> float:
        """10^9 bytes a second."""
        function = self._library.read_memory
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64], ctypes.c_uint64
        part = max(_LEAST_BYTES, size // self._threads // _LEAST_BYTES * _LEAST_BYTES)
        buffers = [np.ones(part + _LINE, np.uint8) for _ in range(self._threads)]  # touched, so that it is there

        def reader(buffer: np.ndarray) -> Callable[[int], int]:
            address = -(-buffer.ctypes.data // _LINE) * _LINE

            def read(rounds: int) -> int:
                function(address, part, rounds)
                return rounds * part

            return read

        return self._rate([reader(buffer) for buffer in buffers]) / 1e9

    def hand_over_ns(self) -> float | None:
        """Nanoseconds, as in `Ceilings`."""
        if not 1 < self._threads <= usable_cores():
            return None
        function = self._library.hand_over
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64], None

        def nanoseconds(other: int) -> float:
            numbers = np.zeros((_TRIES + 1, _LINE // 8), np.int64)  # each in a line of its own
            first = numbers.ctypes.data + -numbers.ctypes.data % _LINE
            taken: list[float] = []

            def turns(odd: int) -> None:
                for number in range(_TRIES):
                    start = time.perf_counter()
                    function(first + number * _LINE, odd, _HAND_OVERS)
                    taken.append(time.perf_counter() - start)

            _at_once({0: lambda: turns(0), other: lambda: turns(1)})
            return min(taken) / (2 * _HAND_OVERS) * 1e9

        return max(nanoseconds(other) for other in range(1, self._threads))

    def _rate(self, work: Sequence[Callable[[int], int]]) -> float:
        """What all threads do a second, from the quickest repetition of each."""
        best = [0.0] * len(work)

        def run(index: int) -> None:
            rounds = 1
            end = time.perf_counter() + _SECONDS
            while (start := time.perf_counter()) < end:
                done = work[index](rounds)
                taken = time.perf_counter() - start
                best[index] = max(best[index], done / taken)
                rounds *= 2 if taken < _REPETITION / 2 else 1

        _at_once({index: partial(run, index) for index in range(len(work))})
        return sum(best)


def _at_once(work: Mapping[int, Callable[[], None]]) -> None:
    """Do all of it at once, each in a thread on the core of that number, of those that this one may use."""
    together = threading.Barrier(len(work))
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    def run(index: int, function: Callable[[], None]) -> None:
        if cores:
            os.sched_setaffinity(0, {cores[index % len(cores)]})  # of this thread; two were seen to share a core
        together.wait()
        function()

    threads = [threading.Thread(target=run, args=item) for item in work.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _compile(present: Sequence[str]) -> ctypes.CDLL:
    compiler = find_c_compiler()
    if compiler is None:
        raise CompileError("the machine's ceilings are measured by a C program; install a C compiler: apt install g++")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "ceilings.so"
        flags = ["-DWITH_AMX"] if "amx_int8" in present else []
        flags += ["-DWITH_AVX512", "-mavx512f"] if "avx512f" in present else []
        command = [compiler, "-x", "c", "-O2", *flags, "-shared", "-fPIC", str(_SOURCE), "-o", str(library)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise CompileError(f"{compiler} does not compile {_SOURCE.name}: {_first_error(result.stderr)}")
        return ctypes.CDLL(str(library))


def _first_error(text: str) -> str:
    lines = text.strip().splitlines() or ["it said nothing"]
    return next((line for line in lines if "rror" in line), lines[0])
