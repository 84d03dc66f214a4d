"""A product of matrices on AMX, a block of 32 pixels x 32 channels at a time, and the same on VNNI.

Sums start as the bias: a tile loaded with a stride of zero is one row, sixteen times. Then each k-step of 64 bytes
takes four loads and four products of tiles. Where Linux does not grant tiles, the same bytes are multiplied by
``vpdpbusd`` (`multiply_by_vectors`): a tile of weights is sixteen of its operands.

Activations are unsigned: signed ones are stored with 128 added, and 128 times the sum of the weights leaves the bias.
Sums may pass 2^31 on the way and wrap; what they end as does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.kernels.dot.vectors import Registers, in_all_lanes, ramp
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.x86 import amx_tiles as tiles
from hawq_tvm.kernels.x86.amx_operands import Operand
from hawq_tvm.kernels.x86.amx_storages import BLOCK_CHANNELS, BLOCK_PIXELS
from hawq_tvm.kernels.x86.amx_weights import Stream, Weights
from hawq_tvm.kernels.x86.vectors import LANES, dot

STEP_MACS = BLOCK_PIXELS * BLOCK_CHANNELS * tiles.ROW_BYTES
TASK_MACS = 16_000_000
"""Multiply-accumulates of a task: some 10 us, where configuring the tiles takes 0.1."""

MOST_TASKS = 64
_VECTOR_PIXELS = 8  # by two vectors of channels: 16 of 32 registers accumulate


@dataclass(frozen=True)
class Split:
    """How a product is cut into tasks.

    Attributes:
        panels: of each task, of the last ones perhaps fewer.
        blocks: likewise.
        across: tasks beside one another over the panels.
        along: tasks over the blocks.
    """

    panels: int
    blocks: int
    across: int
    along: int

    @classmethod
    def choose(cls, panels: int, blocks: int, steps: int, batch: int) -> Split:
        """Tasks of about `TASK_MACS`, over panels first: those share no weights."""
        macs = batch * panels * blocks * steps * STEP_MACS
        wanted = min(MOST_TASKS, macs // TASK_MACS)
        wanted = max(1, -(-wanted // batch))
        each = -(-panels // min(panels, wanted))
        across = -(-panels // each)
        along = min(max(1, blocks // 4), -(-wanted // across))
        return cls.cut(panels, blocks, each, -(-blocks // along))

    @classmethod
    def cut(cls, panels: int, blocks: int, each: int, length: int) -> Split:
        """Tasks of `each` panels by `length` blocks."""
        return cls(each, length, -(-panels // each), -(-blocks // length))

    @property
    def tasks(self) -> int:
        """Of a sample."""
        return self.across * self.along


@dataclass(frozen=True, eq=False)
class Product:
    """What one sample's product reads, as buffers of a function.

    Attributes:
        operand: the left matrix.
        x: its memory, flat, unsigned bytes.
        start: the sample's first byte.
        weights: the right matrix.
        bias: int32 [channels].
        offsets: int32 [steps], of the operand.
    """

    operand: Operand
    x: Any
    start: Expr
    weights: Weights
    bias: Any
    offsets: Any

    def pixel(self, step: Expr, pixel: Expr) -> Expr:
        """Where the 64 bytes of a step begin, of the pixel."""
        return self.start + self.offsets[step] + pixel * self.operand.pixel_bytes


@dataclass(frozen=True, eq=False)
class Sums:
    """Where a block's sums go: four tiles of 16 x 16 int32, two of pixels by two of channels.

    Attributes:
        buffer: int32, flat.
        start: the first tile's first element.
        row: elements from a pixel to the next.
        below: elements from a tile to the one of the next 16 pixels.
        right: elements from a tile to the one of the next 16 channels.
    """

    buffer: Any
    start: Expr
    row: int
    below: int
    right: int

    def at(self, pixels: Expr, channels: int) -> Expr:
        """The first element of a tile."""
        return self.start + pixels * self.below + channels * self.right


@dataclass(frozen=True)
class Beside:
    """Other work that is spread over a product's steps.

    Attributes:
        parts: how many.
        emit: emits one, by its number.
    """

    parts: int
    emit: Callable[[Expr], None]


def multiply_by_tiles(
    product: Product,
    panel: Expr,
    pixel: Expr,
    sums: Sums,
    *,
    beside: Beside | None = None,
    ahead: tuple[Expr, int] | None = None,
) -> None:
    """One block, on configured tiles: 0 to 3 sum, 4 and 5 hold pixels, 6 and 7 weights.

    Args:
        product: what to multiply.
        panel: of 32 channels.
        pixel: the block's first.
        sums: where its sums go.
        beside: spread over the first steps, some parts a step.
        ahead: the block's number of how many that read this panel: between them they fetch the next panel.
    """
    steps = product.operand.steps
    for tile in range(4):
        tiles.load(tile, product.bias, panel * BLOCK_CHANNELS + tile % 2 * tiles.ROWS, 0)

    def step(k: Expr) -> None:
        weights, x = product.weights, product.pixel(k, pixel)
        stride = product.operand.pixel_bytes
        tiles.load(6, weights.buffer, weights.tile(panel, k, 0), tiles.ROW_BYTES)
        tiles.load(4, product.x, x, stride)
        tiles.dot(0, 4, 6)
        tiles.load(7, weights.buffer, weights.tile(panel, k, 1), tiles.ROW_BYTES)
        tiles.dot(1, 4, 7)
        tiles.load(5, product.x, x + tiles.ROWS * stride, stride)
        tiles.dot(2, 5, 6)
        tiles.dot(3, 5, 7)
        if ahead is not None:
            weights.fetch(panel + 1, k, *ahead)

    _steps(steps, step, beside)
    for tile in range(4):
        tiles.store(tile, sums.buffer, sums.at(tile // 2, tile % 2), 4 * sums.row)


def multiply_tall_by_tiles(
    product: Product, stream: Stream, panel: Expr, first: Expr, sums: Sums, beside: Beside | None = None
) -> None:
    """A block of 64 pixels by a panel, from the image's first pixel on: first 16 channels, then the others.

    Tiles 0 to 3 sum, 4 to 6 hold pixels, 7 weights, each of which is loaded once.

    Args:
        product: what to multiply.
        stream: its weights.
        panel: of 32 channels.
        first: the panel's first tile in the stream.
        sums: where its sums go.
        beside: spread over the steps of the first half.
    """
    steps, stride = product.operand.steps, product.operand.pixel_bytes
    for half in range(2):
        for tile in range(4):
            tiles.load(tile, product.bias, panel * BLOCK_CHANNELS + half * tiles.ROWS, 0)

        def step(k: Expr, half: int = half) -> None:
            number, x = first + half * steps + k, product.pixel(k, 0)
            tiles.load(7, *stream.tile(number), tiles.ROW_BYTES)
            for tile in range(4):
                pixels = 4 + tile % 3
                tiles.load(pixels, product.x, x + tile * tiles.ROWS * stride, stride)
                tiles.dot(tile, pixels, 7)
            stream.advance(number)

        _steps(steps, step, None if half else beside)
        for tile in range(4):
            tiles.store(tile, sums.buffer, sums.at(tile, half), 4 * sums.row)


def _steps(steps: int, step: Callable[[Expr], None], beside: Beside | None) -> None:
    """Every step, and after the first ones some parts of other work each."""
    busy = 0
    if beside is not None:
        each = -(-beside.parts // steps)
        busy = beside.parts // each
        with T.serial(busy) as k:
            step(k)
            for part in range(each):
                beside.emit(k * each + part)
        for part in range(busy * each, beside.parts):
            beside.emit(tirx.const(part, "int32"))
    if busy < steps:
        with T.serial(steps - busy) as k:
            step(busy + k)


def multiply_by_vectors(product: Product, panel: Expr, pixel: Expr, sums: Sums) -> None:
    """One block, without tiles."""
    with T.serial(2 * tiles.ROWS // _VECTOR_PIXELS) as part:
        first = part * _VECTOR_PIXELS
        registers = Registers(2 * _VECTOR_PIXELS, LANES)
        for index, channels in np.ndindex(_VECTOR_PIXELS, 2):
            bias = product.bias[ramp(panel * BLOCK_CHANNELS + channels * tiles.ROWS, LANES)]
            registers[2 * index + channels] = bias
        with T.serial(product.operand.steps) as k, T.serial(tiles.ROWS) as quad:
            weights, row = product.weights, quad * tiles.ROW_BYTES
            vectors = [weights.buffer[ramp(weights.tile(panel, k, channels) + row, 64)] for channels in range(2)]
            for index in range(_VECTOR_PIXELS):
                at = product.pixel(k, pixel + first + index) + quad * 4
                four = in_all_lanes(product.x[ramp(at, 4)], LANES)
                for channels, vector in enumerate(vectors):
                    number = 2 * index + channels
                    registers[number] = dot(registers[number], four, vector)
        for index, channels in np.ndindex(_VECTOR_PIXELS, 2):
            within = first % tiles.ROWS + index
            at = sums.at(first // tiles.ROWS, channels) + within * sums.row
            T.buffer_store(sums.buffer, registers[2 * index + channels], [ramp(at, LANES)])


def keep_size(buffer: Any) -> None:
    """Write to a buffer's last element: TVM cuts one down to what it sees used, and tiles it does not see."""
    last = int(buffer.shape[0]) - 1
    T.buffer_store(buffer, tirx.const(0, buffer.dtype), [last])
