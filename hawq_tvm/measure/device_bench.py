"""Latency of a whole network on a device behind RPC, after a look at whether it computes the right integers there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto

from hawq_tvm.backends.onnx.runner import OnnxRuntimeModule
from hawq_tvm.backends.tvm.cuda.device import runs_on
from hawq_tvm.backends.tvm.devices.messages import Computed, DeviceFacts, Job, Network, Timed
from hawq_tvm.backends.tvm.devices.session import check_cpu, look, perform, session_seconds
from hawq_tvm.backends.tvm.host import default_threads
from hawq_tvm.backends.tvm.info import LibraryInfo
from hawq_tvm.core.devices import Device
from hawq_tvm.core.errors import DeviceError
from hawq_tvm.core.interpreter import quantize_input
from hawq_tvm.core.ir import Array
from hawq_tvm.core.targets import find_target
from hawq_tvm.measure.bench import BenchReport, latency_of

_WARMUP = 3
"""Calls before any is counted: one whose output is compared, one that warms up, one that tells how long they take."""


def benchmark_on_device(
    library: Path,
    model: ModelProto,
    device: Device,
    *,
    threads: int | None,
    seconds: float,
    seed: int = 0,
    previous: BenchReport | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """Time a library on a device by TVM's time evaluator there, from resident input to output; no peers.

    Args:
        library: the ``.so``, intact, its JSON beside it.
        model: the integer ONNX model that it was compiled from, which says what it has to compute.
        device: behind RPC.
        threads: of a CPU; None for as many as TVM gives there.
        seconds: how long it is timed.
        seed: of the input.
        previous: what was measured last time, which numbers far above it are noted against.
        progress: called with the share of the time that is gone, in percent, and 100.
        note: told what is worth reading meanwhile.

    Raises:
        DeviceError: the device is not there, does not run the library, computes other integers, or is lost; or it is
            an emulated one, whose times are told and are no measurement.
    """
    info = LibraryInfo.read(library)
    gpu = info.gpu is not None
    facts = look(device, gpu=gpu, threads=threads, note=note)
    check_runs(device, facts, info)
    x = _input(info, seed)
    work = Network(library, x, seconds)
    taken: list[float] = []
    for answer in perform(Job(device, gpu, threads, session_seconds(work), work), note):
        if isinstance(answer, Computed):
            _check_output(answer.output, model, info, x, device)
        elif isinstance(answer, Timed):
            taken += answer.seconds
            if progress is not None:
                progress(min(99, round(100 * sum(taken) / seconds)), 100)
    if progress is not None:
        progress(100, 100)
    if facts.is_emulated:
        raise DeviceError(
            f"{device} is {facts.name}: the network ran there and gave the right integers, emulated in "
            f"{np.median(taken) * 1e3:,.0f} ms a call, which says nothing of a GPU and is not kept"
        )
    return BenchReport(
        machine=f"{facts} at {device}",
        target=info.target,
        threads=facts.threads or 1,
        batch=info.batch,
        warmup=_WARMUP,
        contenders=(latency_of("hawq_tvm", taken[1:] or taken),),
        layers_us={},
        kernels=info.call_kernels,
    ).doubted(previous)


def check_runs(device: Device, facts: DeviceFacts, info: LibraryInfo) -> None:
    """Whether a device runs what a library holds.

    Raises:
        DeviceError: it does not.
    """
    if info.gpu is None:
        check_cpu(device, facts, find_target(info.target), info.cpu)
        return
    major, minor = map(int, facts.compute_capability.split("."))
    if not runs_on(info.gpu, major, minor):
        raise DeviceError(
            f"{device} is {facts.name} ({facts.architecture}), and the library holds machine code for "
            f"{', '.join(info.gpu.architectures)} and PTX for {info.gpu.ptx}; compile for a target of its architecture"
        )
    if facts.memory_bytes and facts.memory_bytes < info.gpu.device_bytes:
        raise DeviceError(
            f"{device} has {facts.memory_bytes / 1e9:.2f} GB of memory, and the library needs "
            f"{info.gpu.device_bytes / 1e9:.2f} GB; compile for a smaller --batch"
        )


def _input(info: LibraryInfo, seed: int) -> Array:
    """One batch of noise."""
    type = info.values[info.input_name].type
    x = np.random.default_rng(seed).standard_normal((info.batch, *type.shape), dtype=np.float32)
    return quantize_input(x, type)


def _check_output(output: Array, model: ModelProto, info: LibraryInfo, x: Array, device: Device) -> None:
    expected = OnnxRuntimeModule(model, threads=default_threads()).run(x)[info.output_name]
    different = int(np.count_nonzero(output != expected))
    if output.shape != expected.shape or different:
        raise DeviceError(
            f"on {device} the network gives other integers than ONNX Runtime here: {different} of {expected.size} "
            "differ, so its speed means nothing; see whether hawq-tvm verify finds the layer"
        )
