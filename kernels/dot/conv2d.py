"""Direct convolution by dot products, channels last, with the rescale and the residual fused.

A tile is a few pixels of a row by one block of output channels, two vectors: its accumulators start as the bias and
stay in registers; a step takes a few input channels of each pixel, and weights for each vector of output channels.
Padding is read from the input's frame. Groups are blocks of the weight's diagonal: a block of output channels reads the
input channels of all groups that it touches, those of other groups weighing nothing. Where those lie in one plane, it
computes on planes of channels, too.

Where nothing is padded and the kernel is 1x1, the pixels of all rows and samples are one long row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.core.ir import Array, Graph
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.kernels.dot.cut import Cut, Shape, Tiling, block_inputs, depth_of, run_of, steps_of
from hawq_tvm.kernels.dot.excess import Excess
from hawq_tvm.kernels.dot.images import Plane
from hawq_tvm.kernels.dot.product import Product
from hawq_tvm.kernels.dot.result import Result, build_function, for_block, per_channel, refuse, weights_of
from hawq_tvm.kernels.dot.tile import Tile
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.dot.vectors import LINE_BYTES, flat, prefetch, ramp
from hawq_tvm.kernels.generic.acceptance import ANY_WEIGHT, PACKED_WEIGHT, decline, with_weights
from hawq_tvm.kernels.generic.costs import Work
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Offer, Request

MAX_UNROLL = 8
"""Steps of a run that are written out."""


def _within_planes(request: Request, unit: Unit) -> bool:
    """Whether a layer has groups, and no block of output channels reads input channels of two planes."""
    op, name = request.node.op, request.node.inputs[0]
    assert isinstance(op, Conv2d)
    if op.groups == 1 or name not in request.alternatives:
        return False
    storage = request.alternatives[name]
    stored = storage.channels(request.inputs[0])
    depth = depth_of(op, unit, stored)
    blocks = range(-(-op.out_channels // unit.pair))
    firsts = [min(block_inputs(op, block, unit.pair)[0], stored - depth) for block in blocks]
    return all(first // storage.block == (first + depth - 1) // storage.block for first in firsts)


def _taps(request: Request, shape: Shape) -> Array:
    """The weights in the order in which activations are read: int8 [out, all runs of whole steps]."""
    op = request.node.op
    assert isinstance(op, Conv2d)
    stored = request.alternatives[request.node.inputs[0]].channels(request.inputs[0])
    out_per_group, per_group = op.out_channels // op.groups, op.weight.shape[1]
    weight = np.zeros((op.out_channels, *op.window.kernel, shape.depth), np.int8)
    for channel in range(op.out_channels):
        start = min(block_inputs(op, channel // shape.panels.pair, shape.panels.pair)[0], stored - shape.depth)
        first = channel // out_per_group * per_group - start
        weight[channel, ..., first : first + per_group] = op.weight[channel].transpose(1, 2, 0)
    runs, step = weight.reshape(op.out_channels, -1, shape.run), shape.panels.unit.step
    if shape.rests:
        return shape.rests.pack(runs)
    rest = shape.run % step
    if rest:  # the last step moves left until it fits: what it reads again weighs nothing
        again = np.zeros((*runs.shape[:2], step - rest), np.int8)
        runs = np.concatenate([runs[..., :-rest], again, runs[..., -rest:]], axis=-1)
    return runs.reshape(op.out_channels, -1)


def _product(request: Request, shape: Shape) -> tuple[Array, Product]:
    """The weights as `_taps`, and the instructions for them."""
    source, weight, unit = request.alternatives[request.node.inputs[0]], _taps(request, shape), shape.panels.unit
    may_exceed = shape.depth % unit.step == 0
    return weight, unit.product(weight, request.inputs[0], source, request.features, may_exceed=may_exceed)


def _build(request: Request, unit: Unit, tiling: Tiling, *, packed: bool) -> BuiltKernel:
    cut = Cut.of(request, unit, packed=packed, tiling=tiling)
    weight, dots = _product(request, cut.shape)
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


@dataclass(frozen=True)
class _Step:
    """A few activations of each pixel, and where the weights begin that they meet.

    Attributes:
        activations: of a pixel, by its number in the tile.
        weights: a place in the stream.
    """

    activations: Callable[[int], Expr]
    weights: Expr


class _Loops:
    """Emits the loops of one convolution."""

    def __init__(self, request: Request, cut: Cut, product: Product, buffers: tuple[Any, ...]) -> None:
        op = request.node.op
        assert isinstance(op, Conv2d)
        self.op, self.cut, self.product, self.unit = op, cut, product, cut.panels.unit
        self.height = request.node.type.shape[1]
        self.result = Result(request, self.unit, buffers, flat_pixels=cut.shape.width if cut.shape.flat else 0)
        self.x, (self.weight, *further) = flat(buffers[0]), buffers[len(request.inputs) :]
        self.further = further[:3]  # where there is an excess

    def emit(self) -> None:
        """One task is a block of one row, or of one tile where all pixels are one row."""
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
        """All tiles of a row; `within` is the row's number in its group."""
        cut, zero = self.cut, tirx.const(0, "int32")

        def tiles(vectors: int, n: Expr, h: Expr) -> None:
            gathered, before, column = self._gather(n, h), 0, 0
            for count, pixels in cut.runs:
                with T.serial(count) as tile:
                    at = n, h, column + tile * pixels
                    self._tile(block, vectors, pixels, at, within * cut.tiles + (before + tile), gathered)
                before, column = before + count, column + count * pixels

        def body(vectors: int) -> None:
            if cut.shape.flat:
                start = tirx.min(row * cut.tile, cut.shape.width - cut.tile)
                self._tile(block, vectors, cut.tile, (zero, zero, start), within)
            else:
                n, h = row // self.height, row % self.height
                self.result.in_frame(block, vectors, n, h, lambda: tiles(vectors, n, h))

        for_block(cut.panels, block, body)

    def _tile(
        self, block: Expr, vectors: int, pixels: int, at: tuple[Expr, Expr, Expr], position: Expr, gathered: Any = None
    ) -> None:
        """A tile's outputs at (sample, row, first column); `position` counts the tiles of a block."""
        tile = self.unit.tile(self.product, pixels, vectors)
        self.result.start(tile, block, vectors)
        last = self._accumulate(tile, block, vectors, at, position, gathered)
        if self.product.excess is not None:
            self._accumulate_excess(tile, block, at)
        if not last:
            self.result.finish(tile, block, vectors, range(pixels), at)
            return
        for pixel in range(pixels):
            self._take(tile, last, range(pixel, pixel + 1))
            self.result.finish(tile, block, vectors, range(pixel, pixel + 1), at)

    def _accumulate(
        self, tile: Tile, block: Expr, vectors: int, at: tuple[Expr, Expr, Expr], position: Expr, gathered: Any
    ) -> list[_Step]:
        """All products of a tile but those of its last steps, which are given back."""
        cut, step, plane = self.cut, self.unit.step, self.result.source
        (kh, kw), (dy, dx), corner = self.op.window.kernel, self.op.window.dilations, self._corner(block, at)
        steps, run = cut.shape.run_steps, cut.shape.run
        unroll = steps if steps <= MAX_UNROLL else next(u for u in (2, 1) if steps % u == 0)
        extents = kh, kw * cut.shape.depth // run, steps // unroll
        panel, room = block * cut.panels.panel_bytes, cut.panels.step_bytes(vectors)

        def iteration(ry: Expr, rx: Expr, part: Expr) -> list[_Step]:
            number = (ry * extents[1] + rx) * extents[2] + part
            self._prefetch(panel, position, number, prod(extents))
            first, found = corner + (ry * (dy * plane.width) + rx * dx) * plane.together, []
            for offset in range(unroll):
                byte = (part * unroll + offset) * step
                if run % step and not cut.shape.rests and offset == unroll - 1:
                    byte = run - step
                found.append(self._step(first + byte, panel + (number * unroll + offset) * room))
            return found

        _over_all_but_last(extents, lambda *index: self._take(tile, iteration(*index)))
        final = iteration(*(tirx.const(extent - 1, "int32") for extent in extents))
        if cut.shape.rests:
            behind = panel + prod(extents) * unroll * room
            words = range(cut.shape.rests.words)
            final += [self._gathered_step(gathered, word, at[2], behind + word * room) for word in words]
        split = max(0, len(final) - self.unit.last_steps)
        self._take(tile, final[:split])
        return final[split:]

    def _gather(self, n: Expr, h: Expr) -> Any:
        """What rows of taps leave over for a row of outputs; None where that is nothing."""
        rests, plane, window = self.cut.shape.rests, self.result.source, self.op.window
        if rests is None:
            return None
        zero = tirx.const(0, "int32")
        first = self._corner(zero, (n, h, zero)) + self.cut.shape.run_steps * self.unit.step
        row, between = window.dilations[0] * plane.width * plane.together, window.strides[1] * plane.together
        return rests.gather(self.x, lambda tap: first + tap * row, between, self.cut.shape.width, self.unit.lanes)

    def _accumulate_excess(self, tile: Tile, block: Expr, at: tuple[Expr, Expr, Expr]) -> None:
        """What pairs of weights have too much for one product."""
        stream, places, starts = self.further
        corner, room = self._corner(block, at), self.cut.panels.step_bytes(2 if self.cut.panels.pairs else 1)
        most = int(stream.shape[0]) // room - 1
        with T.serial(starts[block], starts[block + 1]) as index:
            number = _within(index, most)
            step = self._step(corner + _within(places[number], self._farthest), number * room)
            self._take(tile, [step], stream=stream)

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

    def _step(self, x: Expr, weights: Expr) -> _Step:
        """Activations from that byte of the image on."""
        between, step = self.op.window.strides[1] * self.result.source.together, self.unit.step
        return _Step(lambda pixel: self.x[ramp(x + pixel * between, step)], weights)

    def _gathered_step(self, gathered: Any, word: int, column: Expr, weights: Expr) -> _Step:
        """Activations of such a word of what was gathered for a row of outputs."""
        first = word * self.cut.shape.width + column
        return _Step(lambda pixel: tir.reinterpret("int8x4", gathered[first + pixel]), weights)

    def _take(self, tile: Tile, steps: Sequence[_Step], pixels: range | None = None, *, stream: Any = None) -> None:
        """Add steps to some pixels, or to all, by weights of a stream."""
        stream = self.weight if stream is None else stream
        for step in steps:
            tile.add(step.activations, partial(self._weights, stream, step.weights), pixels)

    def _weights(self, stream: Any, first: Expr, vector: int) -> Expr:
        return weights_of(self.cut.panels, self.product, stream, first, vector)

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


