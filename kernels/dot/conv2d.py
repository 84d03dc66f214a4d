"""Direct convolution by dot products, channels last, with the rescale and the residual fused.

A tile is a few pixels of a row by one block of output channels, two vectors: its accumulators start as the bias and
stay in registers; a step takes a few input channels of each pixel, and weights for each vector of output channels.
Padding is read from the input's frame. Groups are blocks of the weight's diagonal: a block of output channels reads the
input channels of all groups that it touches, those of other groups weighing nothing. Where those lie in one plane, it
computes on planes of channels, too.

Where nothing is padded and the kernel is 1x1, the pixels of all rows and samples are one long row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ir import Array
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.kernels.dot.excess import Excess
from hawq_tvm.kernels.dot.images import Plane
from hawq_tvm.kernels.dot.panels import Panels
from hawq_tvm.kernels.dot.product import Product
from hawq_tvm.kernels.dot.result import Result, build_function, for_block, per_channel, refuse, weights_of
from hawq_tvm.kernels.dot.tile import Tile
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.dot.vectors import LINE_BYTES, flat, prefetch, ramp
from hawq_tvm.kernels.generic.acceptance import ANY_WEIGHT, PACKED_WEIGHT, decline, with_weights
from hawq_tvm.kernels.generic.blocking import best_tile
from hawq_tvm.kernels.generic.costs import Work
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Offer, Request

MIN_MACS = 3_000_000
"""Multiply-accumulates from which threads pay: 6 us of one core, where workers are awake within a network."""

L1_BYTES = 32 * 1024
"""What a layer's weights may take to stay in the first cache beside activations: then blocks are the inner loop."""

L2_BYTES = 400 * 1024
"""What the activations of a group of rows may take to stay in the second cache while panels pass."""


