"""What the generic kernels take: one operator each, on any CPU."""

from __future__ import annotations

from collections.abc import Callable

from hawq_tvm.core.ir import Operator
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.kernels.interface import Request


def takes(operator: type[Operator], *, weight_bits: int = 8) -> Callable[[Request], str | None]:
    """The `decline` of a kernel that takes every node of one operator whose weights fit `weight_bits` bits."""

    def decline(request: Request) -> str | None:
        op = request.node.op
        if request.target.kind != "llvm":
            return f"written for CPUs through LLVM, not for '{request.target.kind}'"
        if not isinstance(op, operator):
            return f"computes {operator.kind}, not {op.kind}"
        if isinstance(op, WeightedOperator) and op.weight_bits > weight_bits:
            return f"stores weights in {weight_bits} bits, these have {op.weight_bits}"
        return None

    return decline
