"""What GPU kernels cost: a launch, and the longest of moving bytes, computing, and one thread's own work.

    microseconds = LAUNCH_US + max(bytes / bandwidth, operations / rate, longest thread)

Bandwidth, multiprocessors and clock are the GPU's (`hawq_tvm.core.gpu`); what is reached of them is estimated, not
measured: `EFFICIENCY` of a peak at the base clock. Only the ratios decide which offers are taken.
"""

from __future__ import annotations

from math import prod

from hawq_tvm.core.gpu import T4, GpuFacts
from hawq_tvm.core.ir import TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.core.targets import Target
from hawq_tvm.kernels.interface import Request

LAUNCH_US = 2.5
"""From one kernel of a stream to the next."""

EFFICIENCY = 0.6
"""What is reached of the peaks of memory and tensor cores."""

LANES = 64
"""Integer multiply-adds that a multiprocessor starts in a cycle (Turing GPU Architecture, WP-09183-001)."""

SIMPLE_EFFICIENCY = 0.15
"""What the simple kernels reach of them, beside loads, addresses and unpacking."""

STEP_CYCLES = 30
"""Of a thread from one iteration of its loop to the next, where it waits for what it loads."""

BYTE_ACCESS = 4
"""How many times as long a warp takes for single bytes as for words of the same memory."""


def facts(target: Target) -> GpuFacts:
    """Those of the target's GPU; a T4's where they are not known."""
    return target.gpu or T4


def moved_bytes(stored: list[tuple[TensorType, Storage]], batch: int) -> float:
    """Bytes read and written, those of canonical values weighted since they go one by one."""
    return float(
        sum(
            storage.size_bytes(type, batch) * (BYTE_ACCESS if storage.order == "NCHW" and storage.bits == 8 else 1)
            for type, storage in stored
        )
    )


def simple_cost(
    request: Request, reads: tuple[Storage, ...], writes: Storage, steps: int, constant_bytes: int = 0
) -> float:
    """Estimated microseconds of a simple kernel.

    Args:
        request: what is computed.
        reads: how each input is stored.
        writes: how the result is stored.
        steps: multiply-adds, or elements that are looked at, for one element of the result.
        constant_bytes: of weights.
    """
    stored = [*zip(request.inputs, reads, strict=True), (request.node.type, writes)]
    bytes_ = moved_bytes(stored, request.batch) + constant_bytes
    return microseconds(request.target, bytes_, request.batch * prod(request.node.type.shape) * steps, steps)


def microseconds(target: Target, bytes_: float, operations: float = 0.0, steps: int = 0) -> float:
    """A launch and the longest of what memory, arithmetic and one thread take."""
    gpu = facts(target)
    rate = gpu.sms * LANES * gpu.base_clock_mhz * SIMPLE_EFFICIENCY
    return LAUNCH_US + max(memory_us(gpu, bytes_), operations / rate, steps * STEP_CYCLES / gpu.base_clock_mhz)


def memory_us(gpu: GpuFacts, bytes_: float) -> float:
    """What memory takes for so many bytes."""
    return bytes_ / (gpu.bandwidth_gb_s * 1e3) / EFFICIENCY
