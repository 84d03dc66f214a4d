"""Direct convolution on AVX512-VNNI, channels last, with the rescale and the residual fused.

A tile is a few pixels of a row by one block of 32 output channels: its accumulators start as the bias and stay in
registers; a step loads four input channels of each pixel into all lanes, and one vector of weights for each sixteen
output channels. Padding is read from the input's frame. Groups are blocks of the weight's diagonal: a block of output
channels reads the input channels of all groups that it touches, those of other groups weighing nothing.

Where nothing is padded and the kernel is 1x1, the pixels of all rows and samples are one long row.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.core.ir import Array, TensorType
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.generic.acceptance import ANY_WEIGHT
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.nhwc import Image, channels_last, function
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request
from hawq_tvm.kernels.x86.costs import conv2d_cost
from hawq_tvm.kernels.x86.epilogue import rounded, stored_bytes
from hawq_tvm.kernels.x86.panels import PAIR, STEP, Panels
from hawq_tvm.kernels.x86.storages import AVX512_VNNI, missing
from hawq_tvm.kernels.x86.vectors import (
    LANES,
    PACKED_LANES,
    Registers,
    constant,
    dot,
    flat,
    prefetch,
    ramp,
    shuffle,
)

MIN_MACS = 10_000_000
"""Multiply-accumulates from which threads pay: about 20 us of one core."""

L1_BYTES = 32 * 1024
"""What a layer's weights may take to stay in the first cache beside activations: then blocks are the inner loop."""

L2_BYTES = 400 * 1024
"""What the activations of a group of rows may take to stay in the second cache while panels pass."""

MAX_TILE = 12
"""Pixels of a tile: two accumulators each leave 8 of 32 registers for weights, activations and the epilogue."""


@dataclass(frozen=True)
class Plane:
    """Where the pixels of stored images lie; an index is one of bytes."""

    height: int
    width: int
    channels: int
    top: int = 0
    left: int = 0

    @classmethod
    def of(cls, type: TensorType, storage: Storage) -> Plane:
        top, left, bottom, right = storage.frame
        _, height, width = type.shape
        return cls(top + height + bottom, left + width + right, storage.channels(type), top, left)

    def index(self, n: Expr, row: Expr, column: Expr, channel: Expr) -> Expr:
        """Of a stored row and column."""
        return ((n * self.height + row) * self.width + column) * self.channels + channel


