"""Which layers AMX takes, and what they cost there."""

from __future__ import annotations

from collections.abc import Callable

from hawq_tvm.core.ir import Operator
from hawq_tvm.core.ops import Conv2d, Linear, WeightedOperator
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.dot.unit import missing
from hawq_tvm.kernels.generic.acceptance import ANY_WEIGHT, PACKED_WEIGHT, decline, refuse_filling_up, with_weights
from hawq_tvm.kernels.generic.costs import CALL_US
from hawq_tvm.kernels.interface import LARGEST, Kernel, Offer, Request
from hawq_tvm.kernels.x86.amx_conv2d import Source, Tiling, build_conv2d, source_of, source_of_few_channels
from hawq_tvm.kernels.x86.amx_epilogue import Rescaling
from hawq_tvm.kernels.x86.amx_linear import build_linear
from hawq_tvm.kernels.x86.amx_operands import of_samples
from hawq_tvm.kernels.x86.amx_storages import BLOCK_CHANNELS, BLOCK_PIXELS, PLANE_CHANNELS, Plane
from hawq_tvm.kernels.x86.amx_tiles import AMX_INT8, ROW_BYTES
from hawq_tvm.kernels.x86.amx_weights import STEP_BYTES
from hawq_tvm.kernels.x86.storages import NIBBLES

STEP_NS = 30.0
FLOAT_NS, INTEGER_NS = 60.0, 90.0
RESIDUAL_NS = 30.0
UNPACK_NS, TALL_UNPACK_NS = 15.0, 9.0
COPY_NS = 0.08
LINEAR_OUTPUT_NS = 1.0
"""Of a k-step and of the rescale of a block, either way and with a residual, of unpacking a k-step of a panel, alone
and beside the products of a tall block, of a copied byte and of an output of a linear layer: prototypes on an Intel
Xeon with AMX, one thread, weights in its second-level cache."""

STREAM_NS = 0.045
"""Of a byte of weights that comes from the third-level cache, 22 GB/s in a whole ResNet-50 on the same machine. It
counts where 4-bit weights may be unpacked, whose stream is then twice as long; elsewhere costs are of warm caches, as
all are."""

FEW_CHANNELS = PLANE_CHANNELS // 4


def _refuse(request: Request, operator: type[Operator], *, packed: bool) -> str | None:
    """Why no kernel on AMX for weights that lie so takes a request."""
    weight_bits = PACKED_WEIGHT if packed else ANY_WEIGHT
    return decline(request, operator, weight_bits) or missing(
        request.features, AMX_INT8 | NIBBLES if packed else AMX_INT8
    )


def _refuse_conv2d(request: Request) -> str | None:
    """Why a convolution does not fit planes."""
    op, node = request.node.op, request.node
    assert isinstance(op, Conv2d)
    if op.groups > 1:
        return (
            f"multiplies whole planes of {PLANE_CHANNELS} channels, which {op.groups} groups would leave nearly empty"
        )
    for name in (*node.inputs, node.name):
        if name not in request.alternatives or request.alternatives[name].block != PLANE_CHANNELS:
            return f"computes on planes of {PLANE_CHANNELS} channels, in which '{name}' is not in play"
    return refuse_filling_up(request.alternatives[node.name], node.type, op.rescale)


def _conv2d(find: Callable[[Request, Plane], Source | str], *, packed: bool) -> Callable[[Request], Offer | str]:
    """The `offer` of a kernel that reads what `find` finds; `packed`: whether two weights share a byte."""

    def offer(request: Request) -> Offer | str:
        reason = _refuse(request, Conv2d, packed=packed) or _refuse_conv2d(request)
        if reason is not None:
            return reason
        source = find(request, Plane.of(request.node.type, request.alternatives[request.node.name]))
        if isinstance(source, str):
            return source
        if request.batch * _largest_sample(request, source) > LARGEST:
            return f"addresses bytes by 32 bits, a batch of {request.batch} takes more"
        storages = [request.alternatives[name] for name in (*request.node.inputs[1:], request.node.name)]
        plain = Offer.of_candidates(
            ((source.reads, *storages[:-1]), storages[-1]),
            _conv2d_us(request, source, packed),
            Tiling.choose(request, source),
            lambda: Tiling.candidates(request, source),
            lambda tiling: build_conv2d(request, source, tiling, packed=packed),
        )
        return with_weights(plain, request, packed=packed)

    return offer


