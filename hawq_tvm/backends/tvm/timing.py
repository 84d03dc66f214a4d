"""Microseconds of kernels on this machine's CPU, each as it would be called within a network.

Called over and over, a kernel finds its weights in the nearest cache. In a network they were read one network ago,
while its input, its scratch and its code have just been used. So before each call that is timed come three others: the
same call, a reading of as many bytes as the network touches, and the call with a copy of the weights elsewhere. Of a
ResNet-50's layers half are then within 3 % of their time in the running network and all within 6 %, where warm calls
are off by up to 60 %, in the layers whose weights take the time (`docs/latency.md`, `benchmarks/alone_within.py`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hawq_tvm.backends.tvm.build import compile_library
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.backends.tvm.runtime import load_library
from hawq_tvm.backends.tvm.workers import configure_threads, placed_threads
from hawq_tvm.core.ir import Array

ROUNDS = 30
"""How often every kernel is timed, all kernels taking turns."""

MOST_BYTES = 64 * 2**20
"""Read between two calls, however large the network: more than the caches that a core has a share of."""

_LINE = 64


@dataclass(frozen=True)
class KernelTime:
    """What was measured of a kernel.

    Attributes:
        seconds: of a call: the mean of each repeat.
        calls: in a repeat.
    """

    seconds: tuple[float, ...]
    calls: int

    @property
    def median_us(self) -> float:
        return float(np.median(self.seconds)) * 1e6

    @property
    def spread_us(self) -> tuple[float, float]:
        """Tenth and ninetieth percentile of the repeats."""
        low, high = np.percentile(self.seconds, (10, 90))
        return float(low) * 1e6, float(high) * 1e6


@dataclass(frozen=True, eq=False)
class TimedKernel:
    """A kernel to time.

    Attributes:
        function: TVM's PrimFunc.
        arguments: what it is called with, the output last.
        inputs: how many of them, at the front, another kernel has just written.
    """

    function: Any
    arguments: Sequence[Array]
    inputs: int


def time_kernels(
    kernels: Sequence[TimedKernel],
    machine: Machine,
    *,
    threads: int,
    network_bytes: int,
    rounds: int = ROUNDS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[KernelTime]:
    """Time kernels in turns, all in one library.

    Args:
        kernels: what to time.
        machine: what they are compiled for; this one.
        threads: of a call.
        network_bytes: what a call of the network that they are of touches.
        rounds: how often each is called.
        progress: called with rounds done and rounds in all.

    Raises:
        CompileError: a kernel does not compile.
    """
    functions = {f"kernel_{index}": kernel.function for index, kernel in enumerate(kernels)}
    functions["read_all"] = _reader(threads)
    module = tvm.IRModule({name: function.with_attr("global_symbol", name) for name, function in functions.items()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        failure = f"a kernel does not compile for target '{machine.target.name}'"
        compile_library(module, machine.tvm_target, path, failure=failure)
        library = load_library(path)
    configure_threads(threads)
    others = _lines(np.ones(max(1, min(network_bytes, MOST_BYTES)), np.uint8))
    sums = tvm.runtime.tensor(np.zeros(threads, np.int64))
    calls = [
        _Call(library[f"kernel_{index}"], kernel, partial(library["read_all"], tvm.runtime.from_dlpack(others), sums))
        for index, kernel in enumerate(kernels)
    ]
    times: list[list[float]] = [[] for _ in calls]
    with placed_threads():
        for done in range(rounds):
            for call, taken in zip(calls, times, strict=True):
                taken.append(call.seconds())
            progress(done + 1, rounds)
    return [KernelTime(tuple(taken), 1) for taken in times]


class _Call:
    """A kernel with its arguments, and what comes before it."""

    def __init__(self, function: Any, kernel: TimedKernel, read_others: Callable[[], object]) -> None:
        *images, output = (_in_lines(array) for array in kernel.arguments)
        elsewhere = (_in_lines(array) for array in kernel.arguments[kernel.inputs : -1])
        self._timed = partial(function, *images, output)
        self._before = self._timed, read_others, partial(function, *images[: kernel.inputs], *elsewhere, output)

    def seconds(self) -> float:
        """Of one call."""
        for call in self._before:
            call()
        start = time.perf_counter()
        self._timed()
        return time.perf_counter() - start


def _in_lines(array: Array) -> Any:
    """A copy in cache lines of its own, as TVM takes it."""
    own = _lines(array).reshape(-1).view(np.uint8)[: array.nbytes].view(array.dtype).reshape(array.shape)
    return tvm.runtime.from_dlpack(own)


def _lines(array: Array) -> Array:
    """A copy as the cache lines that it lies in: int64 [lines, 8]."""
    size = -(-array.nbytes // _LINE) * _LINE
    room = np.zeros(size + _LINE, np.uint8)
    lines = room[-room.ctypes.data % _LINE :][:size]
    lines[: array.nbytes] = array.reshape(-1).view(np.uint8)
    return lines.view(np.int64).reshape(-1, _LINE // 8)


def _reader(threads: int) -> Any:
    """A function of memory, int64 [lines, 8], and sums, int64 [threads]: every thread reads all of it."""
    lines = tirx.Var("lines", "int32")
    with IRBuilder() as builder, T.prim_func():
        T.func_attr({"tirx.noalias": True})
        memory = T.arg("memory", T.buffer((lines, _LINE // 8), "int64"))
        sums = T.arg("sums", T.buffer((threads,), "int64"))
        with T.sblock("root"), T.parallel(threads) as thread:
            total = T.alloc_buffer((1,), "int64", scope="local")
            T.buffer_store(total, tirx.const(0, "int64"), [0])
            with T.serial(lines) as line:
                T.buffer_store(total, total[0] + memory[line, 0], [0])
            T.buffer_store(sums, total[0], [thread])
    return builder.get()
