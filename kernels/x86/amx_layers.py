"""Which layers AMX takes, and what it costs them."""

from __future__ import annotations

from collections.abc import Callable

from hawq_tvm.core.ops import Conv2d
from hawq_tvm.kernels.generic.costs import CALL_US
from hawq_tvm.kernels.interface import Kernel, Offer, Request
from hawq_tvm.kernels.x86.amx_conv2d import Source, build_conv2d, source_of, source_of_few_channels
from hawq_tvm.kernels.x86.amx_epilogue import FLOAT, HIGH, WIDE, Rescaling
from hawq_tvm.kernels.x86.amx_storages import BLOCK_CHANNELS, PLANE_CHANNELS, Plane
from hawq_tvm.kernels.x86.amx_tiles import AMX_INT8
from hawq_tvm.kernels.x86.storages import missing

STEP_NS = 30.0
RESCALE_NS = {FLOAT: 60.0, HIGH: 90.0, WIDE: 250.0}
RESIDUAL_NS = 30.0
COPY_NS = 0.08
"""Of a k-step and of the rescale of a block, and of a copied byte: prototypes on an Intel Xeon with AMX, one thread,
weights in its second-level cache."""


def _refuse(request: Request) -> str | None:
    """Why no convolution on AMX takes a request."""
    op = request.node.op
    if request.target.kind != "llvm":
        return f"written for CPUs through LLVM, not for '{request.target.kind}'"
    if not isinstance(op, Conv2d):
        return f"computes conv2d, not {op.kind}"
    reason = missing(request.features, AMX_INT8)
    if reason is not None:
        return reason
    if op.groups > 1:
        return (
            f"multiplies whole planes of {PLANE_CHANNELS} channels, which {op.groups} groups would leave nearly empty"
        )
    for name in (*request.node.inputs[1:], request.node.name):
        if not _is_blocked(request, name):
            return f"computes on planes of {PLANE_CHANNELS} channels, in which '{name}' is not in play"
    fill = request.node.type.shape[0] % PLANE_CHANNELS
    if fill and not op.rescale.lo <= 0 <= op.rescale.hi:
        return f"channels that fill up hold zero, which its clip {op.rescale.lo}..{op.rescale.hi} leaves out"
    return None


def _is_blocked(request: Request, name: str) -> bool:
    return name in request.alternatives and request.alternatives[name].block == PLANE_CHANNELS


def _offer(request: Request, source: Source, plane: Plane) -> Offer:
    op, node = request.node.op, request.node
    assert isinstance(op, Conv2d)
    blocks = request.batch * plane.blocks * -(-node.type.shape[0] // BLOCK_CHANNELS)
    form = Rescaling.choose(op, request.inputs, node.type).form
    rescale = RESCALE_NS[form] + (RESIDUAL_NS if op.rescale.residual is not None else 0.0)
    copied = request.batch * source.operand.sample_bytes if source.copy is not None else 0
    cost = CALL_US + (blocks * (source.operand.steps * STEP_NS + rescale) + copied * COPY_NS) / 1e3
    storages = [request.alternatives[name] for name in (*node.inputs[1:], node.name)]
    return Offer((source.reads, *storages[:-1]), storages[-1], cost, lambda: build_conv2d(request, source))


def _conv2d(find: Callable[[Request, Plane], Source | str]) -> Callable[[Request], Offer | str]:
    def offer(request: Request) -> Offer | str:
        reason = _refuse(request)
        if reason is not None:
            return reason
        plane = Plane.of(request.node.type, request.alternatives[request.node.name])
        source = find(request, plane)
        return source if isinstance(source, str) else _offer(request, source, plane)

    return offer


def _blocked(request: Request, plane: Plane) -> Source | str:
    name = request.node.inputs[0]
    if not _is_blocked(request, name):
        return f"reads planes of {PLANE_CHANNELS} channels, in which '{name}' is not in play"
    return source_of(request, plane)


def _few_channels(request: Request, plane: Plane) -> Source | str:
    channels, name = request.inputs[0].shape[0], request.node.inputs[0]
    if not _is_blocked(request, name):
        return f"counts pixels of planes, in which '{name}' is not in play"
    if channels > PLANE_CHANNELS // 4:
        return f"reads images of up to {PLANE_CHANNELS // 4} channels, not of {channels}"
    found = source_of_few_channels(request, plane)
    return (
        found or f"puts a column of as many rows as the stride is high into 64 bytes, which {channels} channels leave"
    )


CONV2D_AMX = Kernel("conv2d_x8w8s32_amx", _conv2d(_blocked))
CONV2D_AMX_FEW_CHANNELS = Kernel("conv2d_x8w8s32_amx_few_channels", _conv2d(_few_channels))
