"""The part of `benchmarks.gpu` that runs on the device: numpy, TVM's runtime, and PyTorch where it is at hand."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from benchmarks import gpu_peers
from benchmarks.gpu_contents import read_contents
from hawq_tvm.backends.tvm.cuda.device import RUNTIME, runs_on
from hawq_tvm.backends.tvm.info import GpuInfo, LibraryInfo
from hawq_tvm.backends.tvm.runtime import CompiledModule
from hawq_tvm.core.errors import RuntimeModuleError
from hawq_tvm.core.ir import Array
from hawq_tvm.core.version import VERSION
from hawq_tvm.measure.bench import interleave

REPEATS = 20
"""Calls of one kernel in the CUDA graph that is timed; emulated, one is enough."""


def measure_folder(folder: Path, seconds: float) -> dict[str, Any]:
    """Check every value of every library, then time.

    Args:
        folder: from `benchmarks.gpu_prepare`.
        seconds: of timing a network at one batch.

    Returns:
        What ``gpu.json`` holds; ``ok`` where every library that this GPU can run was exact.
    """
    contents = read_contents(folder)
    items = contents["libraries"]
    device = describe_device([folder / item["library"] for item in items])
    left_out: list[str] = []
    runnable = [item for item in items if _runs_here(folder, item, device, left_out)]
    correctness = [check_library(folder, item, device) for item in runnable]
    exact = [item for item, row in zip(runnable, correctness, strict=True) if not row["mismatches"]]
    peers, why = gpu_peers.find_peers(emulated=device["emulated"])
    if why is not None:
        left_out.append(why)
    latency, layers = [], []

    def group(item: Any) -> tuple[str, int]:
        return item["network"], item["batch"]

    for (network, batch), members in groupby(sorted(exact, key=group), group):
        about = contents["networks"][network]
        modules = {f"{item['bits']} ({item['target']})": load(folder, item) for item in members}
        others = peers(folder / about["float"], about["products"], batch) if peers is not None else None
        whole, alone = time_network(modules, others, seconds, emulated=device["emulated"])
        latency.append({"network": network, "batch": batch, "contenders": whole})
        layers.append({"network": network, "batch": batch, "us": alone})
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device,
        "versions": {"hawq_tvm": VERSION, "tvm": str(tvm.__version__), **gpu_peers.versions()},
        "ok": len(exact) == len(runnable) > 0,
        "left_out": left_out,
        "correctness": correctness,
        "latency": latency,
        "layers": layers,
    }


def describe_device(libraries: Sequence[Path]) -> dict[str, Any]:
    """The GPU's name and what it says of itself.

    Args:
        libraries: the first that loads brings TVM's part for GPUs with it.

    Raises:
        SystemExit: none does, as where there is no GPU.
    """
    reasons = []
    for library in libraries:
        try:
            CompiledModule(library)
            break
        except RuntimeModuleError as error:
            reasons.append(str(error))
    else:
        why = reasons[0] if reasons else "nothing was prepared"
        raise SystemExit(f"error: {why}; or prove the way through with --emulate")
    gpu = tvm.cuda(0)
    return {
        "name": gpu.device_name,
        "capability": str(gpu.compute_version),
        "multiprocessors": int(gpu.multi_processor_count),
        "emulated": "HAWQ_TVM_EMULATOR" in os.environ,
    }


def _runs_here(folder: Path, item: Mapping[str, Any], device: Mapping[str, Any], left_out: list[str]) -> bool:
    gpu = LibraryInfo.read(folder / item["library"]).gpu
    assert gpu is not None
    if runs_on(gpu, *_capability(device)):
        return True
    left_out.append(f"{item['library']}, which holds code for {', '.join(gpu.architectures)} and PTX for {gpu.ptx}")
    return False


def _capability(device: Mapping[str, Any]) -> tuple[int, int]:
    major, minor = map(int, device["capability"].split("."))
    return major, minor


def code_that_runs(gpu: GpuInfo, device: Mapping[str, Any]) -> str:
    """Whether the GPU finds machine code in the library, or its driver compiles the PTX."""
    major, minor = _capability(device)
    native = [f"sm_{major}{lower}" for lower in range(minor, -1, -1) if f"sm_{major}{lower}" in gpu.architectures]
    return f"machine code, {native[0]}" if native else f"PTX, {gpu.ptx}, compiled by the driver"


def load(folder: Path, item: Mapping[str, Any]) -> tuple[CompiledModule, Array]:
    """A library, and a batch for it: the two samples of its expected values in turns."""
    with np.load(folder / item["expected"]) as expected:
        return CompiledModule(folder / item["library"]), expected["0"][np.arange(item["batch"]) % 2]


def check_library(folder: Path, item: Mapping[str, Any], device: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of a library, call by call and as one CUDA graph, against the interpreter's.

    Two batches: in the second the two samples have changed places.
    """
    module = CompiledModule(folder / item["library"])
    gpu = module.info.gpu
    assert gpu is not None
    with np.load(folder / item["expected"]) as file:
        expected = {name: file[str(number)] for number, name in enumerate(item["values"])}
    place = np.arange(item["batch"])
    order = np.concatenate([place % 2, (place + 1) % 2])
    x = expected[module.info.input_name][order]
    started = time.perf_counter()
    values = module.values(x)
    mismatches = {
        name: int((values[name] != wanted[order]).sum())
        for name, wanted in expected.items()
        if not np.array_equal(values[name], wanted[order])
    }
    output = expected[module.info.output_name][order]
    launched = int((module.run(x) != output).sum())
    if launched:
        mismatches[f"{module.info.output_name}, launched as one graph"] = launched
    return {
        "library": item["library"],
        "code": code_that_runs(gpu, device),
        "kernels": sorted(set(module.info.call_kernels.values())),
        "values": len(expected),
        "integers": sum(wanted[order].size for wanted in expected.values()),
        "mismatches": mismatches,
        "seconds": round(time.perf_counter() - started, 3),
    }


