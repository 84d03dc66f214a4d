"""The table of kernels, best first, and the choice from it."""

from __future__ import annotations

from hawq_tvm.core.errors import CompileError
from hawq_tvm.kernels.generic import concat, conv2d, elementwise, linear, pooling
from hawq_tvm.kernels.interface import BuiltKernel, Decline, Kernel, Request

KERNELS: tuple[Kernel, ...] = (
    conv2d.CONV2D_W4_GENERIC,
    conv2d.CONV2D_W8_GENERIC,
    linear.LINEAR_W4_GENERIC,
    linear.LINEAR_W8_GENERIC,
    elementwise.ADD_GENERIC,
    elementwise.REQUANTIZE_GENERIC,
    concat.CONCAT_GENERIC,
    pooling.MAX_POOL2D_GENERIC,
    pooling.AVG_POOL2D_GENERIC,
    pooling.GLOBAL_AVG_POOL2D_GENERIC,
)
"""Every kernel; the first that does not decline a request is taken. To add one, see `docs/adding.md`."""


def select_kernel(request: Request) -> tuple[Kernel, tuple[Decline, ...]]:
    """The kernel for a request, and why those before it declined.

    Raises:
        CompileError: all declined; the message is the table of their reasons.
    """
    declines: list[Decline] = []
    for kernel in KERNELS:
        reason = kernel.decline(request)
        if reason is None:
            return kernel, tuple(declines)
        declines.append(Decline(kernel.name, reason))
    lines = "\n".join(f"  {decline.kernel}: {decline.reason}" for decline in declines)
    raise CompileError(
        f"no kernel takes layer '{request.node.name}' ({request.node.op.kind}) "
        f"on target '{request.target.name}':\n{lines}"
    )


__all__ = ["KERNELS", "BuiltKernel", "Decline", "Kernel", "Request", "select_kernel"]