@dataclass(frozen=True)
class Cut:
    """How the work is cut.

    Attributes:
        flat: whether all pixels are one row.
        rows: rows of output pixels, frame left out; tiles where `flat`.
        width: output pixels of a row.
        tile: of those, computed together; the last tile of a row moves left until it fits.
        panels: the weights.
        depth: input channels that a block reads, a multiple of 4.
        inner_blocks: whether blocks are the inner loop, rows the outer.
        groups: groups of rows; all blocks pass over one before the next begins.
    """

    flat: bool
    rows: int
    width: int
    tile: int
    panels: Panels
    depth: int
    inner_blocks: bool
    groups: int

    @property
    def tiles(self) -> int:
        """Of a row."""
        return 1 if self.flat else -(-self.width // self.tile)

    @classmethod
    def of(cls, request: Request) -> Cut:
        op, type = request.node.op, request.node.type
        assert isinstance(op, Conv2d)
        source, target = (request.alternatives[name] for name in (request.node.inputs[0], request.node.name))
        storages = [request.alternatives[name] for name in (*request.node.inputs, request.node.name)]
        pointwise = op.window.kernel == op.window.strides == (1, 1) and not any(op.window.pads)
        is_flat = pointwise and not any(any(storage.frame) for storage in storages)
        _, height, width = type.shape
        width = request.batch * height * width if is_flat else width
        tile = tile_of(width)
        rows = -(-width // tile) if is_flat else request.batch * height
        depth = _depth(op, source.channels(request.inputs[0]))
        panels = Panels(target.channels(type), prod(op.window.kernel) * depth // STEP)
        activations = source.size_bytes(request.inputs[0], request.batch) + target.size_bytes(type, request.batch)
        groups = min(rows, -(-activations // L2_BYTES))
        return cls(is_flat, rows, width, tile, panels, depth, panels.size_bytes <= L1_BYTES, groups)


def tile_of(width: int) -> int:
    """Pixels of a tile: least work done twice, with a cost a tile."""
    return min(range(min(MAX_TILE, width), 0, -1), key=lambda t: (-(-width // t) * (t + 1), -t))


def _block_inputs(op: Conv2d, block: int) -> tuple[int, int]:
    """The input channels, first and behind the last, of the groups that a block of output channels touches."""
    out_per_group = op.out_channels // op.groups
    last = min(block * PAIR + PAIR, op.out_channels) - 1
    per_group = op.weight.shape[1]
    return block * PAIR // out_per_group * per_group, (last // out_per_group + 1) * per_group


def _depth(op: Conv2d, stored: int) -> int:
    """Input channels that each block reads: enough for the one that touches most, in whole steps."""
    if op.groups == 1:
        return stored
    ranges = [_block_inputs(op, block) for block in range(-(-op.out_channels // PAIR))]
    return min(-(-max(end - start for start, end in ranges) // STEP) * STEP, stored)


def _refuse(request: Request) -> str | None:
    op, type = request.node.op, request.node.type
    assert isinstance(op, Conv2d)
    lacking = missing(request.features, AVX512_VNNI)
    if lacking:
        return lacking
    storages = [request.alternatives[name] for name in (*request.node.inputs, request.node.name)]
    for x, storage in zip((*request.inputs, type), storages, strict=True):
        if storage.order != "NHWC":
            return f"computes on channels last, not on {storage}"
        if x.dtype.signed != (storage.offset == 128):
            return f"reads and writes unsigned bytes, signed values at +128, not {x.dtype} in {storage}"
    storage = storages[-1]
    if storage.channels(type) % LANES or len(storages) == 3 and storages[1].channels(type) != storage.channels(type):
        return f"writes whole vectors of {LANES} channels, not {storage}"
    if storages[0].channels(request.inputs[0]) % STEP:
        return f"reads {STEP} channels at once, not {storages[0]}"
    if storage.channels(type) > type.shape[0] and not op.rescale.lo <= 0 <= op.rescale.hi:
        return f"channels that fill up hold zero, which its clip {op.rescale.lo}..{op.rescale.hi} leaves out"
    return None


def _constants(request: Request, cut: Cut) -> tuple[Array, ...]:
    """The stream of weights, then bias, multiplier and the residual's multiplier in the order of the lanes."""
    op = request.node.op
    assert isinstance(op, Conv2d)
    stored = request.alternatives[request.node.inputs[0]].channels(request.inputs[0])
    out_per_group, per_group = op.out_channels // op.groups, op.weight.shape[1]
    weight = np.zeros((op.out_channels, *op.window.kernel, cut.depth), np.int8)
    for channel in range(op.out_channels):
        start = min(_block_inputs(op, channel // PAIR)[0], stored - cut.depth)
        first = channel // out_per_group * per_group - start
        weight[channel, ..., first : first + per_group] = op.weight[channel].transpose(1, 2, 0)
    offset = request.alternatives[request.node.inputs[0]].offset
    sums = op.weight.reshape(op.out_channels, -1).sum(axis=1, dtype=np.int64)
    values = [op.bias.astype(np.int64) - offset * sums, op.rescale.multiplier]
    if op.rescale.residual is not None:
        values.append(np.broadcast_to(op.rescale.residual, (op.out_channels,)))
    stream = cut.panels.pack(weight.reshape(op.out_channels, -1))
    return stream, *(cut.panels.pack_lanes(np.asarray(array)) for array in values)


def _build(request: Request) -> BuiltKernel:
    node, cut = request.node, Cut.of(request)
    constants = _constants(request, cut)
    types = (*request.inputs, node.type)
    storages = [request.alternatives[name] for name in (*node.inputs, node.name)]
    images = [
        Image.parameter(f"image{i}", type, storage, request.batch)
        for i, (type, storage) in enumerate(zip(types, storages, strict=True))
    ]
    given = [(f"constant{i}", array.shape, str(array.dtype)) for i, array in enumerate(constants)]

    def body(*buffers: Any) -> None:
        _Loops(request, cut, storages, buffers).emit()

    return BuiltKernel(function([*images[:-1], *given, images[-1]], body), constants)


class _Loops:
    """Emits the loops of one convolution."""

    def __init__(self, request: Request, cut: Cut, storages: list[Storage], buffers: tuple[Any, ...]) -> None:
        op = request.node.op
        assert isinstance(op, Conv2d)
        self.op, self.cut, self.batch, self.storages = op, cut, request.batch, storages
        *inputs, self.y_type = (*request.inputs, request.node.type)
        count = len(inputs)
        self.x, self.y = flat(buffers[0]), flat(buffers[-1])
        self.residual = flat(buffers[1]) if count == 2 else None
        self.weight, self.bias, self.multiplier, *self.residual_multiplier = buffers[count:-1]
        planes = [Plane.of(type, storage) for type, storage in zip((*inputs, self.y_type), storages, strict=True)]
        if cut.flat:
            planes = [Plane(1, cut.width, plane.channels) for plane in planes]
        self.x_plane, self.residual_plane, self.y_plane = planes[0], planes[-2], planes[-1]
        threads = op.macs(self.y_type) * self.batch >= MIN_MACS
        self.loop = T.parallel if threads else T.serial

    def emit(self) -> None:
        """One task is a block of one stored row, or of one tile where all pixels are one row."""
        cut, blocks = self.cut, self.cut.panels.blocks
        rows = cut.rows if cut.flat else self.batch * self.y_plane.height
        if cut.inner_blocks:
            with self.loop(rows * blocks) as task:
                self._for_block(task % blocks, task // blocks, task // blocks)
            return
        group_rows = -(-rows // cut.groups)
        with self.loop(cut.groups * blocks * group_rows) as task:
            within = task % group_rows
            row = task // (blocks * group_rows) * group_rows + within
            if rows % cut.groups:
                with T.If(row < rows), T.Then():
                    self._for_block(task // group_rows % blocks, row, within)
            else:
                self._for_block(task // group_rows % blocks, row, within)

    def _for_block(self, block: Expr, row: Expr, within: Expr) -> None:
        """A row of a block of two vectors, or of the one that is none."""
        panels = self.cut.panels
        if panels.blocks == panels.pairs:
            self._row(block, 2, row, within)
        elif not panels.pairs:
            self._row(block, 1, row, within)
        else:
            with T.If(block < panels.pairs):
                with T.Then():
                    self._row(block, 2, row, within)
                with T.Else():
                    self._row(block, 1, row, within)

    def _row(self, block: Expr, vectors: int, row: Expr, within: Expr) -> None:
        """All tiles of a stored row, and its frame."""
        cut, plane = self.cut, self.y_plane
        if cut.flat:
            start = tirx.min(row * cut.tile, cut.width - cut.tile)
            self._tile(block, vectors, (tirx.const(0, "int32"), tirx.const(0, "int32"), start), within)
            return
        n, stored = row // plane.height, row % plane.height
        height, width = self.y_type.shape[1:]

        def tiles() -> None:
            with T.serial(cut.tiles) as tile:
                start = tirx.min(tile * cut.tile, width - cut.tile)
                self._tile(block, vectors, (n, stored - plane.top, start), within * cut.tiles + tile)

        if plane.height == height and plane.width == width:
            tiles()
            return
        with T.If(tirx.all(stored >= plane.top, stored < plane.top + height)):
            with T.Then():
                self._zeros(block, vectors, (n, stored), 0, plane.left)
                self._zeros(block, vectors, (n, stored), plane.left + width, plane.width - plane.left - width)
                tiles()
            with T.Else():
                self._zeros(block, vectors, (n, stored), 0, plane.width)

    def _zeros(self, block: Expr, vectors: int, row: tuple[Expr, Expr], start: int, count: int) -> None:
        """Stored columns of the frame."""
        if count:
            lanes = vectors * LANES
            with T.serial(count) as column:
                index = self.y_plane.index(*row, start + column, block * PAIR)
                T.buffer_store(self.y, constant(self.storages[-1].offset, "uint8", lanes), [ramp(index, lanes)])

    def _tile(self, block: Expr, vectors: int, at: tuple[Expr, Expr, Expr], position: Expr) -> None:
        """A tile's outputs at (sample, row, first column); `position` counts the tiles of a block."""
        accumulators = Registers(self.cut.tile * vectors)
        self._accumulate(accumulators, block, vectors, at, position)
        self._finish(accumulators, block, vectors, at)

    def _accumulate(
        self, accumulators: Registers, block: Expr, vectors: int, at: tuple[Expr, Expr, Expr], position: Expr
    ) -> None:
        """Bias and all products."""
        window, cut, plane = self.op.window, self.cut, self.x_plane
        (n, h, start), (sy, sx), (dy, dx) = at, window.strides, window.dilations
        (kh, kw), (top, left, _, _) = window.kernel, window.pads
        for pixel in range(cut.tile):
            for vector in range(vectors):
                accumulators[pixel * vectors + vector] = self.bias[ramp(block * PAIR + vector * LANES, LANES)]
        corner = plane.index(n, h * sy + (plane.top - top), start * sx + (plane.left - left), self._first(block))
        panel = block * cut.panels.panel_bytes
        steps = cut.depth // STEP
        if dx == 1 and cut.depth == plane.channels:  # the taps of a kernel's row lie together
            kw, steps = 1, kw * steps
        unroll = next(u for u in (8, 7, 4, 2, 1) if steps % u == 0 and (u < 4 or steps == u))
        with T.serial(kh) as ry, T.serial(kw) as rx, T.serial(steps // unroll) as part:
            before = (ry * kw + rx) * (steps // unroll) + part
            for offset in range(unroll):
                step = part * unroll + offset
                x = corner + (ry * (dy * plane.width) + rx * dx) * plane.channels + step * STEP
                weights = panel + (before * unroll + offset) * (vectors * LANES * STEP)
                self._step(accumulators, vectors, x, sx, weights)
            self._prefetch(panel, position, before, kh * kw * (steps // unroll))

    def _first(self, block: Expr) -> Expr:
        """The first input channel that a block reads."""
        if self.op.groups == 1:
            return tirx.const(0, "int32")
        out_per_group = self.op.out_channels // self.op.groups
        first = block * PAIR // out_per_group * self.op.weight.shape[1]
        return tirx.min(first, self.x_plane.channels - self.cut.depth)

    def _step(self, accumulators: Registers, vectors: int, x: Expr, stride: int, weights: Expr) -> None:
        """Four input channels of every pixel."""
        for pixel in range(self.cut.tile):
            four = self.x[ramp(x + pixel * stride * self.x_plane.channels, STEP)]
            for vector in range(vectors):
                number = pixel * vectors + vector
                weight = self.weight[ramp(weights + vector * LANES * STEP, LANES * STEP)]
                accumulators[number] = dot(accumulators[number], tir.reinterpret("int32", four), weight)

    def _prefetch(self, panel: Expr, position: Expr, iteration: Expr, iterations: int) -> None:
        """A share of the next panel, so that all tiles of this one together bring it closer."""
        cut, panels = self.cut, self.cut.panels
        if cut.inner_blocks or panels.blocks == 1:
            return
        tiles = -(-cut.rows // cut.groups) * cut.tiles
        lines = -(-panels.panel_bytes // 64 // tiles)
        each = -(-lines // iterations)
        for part in range(each):
            line = position * lines + tirx.min(iteration * each + part, lines - 1)
            address = panel + panels.panel_bytes + line * 64
            prefetch(self.weight[tirx.min(address, panels.size_bytes - 1)])

    def _finish(self, accumulators: Registers, block: Expr, vectors: int, at: tuple[Expr, Expr, Expr]) -> None:
        """Residual, rounding, clip and store."""
        n, h, start = at
        lanes = [ramp(block * PAIR + vector * LANES, LANES) for vector in range(vectors)]
        for pixel in range(self.cut.tile):
            values = []
            residual = self._residual(block, vectors, (n, h, start + pixel))
            for vector in range(vectors):
                total = accumulators[pixel * vectors + vector]
                products = [(total, self.multiplier[lanes[vector]])]
                if residual:
                    products.append((residual[vector], self.residual_multiplier[0][lanes[vector]]))
                values.append(rounded(products, self.op.rescale))
            plane = self.y_plane
            index = plane.index(n, h + plane.top, start + pixel + plane.left, block * PAIR)
            stored = stored_bytes(values, self.op.rescale, self.storages[-1].offset)
            T.buffer_store(self.y, stored, [ramp(index, vectors * LANES)])

    def _residual(self, block: Expr, vectors: int, at: tuple[Expr, Expr, Expr]) -> list[Expr]:
        """The residual's values in the order of the lanes: an int32x16 each; none where there is no residual."""
        if self.residual is None:
            return []
        plane, (n, h, w) = self.residual_plane, at
        index = plane.index(n, h + plane.top, w + plane.left, block * PAIR)
        stored = self.residual[ramp(index, vectors * LANES)]
        parts = [stored]
        if vectors == 2:
            parts = [shuffle(stored, PACKED_LANES[half * LANES : (half + 1) * LANES]) for half in range(2)]
        offset = constant(self.storages[1].offset, "int32")
        return [part.astype(f"int32x{LANES}") - offset for part in parts]


CONV2D_VNNI = Kernel(
    "conv2d_u8s8s32_avx512vnni",
    channels_last(Conv2d, conv2d_cost, _build, weight_bits=ANY_WEIGHT, refuse=_refuse),
)
