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

from hawq_tvm.core.ir import Array
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.kernels.generic.acceptance import BYTE_WEIGHT, PACKED_WEIGHT
from hawq_tvm.kernels.generic.blocking import best_tile
from hawq_tvm.kernels.generic.costs import Work, cost
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.nhwc import channels_last
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request
from hawq_tvm.kernels.x86.panels import PAIR, STEP, Panels
from hawq_tvm.kernels.x86.result import MAX_TILE, Result, build_function, for_block, per_channel, refuse, weights_of
from hawq_tvm.kernels.x86.vectors import Registers, dot, flat, in_all_lanes, prefetch, ramp

MIN_MACS = 3_000_000
"""Multiply-accumulates from which threads pay: 6 us of one core, where workers are awake within a network."""

L1_BYTES = 32 * 1024
"""What a layer's weights may take to stay in the first cache beside activations: then blocks are the inner loop."""

L2_BYTES = 400 * 1024
"""What the activations of a group of rows may take to stay in the second cache while panels pass."""

MAX_WEIGHTS_OF_HALVES = 2
"""Bytes of weights beside one of activations up to which rows are cut in halves: so each of two threads reads what it
wrote itself, and both read all weights. With more of them, and where all pixels are one row and little is computed with
each weight, each thread takes half of the channels of all rows."""

MAX_UNROLL = 8
"""Steps of a run that are written out."""

LINE_BYTES = 64
"""Of a cache line."""


