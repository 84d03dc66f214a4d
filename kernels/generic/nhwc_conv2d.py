"""Direct convolution, channels last, with the rescale and the residual fused: dense, grouped and depthwise.

Loops, outermost first: batch, channel block and stored row in parallel; tiles of a row; then window taps and input
channels around a fully unrolled tile of pixels x half blocks, vectorised over output channels. Padding is read from the
input's frame, so there is no copy of the input; results leave as whole vectors. The last tile of a row is moved left
until it fits, and computes some pixels again: no tile reaches past its row.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ir import Array
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.kernels.generic.acceptance import BYTE_WEIGHT, PACKED_WEIGHT, refuse_filling_up
from hawq_tvm.kernels.generic.blocking import Blocking, PackedWeight, best_tile
from hawq_tvm.kernels.generic.costs import Work, cost, empty_lanes
from hawq_tvm.kernels.generic.expressions import Expr, int64, rescale
from hawq_tvm.kernels.generic.functions import constant_parameters, function, stored_parameter
from hawq_tvm.kernels.generic.nhwc import Image, channels_last, framed_rows, lanes_of, local
from hawq_tvm.kernels.generic.parallel import MIN_MACS
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request
from hawq_tvm.kernels.packing import pack_channel_blocks


@dataclass(frozen=True)
class _Shape:
    """How the work is cut.

    Attributes:
        blocking: of output channels and pixels; its blocks divide the stored channels of a group exactly.
        groups: dense convolutions side by side, each with blocks of its own; 1 for a depthwise one.
        blocks: of output channels a group.
        depthwise: `Conv2d.depthwise`.
    """

    blocking: Blocking
    groups: int
    blocks: int
    depthwise: bool

    @classmethod
    def of(cls, request: Request) -> _Shape:
        op, type = request.node.op, request.node.type
        assert isinstance(op, Conv2d)
        groups = 1 if op.depthwise else op.groups
        channels = request.alternatives[request.node.name].channels(type) if groups == 1 else type.shape[0] // groups
        lanes = lanes_of(channels, max(request.vector_bits // 32, 4))
        packed = op.weight_bits in PACKED_WEIGHT
        halves = next(size for size in ((2, 1) if packed else (2, 3, 1)) if channels // lanes % size == 0)
        blocking = Blocking(halves, lanes, _pixels(type.shape[2], halves, request.vector_bits), "channels")
        return cls(blocking, groups, channels // blocking.block, op.depthwise)


def _pixels(width: int, halves: int, vector_bits: int) -> int:
    """Pixels of a tile: accumulators leave 4 of 32 (AVX-512) or of 16 registers for weights and inputs."""
    widest = (28 if vector_bits >= 512 else 12) // halves
    return best_tile(width, range(min(widest, width), 0, -1))


def _refuse(request: Request) -> str | None:
    op, type = request.node.op, request.node.type
    assert isinstance(op, Conv2d)
    storage, shape = request.alternatives[request.node.name], _Shape.of(request)
    fill = storage.channels(type) - type.shape[0]
    if shape.groups > 1 and (fill or empty_lanes(shape.blocking.lanes, request) > 2):
        return f"groups of {type.shape[0] // op.groups} channels of {type.shape[0]} do not fill half a vector each"
    return refuse_filling_up(storage, type, op.rescale)


def _build(request: Request, nibbles: bool) -> BuiltKernel:
    op, node = request.node.op, request.node
    assert isinstance(op, Conv2d)
    shape = _Shape.of(request)
    blocking = shape.blocking
    packed = _packed_weight(op, shape, nibbles)
    constants = [packed.array, *_per_channel(op, shape)]
    types = (*request.inputs, node.type)
    storages = [request.alternatives[name] for name in (*node.inputs, node.name)]
    images = [
        stored_parameter(f"image{i}", type, storage, request.batch)
        for i, (type, storage) in enumerate(zip(types, storages, strict=True))
    ]

    def body(*buffers: Any) -> None:
        *inputs, y = (
            Image(buffer, type, storage)
            for buffer, type, storage in zip((*buffers[: len(types) - 1], buffers[-1]), types, storages, strict=True)
        )
        weight, bias, multiplier, *rest = buffers[len(types) - 1 : -1]
        residual = (inputs[1], rest[0]) if rest else None

        def row(n: Expr, b: Expr, h: Expr) -> None:
            width = node.type.shape[2]
            accumulator = local((blocking.tile, blocking.halves, blocking.lanes), "int32")
            with T.serial(-(-width // blocking.tile)) as tile:
                start = tirx.min(tile * blocking.tile, width - blocking.tile)
                _accumulate(accumulator, inputs[0], (weight, packed), bias, op, shape, (n, b, h, start))
                _finish(accumulator, y, multiplier, residual, op, shape, (n, b, h, start))

        blocks, threads = shape.groups * shape.blocks, op.macs(node.type) * request.batch >= MIN_MACS
        framed_rows(y, row, batch=request.batch, blocks=blocks, threads=threads)

    return BuiltKernel(function([*images[:-1], *constant_parameters(constants), images[-1]], body), tuple(constants))


def _accumulate(
    accumulator: Any,
    x: Image,
    weight: tuple[Any, PackedWeight],
    bias: Any,
    op: Conv2d,
    shape: _Shape,
    at: tuple[Expr, Expr, Expr, Expr],
) -> None:
    """Bias and all products of one tile."""
    (n, b, h, start), blocking = at, shape.blocking
    (sy, sx), (dy, dx), (kh, kw), (top, left, _, _) = (
        op.window.strides, op.window.dilations, op.window.kernel, op.window.pads,
    )  # fmt: skip
    buffer, packed = weight
    group, block = b // shape.blocks, b % shape.blocks
    tile = [(pixel, half) for pixel in range(blocking.tile) for half in range(blocking.halves)]
    for pixel, half in tile:
        with T.vectorized(blocking.lanes) as lane:
            T.buffer_store(accumulator, bias[group, block, half, lane], [pixel, half, lane])
    inner = 1 if shape.depthwise else op.weight.shape[1]
    with T.serial(kh) as ry, T.serial(kw) as rx, T.serial(inner) as rc:
        for pixel, half in tile:
            with T.vectorized(blocking.lanes) as lane:
                taps = (ry, rx) if shape.depthwise else (ry, rx, rc)
                channel = b * blocking.block + half * blocking.lanes + lane if shape.depthwise else group * inner + rc
                value = x[n, channel, h * sy + ry * dy - top, (start + pixel) * sx + rx * dx - left].astype("int32")
                product = value * packed.read(buffer, group, block, *taps, tirx.const(half, "int32"), lane)
                T.buffer_store(accumulator, accumulator[pixel, half, lane] + product, [pixel, half, lane])


def _finish(
    accumulator: Any,
    y: Image,
    multiplier: Any,
    residual: tuple[Image, Any] | None,
    op: Conv2d,
    shape: _Shape,
    at: tuple[Expr, Expr, Expr, Expr],
) -> None:
    """Residual, rounding, clip and store of one tile."""
    (n, b, h, start), blocking = at, shape.blocking
    group, block = b // shape.blocks, b % shape.blocks
    for pixel in range(blocking.tile):
        for half in range(blocking.halves):
            with T.vectorized(blocking.lanes) as lane:
                index = group, block, half, lane
                channel = b * blocking.block + half * blocking.lanes + lane
                total = int64(accumulator[pixel, half, lane]) * int64(multiplier[index])
                if residual is not None:
                    total = total + int64(residual[0][n, channel, h, start + pixel]) * int64(residual[1][index])
                y.store(rescale(total, op.rescale, y.type.dtype), n, channel, h, start + pixel)


def _packed_weight(op: Conv2d, shape: _Shape, nibbles: bool) -> PackedWeight:
    """Taps outermost and input channels innermost, as they lie in the input."""
    weight = op.weight[:, 0] if shape.depthwise else op.weight.transpose(0, 2, 3, 1)
    return PackedWeight.pack(np.ascontiguousarray(_filled(weight, shape)), shape.groups, shape.blocking, nibbles)


def _filled(values: Array, shape: _Shape) -> Array:
    """Zeros for the channels that fill up, which may be whole blocks."""
    stored = shape.groups * shape.blocks * shape.blocking.block
    return np.pad(values, [(0, stored - len(values)), *[(0, 0)] * (values.ndim - 1)])


def _per_channel(op: Conv2d, shape: _Shape) -> list[Array]:
    """Bias and multipliers, int32 [groups, blocks, halves, lanes]: 2^31 bounds both."""
    values = [op.bias, *op.multipliers]
    halves, lanes = shape.blocking.halves, shape.blocking.lanes
    filled = [_filled(array.astype(np.int32), shape) for array in values]
    return [pack_channel_blocks(array, shape.groups, halves, lanes) for array in filled]


def _cost(request: Request) -> float:
    """Of the work with its blocks filled up and its tiles overlapping."""
    op, type = request.node.op, request.node.type
    assert isinstance(op, Conv2d)
    shape, storage = _Shape.of(request), request.alternatives[request.node.name]
    blocking, (_, height, width) = shape.blocking, type.shape
    pixels = request.batch * height * -(-width // blocking.tile) * blocking.tile
    taps = prod(op.weight.shape[1:])
    macs = shape.groups * shape.blocks * blocking.block * pixels * taps
    work = Work(macs * empty_lanes(blocking.lanes, request), storage.size_bytes(type, request.batch))
    return cost("conv2d nhwc depthwise" if shape.depthwise else "conv2d nhwc", request, work)


CONV2D_W4_NHWC = Kernel(
    "conv2d_x8w4s32_generic_nhwc",
    channels_last(Conv2d, _cost, lambda request: _build(request, True), weight_bits=PACKED_WEIGHT, refuse=_refuse),
)
CONV2D_W8_NHWC = Kernel(
    "conv2d_x8w8s32_generic_nhwc",
    channels_last(Conv2d, _cost, lambda request: _build(request, False), weight_bits=BYTE_WEIGHT, refuse=_refuse),
)