@dataclass(frozen=True)
class Shape:
    """What the work is.

    Attributes:
        flat: whether all pixels are one row.
        stored_rows: of all samples.
        width: output pixels of a row.
        panels: the weights.
        depth: input channels that a block reads, a multiple of the unit's step.
        activation_bytes: of input and result.
    """

    flat: bool
    stored_rows: int
    width: int
    panels: Panels
    depth: int
    activation_bytes: int

    def rows(self, tile: int) -> int:
        """What tasks are counted by: stored rows, or tiles where all pixels are one row."""
        return -(-self.width // tile) if self.flat else self.stored_rows

    @classmethod
    def of(cls, request: Request, unit: Unit, *, packed: bool) -> Shape:
        op, type = request.node.op, request.node.type
        assert isinstance(op, Conv2d)
        source, *_, target = storages = [
            request.alternatives[name] for name in (*request.node.inputs, request.node.name)
        ]
        pointwise = op.window.kernel == op.window.strides == (1, 1) and not any(op.window.pads)
        is_flat = pointwise and not any(any(storage.frame) or storage.block > 1 for storage in storages)
        _, height, width = type.shape
        top, _, bottom, _ = target.frame
        depth = _depth(op, unit, source.channels(request.inputs[0]))
        panels = Panels(unit, target.channels(type), prod(op.window.kernel) * depth // unit.step, packed)
        activations = source.size_bytes(request.inputs[0], request.batch) + target.size_bytes(type, request.batch)
        width = request.batch * height * width if is_flat else width
        return cls(is_flat, request.batch * (top + height + bottom), width, panels, depth, activations)


@dataclass(frozen=True)
class Tiling:
    """What is free in how the work is cut; the integers are the same whatever it is.

    Attributes:
        tile: pixels of a row computed together at most; where all pixels are one row the last tile moves left until it
            fits.
        groups: groups of rows; all blocks pass over one before the next begins. 0: all blocks pass over each row.
        ahead: how many panels ahead of the one that is read memory is fetched; 0 for nothing.
        threads: whether tasks are shared among threads.
    """

    tile: int
    groups: int
    ahead: int
    threads: bool

    @classmethod
    def choose(cls, request: Request, shape: Shape) -> Tiling:
        """By what the caches hold."""
        op, unit = request.node.op, shape.panels.unit
        assert isinstance(op, Conv2d)
        spare = 0 if shape.flat or op.rescale.residual is not None else unit.spare_tile
        tile = tile_of(shape.width, unit, spare)
        groups = min(shape.rows(tile), -(-shape.activation_bytes // L2_BYTES))
        if shape.panels.size_bytes <= L1_BYTES:
            groups = 0
        return cls(tile, groups, 1, op.macs(request.node.type) * request.batch >= MIN_MACS)

    @classmethod
    def candidates(cls, request: Request, shape: Shape) -> tuple[Tiling, ...]:
        """All that are worth timing, the chosen one first.

        Tiles of half as many pixels as usual load weights too often, of half as many again leave no registers.
        """
        own, usual = cls.choose(request, shape), shape.panels.unit.max_tile
        most = min(3 * usual // 2, shape.width)
        tiles, groups = range(most, min(usual // 2, most) - 1, -1), sorted({0, 1, 2, 4, 8, own.groups})
        choices = (cls(*choice) for choice in product(tiles, groups, (0, 1, 2), (True, False)))
        return tuple(dict.fromkeys((own, *(it for it in choices if it.groups <= shape.rows(it.tile)))))


@dataclass(frozen=True)
class Cut:
    """How the work is cut.

    Attributes:
        shape: what it is.
        tiling: what was free.
    """

    shape: Shape
    tiling: Tiling

    @property
    def panels(self) -> Panels:
        return self.shape.panels

    @property
    def tile(self) -> int:
        return self.tiling.tile

    @property
    def rows(self) -> int:
        return self.shape.rows(self.tile)

    @property
    def tiles(self) -> int:
        """Of a row."""
        return 1 if self.shape.flat else -(-self.shape.width // self.tile)

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The tiles of a row: how many of how many pixels, which differ by one at most."""
        widest = -(-self.shape.width // self.tiles)
        wide = self.shape.width - self.tiles * (widest - 1)
        return tuple(run for run in ((wide, widest), (self.tiles - wide, widest - 1)) if run[0])

    @property
    def group_rows(self) -> int:
        return -(-self.rows // max(1, self.tiling.groups))

    @classmethod
    def of(cls, request: Request, unit: Unit, *, packed: bool, tiling: Tiling | None = None) -> Cut:
        shape = Shape.of(request, unit, packed=packed)
        return cls(shape, tiling or Tiling.choose(request, shape))


def tile_of(width: int, unit: Unit, spare: int = 0) -> int:
    """Pixels of a tile of such a row, `spare` more than usual at most."""
    return best_tile(width, range(min(unit.max_tile + spare, width), 0, -1))


def _block_inputs(op: Conv2d, block: int, pair: int) -> tuple[int, int]:
    """The input channels, first and behind the last, of the groups that a block of output channels touches."""
    out_per_group = op.out_channels // op.groups
    last = min(block * pair + pair, op.out_channels) - 1
    per_group = op.weight.shape[1]
    return block * pair // out_per_group * per_group, (last // out_per_group + 1) * per_group


def _depth(op: Conv2d, unit: Unit, stored: int) -> int:
    """Input channels that each block reads: enough for the one that touches most, in whole steps."""
    if op.groups == 1:
        return stored
    ranges = [_block_inputs(op, block, unit.pair) for block in range(-(-op.out_channels // unit.pair))]
    return min(-(-max(end - start for start, end in ranges) // unit.step) * unit.step, stored)


def _within_planes(request: Request, unit: Unit) -> bool:
    """Whether a layer has groups, and no block of output channels reads input channels of two planes."""
    op, name = request.node.op, request.node.inputs[0]
    assert isinstance(op, Conv2d)
    if op.groups == 1 or name not in request.alternatives:
        return False
    storage = request.alternatives[name]
    stored = storage.channels(request.inputs[0])
    depth = _depth(op, unit, stored)
    blocks = range(-(-op.out_channels // unit.pair))
    firsts = [min(_block_inputs(op, block, unit.pair)[0], stored - depth) for block in blocks]
    return all(first // storage.block == (first + depth - 1) // storage.block for first in firsts)


def _taps(request: Request, shape: Shape) -> Array:
    """The weights in the order in which activations are read: int8 [out, kernel's rows and columns, depth]."""
    op = request.node.op
    assert isinstance(op, Conv2d)
    stored = request.alternatives[request.node.inputs[0]].channels(request.inputs[0])
    out_per_group, per_group = op.out_channels // op.groups, op.weight.shape[1]
    weight = np.zeros((op.out_channels, *op.window.kernel, shape.depth), np.int8)
    for channel in range(op.out_channels):
        start = min(_block_inputs(op, channel // shape.panels.pair, shape.panels.pair)[0], stored - shape.depth)
        first = channel // out_per_group * per_group - start
        weight[channel, ..., first : first + per_group] = op.weight[channel].transpose(1, 2, 0)
    return weight.reshape(op.out_channels, -1)


def _build(request: Request, unit: Unit, tiling: Tiling, *, packed: bool) -> BuiltKernel:
    cut = Cut.of(request, unit, packed=packed, tiling=tiling)
    source, weight = request.alternatives[request.node.inputs[0]], _taps(request, cut.shape)
    dots = unit.product(weight, request.inputs[0], source, request.features, may_exceed=True)
    further: tuple[Array, ...] = ()
    if dots.excess is not None:
        weight, further = weight - dots.excess, _excess(request, cut, dots.excess).constants
    constants = cut.panels.pack(weight), *further, *per_channel(request, cut.panels, dots)
    return build_function(request, constants, lambda buffers: _Loops(request, cut, dots, buffers).emit())


def _excess(request: Request, cut: Cut, weight: Array) -> Excess:
    """The further steps of a convolution."""
    op, source = request.node.op, request.alternatives[request.node.inputs[0]]
    assert isinstance(op, Conv2d)
    panels, plane, (dy, dx) = cut.panels, Plane.of(request.inputs[0], source), op.window.dilations
    rows, columns, steps = np.indices((*op.window.kernel, cut.shape.depth // panels.unit.step))
    places = (rows * dy * plane.width + columns * dx) * plane.together + steps * panels.unit.step
    return Excess.of(panels.blocks_of(panels.pack(weight)), places.reshape(-1))


class _Loops:
    """Emits the loops of one convolution."""

    def __init__(self, request: Request, cut: Cut, product: Product, buffers: tuple[Any, ...]) -> None:
        op = request.node.op
        assert isinstance(op, Conv2d)
        self.op, self.cut, self.product, self.unit, self.batch = op, cut, product, cut.panels.unit, request.batch
        self.result = Result(request, self.unit, buffers, flat_pixels=cut.shape.width if cut.shape.flat else 0)
        self.x, (self.weight, *further) = flat(buffers[0]), buffers[len(request.inputs) :]
        self.further = further[:3]  # where there is an excess

    def emit(self) -> None:
        """One task is a block of one stored row, or of one tile where all pixels are one row."""
        cut, blocks, tiling = self.cut, self.cut.panels.blocks, self.cut.tiling
        loop = T.parallel if tiling.threads else T.serial
        if not tiling.groups:
            with loop(cut.rows * blocks) as task:
                self._task(task % blocks, task // blocks, task // blocks)
            return
        with loop(tiling.groups * blocks * cut.group_rows) as task:
            within = task % cut.group_rows
            block, row = task // cut.group_rows % blocks, task // (blocks * cut.group_rows) * cut.group_rows + within
            if cut.rows % tiling.groups:
                with T.If(row < cut.rows), T.Then():
                    self._task(block, row, within)
            else:
                self._task(block, row, within)

    def _task(self, block: Expr, row: Expr, within: Expr) -> None:
        """All tiles of a stored row; `within` is the row's number in its group."""
        cut, zero = self.cut, tirx.const(0, "int32")

        def tiles(vectors: int, n: Expr, h: Expr) -> None:
            before, column = 0, 0
            for count, pixels in cut.runs:
                with T.serial(count) as tile:
                    at = n, h, column + tile * pixels
                    self._tile(block, vectors, pixels, at, within * cut.tiles + (before + tile))
                before, column = before + count, column + count * pixels

        def body(vectors: int) -> None:
            if cut.shape.flat:
                start = tirx.min(row * cut.tile, cut.shape.width - cut.tile)
                self._tile(block, vectors, cut.tile, (zero, zero, start), within)
            else:
                height = self.result.plane.height
                n, stored = row // height, row % height
                self.result.in_frame(block, vectors, n, stored, lambda h: tiles(vectors, n, h))

        for_block(cut.panels, block, body)

    def _tile(self, block: Expr, vectors: int, pixels: int, at: tuple[Expr, Expr, Expr], position: Expr) -> None:
        """A tile's outputs at (sample, row, first column); `position` counts the tiles of a block."""
        tile = self.unit.tile(self.product, pixels, vectors)
        self.result.start(tile, block, vectors)
        self._accumulate(tile, block, vectors, at, position)
        if self.product.excess is not None:
            self._accumulate_excess(tile, block, at)
        self.result.finish(tile, block, vectors, pixels, at)

    def _accumulate(self, tile: Tile, block: Expr, vectors: int, at: tuple[Expr, Expr, Expr], position: Expr) -> None:
        """All products of a tile."""
        window, cut, plane = self.op.window, self.cut, self.result.source
        (kh, kw), (dy, dx), corner = window.kernel, window.dilations, self._corner(block, at)
        panel, steps = block * cut.panels.panel_bytes, cut.shape.depth // self.unit.step
        if dx == 1 and cut.shape.depth == plane.together:  # the taps of a kernel's row lie together
            kw, steps = 1, kw * steps
        unroll = next(u for u in (8, 7, 4, 2, 1) if steps % u == 0 and (u < 4 or steps == u))
        with T.serial(kh) as ry, T.serial(kw) as rx, T.serial(steps // unroll) as part:
            iteration = (ry * kw + rx) * (steps // unroll) + part
            for offset in range(unroll):
                channel = (part * unroll + offset) * self.unit.step
                x = corner + (ry * (dy * plane.width) + rx * dx) * plane.together + channel
                weights = panel + (iteration * unroll + offset) * cut.panels.step_bytes(vectors)
                self._step(tile, x, self.weight, weights)
            self._prefetch(panel, position, iteration, kh * kw * (steps // unroll))

    def _accumulate_excess(self, tile: Tile, block: Expr, at: tuple[Expr, Expr, Expr]) -> None:
        """What pairs of weights have too much for one product."""
        stream, places, starts = self.further
        corner, room = self._corner(block, at), self.cut.panels.step_bytes(2 if self.cut.panels.pairs else 1)
        most = int(stream.shape[0]) // room - 1
        with T.serial(starts[block], starts[block + 1]) as index:
            number = _within(index, most)
            self._step(tile, corner + _within(places[number], self._farthest), stream, number * room)

    @property
    def _farthest(self) -> int:
        """Where the activations of a tile's last step lie, counted from its first."""
        (kh, kw), (dy, dx), plane = self.op.window.kernel, self.op.window.dilations, self.result.source
        return ((kh - 1) * dy * plane.width + (kw - 1) * dx) * plane.together + self.cut.shape.depth - self.unit.step

    def _corner(self, block: Expr, at: tuple[Expr, Expr, Expr]) -> Expr:
        """Where the first activations lie that a tile at (sample, row, first column) reads."""
        plane, (n, h, start), (sy, sx) = self.result.source, at, self.op.window.strides
        top, left, _, _ = self.op.window.pads
        return plane.index(n, h * sy + (plane.top - top), start * sx + (plane.left - left), self._first(block))

    def _first(self, block: Expr) -> Expr:
        """The first input channel that a block reads."""
        if self.op.groups == 1:
            return tirx.const(0, "int32")
        out_per_group = self.op.out_channels // self.op.groups
        first = block * self.unit.pair // out_per_group * self.op.weight.shape[1]
        return tirx.min(first, self.result.source.channels - self.cut.shape.depth)

    def _step(self, tile: Tile, x: Expr, stream: Any, weights: Expr) -> None:
        """A few input channels of every pixel, by the weights that lie there in a stream."""
        between, step = self.op.window.strides[1] * self.result.source.together, self.unit.step
        tile.add(
            lambda pixel: self.x[ramp(x + pixel * between, step)],
            lambda vector: weights_of(self.cut.panels, self.product, stream, weights, vector),
        )

    def _prefetch(self, panel: Expr, position: Expr, iteration: Expr, iterations: int) -> None:
        """A share of the next panel, so that all tiles of this one together bring it closer."""
        cut, panels = self.cut, self.cut.panels
        if not (cut.tiling.groups and cut.tiling.ahead) or panels.blocks == 1:
            return
        lines = -(-panels.panel_bytes // LINE_BYTES // (cut.group_rows * cut.tiles))
        each = -(-lines // iterations)
        for part in range(each):
            line = position * lines + tirx.min(iteration * each + part, lines - 1)
            address = panel + cut.tiling.ahead * panels.panel_bytes + line * LINE_BYTES
            prefetch(self.weight[tirx.min(address, panels.size_bytes - 1)])


def _within(value: Expr, most: int) -> Expr:
    """A value from 0 to `most`, as it is: from this form it can be proved that no access leaves its buffer."""
    return tirx.max(tirx.min(value, most), 0)


def _cost(request: Request, cut: Cut) -> float:
    """Of all lanes, empty ones and pixels that are computed twice counted."""
    op, unit = request.node.op, cut.panels.unit
    assert isinstance(op, Conv2d)
    rows = cut.rows if cut.shape.flat else request.batch * request.node.type.shape[1]
    runs = ((1, cut.tile),) if cut.shape.flat else cut.runs
    pixels = rows * sum(count * unit.whole(pixels) for count, pixels in runs)
    macs = pixels * cut.panels.channels * cut.panels.steps * unit.step
    if cut.panels.packed:
        macs = round(macs * unit.packed_cost(request.features))
    rates = "conv2d vnni w4" if cut.panels.packed else "conv2d vnni"
    if op.rescale.residual is not None:
        rates += " residual"
    return unit.cost(rates, Work(macs, pixels * cut.panels.channels))


def conv2d_kernels(unit: Unit) -> tuple[Kernel, Kernel]:
    """Of four-bit weights, which stay packed, and of bytes, or of such as are unpacked when compiled."""

    def offer(request: Request, *, packed: bool) -> Offer | str:
        weight_bits = PACKED_WEIGHT if packed else ANY_WEIGHT
        storages = decline(request, Conv2d, weight_bits) or request.channels_last()
        if isinstance(storages, str):
            return storages
        reason = refuse(request, unit, in_planes=_within_planes(request, unit))
        if reason is not None:
            return reason
        cut = Cut.of(request, unit, packed=packed)
        plain = Offer.of_candidates(
            storages,
            _cost(request, cut),
            cut.tiling,
            lambda: Tiling.candidates(request, cut.shape),
            lambda tiling: _build(request, unit, tiling, packed=packed),
        )
        return with_weights(plain, request, packed=packed)

    return (
        Kernel(f"conv2d_u8s4s32_{unit.name}", partial(offer, packed=True)),
        Kernel(f"conv2d_u8s8s32_{unit.name}", partial(offer, packed=False)),
    )
