"""What the simple GPU kernels cost: the longest of moving bytes, computing, and one thread's own work.

The model is `hawq_tvm.core.gpu_model`; here is what it is told of kernels in which a thread computes a word of the
result. What these reach is estimated, not measured, so that offers can be compared; the kernels that matter are counted
tile by tile (`gemm_costs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from hawq_tvm.core.gpu import T4, GpuFacts
from hawq_tvm.core.gpu_model import DRAM_LATENCY_CYCLES, L2_BYTES_PER_CYCLE, Prediction, beyond_l2
from hawq_tvm.core.storage import Storage
from hawq_tvm.core.targets import Target
from hawq_tvm.kernels.cuda.storages import Stored, stored_values
from hawq_tvm.kernels.interface import Request

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


def stored_bytes(stored: Sequence[Stored], batch: int) -> float:
    """Memory of some values."""
    return float(sum(storage.size_bytes(type, batch) for type, storage in stored))


def moved_bytes(stored: Sequence[Stored], batch: int) -> float:
    """Bytes read and written, those of canonical values weighted since they go one by one."""
    return float(
        sum(
            storage.size_bytes(type, batch) * (BYTE_ACCESS if storage.order == "NCHW" and storage.bits == 8 else 1)
            for type, storage in stored
        )
    )


def simple_cost(
    request: Request, reads: tuple[Storage, ...], writes: Storage, steps: int, constant_bytes: int = 0
) -> Prediction:
    """What a simple kernel takes.

    Args:
        request: what is computed.
        reads: how each input is stored.
        writes: how the result is stored.
        steps: multiply-adds, or elements that are looked at, for one element of the result.
        constant_bytes: of weights.
    """
    inputs, output = stored_values(request, reads, writes)
    operations = request.batch * prod(request.node.type.shape) * steps
    return moving(facts(request.target), [*inputs, output], request.batch, constant_bytes, operations, steps)


def moving(
    gpu: GpuFacts,
    stored: Sequence[Stored],
    batch: int,
    constant_bytes: int = 0,
    operations: float = 0.0,
    steps: int = 0,
) -> Prediction:
    """What it takes to read and write values, with so many operations in all and so many steps in a row."""
    cycles = {
        "L2": (moved_bytes(stored, batch) + constant_bytes) / (gpu.sms * L2_BYTES_PER_CYCLE),
        "issue": operations / (gpu.sms * LANES * SIMPLE_EFFICIENCY),
        "waiting": float(steps * STEP_CYCLES),
    }
    dram_bytes = constant_bytes + beyond_l2(stored_bytes(stored, batch), gpu.l2_bytes)
    return Prediction(gpu, DRAM_LATENCY_CYCLES, cycles, dram_bytes)
