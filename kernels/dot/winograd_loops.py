"""The loops of a convolution by `kernels/dot/minimal_filtering.py`.

Three scratch arrays: inputs at each point, int16 [36][tiles][channels]; weights at each point, int16
[36][channels / 2][vectors][lanes][2]; products, int32 [tiles][36][vectors][lanes]. Rows of the first two are 128 bytes
longer than they need to be: at a multiple of 4096 bytes apart all points would fall into one set of the first cache.

Weights are transformed in one of two ways. Where they are few, or tiles many, once in a call, before all else. Otherwise
when they are needed: those of a block of output channels and 12 points, which the caches hold until they are used.

The last tiles of a row and of a column move back until they fit, so that nothing outside is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.core.ops import Conv2d
from hawq_tvm.kernels.dot.minimal_filtering import (
    BIAS_POINT,
    FACTOR,
    FACTOR_SHIFT,
    INVERSE_OF_NINE,
    OUTPUTS,
    PAIRS,
    POINTS,
    TAPS,
    transform_input,
    transform_output,
    transform_weights,
)
from hawq_tvm.kernels.dot.panels import Panels
from hawq_tvm.kernels.dot.product import Product
from hawq_tvm.kernels.dot.result import Result, for_block
from hawq_tvm.kernels.dot.tile import DotTile, Sums
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.dot.vectors import LINE_BYTES, Wrapping, constant, flat, prefetch, ramp
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.interface import Request

ALL_POINTS = POINTS * POINTS
PAIR_POINTS = 2 * POINTS
"""Points of two rows, whose weights are transformed together."""

PADDING = 64
"""16-bit numbers between rows of scratch."""

WORD_BYTES = 2
UNROLL = 4
"""Pairs of channels whose products are written out."""


@dataclass(frozen=True)
class Layout:
    """What the work is.

    Attributes:
        unit: the instructions.
        panels: weights as bytes: for each pair of channels the nine taps.
        channels: stored input channels.
        images: of the batch.
        rows: of tiles of an image.
        columns: of tiles.
    """

    unit: Unit
    panels: Panels
    channels: int
    images: int
    rows: int
    columns: int

    @property
    def all_rows(self) -> int:
        """Of tiles of all images."""
        return self.images * self.rows

    @property
    def weights_bytes(self) -> int:
        """Of all weights at all points."""
        return ALL_POINTS * self.channels * self.panels.channels * WORD_BYTES

    def scratch_bytes(self, rows: int) -> int:
        """Of so many rows of tiles, before and after their products with a block of weights."""
        return ALL_POINTS * rows * self.columns * (self.channels * WORD_BYTES + self.panels.pair * 4)


@dataclass(frozen=True)
class Tiling:
    """What is free in how the work is cut; the integers are the same whatever it is.

    Attributes:
        rows: of tiles that are multiplied together, a divisor of all.
        once: whether weights are transformed once in a call, before all else, and not anew for each `rows`.
        threads: whether tasks are shared among threads.
    """

    rows: int
    once: bool
    threads: bool


class Loops:
    """Emits the loops of one convolution."""

    def __init__(self, request: Request, layout: Layout, tiling: Tiling, buffers: tuple[Any, ...]) -> None:
        op, unit = request.node.op, layout.unit
        assert isinstance(op, Conv2d)
        assert unit.dot_words is not None
        self.layout, self.tiling, self.unit, self.panels = layout, tiling, unit, layout.panels
        self.result = Result(request, unit, buffers)
        self.x, self.stream = flat(buffers[0]), buffers[len(request.inputs)]
        self.height, self.width = request.node.type.shape[1:]
        self.pads = op.window.pads
        self.words = 2 * unit.lanes
        self.tiles = tiling.rows * layout.columns
        self.product = Product(unit.dot_words, False, 0, lambda bytes_, _: bytes_)

    def emit(self) -> None:
        """A task is a block of output channels, or some rows of tiles where there are several such."""
        layout, tiling, blocks = self.layout, self.tiling, self.panels.blocks
        loop, weights = T.parallel if tiling.threads else T.serial, None
        if tiling.once:
            weights = self._weights_scratch(blocks * ALL_POINTS)
            with loop(blocks) as block:
                for_block(self.panels, block, lambda vectors: self._all_weights(weights, block, vectors))
        groups = layout.all_rows // tiling.rows
        apart = tiling.once or groups > 1
        within = T.serial if apart else loop
        with (loop if apart else T.serial)(groups) as group:
            inputs = T.alloc_buffer((ALL_POINTS, self.tiles * layout.channels + PADDING), "int16", align=64)
            with within(tiling.rows) as row:
                self._inputs(inputs, group, row)
            with within(blocks) as block:
                for_block(self.panels, block, lambda vectors: self._block(inputs, weights, group, block, vectors))

    def _weights_scratch(self, points: int) -> Any:
        return T.alloc_buffer((points, self.layout.channels * self.panels.pair + PADDING), "int16", align=64)

    # Transforms of what is multiplied

    def _inputs(self, inputs: Any, group: Expr, row: Expr) -> None:
        """A row of tiles of all channels at all points."""
        layout, plane, words = self.layout, self.result.source, self.words
        n, top = self._top(group, row)
        with T.serial(layout.columns) as column, T.serial(-(-layout.channels // words)) as part:
            channel = tirx.min(part * words, layout.channels - words)
            corner = plane.index(
                n, top + (plane.top - self.pads[0]), self._left(column) + (plane.left - self.pads[1]), channel
            )
            columns = []
            for right in range(POINTS):
                places = [corner + (down * plane.width + right) * plane.together for down in range(POINTS)]
                columns.append(transform_input([self._word(self.x[ramp(place, words)]) for place in places]))
            first = (row * layout.columns + column) * layout.channels + channel
            for number in range(POINTS):
                for point, value in enumerate(transform_input([each[number] for each in columns])):
                    T.buffer_store(inputs, value.value, [number * POINTS + point, ramp(first, words)])

    def _all_weights(self, weights: Any, block: Expr, vectors: int) -> None:
        for pair in range(PAIRS):
            self._weights(weights, block * ALL_POINTS + pair * PAIR_POINTS, block, vectors, pair)

    def _weights(self, weights: Any, first: Expr, block: Expr, vectors: int, pair: int) -> None:
        """Weights of a block at the points of two rows, which become rows of the scratch from `first` on."""
        words, room = self.words, self.panels.step_bytes(vectors)
        with T.serial(self.layout.channels // 2) as step, T.serial(vectors) as vector:
            start = block * self.panels.panel_bytes + step * (TAPS * TAPS * room) + vector * words
            columns = []
            for right in range(TAPS):
                places = [start + (down * TAPS + right) * room for down in range(TAPS)]
                taps = [self._word(self.stream[ramp(place, words)]) for place in places]
                columns.append(transform_weights(pair, taps))
            for number in range(2):
                taps = [each[number] for each in columns]
                for right in range(PAIRS):
                    for second, value in enumerate(transform_weights(right, taps)):
                        point = first + (number * POINTS + 2 * right + second)
                        T.buffer_store(weights, value.value, [point, ramp((step * vectors + vector) * words, words)])

    def _word(self, bytes_: Expr) -> Wrapping:
        return Wrapping(bytes_.astype(f"int16x{self.words}"), "int16", self.words)

    # Products

    def _block(self, inputs: Any, weights: Any, group: Expr, block: Expr, vectors: int) -> None:
        """A block of output channels of some rows of tiles."""
        layout = self.layout
        products = T.alloc_buffer((self.tiles * ALL_POINTS, self.panels.pair), "int32", align=64)
        first: Expr = block * ALL_POINTS
        if not self.tiling.once:
            weights, first = self._weights_scratch(PAIR_POINTS), tirx.const(0, "int32")
        with T.serial(PAIRS) as pair:
            if self.tiling.once:
                start = first + pair * PAIR_POINTS
            else:
                start = first
                for number in range(PAIRS):
                    with T.If(pair == number), T.Then():
                        self._weights(weights, first, block, vectors, number)
            with T.serial(PAIR_POINTS) as number:
                point = pair * PAIR_POINTS + number
                if not self.tiling.once:
                    self._prefetch_block(block, point)
                self._point(inputs, weights, products, (block, vectors, point, start + number))
        with T.serial(self.tiling.rows) as row:
            with T.serial(layout.columns) as column:
                self._outputs(products, row * layout.columns + column, (group, row, column), block, vectors)
            n, top = self._top(group, row)
            with T.serial(OUTPUTS) as down:
                self.result.in_frame(block, vectors, n, top + down, lambda: None)

    def _point(self, inputs: Any, weights: Any, products: Any, at: tuple[Expr, int, Expr, Expr]) -> None:
        """The products of all tiles at one point."""
        block, vectors, point, weights_row = at
        layout, lanes, words, before = self.layout, self.unit.lanes, self.words, 0
        starts = [
            self.result.bias[ramp(block * self.panels.pair + vector * lanes, lanes)]
            * tirx.Broadcast(tirx.Select(point == BIAS_POINT, tirx.const(FACTOR, "int32"), tirx.const(0, "int32")), lanes)
            for vector in range(vectors)
        ]
        runs, steps = self._runs(), layout.channels // 2
        for count, size in runs:
            with T.serial(count) as run:
                first = before + run * size
                tile = DotTile(self.product, size, vectors, lanes)
                tile.start(starts)
                with T.serial(steps // UNROLL) as part:
                    for offset in range(UNROLL):
                        step = part * UNROLL + offset

                        def activations(number: int, step: Expr = step, first: Expr = first) -> Expr:
                            return inputs[point, ramp((first + number) * layout.channels + 2 * step, 2)]

                        def taps(vector: int, step: Expr = step) -> Expr:
                            return weights[weights_row, ramp((step * vectors + vector) * words, words)]

                        tile.add(activations, taps)
                for number in range(size):
                    for vector in range(vectors):
                        place = [(first + number) * ALL_POINTS + point, ramp(vector * lanes, lanes)]
                        T.buffer_store(products, tile.sums(number, vector), place)
            before += count * size

    def _runs(self) -> list[tuple[int, int]]:
        """How many times how many tiles are multiplied at once; sizes differ by one at most."""
        most = self.unit.max_tile + self.unit.spare_tile
        count = -(-self.tiles // most)
        size, larger = divmod(self.tiles, count)
        return [run for run in ((larger, size + 1), (count - larger, size)) if run[0]]

    def _prefetch_block(self, block: Expr, point: Expr) -> None:
        """A share of the next block's bytes."""
        panels = self.panels
        if panels.blocks == 1:
            return
        lines = -(-panels.panel_bytes // LINE_BYTES // ALL_POINTS)
        with T.serial(lines) as line:
            address = (block + 1) * panels.panel_bytes + (point * lines + line) * LINE_BYTES
            prefetch(self.stream[tirx.min(address, panels.size_bytes - 1)])

    # The result

    def _outputs(
        self, products: Any, number: Expr, at: tuple[Expr, Expr, Expr], block: Expr, vectors: int
    ) -> None:
        """The pixels of a tile."""
        group, row, column = at
        lanes = self.unit.lanes
        n, top = self._top(group, row)
        halves: list[list[list[Wrapping]]] = []
        for vector in range(vectors):
            rows = [
                [
                    products[number * ALL_POINTS + (down * POINTS + right), ramp(vector * lanes, lanes)]
                    for down in range(POINTS)
                ]
                for right in range(POINTS)
            ]
            halves.append([transform_output([Wrapping(each, "int32", lanes) for each in column]) for column in rows])
        for down in range(OUTPUTS):
            sums = [transform_output([column[down] for column in half]) for half in halves]
            self.result.finish(
                _Divided(sums, lanes), block, vectors, range(OUTPUTS), (n, top + down, self._left(column))
            )

    # Where tiles lie

    def _top(self, group: Expr, row: Expr) -> tuple[Expr, Expr]:
        """The image of a row of tiles, and its first row of pixels."""
        number = group * self.tiling.rows + row
        return number // self.layout.rows, tirx.min(number % self.layout.rows * OUTPUTS, self.height - OUTPUTS)

    def _left(self, column: Expr) -> Expr:
        return tirx.min(column * OUTPUTS, self.width - OUTPUTS)


class _Divided(Sums):
    """Accumulators of neighbouring pixels, from 576 times them."""

    def __init__(self, sums: list[list[Wrapping]], lanes: int) -> None:
        self._sums, self._lanes = sums, lanes

    def sums(self, pixel: int, vector: int) -> Expr:
        inverse = INVERSE_OF_NINE - (1 << 32) if INVERSE_OF_NINE >> 31 else INVERSE_OF_NINE
        product = self._sums[vector][pixel] * inverse
        return tir.shift_right(product.value, constant(FACTOR_SHIFT, "int32", self._lanes))
