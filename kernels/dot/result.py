"""What the convolutions share: how a tile's accumulators become stored bytes in a frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.float32_residual import FloorForm, floor_form
from hawq_tvm.core.ir import Array
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.kernels.dot.float32 import in_float32, ratios, rounded_in_float32
from hawq_tvm.kernels.dot.images import Plane, refuse_images
from hawq_tvm.kernels.dot.panels import Panels
from hawq_tvm.kernels.dot.product import Product
from hawq_tvm.kernels.dot.tile import Sums, Tile
from hawq_tvm.kernels.dot.unit import Residual, Unit, missing
from hawq_tvm.kernels.dot.vectors import constant, flat, ramp
from hawq_tvm.kernels.generic.acceptance import refuse_filling_up
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.functions import constant_parameters, function, stored_parameter
from hawq_tvm.kernels.interface import BuiltKernel, Request


def refuse(request: Request, unit: Unit, *, in_planes: bool = False) -> str | None:
    """Why a convolution by `unit` does not take a request whose images have a storage in play; None where it does.

    Args:
        request: the request.
        unit: the instructions.
        in_planes: whether it computes on planes of channels, too, and not channels last alone.
    """
    op, type = request.node.op, request.node.type
    assert isinstance(op, Conv2d)
    reason = missing(request.features, unit.needs) or refuse_images(request, unit, in_planes=in_planes)
    if reason:
        return reason
    storages = [request.alternatives[name] for name in (*request.node.inputs, request.node.name)]
    if storages[0].is_part:
        return f"reads whole pixels, not {storages[0]}"
    storage = storages[-1]
    if storage.channels(type) % unit.lanes or any(s.channels(type) != storage.channels(type) for s in storages[1:]):
        return f"writes whole vectors of {unit.lanes} channels, not {storage}"
    return refuse_filling_up(storage, type, op.rescale)


def per_channel(request: Request, panels: Panels, product: Product) -> tuple[Array, ...]:
    """Bias, multiplier and the residual's multiplier, in the order of the lanes: int32.

    The multiplier is its ratio in float32 where that is exact; that of a residual is left out where `floors_of` has it.
    """
    op = request.node.op
    assert isinstance(op, Conv2d)
    values = (product.first_sums(op), *op.multipliers)
    bias, multiplier, *rest = (panels.pack_lanes(array) for array in values)
    floors = floors_of(request, panels.unit) is not None
    if floors or in_float32(request):
        multiplier = ratios(multiplier, op.rescale)
    return (bias, multiplier) if floors else (bias, multiplier, *rest)


def floors_of(request: Request, unit: Unit) -> FloorForm | None:
    """How a layer over a residual is rounded down in float32, where the unit can and that is proved."""
    node, op = request.node, request.node.op
    assert isinstance(op, Conv2d)
    if op.rescale.residual is None or not unit.floors:
        return None
    residual, result = (request.alternatives[name].offset for name in (node.inputs[1], node.name))
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


class Result:
    """The stored result of a convolution, in whose blocks of channels tiles end.

    Args:
        request: the convolution.
        unit: the instructions.
        buffers: of its function: inputs, constants that end with those of `per_channel`, and the result, last.
        flat_pixels: their number, where the pixels of all rows and samples are one row; 0 elsewhere.
    """

    def __init__(self, request: Request, unit: Unit, buffers: tuple[Any, ...], *, flat_pixels: int = 0) -> None:
        op, node = request.node.op, request.node
        assert isinstance(op, Conv2d)
        self.rescale, self.type, self.unit, self._features = op.rescale, node.type, unit, request.features
        self.storages = [request.alternatives[name] for name in (*node.inputs, node.name)]
        planes = [
            Plane.of(type, storage) for type, storage in zip((*request.inputs, node.type), self.storages, strict=True)
        ]
        if flat_pixels:
            planes = [replace(plane, height=1, width=flat_pixels) for plane in planes]
        self.source, *self._residual_plane, self.plane = planes
        count = len(request.inputs)
        self._buffer = flat(buffers[-1])
        self._residual_buffer = flat(buffers[1]) if count == 2 else None
        self._in_float32, self._floors = in_float32(request), floors_of(request, unit)
        self.bias, self._multiplier, *self._residual_multiplier = buffers[
            -2 - (1 if self._floors else len(op.multipliers)) : -1
        ]

    def in_frame(self, block: Expr, vectors: int, n: Expr, h: Expr, row: Callable[[], None]) -> None:
        """A row of outputs of a block, which `row` makes, and its share of the frame.

        That is what lies beside it, and with the first and the last row what lies above and below.
        """
        plane, (height, width) = self.plane, self.type.shape[1:]
        below = plane.height - plane.top - height
        self._zeros(block, vectors, (n, h + plane.top), 0, plane.left)
        self._zeros(block, vectors, (n, h + plane.top), plane.left + width, plane.width - plane.left - width)
        for edge, first, count in ((0, 0, plane.top), (height - 1, plane.top + height, below)):
            if count:
                with T.If(h == edge), T.Then(), T.serial(count) as number:
                    self._zeros(block, vectors, (n, first + number), 0, plane.width)
        row()

    def _zeros(self, block: Expr, vectors: int, row: tuple[Expr, Expr], start: int, count: int) -> None:
        """Stored columns of the frame."""
        if count:
            lanes = vectors * self.unit.lanes
            with T.serial(count) as column:
                index = self.plane.index(*row, start + column, block * self.unit.pair)
                zeros = constant(self.storages[-1].offset, self._buffer.dtype, lanes)
                T.buffer_store(self._buffer, zeros, [ramp(index, lanes)])

    def start(self, tile: Tile, block: Expr, vectors: int) -> None:
        """Accumulators begin as the bias."""
        tile.start([self.bias[lanes] for lanes in self._lanes(block, vectors)])

    def finish(self, tile: Sums, block: Expr, vectors: int, pixels: range, at: tuple[Expr, Expr, Expr]) -> None:
        """Residual, rounding, clip and store of those pixels of a tile whose first one is (sample, row, column)."""
        n, h, start = at
        for pixel in pixels:
            values, residual = [], self._residual(block, vectors, (n, h, start + pixel))
            for vector, lanes in enumerate(self._lanes(block, vectors)):
                product = tile.sums(pixel, vector), self._multiplier[lanes]
                if self._in_float32:
                    values.append(rounded_in_float32(*product, self.unit.lanes))
                elif residual is None:
                    values.append(self.unit.rounded([product], self.rescale))
                elif self._floors is not None:
                    share = Residual(residual, vectors, vector, None, self.storages[1].offset)
                    values.append(self.unit.floored(product, share, self._floors))
                else:
                    factor, offset = self._residual_multiplier[0][lanes], self.storages[1].offset
                    share = Residual(residual, vectors, vector, factor, offset)
                    values.append(self.unit.with_residual(product, share, self.rescale, self._features))
            index = self.plane.index(n, h + self.plane.top, start + pixel + self.plane.left, block * self.unit.pair)
            offset = self.storages[-1].offset
            if self._floors is None:
                stored = self.unit.packed(values, self.rescale, offset, str(self._buffer.dtype))
            else:
                stored = self.unit.packed_floors(values, self.rescale, offset, self._floors)
            T.buffer_store(self._buffer, stored, [ramp(index, vectors * self.unit.lanes)])

    def _lanes(self, block: Expr, vectors: int) -> list[Expr]:
        """Where constants of a block's vectors lie."""
        unit = self.unit
        return [ramp(block * unit.pair + vector * unit.lanes, unit.lanes) for vector in range(vectors)]

    def _residual(self, block: Expr, vectors: int, at: tuple[Expr, Expr, Expr]) -> Expr | None:
        """The residual's bytes as they are stored; None where there is no residual."""
        if self._residual_buffer is None:
            return None
        (plane,), (n, h, w) = self._residual_plane, at
        index = plane.index(n, h + plane.top, w + plane.left, block * self.unit.pair)
        return self._residual_buffer[ramp(index, vectors * self.unit.lanes)]


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


def weights_of(panels: Panels, product: Product, buffer: Any, step: Expr, vector: int) -> Expr:
    """One vector's weights of the step that begins there: int8."""
    count = panels.vector_bytes
    if panels.packed:
        return product.halves(buffer[ramp(step, count)], vector)
    return buffer[ramp(step + vector * count, count)]
