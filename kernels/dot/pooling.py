"""Max, average and global average pooling, by whole vectors of channels.

A tile is a few output pixels of a row by one vector of channels. Of each column that any of its windows reads, the rows
are combined once, in a register; windows then combine columns. Stored bytes are compared and summed as they are: what
is added to signed values keeps their order, and comes off the sums at the end, padding counted, since it is stored too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.core.ir import Operator, Window
from hawq_tvm.core.ops import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.dot.images import Plane, Vectors, over_tiles, refuse_vectors
from hawq_tvm.kernels.dot.result import build_function
from hawq_tvm.kernels.dot.sums import SharedRescale, sum_type
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.dot.vectors import LANE_BYTES, Registers, constant, flat, ramp
from hawq_tvm.kernels.generic.blocking import best_tile
from hawq_tvm.kernels.generic.costs import Work
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.functions import function, stored_parameter
from hawq_tvm.kernels.generic.nhwc import channels_last
from hawq_tvm.kernels.generic.parallel import MIN_ELEMENTS
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request

MAX_TILE = 8
MAX_COLUMNS = 20
"""Of a tile: a register each, of which most units have 32."""

MOST_BYTES = 255
"""Of which the sum fits 16 bits, signed or not."""

MAX_SUMS = 8
"""Vectors of a global pool that are summed up side by side."""


@dataclass(frozen=True)
class Cut:
    """How a row of windows is cut.

    Attributes:
        tile: windows computed together; the last tile of a row moves left until it fits.
        columns: that they read, counted from the first one's first.
    """

    tile: int
    columns: tuple[int, ...]

    @classmethod
    def of(cls, window: Window, width: int) -> Cut:
        """For rows of so many windows."""
        sizes = [tile for tile in range(min(MAX_TILE, width), 0, -1) if len(_columns(window, tile)) <= MAX_COLUMNS]
        tile = best_tile(width, sizes or [1])
        return cls(tile, _columns(window, tile))


def _columns(window: Window, tile: int) -> tuple[int, ...]:
    return tuple(sorted({column for pixel in range(tile) for column in _columns_of(window, pixel)}))


def _columns_of(window: Window, pixel: int) -> list[int]:
    """The columns of one window of a tile."""
    return [pixel * window.strides[1] + tap * window.dilations[1] for tap in range(window.kernel[1])]


@dataclass(frozen=True, eq=False)
class _Reduction:
    """How the bytes of a window become one.

    Attributes:
        dtype: of the registers in which columns are combined.
        lanes: of those, best first.
        combine: two vectors into one.
        finish: a window's vector as it is stored; gets the position of the window too.
        clamped: whether padding is the image's nearest pixel, and not the frame's.
    """

    dtype: str
    lanes: tuple[int, ...]
    combine: Callable[[Expr, Expr], Expr]
    finish: Callable[[Expr, Expr, Expr], Expr]
    clamped: bool = False


def _over_windows(request: Request, window: Window, x: Any, y: Any, reduction: _Reduction) -> None:
    """Every window of every row, tile by tile."""
    source, target = request.alternatives[request.node.inputs[0]], request.alternatives[request.node.name]
    (x_type,), y_type = request.inputs, request.node.type
    x_plane, y_plane, x_bytes, y_bytes = Plane.of(x_type, source), Plane.of(y_type, target), flat(x), flat(y)
    vectors, cut = Vectors.of(target.channels(y_type), *reduction.lanes), Cut.of(window, y_type.shape[2])
    (sy, sx), (top, left, _, _), dtype = window.strides, window.pads, f"{reduction.dtype}x{vectors.lanes}"

    def place(position: Expr, size: int, before: int) -> Expr:
        """A stored row or column, of a position in the image or its padding."""
        if reduction.clamped:
            position = tirx.max(tirx.min(position, size - 1), 0)
        return position + before

    def tile(n: Expr, h: Expr, start: Expr, channel: Expr) -> None:
        combined = Registers(len(cut.columns), vectors.lanes, reduction.dtype)

        def load(number: int, tap: Expr) -> Expr:
            row = place(h * sy + (tap * window.dilations[0] - top), x_type.shape[1], x_plane.top)
            column = place(start * sx + (cut.columns[number] - left), x_type.shape[2], x_plane.left)
            return x_bytes[ramp(x_plane.index(n, row, column, channel), vectors.lanes)].astype(dtype)

        for number in range(len(cut.columns)):
            combined[number] = load(number, 0)
        if window.kernel[0] > 1:
            with T.serial(window.kernel[0] - 1) as tap:
                for number in range(len(cut.columns)):
                    combined[number] = reduction.combine(combined[number], load(number, tap + 1))
        for pixel in range(cut.tile):
            taken = [combined[cut.columns.index(column)] for column in _columns_of(window, pixel)]
            value = reduction.finish(reduce(reduction.combine, taken), h, start + pixel)
            index = y_plane.index(n, h + y_plane.top, start + (pixel + y_plane.left), channel)
            T.buffer_store(y_bytes, value.astype(f"{y_bytes.dtype}x{vectors.lanes}"), [ramp(index, vectors.lanes)])

    over_tiles(request, y, cut.tile, vectors, tile)


def _refuse_max(request: Request, unit: Unit) -> str | None:
    op, (x,) = request.node.op, request.inputs
    assert isinstance(op, MaxPool2d)
    if x.dtype.signed and any(op.window.pads) and op.window.dilations != (1, 1):
        return f"pads signed values by a window's own, which taps that lie {op.window.dilations} apart may skip"
    return refuse_vectors(request, unit)


def _build_max(request: Request, unit: Unit) -> BuiltKernel:
    """Of signed values the frame's zeros are not the least, but the image's nearest pixel lies in the window."""
    op, (x,) = request.node.op, request.inputs
    assert isinstance(op, MaxPool2d)
    dtype = request.alternatives[request.node.inputs[0]].dtype(x)
    lanes = (LANE_BYTES * unit.lanes, 2 * unit.lanes, unit.lanes)
    reduction = _Reduction(dtype, lanes, tirx.max, lambda value, h, w: value, x.dtype.signed and any(op.window.pads))
    return build_function(request, (), lambda xy: _over_windows(request, op.window, xy[0], xy[1], reduction))


def _refuse_average(request: Request, unit: Unit) -> str | None:
    op = request.node.op
    assert isinstance(op, AvgPool2d)
    if prod(op.window.kernel) > MOST_BYTES:
        return f"sums in 16 bits, which {prod(op.window.kernel)} bytes of a window may leave"
    return refuse_vectors(request, unit)


def _build_average(request: Request, unit: Unit) -> BuiltKernel:
    op, (x_type,), width = request.node.op, request.inputs, request.node.type.shape[2]
    assert isinstance(op, AvgPool2d)
    law = SharedRescale.of(request, unit)
    source, target = request.alternatives[request.node.inputs[0]], request.alternatives[request.node.name]
    start, written = source.offset * prod(op.window.kernel), target.dtype(request.node.type)

    def emit(buffers: tuple[Any, ...]) -> None:
        x, multipliers, y = buffers

        def finish(total: Expr, h: Expr, w: Expr) -> Expr:
            factor = multipliers[0 if len(law.multipliers) == 1 else h * width + w]
            return law.stored(total, factor, start=start, offset=target.offset, dtype=written)

        lanes = (2 * unit.lanes, unit.lanes)
        reduction = _Reduction(sum_type(x_type, source), lanes, lambda a, b: a + b, finish)
        _over_windows(request, op.window, x, y, reduction)

    return build_function(request, (law.multipliers,), emit)


def _refuse_global(request: Request, unit: Unit) -> str | None:
    storage, type = request.alternatives[request.node.inputs[0]], request.node.type
    if type.dtype.bits > 8:
        return f"writes bytes, not {type.dtype}"
    if type.shape[0] < unit.lanes or (storage.block > 1 and type.shape[0] % unit.pair):
        return f"takes vectors of {unit.lanes} channels, in planes of {unit.pair}, got {type.shape[0]} in {storage}"
    return refuse_vectors(request, unit)


def _build_global(request: Request, unit: Unit) -> BuiltKernel:
    """Writes NCHW: a pixel of channels is the same either way."""
    (x_type,), type, batch = request.inputs, request.node.type, request.batch
    storage, law = request.alternatives[request.node.inputs[0]], SharedRescale.of(request, unit)
    (channels, height, width), plane = x_type.shape, Plane.of(x_type, storage)
    few = height * width <= MOST_BYTES
    dtype, lanes = sum_type(x_type, storage, 16 if few else 32), (unit.pair, unit.lanes) if few else (unit.lanes,)
    vector = Vectors.of(channels, *lanes).lanes
    side_by_side = next(count for count in (MAX_SUMS, 4, 2, 1) if count * vector <= channels)
    blocks = Vectors(channels, side_by_side * vector)
    start, offset = storage.offset * height * width, unit.signed_offset if type.dtype.signed else 0
    written = "uint8" if offset else type.dtype.carrier

    def body(x: Any, multipliers: Any, y: Any) -> None:
        x_bytes, y_bytes = flat(x), flat(y)
        threads = batch * prod(x_type.shape) >= MIN_ELEMENTS
        with (T.parallel if threads else T.serial)(batch * blocks.count) as task:
            n, first = task // blocks.count, blocks.first(task % blocks.count)
            sums = Registers(side_by_side, vector, dtype)
            for number in range(side_by_side):
                sums[number] = constant(0, dtype, vector)
            with T.serial(height) as h, T.serial(width) as w:
                for number in range(side_by_side):
                    index = plane.index(n, h + plane.top, w + plane.left, first + number * vector)
                    sums[number] = sums[number] + x_bytes[ramp(index, vector)].astype(f"{dtype}x{vector}")
            for number in range(side_by_side):
                value = law.stored(sums[number], multipliers[0], start=start, offset=offset, dtype=written)
                if offset:
                    value = tir.reinterpret(f"int8x{vector}", value ^ constant(offset, "uint8", vector))
                place = ramp(n * channels + first + number * vector, vector)
                T.buffer_store(y_bytes, value.astype(f"{y_bytes.dtype}x{vector}"), [place])

    parameters = [
        stored_parameter("x", x_type, storage, batch),
        ("multiplier", (1,), str(law.multipliers.dtype)),
        stored_parameter("y", type, Storage.canonical(type), batch),
    ]
    return BuiltKernel(function(parameters, body), (law.multipliers,))


def _window_cost(request: Request, unit: Unit, rates: str) -> float:
    """Of the columns that tiles combine, and of what windows write."""
    op, type = request.node.op, request.node.type
    assert isinstance(op, MaxPool2d | AvgPool2d)
    storage, cut = request.alternatives[request.node.name], Cut.of(op.window, type.shape[2])
    tiles = request.batch * type.shape[1] * -(-type.shape[2] // cut.tile)
    looked_at = tiles * len(cut.columns) * op.window.kernel[0] * storage.channels(type)
    return unit.bytes_cost(rates, Work(looked_at, storage.size_bytes(type, request.batch)))


def _global_cost(request: Request, unit: Unit) -> float:
    storage = request.alternatives[request.node.inputs[0]]
    return unit.bytes_cost("global pool dot", Work(storage.size_bytes(request.inputs[0], request.batch), 0))


def pooling_kernels(unit: Unit) -> tuple[Kernel, ...]:
    """Of windows, and of whole images."""

    def kernel(
        name: str,
        operator: type[Operator],
        cost: Callable[[Request], float],
        build: Callable[[Request, Unit], BuiltKernel],
        refuse: Callable[[Request, Unit], str | None],
        *,
        writes_canonical: bool = False,
    ) -> Kernel:
        offer = channels_last(
            operator,
            cost,
            lambda request: build(request, unit),
            refuse=lambda request: refuse(request, unit),
            writes_canonical=writes_canonical,
        )
        return Kernel(f"{name}_{unit.name}", offer)

    return (
        kernel(
            "max_pool2d",
            MaxPool2d,
            lambda request: _window_cost(request, unit, "max pool dot"),
            _build_max,
            _refuse_max,
        ),
        kernel(
            "avg_pool2d",
            AvgPool2d,
            lambda request: _window_cost(request, unit, "avg pool dot"),
            _build_average,
            _refuse_average,
        ),
        kernel(
            "global_avg_pool2d",
            GlobalAvgPool2d,
            lambda request: _global_cost(request, unit),
            _build_global,
            _refuse_global,
            writes_canonical=True,
        ),
    )