@dataclass(frozen=True)
class Cut:
    """How the work is cut.

    Attributes:
        flat: whether all pixels are one row.
        rows: stored rows of all samples; tiles where `flat`.
        width: output pixels of a row.
        tile: of those, computed together; the last tile of a row moves left until it fits.
        panels: the weights.
        depth: input channels that a block reads.
        run: bytes that lie together: of all taps of a kernel's row where those do, else of one tap.
        inner_blocks: whether blocks are the inner loop, rows the outer.
        groups: groups of rows; all blocks pass over one before the next begins.
    """

    flat: bool
    rows: int
    width: int
    tile: int
    panels: Panels
    depth: int
    run: int
    inner_blocks: bool
    groups: int

    @property
    def tiles(self) -> int:
        """Of a row."""
        return 1 if self.flat else -(-self.width // self.tile)

    @property
    def run_steps(self) -> int:
        return -(-self.run // STEP)

    @property
    def group_rows(self) -> int:
        return -(-self.rows // self.groups)

    @classmethod
    def of(cls, request: Request) -> Cut:
        op, type = request.node.op, request.node.type
        assert isinstance(op, Conv2d)
        source, *_, target = storages = [
            request.alternatives[name] for name in (*request.node.inputs, request.node.name)
        ]
        pointwise = op.window.kernel == op.window.strides == (1, 1) and not any(op.window.pads)
        is_flat = pointwise and not any(any(storage.frame) for storage in storages)
        _, height, width = type.shape
        width = request.batch * height * width if is_flat else width
        tile = tile_of(width)
        top, _, bottom, _ = target.frame
        rows = -(-width // tile) if is_flat else request.batch * (top + height + bottom)
        depth = _depth(op, source.channels(request.inputs[0]))
        packed = op.weight_bits in PACKED_WEIGHT
        run = _run(op, source.channels(request.inputs[0]))
        runs = prod(op.window.kernel) * depth // run
        panels = Panels(target.channels(type), runs * -(-run // STEP), packed)
        inner_blocks = panels.size_bytes <= L1_BYTES
        activations = source.size_bytes(request.inputs[0], request.batch) + target.size_bytes(type, request.batch)
        halves = 2 if not is_flat and panels.size_bytes <= MAX_WEIGHTS_OF_HALVES * activations else 1
        groups = 1 if inner_blocks else min(rows, max(halves, -(-activations // L2_BYTES)))
        return cls(is_flat, rows, width, tile, panels, depth, run, inner_blocks, groups)


def tile_of(width: int) -> int:
    """Pixels of a tile of such a row."""
    return best_tile(width, range(min(MAX_TILE, width), 0, -1))


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


def _run(op: Conv2d, stored: int) -> int:
    """Bytes that lie together in an image of so many channels."""
    depth = _depth(op, stored)
    together = op.window.dilations[1] == 1 and depth == stored
    return op.window.kernel[1] * depth if together else depth


def _stream(request: Request, cut: Cut) -> Array:
    """The weights, in the order in which activations are read."""
    op = request.node.op
    assert isinstance(op, Conv2d)
    stored = request.alternatives[request.node.inputs[0]].channels(request.inputs[0])
    out_per_group, per_group = op.out_channels // op.groups, op.weight.shape[1]
    weight = np.zeros((op.out_channels, *op.window.kernel, cut.depth), np.int8)
    for channel in range(op.out_channels):
        start = min(_block_inputs(op, channel // PAIR)[0], stored - cut.depth)
        first = channel // out_per_group * per_group - start
        weight[channel, ..., first : first + per_group] = op.weight[channel].transpose(1, 2, 0)
    runs = weight.reshape(op.out_channels, -1, cut.run)
    rest = cut.run % STEP
    if rest:  # the last step moves left until it fits: what it reads again weighs nothing
        again = np.zeros((*runs.shape[:2], STEP - rest), np.int8)
        runs = np.concatenate([runs[..., :-rest], again, runs[..., -rest:]], axis=-1)
    return cut.panels.pack(runs.reshape(op.out_channels, -1))


def _build(request: Request) -> BuiltKernel:
    cut = Cut.of(request)
    constants = _stream(request, cut), *per_channel(request, cut.panels)
    return build_function(request, constants, lambda buffers: _Loops(request, cut, buffers).emit())


class _Loops:
    """Emits the loops of one convolution."""

    def __init__(self, request: Request, cut: Cut, buffers: tuple[Any, ...]) -> None:
        op = request.node.op
        assert isinstance(op, Conv2d)
        self.op, self.cut, self.batch = op, cut, request.batch
        self.result = Result(request, buffers, flat_pixels=cut.width if cut.flat else 0)
        self.x, self.weight = flat(buffers[0]), buffers[len(request.inputs)]
        self.threads = op.macs(request.node.type) * request.batch >= MIN_MACS

    def emit(self) -> None:
        """One task is a block of one stored row, or of one tile where all pixels are one row."""
        cut, blocks, loop = self.cut, self.cut.panels.blocks, T.parallel if self.threads else T.serial
        if cut.inner_blocks:
            with loop(cut.rows * blocks) as task:
                self._task(task % blocks, task // blocks, task // blocks)
            return
        with loop(cut.groups * blocks * cut.group_rows) as task:
            within = task % cut.group_rows
            block, row = task // cut.group_rows % blocks, task // (blocks * cut.group_rows) * cut.group_rows + within
            if cut.rows % cut.groups:
                with T.If(row < cut.rows), T.Then():
                    self._task(block, row, within)
            else:
                self._task(block, row, within)

    def _task(self, block: Expr, row: Expr, within: Expr) -> None:
        """All tiles of a stored row; `within` is the row's number in its group."""
        cut, zero = self.cut, tirx.const(0, "int32")

        def tiles(vectors: int, n: Expr, h: Expr) -> None:
            with T.serial(cut.tiles) as tile:
                start = tirx.min(tile * cut.tile, cut.width - cut.tile)
                self._tile(block, vectors, (n, h, start), within * cut.tiles + tile)

        def body(vectors: int) -> None:
            if cut.flat:
                start = tirx.min(row * cut.tile, cut.width - cut.tile)
                self._tile(block, vectors, (zero, zero, start), within)
            else:
                height = self.result.plane.height
                n, stored = row // height, row % height
                self.result.in_frame(block, vectors, n, stored, lambda h: tiles(vectors, n, h))

        for_block(cut.panels, block, body)

    def _tile(self, block: Expr, vectors: int, at: tuple[Expr, Expr, Expr], position: Expr) -> None:
        """A tile's outputs at (sample, row, first column); `position` counts the tiles of a block."""
        accumulators = Registers(self.cut.tile * vectors)
        self.result.start(accumulators, block, vectors, self.cut.tile)
        self._accumulate(accumulators, block, vectors, at, position)
        self.result.finish(accumulators, block, vectors, self.cut.tile, at)

    def _accumulate(
        self, accumulators: Registers, block: Expr, vectors: int, at: tuple[Expr, Expr, Expr], position: Expr
    ) -> None:
        """All products of a tile."""
        window, cut, plane = self.op.window, self.cut, self.result.source
        (n, h, start), (sy, sx), (dy, dx) = at, window.strides, window.dilations
        (kh, kw), (top, left, _, _) = window.kernel, window.pads
        corner = plane.index(n, h * sy + (plane.top - top), start * sx + (plane.left - left), self._first(block))
        panel, steps = block * cut.panels.panel_bytes, cut.run_steps
        kw = kw * cut.depth // cut.run
        unroll = steps if steps <= MAX_UNROLL else next(u for u in (2, 1) if steps % u == 0)
        with T.serial(kh) as ry, T.serial(kw) as rx, T.serial(steps // unroll) as part:
            iteration = (ry * kw + rx) * (steps // unroll) + part
            for offset in range(unroll):
                step = (part * unroll + offset) * STEP
                if cut.run % STEP and offset == unroll - 1:
                    step = cut.run - STEP
                x = corner + (ry * (dy * plane.width) + rx * dx) * plane.channels + step
                weights = panel + (iteration * unroll + offset) * cut.panels.step_bytes(vectors)
                self._step(accumulators, vectors, x, sx, weights)
            self._prefetch(panel, position, iteration, kh * kw * (steps // unroll))

    def _first(self, block: Expr) -> Expr:
        """The first input channel that a block reads."""
        if self.op.groups == 1:
            return tirx.const(0, "int32")
        out_per_group = self.op.out_channels // self.op.groups
        first = block * PAIR // out_per_group * self.op.weight.shape[1]
        return tirx.min(first, self.result.source.channels - self.cut.depth)

    def _step(self, accumulators: Registers, vectors: int, x: Expr, stride: int, weights: Expr) -> None:
        """Four input channels of every pixel."""
        loaded = [weights_of(self.cut.panels, self.weight, weights, vector) for vector in range(vectors)]
        for pixel in range(self.cut.tile):
            four = in_all_lanes(self.x[ramp(x + pixel * stride * self.result.source.channels, STEP)])
            for vector in range(vectors):
                number = pixel * vectors + vector
                accumulators[number] = dot(accumulators[number], four, loaded[vector])

    def _prefetch(self, panel: Expr, position: Expr, iteration: Expr, iterations: int) -> None:
        """A share of the next panel, so that all tiles of this one together bring it closer."""
        cut, panels = self.cut, self.cut.panels
        if cut.inner_blocks or panels.blocks == 1:
            return
        lines = -(-panels.panel_bytes // LINE_BYTES // (cut.group_rows * cut.tiles))
        each = -(-lines // iterations)
        for part in range(each):
            line = position * lines + tirx.min(iteration * each + part, lines - 1)
            address = panel + panels.panel_bytes + line * LINE_BYTES
            prefetch(self.weight[tirx.min(address, panels.size_bytes - 1)])


def _refuse(request: Request) -> str | None:
    op, type = request.node.op, request.inputs[0]
    assert isinstance(op, Conv2d)
    reason = refuse(request)
    if reason is not None:
        return reason
    source = request.alternatives[request.node.inputs[0]]
    run = _run(op, source.channels(type))
    if run % STEP and (op.groups > 1 or not STEP < run <= MAX_UNROLL * STEP):
        most = MAX_UNROLL * STEP
        return f"reads {STEP} channels at once, or a row of taps of {STEP + 1} to {most} bytes, not {source}"
    return None


def _cost(request: Request) -> float:
    """Of all lanes, empty ones and pixels that are computed twice counted."""
    cut, op = Cut.of(request), request.node.op
    assert isinstance(op, Conv2d)
    rows = cut.rows if cut.flat else request.batch * request.node.type.shape[1]
    pixels = rows * cut.tiles * cut.tile
    macs = pixels * cut.panels.channels * cut.panels.steps * STEP
    rates = "conv2d vnni w4" if cut.panels.packed else "conv2d vnni"
    if op.rescale.residual is not None:
        rates += " residual"
    return cost(rates, request, Work(macs, pixels * cut.panels.channels))


CONV2D_W4_VNNI = Kernel(
    "conv2d_u8s4s32_avx512vnni", channels_last(Conv2d, _cost, _build, weight_bits=PACKED_WEIGHT, refuse=_refuse)
)
CONV2D_W8_VNNI = Kernel(
    "conv2d_u8s8s32_avx512vnni", channels_last(Conv2d, _cost, _build, weight_bits=BYTE_WEIGHT, refuse=_refuse)
)
