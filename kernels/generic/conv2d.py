"""Direct convolution, NCHW, with the rescale and the residual fused: any window, any groups.

Loops, outermost first: batch, group, channel block and output row in parallel; tiles of a row; then input channel and
window taps around a fully unrolled tile of pixels x half blocks, vectorised over lanes. The padded input is a copy of
its own, so that the inner loops hold no condition.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import s_tir, te

from hawq_tvm.core.ops import Conv2d
from hawq_tvm.kernels.generic.acceptance import BYTE_WEIGHT, PACKED_WEIGHT, canonical
from hawq_tvm.kernels.generic.blocking import Blocking, PackedWeight, PerChannel
from hawq_tvm.kernels.generic.costs import Work, cost, empty_lanes, padded_copy
from hawq_tvm.kernels.generic.expressions import Expr, int64, padded, rescale
from hawq_tvm.kernels.generic.parallel import MIN_MACS, spread
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request


def _build(request: Request, nibbles: bool) -> BuiltKernel:
    op, output = request.node.op, request.node.type
    assert isinstance(op, Conv2d)
    channels, height, width = output.shape
    per_group_in, per_group_out = op.weight.shape[1], channels // op.groups
    blocking = _blocking(request)
    half, lane, block = blocking.halves, blocking.lanes, blocking.block
    blocks = -(-per_group_out // block)
    tiled_width = -(-width // blocking.tile) * blocking.tile
    (sy, sx), (dy, dx), (kh, kw) = op.window.strides, op.window.dilations, op.window.kernel

    x = te.placeholder((request.batch, *request.inputs[0].shape), request.inputs[0].dtype.carrier, name="x")
    packed = PackedWeight.pack(op.weight, op.groups, blocking, nibbles)
    weight = te.placeholder(packed.array.shape, str(packed.array.dtype), name="weight")
    per_channel = PerChannel(op.groups, blocking)
    bias = per_channel.add("bias", op.bias)
    multiplier = per_channel.add("multiplier", op.rescale.multiplier)
    source = _source(x, op, tiled_width, request.inputs[0].shape)

    rc = te.reduce_axis((0, per_group_in), "rc")
    ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")

    def product(n: Expr, g: Expr, b: Expr, h: Expr, w: Expr, hf: Expr, ln: Expr) -> Expr:
        pixel = source[n, g * per_group_in + rc, h * sy + ry * dy, w * sx + rx * dx].astype("int32")
        return te.sum(pixel * packed.read(weight, g, b, rc, ry, rx, hf, ln), axis=[rc, ry, rx])

    shape = (request.batch, op.groups, blocks, height, tiled_width, half, lane)
    accumulator = te.compute(shape, product, name="accumulator")

    residual = None
    if op.rescale.residual is not None:
        residual = te.placeholder((request.batch, *output.shape), request.inputs[1].dtype.carrier, name="residual")
        residual_multiplier = per_channel.add("residual_multiplier", op.multipliers[1])

    def result(n: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        # With one group the last block may be partly filled, and TVM infers wrong regions from `% blocks` then.
        group, block_ = (0, c // block) if op.groups == 1 else (c // per_group_out, c // block % blocks)
        index = g, b, hf, ln = (group, block_, c // lane % half, c % lane)
        total = int64(accumulator[n, g, b, h, w, hf, ln] + bias[index]) * multiplier[index]
        if residual is not None:
            total = total + int64(residual[n, c, h, w]) * residual_multiplier[index]
        return rescale(total, op.rescale, output.dtype)

    y = te.compute((request.batch, *output.shape), result, name="y")
    inputs = [x] if residual is None else [x, residual]
    function = te.create_prim_func([*inputs, weight, *per_channel.placeholders, y])
    threads = op.macs(output) * request.batch >= MIN_MACS
    scheduled = _schedule(function, blocking, copies=source is not x, threads=threads)
    return BuiltKernel(scheduled, (packed.array, *per_channel.arrays))


def _source(x: Any, op: Conv2d, tiled_width: int, shape: tuple[int, ...]) -> Any:
    """The input with its padding, and with as many columns more as the last tile of a row reads."""
    pads = _pads(op, tiled_width, shape)
    return padded(x, pads, 0) if any(pads) else x


def _pads(op: Conv2d, tiled_width: int, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The window's, but for those columns on the right."""
    top, left, bottom, right = op.window.pads
    reach = (tiled_width - 1) * op.window.strides[1] + op.window.dilations[1] * (op.window.kernel[1] - 1) + 1
    return top, left, bottom, max(right, reach - shape[2] - left)


def _schedule(function: Any, blocking: Blocking, *, copies: bool, threads: bool) -> Any:
    schedule = s_tir.Schedule(function)
    accumulator, y = schedule.get_sblock("accumulator"), schedule.get_sblock("y")
    n, g, b, h, w, half, lane, rc, ry, rx = schedule.get_loops(accumulator)
    if copies:
        pad_n, pad_c, *_ = schedule.get_loops(schedule.get_sblock("padded"))
        spread(schedule, schedule.fuse(pad_n, pad_c), threads)
    tile, pixel = schedule.split(w, [None, blocking.tile])
    if blocking.vector == "channels":
        schedule.reorder(tile, rc, ry, rx, pixel, half, lane)
        schedule.unroll(pixel)
        schedule.unroll(half)
        schedule.vectorize(lane)
    else:
        schedule.reorder(tile, rc, ry, rx, half, lane, pixel)
        schedule.unroll(half)
        schedule.unroll(lane)
        schedule.vectorize(pixel)
    spread(schedule, schedule.fuse(n, g, b, h), threads)
    schedule.reverse_compute_at(y, tile)
    schedule.decompose_reduction(accumulator, rc)
    return schedule.mod["main"]


def _blocking(request: Request) -> Blocking:
    op, (channels, _, width) = request.node.op, request.node.type.shape
    assert isinstance(op, Conv2d)
    return Blocking.choose(channels // op.groups, width, request.vector_bits, groups=op.groups)


def _copied(request: Request) -> int:
    """Elements of the padded input."""
    op, tile, (channels, height, width) = request.node.op, _blocking(request).tile, request.inputs[0].shape
    assert isinstance(op, Conv2d)
    tiled_width = -(-request.node.type.shape[2] // tile) * tile
    top, left, bottom, right = _pads(op, tiled_width, request.inputs[0].shape)
    return request.batch * channels * (height + top + bottom) * (width + left + right)


def _cost(request: Request) -> float:
    """Of the work with its blocks and tiles filled up."""
    op, (channels, height, width) = request.node.op, request.node.type.shape
    assert isinstance(op, Conv2d)
    blocking = _blocking(request)
    lanes = op.groups * -(-channels // op.groups // blocking.block) * blocking.block
    pixels = request.batch * height * -(-width // blocking.tile) * blocking.tile
    macs = lanes * pixels * prod(op.weight.shape[1:])
    outputs, copied = request.batch * channels * height * width, padded_copy(request, op.window)
    if blocking.vector == "pixels":
        return cost("conv2d nchw pixels", request, Work(macs, outputs, copied))
    return cost("conv2d nchw", request, Work(macs * empty_lanes(blocking.lanes, request), outputs, copied))


CONV2D_W4_GENERIC = Kernel(
    "conv2d_x8w4s32_generic",
    canonical(Conv2d, _cost, lambda request: _build(request, True), weight_bits=PACKED_WEIGHT, copied=_copied),
)
CONV2D_W8_GENERIC = Kernel(
    "conv2d_x8w8s32_generic",
    canonical(Conv2d, _cost, lambda request: _build(request, False), weight_bits=BYTE_WEIGHT, copied=_copied),
)