def time_network(
    modules: Mapping[str, tuple[CompiledModule, Array]],
    peers: gpu_peers.Peers | None,
    seconds: float,
    *,
    emulated: bool,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """Latencies of whole networks, in turns, and of every call alone.

    Args:
        modules: with a batch for each, by name.
        peers: other ways to run the same network.
        seconds: of the whole networks.
        emulated: whether the GPU is.

    Returns:
        One `Latency` a contender, ours a call that is waited for and one of `REPEATS` calls in a row; and microseconds
        by contender and call.
    """
    repeats = 1 if emulated else REPEATS
    contenders: dict[str, Callable[[], object]] = {}
    for name, (module, x) in modules.items():
        contenders[name] = module.prepare(x)
        contenders[f"{name}, {repeats} calls in a row"] = module.prepare(x, calls=repeats)
    if peers is not None:
        contenders.update(peers.networks)
    found = []
    for latency in interleave(contenders, seconds=seconds):
        latency = replace(latency, note=latency.doubts(None))
        if latency.name.endswith("in a row"):
            scaled = {key: getattr(latency, key) / repeats for key in ("median_us", "p10_us", "p90_us")}
            latency = replace(latency, **scaled)
        found.append(asdict(latency))
    timer = GraphTimer()
    alone = {name: time_calls(module, x, timer, repeats) for name, (module, x) in modules.items()}
    return found, {**alone, **(peers.layers() if peers is not None else {})}


def time_calls(module: CompiledModule, x: Array, timer: GraphTimer, repeats: int) -> dict[str, float]:
    """Microseconds of every kernel call of a library by itself, in the order of the network."""
    times: dict[str, float] = {}

    def visit(name: str, call: Callable[[], None]) -> None:
        times[name] = 1e6 * timer.seconds(call, repeats)

    module.visit_calls(x, visit)
    return times


class GraphTimer:
    """Times kernels as a CUDA graph runs them: without the host between two launches."""

    def __init__(self) -> None:
        self._device = tvm.cuda(0)
        self._cuda = ctypes.CDLL(RUNTIME)  # which TVM's runtime has loaded
        self._stream = self._device.create_raw_stream()

    def seconds(self, call: Callable[[], None], repeats: int) -> float:
        """Median over nine launches of a graph of so many calls, a call."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        stream = ctypes.c_void_p(self._stream)
        with self._on_stream():
            self._check("cudaStreamBeginCapture", stream, _RELAXED)
            for _ in range(repeats):
                call()
            self._check("cudaStreamEndCapture", stream, ctypes.byref(graph))
        self._check("cudaGraphInstantiate", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        times = []
        for _ in range(_LAUNCHES + 1):
            started = time.perf_counter()
            self._check("cudaGraphLaunch", executable, stream)
            self._check("cudaStreamSynchronize", stream)
            times.append(time.perf_counter() - started)
        self._check("cudaGraphExecDestroy", executable)
        self._check("cudaGraphDestroy", graph)
        return float(np.median(times[1:])) / repeats

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """TVM launches kernels on our stream, then on the one that it takes by default."""
        self._device.sync()
        self._device.set_raw_stream(self._stream)
        try:
            yield
        finally:
            self._device.set_raw_stream(0)

    def _check(self, function: str, *arguments: Any) -> None:
        status = getattr(self._cuda, function)(*arguments)
        if status:
            raise RuntimeModuleError(f"timing a kernel alone: {function} fails with CUDA error {status}")


_RELAXED, _LAUNCHES = 2, 9  # cudaStreamCaptureModeRelaxed (driver_types.h)
