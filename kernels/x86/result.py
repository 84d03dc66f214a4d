"""What the convolutions share: where pixels lie, and how a tile's accumulators become stored bytes in a frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.float32_rescale import float32_is_exact
from hawq_tvm.core.float32_residual import FloorForm, floor_form
from hawq_tvm.core.ir import Array, TensorType
from hawq_tvm.core.ops import Conv2d, WeightedOperator
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.generic.acceptance import PACKED_WEIGHT
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.functions import constant_parameters, function, stored_parameter
from hawq_tvm.kernels.interface import BuiltKernel, Request
from hawq_tvm.kernels.x86.epilogue import floored_in_float32, rounded, rounded_in_float32, stored_bytes, stored_floors
from hawq_tvm.kernels.x86.panels import PAIR, STEP, Panels
from hawq_tvm.kernels.x86.storages import AVX512_VNNI, MULTIPLY_ADD, NIBBLES, UNSIGNED_OFFSET, first_sums, missing
from hawq_tvm.kernels.x86.vectors import (
    LANES,
    PACKED_LANES,
    Registers,
    bytes_in_quads,
    constant,
    flat,
    nibbles,
    ramp,
    shuffle,
)

LARGEST = 2**31 - 1
"""Bytes of a value: they are counted in int32."""

MAX_TILE = 8
"""Pixels of a tile: two accumulators each leave half of 32 registers to the epilogue, which spills a residual's factors
with fewer; 12 were seen to take 5 % longer with a residual, and no less without."""


def refuse(request: Request, *, in_planes: bool = False) -> str | None:
    """Why a VNNI convolution does not take a request whose images have a storage in play; None where it does.

    Args:
        request: the request.
        in_planes: whether it computes on planes of channels, too, and not channels last alone.
    """
    op, type = request.node.op, request.node.type
    assert isinstance(op, Conv2d)
    lacking = missing(request.features, AVX512_VNNI | (NIBBLES if op.weight_bits in PACKED_WEIGHT else frozenset()))
    if lacking:
        return lacking
    storages = [request.alternatives[name] for name in (*request.node.inputs, request.node.name)]
    for x, storage in zip((*request.inputs, type), storages, strict=True):
        if storage.order != "NHWC" and not (in_planes and storage.block % PAIR == 0):
            return f"computes on channels last, not on {storage}"
        if x.dtype.signed != (storage.offset == UNSIGNED_OFFSET):
            return f"reads and writes unsigned bytes, signed values at +128, not {x.dtype} in {storage}"
        if storage.size_bytes(x, request.batch) > LARGEST:
            return f"addresses bytes by 32 bits, {request.batch} samples of {x} take more"
    storage = storages[-1]
    if storage.channels(type) % LANES or (len(storages) == 3 and storages[1].channels(type) != storage.channels(type)):
        return f"writes whole vectors of {LANES} channels, not {storage}"
    if storage.channels(type) > type.shape[0] and not op.rescale.lo <= 0 <= op.rescale.hi:
        return f"channels that fill up hold zero, which its clip {op.rescale.lo}..{op.rescale.hi} leaves out"
    return None


def per_channel(request: Request, panels: Panels) -> tuple[Array, ...]:
    """Bias, multiplier and the residual's multiplier, in the order of the lanes: int32.

    The multiplier is its ratio in float32 where that is exact; that of a residual is left out where `floors_of` has it.
    Of a signed input the offset is taken off the bias, modulo 2^32, as the accumulators count.
    """
    op = request.node.op
    assert isinstance(op, Conv2d)
    offset = request.alternatives[request.node.inputs[0]].offset
    bias, multiplier, *rest = (panels.pack_lanes(array) for array in (first_sums(op, offset), *op.multipliers))
    floors = floors_of(request) is not None
    if floors or in_float32(request):
        multiplier = np.ldexp(multiplier.astype(np.float64), -op.rescale.shift).astype(np.float32)
    return (bias, multiplier) if floors else (bias, multiplier, *rest)


def in_float32(request: Request) -> bool:
    """Whether a layer's rescale is done, and proved exact, in float32."""
    op = request.node.op
    assert isinstance(op, WeightedOperator)
    return float32_is_exact(op.rescale, op.bounds(request.inputs))


