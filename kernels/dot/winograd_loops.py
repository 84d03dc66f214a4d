"""The loops of a convolution by `kernels/dot/minimal_filtering.py`.

Three scratch arrays: inputs at each point, int16 [36][tiles][channels]; weights at each point, int16
[36][channels / 2][vectors][lanes][2]; products, int32 [tiles][36][vectors][lanes]. Rows of the first two are 128 bytes
longer than they need to be: at a multiple of 4096 bytes apart all points would fall into one set of the first cache.

Weights are transformed in one of two ways: once in a call, before all else, where the second cache holds them all or
tiles are many; otherwise whenever they are needed, those of a block of output channels at 12 points, which it holds
until they are used.

Threads share the rows of tiles, or else the blocks. What all threads need, weights in the one case and inputs in the
other, each transforms for itself where that is little: then no thread reads what another has just written, which takes
longer where their caches are far apart (`docs/latency.md`).

The last tiles of a row and of a column move back until they fit, so that nothing outside is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
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
from hawq_tvm.kernels.generic.parallel import in_each_thread, memory_here
from hawq_tvm.kernels.interface import Request

ALL_POINTS = POINTS * POINTS
PAIR_POINTS = 2 * POINTS
"""Points of two rows, whose weights are transformed together."""

PADDING = 64
"""16-bit numbers between rows of scratch."""

WORD_BYTES = 2


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
        own: whether each thread transforms for itself what all threads need.
    """

    rows: int
    once: bool
    threads: bool
    own: bool


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
        self.groups = layout.all_rows // tiling.rows
        self.shared = tiling.threads and max(self.groups, self.panels.blocks) > 1
        self.product = Product(unit.dot_words, False, 0, lambda bytes_, _: bytes_)

    def emit(self) -> None:
        """A task is some rows of tiles, or a block of output channels of all."""
        blocks, tiling = self.panels.blocks, self.tiling
        with in_each_thread() if self.shared and tiling.own else nullcontext():
            if not tiling.once:
                self._tasks(None)
                return
            with self._weights_scratch(blocks * ALL_POINTS) as weights:
                with self._needed_by_all(blocks) as block:
                    for_block(self.panels, block, lambda vectors: self._all_weights(weights, block, vectors))
                self._tasks(weights)

    def _tasks(self, weights: _Scratch | None) -> None:
        """All of them; `weights` are those of all blocks, or None."""
        task = T.parallel if self.shared else T.serial
        of_groups, of_rows, of_blocks = (
            (task, T.serial, T.serial) if self.groups > 1 else (T.serial, self._needed_by_all, task)
        )
        with of_groups(self.groups) as group, _scratch(ALL_POINTS, self.tiles * self.layout.channels) as inputs:
            with of_rows(self.tiling.rows) as row:
                self._inputs(inputs, group, row)
            with of_blocks(self.panels.blocks) as block:
                for_block(self.panels, block, lambda vectors: self._block(inputs, weights, group, block, vectors))

    def _needed_by_all(self, count: int) -> Any:
        """A loop that makes what all threads need."""
        return (T.parallel if self.shared and not self.tiling.own else T.serial)(count)

    def _weights_scratch(self, points: int) -> AbstractContextManager[_Scratch]:
        return _scratch(points, self.layout.channels * self.panels.pair)

    # Transforms of what is multiplied

    def _inputs(self, inputs: _Scratch, group: Expr, row: Expr) -> None:
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
                    inputs.store(number * POINTS + point, first, value, words)

    def _all_weights(self, weights: _Scratch, block: Expr, vectors: int) -> None:
        for pair in range(PAIRS):
            self._weights(weights, block * ALL_POINTS + pair * PAIR_POINTS, block, vectors, pair)

    def _weights(self, weights: _Scratch, first: Expr, block: Expr, vectors: int, pair: int) -> None:
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
                        weights.store(point, (step * vectors + vector) * words, value, words)

    def _word(self, bytes_: Expr) -> Wrapping:
        return Wrapping(bytes_.astype(f"int16x{self.words}"), "int16", self.words)

    # Products

    def _block(self, inputs: _Scratch, weights: _Scratch | None, group: Expr, block: Expr, vectors: int) -> None:
        """A block of output channels of some rows of tiles."""
        products = T.alloc_buffer((self.tiles * ALL_POINTS, self.panels.pair), "int32", align=64)
        with nullcontext(weights) if weights else self._weights_scratch(PAIR_POINTS) as near, T.serial(PAIRS) as pair:
            for number in range(0 if weights else PAIRS):
                with T.If(pair == number), T.Then():
                    self._weights(near, tirx.const(0, "int32"), block, vectors, number)
            with T.serial(PAIR_POINTS) as number:
                point = pair * PAIR_POINTS + number
                if not weights:
                    self._prefetch(block, point)
                row = block * ALL_POINTS + point if weights else number
                self._multiply(inputs, near, row, products, (block, vectors, point))
        with T.serial(self.tiling.rows) as row:
            with T.serial(self.layout.columns) as column:
                self._outputs(products, (group, row, column), block, vectors)
            n, top = self._top(group, row)
            with T.serial(OUTPUTS) as down:
                self.result.in_frame(block, vectors, n, top + down, lambda: None)

    def _multiply(
        self, inputs: _Scratch, weights: _Scratch, row: Expr, products: Any, at: tuple[Expr, int, Expr]
    ) -> None:
        """All tiles by a block's weights at one point, those of that row of the scratch."""
        (block, vectors, point), channels, before = at, self.layout.channels, 0
        lanes, words = self.unit.lanes, self.words
        starts = [self._start(block, vector, point) for vector in range(vectors)]
        for count, size in self._runs():
            with T.serial(count) as run:
                first = before + run * size
                tile = DotTile(self.product, size, vectors, lanes)
                tile.start(starts)
                with T.serial(channels // 2) as step:
                    tile.add(
                        lambda number: inputs.load(point, (first + number) * channels + 2 * step, 2),  # noqa: B023
                        lambda vector: weights.load(row, (step * vectors + vector) * words, words),
                    )
                for number, vector in product(range(size), range(vectors)):
                    place = [(first + number) * ALL_POINTS + point, ramp(vector * lanes, lanes)]
                    T.buffer_store(products, tile.sums(number, vector), place)
            before += count * size

    def _start(self, block: Expr, vector: int, point: Expr) -> Expr:
        """What a vector's accumulators begin with."""
        lanes = self.unit.lanes
        bias = Wrapping(self.result.bias[ramp(block * self.panels.pair + vector * lanes, lanes)], "int32", lanes)
        all_bits = tirx.Select(point == BIAS_POINT, tirx.const(-1, "int32"), tirx.const(0, "int32"))
        return (bias * FACTOR).value & tirx.Broadcast(all_bits, lanes)

    def _runs(self) -> list[tuple[int, int]]:
        """How many times how many tiles are multiplied at once; sizes differ by one at most."""
        most = self.unit.max_tile + self.unit.spare_tile
        count = -(-self.tiles // most)
        size, larger = divmod(self.tiles, count)
        return [run for run in ((larger, size + 1), (count - larger, size)) if run[0]]

    def _prefetch(self, block: Expr, point: Expr) -> None:
        """A share of the next block's bytes."""
        panels = self.panels
        if panels.blocks == 1:
            return
        lines = -(-panels.panel_bytes // LINE_BYTES // ALL_POINTS)
        with T.serial(lines) as line:
            address = (block + 1) * panels.panel_bytes + (point * lines + line) * LINE_BYTES
            prefetch(self.stream[tirx.min(address, panels.size_bytes - 1)])

    # The result

    def _outputs(self, products: Any, at: tuple[Expr, Expr, Expr], block: Expr, vectors: int) -> None:
        """The pixels of a tile: of a group of rows, a row of it and a column."""
        (group, row, column), lanes = at, self.unit.lanes
        first = (row * self.layout.columns + column) * ALL_POINTS

        def at_point(down: int, right: int, vector: int) -> Wrapping:
            return Wrapping(products[first + (down * POINTS + right), ramp(vector * lanes, lanes)], "int32", lanes)

        columns = [
            [transform_output([at_point(down, right, vector) for down in range(POINTS)]) for right in range(POINTS)]
            for vector in range(vectors)
        ]
        n, top = self._top(group, row)
        for down in range(OUTPUTS):
            sums = [transform_output([values[down] for values in of_vector]) for of_vector in columns]
            place = n, top + down, self._left(column)
            self.result.finish(_Quotients(sums, lanes), block, vectors, range(OUTPUTS), place)

    # Where tiles lie

    def _top(self, group: Expr, row: Expr) -> tuple[Expr, Expr]:
        """The image of a row of tiles, and its first row of pixels."""
        number = group * self.tiling.rows + row
        return number // self.layout.rows, tirx.min(number % self.layout.rows * OUTPUTS, self.height - OUTPUTS)

    def _left(self, column: Expr) -> Expr:
        return tirx.min(column * OUTPUTS, self.width - OUTPUTS)


@contextmanager
def _scratch(rows: int, length: int) -> Iterator[_Scratch]:
    """Of whoever comes here: one thread, or all of them together before they part."""
    between = length + PADDING
    with memory_here(rows * between, "int16") as buffer:
        yield _Scratch(buffer, between)


class _Scratch:
    """Rows of 16-bit numbers, a little apart. One row of elements: TVM would cut padding off rows of their own."""

    def __init__(self, buffer: Any, between: int) -> None:
        self._buffer, self._between = buffer, between

    def load(self, row: Expr, place: Expr, count: int) -> Expr:
        return self._buffer[ramp(row * self._between + place, count)]

    def store(self, row: Expr, place: Expr, numbers: Wrapping, count: int) -> None:
        T.buffer_store(self._buffer, numbers.value, [ramp(row * self._between + place, count)])


class _Quotients(Sums):
    """Accumulators of neighbouring pixels, from 576 times them."""

    def __init__(self, times: list[list[Wrapping]], lanes: int) -> None:
        self._times, self._lanes = times, lanes

    def sums(self, pixel: int, vector: int) -> Expr:
        times_64 = self._times[vector][pixel] * INVERSE_OF_NINE
        return tir.shift_right(times_64.value, constant(FACTOR_SHIFT, "int32", self._lanes))