def _over_all_but_last(extents: Sequence[int], body: Callable[..., None]) -> None:
    """Emit loops over all places of a box but the last: for each axis one over what lies before its end."""
    for axis, extent in enumerate(extents):
        if extent > 1:
            with ExitStack() as loops:
                ends = [tirx.const(end - 1, "int32") for end in extents[:axis]]
                body(*ends, *[loops.enter_context(T.serial(count)) for count in (extent - 1, *extents[axis + 1 :])])


def _within(value: Expr, most: int) -> Expr:
    """A value from 0 to `most`, as it is: from this form it can be proved that no access leaves its buffer."""
    return tirx.max(tirx.min(value, most), 0)


def _refuse_run(request: Request, unit: Unit) -> str | None:
    """A run that is no whole number of steps has its last one moved left, which is written out."""
    op, source = request.node.op, request.alternatives[request.node.inputs[0]]
    assert isinstance(op, Conv2d)
    run, most = run_of(op, unit, source.channels(request.inputs[0])), MAX_UNROLL * unit.step
    if run % unit.step and (op.groups > 1 or not unit.step < run <= most):
        return f"reads {unit.step} channels at once, or a row of taps of {unit.step + 1} to {most} bytes, not {source}"
    return None


def pixels_save_steps(graph: Graph, name: str, unit: Unit) -> bool:
    """Whether all that reads a value takes fewer steps where its pixels are not filled up to whole ones.

    A row of 7 taps of 3 channels is 21 bytes, 6 steps of 4 or less, and 7 steps where each pixel has 4 bytes.
    """
    channels, readers = graph.types[name].shape[0], [node for node in graph if name in node.inputs]
    return (
        channels < unit.step
        and bool(readers)
        and all(
            isinstance(node.op, Conv2d)
            and node.inputs == (name,)
            and node.op.groups == node.op.window.dilations[1] == 1
            and unit.step < node.op.window.kernel[1] * channels <= MAX_UNROLL * unit.step
            and steps_of(node.op.window.kernel[0], node.op.window.kernel[1] * channels, node.type.shape[2], unit)
            < prod(node.op.window.kernel)
            for node in readers
        )
    )


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
        reason = refuse(request, unit, in_planes=_within_planes(request, unit)) or _refuse_run(request, unit)
        if reason is not None:
            return reason
        cut = Cut.of(request, unit, packed=packed)
        plain = Offer.of_candidates(
            storages,
            _cost(request, cut),
            cut.tiling,
            lambda: Tiling.candidates(request, cut.shape),
            lambda tiling: _build(request, unit, tiling, packed=packed),
            lambda: _product(request, cut.shape)[1].decided if unit.saturates else None,
        )
        return with_weights(plain, request, packed=packed)

    return (
        Kernel(f"conv2d_u8s4s32_{unit.name}", partial(offer, packed=True)),
        Kernel(f"conv2d_u8s8s32_{unit.name}", partial(offer, packed=False)),
    )