def floors_of(request: Request) -> FloorForm | None:
    """How a layer over a residual is rounded in float32, where that is proved."""
    node, op = request.node, request.node.op
    assert isinstance(op, WeightedOperator)
    if op.rescale.residual is None:
        return None
    *_, residual, result = (request.alternatives[name].offset for name in (*node.inputs, node.name))
    bound = op.bounds(request.inputs).accumulator
    return floor_form(op.rescale, bound, request.inputs[1].dtype, residual_offset=residual, offset=result)


def build_function(
    request: Request, constants: tuple[Array, ...], emit: Callable[[tuple[Any, ...]], None]
) -> BuiltKernel:
    """A function of the node's images and some constants; `emit` gets its buffers, the result last."""
    node, types = request.node, (*request.inputs, request.node.type)
    *images, result = (
        stored_parameter(f"image{i}", type, request.alternatives[name], request.batch)
        for i, (name, type) in enumerate(zip((*node.inputs, node.name), types, strict=True))
    )
    parameters = [*images, *constant_parameters(constants), result]
    return BuiltKernel(function(parameters, lambda *buffers: emit(buffers)), constants)


@dataclass(frozen=True)
class Plane:
    """Where the pixels of stored images lie; an index is one of bytes.

    `together` channels of a pixel are neighbours: all of them channels last, a block of them in planes.
    """

    height: int
    width: int
    channels: int
    top: int = 0
    left: int = 0
    together: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "together", self.together or self.channels)

    @classmethod
    def of(cls, type: TensorType, storage: Storage) -> Plane:
        top, left, bottom, right = storage.frame
        _, height, width = type.shape
        together = storage.block if storage.order == "NCHW" else 0
        return cls(top + height + bottom, left + width + right, storage.channels(type), top, left, together)

    def index(self, n: Expr, row: Expr, column: Expr, channel: Expr) -> Expr:
        """Of a stored row and column; a column of -1 is the last of the row before."""
        image = n * (self.channels // self.together) + channel // self.together
        return ((image * self.height + row) * self.width + column) * self.together + channel % self.together


class Result:
    """The stored result of a convolution, in whose blocks of channels tiles end.

    Args:
        request: the convolution.
        buffers: of its function: inputs, constants from the bias on, and the result, last.
        flat_pixels: their number, where the pixels of all rows and samples are one row; 0 elsewhere.
    """

    def __init__(self, request: Request, buffers: tuple[Any, ...], *, flat_pixels: int = 0) -> None:
        op, node = request.node.op, request.node
        assert isinstance(op, Conv2d)
        self.rescale, self.type = op.rescale, node.type
        self.storages = [request.alternatives[name] for name in (*node.inputs, node.name)]
        planes = [
            Plane.of(type, storage) for type, storage in zip((*request.inputs, node.type), self.storages, strict=True)
        ]
        if flat_pixels:
            planes = [Plane(1, flat_pixels, plane.channels) for plane in planes]
        self.source, *self._residual_plane, self.plane = planes
        count = len(request.inputs)
        self._buffer = flat(buffers[-1])
        self._residual_buffer = flat(buffers[1]) if count == 2 else None
        self._in_float32, self._floors = in_float32(request), floors_of(request)
        self._fused_bytes = request.features >= MULTIPLY_ADD and self.storages[-2].offset == 0
        self.bias, self._multiplier, *self._residual_multiplier = buffers[count + 1 : -1]

    def in_frame(self, block: Expr, vectors: int, n: Expr, stored: Expr, row: Callable[[Expr], None]) -> None:
        """A stored row of a block: its share of the frame, and what `row` makes of the inner row of its number."""
        plane, (height, width) = self.plane, self.type.shape[1:]
        if plane.height == height and plane.width == width:
            row(stored)
            return
        with T.If(tirx.all(stored >= plane.top, stored < plane.top + height)):
            with T.Then():
                self._zeros(block, vectors, (n, stored), 0, plane.left)
                self._zeros(block, vectors, (n, stored), plane.left + width, plane.width - plane.left - width)
                row(stored - plane.top)
            with T.Else():
                self._zeros(block, vectors, (n, stored), 0, plane.width)

    def _zeros(self, block: Expr, vectors: int, row: tuple[Expr, Expr], start: int, count: int) -> None:
        """Stored columns of the frame."""
        if count:
            lanes = vectors * LANES
            with T.serial(count) as column:
                index = self.plane.index(*row, start + column, block * PAIR)
                T.buffer_store(self._buffer, constant(self.storages[-1].offset, "uint8", lanes), [ramp(index, lanes)])

    def start(self, accumulators: Registers, block: Expr, vectors: int, pixels: int) -> None:
        """Accumulators begin as the bias."""
        for pixel in range(pixels):
            for vector in range(vectors):
                accumulators[pixel * vectors + vector] = self.bias[ramp(block * PAIR + vector * LANES, LANES)]

    def finish(
        self, accumulators: Registers, block: Expr, vectors: int, pixels: int, at: tuple[Expr, Expr, Expr]
    ) -> None:
        """Residual, rounding, clip and store of a tile whose first pixel is (sample, row, column)."""
        n, h, start = at
        lanes = [ramp(block * PAIR + vector * LANES, LANES) for vector in range(vectors)]
        for pixel in range(pixels):
            values, residual = [], self._residual(block, vectors, (n, h, start + pixel))
            for vector in range(vectors):
                product = accumulators[pixel * vectors + vector], self._multiplier[lanes[vector]]
                if self._floors is not None:
                    values.append(floored_in_float32(*product, _pairs(residual, vectors, vector), self._floors))
                    continue
                if self._in_float32:
                    values.append(rounded_in_float32(*product))
                    continue
                products, added = [product], None
                if residual is not None:
                    factor = self._residual_multiplier[0][lanes[vector]]
                    if self._fused_bytes and vectors == 2:
                        added = _quads(residual, vector), factor
                    else:
                        products.append((self._signed(residual, vectors, vector), factor))
                values.append(rounded(products, self.rescale, added))
            index = self.plane.index(n, h + self.plane.top, start + pixel + self.plane.left, block * PAIR)
            offset = self.storages[-1].offset
            if self._floors is not None:
                stored = stored_floors(values, self.rescale, offset, self._floors)
            else:
                stored = stored_bytes(values, self.rescale, offset)
            T.buffer_store(self._buffer, stored, [ramp(index, vectors * LANES)])

    def _residual(self, block: Expr, vectors: int, at: tuple[Expr, Expr, Expr]) -> Expr | None:
        """The residual's bytes as they are stored; None where there is no residual."""
        if self._residual_buffer is None:
            return None
        (plane,), (n, h, w) = self._residual_plane, at
        index = plane.index(n, h + plane.top, w + plane.left, block * PAIR)
        return self._residual_buffer[ramp(index, vectors * LANES)]

    def _signed(self, stored: Expr, vectors: int, vector: int) -> Expr:
        """A vector of the residual's values in the order of the lanes: int32x16."""
        if vectors == 2:
            stored = shuffle([stored], PACKED_LANES[vector * LANES : (vector + 1) * LANES])
        return stored.astype(f"int32x{LANES}") - constant(self.storages[1].offset, "int32")


def _pairs(stored: Expr, vectors: int, vector: int) -> Expr:
    """A vector of the stored residual in the order of the lanes, each byte in both halves of its lane: int16x32."""
    lanes = PACKED_LANES[vector * LANES : (vector + 1) * LANES] if vectors == 2 else range(LANES)
    words = stored.astype(f"int16x{vectors * LANES}")
    return shuffle([words, words], [lane for lane in lanes for _ in range(2)])


def _quads(stored: Expr, vector: int) -> tuple[Expr, Expr]:
    """Unsigned bytes of a vector of a pair in 64-bit lanes: those of the even and those of the odd 32-bit lanes."""
    lanes = PACKED_LANES[vector * LANES : (vector + 1) * LANES]
    return bytes_in_quads(stored, lanes[::2]), bytes_in_quads(stored, lanes[1::2])


def for_block(panels: Panels, block: Expr, body: Callable[[int], None]) -> None:
    """Emit `body` for a block: with two vectors, or with one for the last block where it is no pair."""
    if panels.blocks == panels.pairs:
        body(2)
    elif not panels.pairs:
        body(1)
    else:
        with T.If(block < panels.pairs):
            with T.Then():
                body(2)
            with T.Else():
                body(1)


def weights_of(panels: Panels, buffer: Any, step: Expr, vector: int) -> Expr:
    """One vector's weights of the step that begins there: int8x64."""
    if panels.packed:
        return nibbles(buffer[ramp(step, LANES * STEP)], vector)
    return buffer[ramp(step + vector * LANES * STEP, LANES * STEP)]
