"""What the simple kernels cost: a launch, and the longer of moving their bytes and doing their arithmetic.

    microseconds = LAUNCH_US + max(bytes / BYTES_PER_US, operations / OPERATIONS_PER_US)

The rates are estimates for a T4, not measurements: 320 GB/s of memory (NVIDIA, T4 data sheet DS-08866-001), of which
copies reach about three quarters, and 40 multiprocessors that start 64 integer multiply-adds in each of about 1.3
billion cycles a second, a fifth of which is left for products beside loads and unpacking. Only their ratios decide.
"""

from __future__ import annotations

from math import prod

from hawq_tvm.core.ir import TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.interface import Request

LAUNCH_US = 2.5
"""From one kernel of a stream to the next."""

BYTES_PER_US = 240e3
OPERATIONS_PER_US = 40 * 64 * 1300 / 5

BYTE_ACCESS = 4
"""How many times as long a warp takes for single bytes as for words of the same memory."""


def moved_bytes(stored: list[tuple[TensorType, Storage]], batch: int) -> float:
    """Bytes read and written, those of canonical values weighted since they go one by one."""
    return float(
        sum(
            storage.size_bytes(type, batch) * (BYTE_ACCESS if storage.order == "NCHW" and storage.bits == 8 else 1)
            for type, storage in stored
        )
    )


def simple_cost(
    request: Request, reads: tuple[Storage, ...], writes: Storage, operations: int, constant_bytes: int = 0
) -> float:
    """Estimated microseconds of a kernel that reads its inputs once.

    Args:
        request: what is computed.
        reads: how each input is stored.
        writes: how the result is stored.
        operations: multiply-adds, or elements that a window looks at.
        constant_bytes: of weights.
    """
    stored = [*zip(request.inputs, reads, strict=True), (request.node.type, writes)]
    return microseconds(moved_bytes(stored, request.batch) + constant_bytes, operations)


def microseconds(bytes_: float, operations: float) -> float:
    """A launch and the longer of both."""
    return LAUNCH_US + max(bytes_ / BYTES_PER_US, operations / OPERATIONS_PER_US)


def outputs(request: Request) -> int:
    """Elements of the result."""
    return request.batch * prod(request.node.type.shape)