def _largest_sample(request: Request, source: Source) -> int:
    """Bytes of the largest buffer, a sample."""
    names, types = (*request.node.inputs, request.node.name), (*request.inputs, request.node.type)
    sizes = (request.alternatives[name].size_bytes(type, 1) for name, type in zip(names, types, strict=True))
    return max(source.operand.sample_bytes, *sizes)


def _conv2d_us(request: Request, source: Source, packed: bool) -> float:
    op, type, steps = request.node.op, request.node.type, source.operand.steps
    assert isinstance(op, Conv2d)
    plane = Plane.of(type, request.alternatives[request.node.name])
    panels = -(-type.shape[0] // BLOCK_CHANNELS)
    rescale = FLOAT_NS if Rescaling.choose(op, request.inputs, type).in_float32 else INTEGER_NS
    if op.rescale.residual is not None:
        rescale += RESIDUAL_NS
    total = panels * plane.blocks * (steps * STEP_NS + rescale)
    if packed:
        total += panels * steps * (TALL_UNPACK_NS if Tiling.choose(request, source).tall else UNPACK_NS)
    if source.copy is not None:
        total += source.operand.sample_bytes * COPY_NS
    return CALL_US + max(request.batch * total, _stream_ns(op, panels * steps, packed)) / 1e3


def _stream_ns(op: WeightedOperator, steps: int, packed: bool) -> float:
    """Of the weights of so many k-steps of panels, where they were unpacked."""
    return 0.0 if packed or op.weight_bits not in PACKED_WEIGHT else steps * STEP_BYTES * STREAM_NS


def _few_channels(request: Request, plane: Plane) -> Source | str:
    channels = request.inputs[0].shape[0]
    found = source_of_few_channels(request, plane) if channels <= FEW_CHANNELS else None
    stride = request.node.op.window.strides[0]  # type: ignore[attr-defined]
    return found or (
        f"puts as many rows as the stride is high, of up to {FEW_CHANNELS} channels, into a column of {ROW_BYTES} "
        f"bytes, not {stride} of {channels}"
    )


def _linear(*, packed: bool) -> Callable[[Request], Offer | str]:
    def offer(request: Request) -> Offer | str:
        reason = _refuse(request, Linear, packed=packed)
        if reason is not None:
            return reason
        reads = tuple(map(Storage.canonical, request.inputs))
        writes = Storage.canonical(request.node.type)
        plain = Offer(reads, writes, _linear_us(request, packed), lambda: build_linear(request, packed=packed))
        return with_weights(plain, request, packed=packed)

    return offer


def _linear_us(request: Request, packed: bool) -> float:
    op = request.node.op
    assert isinstance(op, WeightedOperator)
    steps = of_samples(request.inputs[0].shape[0], request.batch).steps
    panels, blocks = -(-op.out_channels // BLOCK_CHANNELS), -(-request.batch // BLOCK_PIXELS)
    total = panels * steps * (blocks * STEP_NS + (UNPACK_NS if packed else 0.0))
    total += request.batch * op.out_channels * LINEAR_OUTPUT_NS
    return CALL_US + max(total, _stream_ns(op, panels * steps, packed)) / 1e3


CONV2D_W4_AMX = Kernel("conv2d_x8w4s32_amx", _conv2d(source_of, packed=True))
CONV2D_W8_AMX = Kernel("conv2d_x8w8s32_amx", _conv2d(source_of, packed=False))
CONV2D_W4_AMX_FEW = Kernel("conv2d_x8w4s32_amx_few_channels", _conv2d(_few_channels, packed=True))
CONV2D_W8_AMX_FEW = Kernel("conv2d_x8w8s32_amx_few_channels", _conv2d(_few_channels, packed=False))
LINEAR_W4_AMX = Kernel("linear_x8w4s32_amx", _linear(packed=True))
LINEAR_W8_AMX = Kernel("linear_x8w8s32_amx", _linear(packed=False))
