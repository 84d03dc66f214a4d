"""Depthwise convolution by dot products, channels last, with the rescale and the residual fused.

An instruction adds four products, here four taps of a channel: four stored columns are interleaved, so that each 32-bit
lane holds four neighbours in the row of one channel. Interleaved columns serve every pixel whose taps lie among them,
by weights moved to the right, with zeros where a column is none of its taps: of a kernel of 3, four columns serve two
pixels; of 5, eight columns serve four.
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
from tvm.tirx import op as tir

from hawq_tvm.core.ir import Array
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.kernels.dot.panels import Panels
from hawq_tvm.kernels.dot.product import DOT_STEP, Product
from hawq_tvm.kernels.dot.result import Result, build_function, for_block, per_channel, refuse, weights_of
from hawq_tvm.kernels.dot.tile import DotTile
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.dot.vectors import flat, ramp, shuffle
from hawq_tvm.kernels.generic.acceptance import ANY_WEIGHT, PACKED_WEIGHT, decline, with_weights
from hawq_tvm.kernels.generic.blocking import best_tile
from hawq_tvm.kernels.generic.costs import Work
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Offer, Request

MIN_OUTPUTS = 130_000
"""Outputs from which threads pay: about 10 us of one core, where workers are awake within a network."""


@dataclass(frozen=True)
class Quad:
    """Four columns that are interleaved, and the pixels that they serve.

    Attributes:
        columns: counted from the first tap of the first pixel.
        taps: for each pixel of a set, the tap of the kernel's row that each column is; -1 where it is none.
    """

    columns: tuple[int, ...]
    taps: tuple[tuple[int, ...], ...]


def quads_of(kernel: int, stride: int, dilation: int, width: int) -> tuple[Quad, ...]:
    """The quads of a kernel's row for a set of pixels, as many as they serve in full.

    Args:
        kernel: taps of a row.
        stride: columns from pixel to pixel.
        dilation: columns from tap to tap; with more than one a quad serves one pixel.
        width: pixels of a row of the output, more than which are no set.
    """
    count = -(-kernel // DOT_STEP)
    pixels = min((DOT_STEP * count - kernel) // stride + 1, width) if dilation == 1 else 1
    last = (pixels - 1) * stride + (kernel - 1) * dilation
    found = []
    for quad in range(count):
        wanted = [(DOT_STEP * quad + step) * dilation for step in range(DOT_STEP)]
        taps = tuple(
            tuple(_tap(column - pixel * stride, kernel, dilation) for column in wanted) for pixel in range(pixels)
        )
        found.append(Quad(tuple(min(column, last) for column in wanted), taps))
    return tuple(found)


def _tap(column: int, kernel: int, dilation: int) -> int:
    """Which tap lies on a column, counted from a pixel's first."""
    tap, rest = divmod(column, dilation)
    return tap if rest == 0 and 0 <= tap < kernel else -1


@dataclass(frozen=True)
class Cut:
    """How the work is cut.

    Attributes:
        quads: of a kernel's row.
        pixels: of a set, which the quads serve.
        tile: pixels computed together, whole sets; the last tile of a row moves left until it fits.
        tiles: of a row.
        panels: the weights: a step is what one pixel of a set multiplies one quad by.
        threads: whether rows are shared among threads.
    """

    quads: tuple[Quad, ...]
    pixels: int
    tile: int
    tiles: int
    panels: Panels
    threads: bool

    @classmethod
    def of(cls, request: Request, unit: Unit, *, packed: bool, tiling: Tiling | None = None) -> Cut:
        op, type = request.node.op, request.node.type
        assert isinstance(op, Conv2d)
        window, width = op.window, type.shape[2]
        quads = quads_of(window.kernel[1], window.strides[1], window.dilations[1], width)
        pixels = len(quads[0].taps)
        tiling = tiling or Tiling.choose(request, unit, pixels)
        steps = window.kernel[0] * len(quads) * pixels
        channels = request.alternatives[request.node.name].channels(type)
        panels = Panels(unit, channels, steps, packed)
        return cls(quads, pixels, tiling.tile, -(-width // tiling.tile), panels, tiling.threads)


@dataclass(frozen=True)
class Tiling:
    """What is free in how the work is cut.

    Attributes:
        tile: as of `Cut`.
        threads: whether rows are shared among threads.
    """

    tile: int
    threads: bool

    @classmethod
    def choose(cls, request: Request, unit: Unit, pixels: int) -> Tiling:
        """The tile that computes fewest pixels twice.

        Args:
            request: the convolution.
            unit: the instructions.
            pixels: of a set.
        """
        tile = best_tile(request.node.type.shape[2], cls.tiles(request, unit, pixels))
        return cls(tile, request.batch * prod(request.node.type.shape) >= MIN_OUTPUTS)

    @classmethod
    def candidates(cls, request: Request, unit: Unit, pixels: int) -> tuple[Tiling, ...]:
        """All of them, the chosen one first."""
        choices = (cls(*choice) for choice in product(cls.tiles(request, unit, pixels), (True, False)))
        return tuple(dict.fromkeys((cls.choose(request, unit, pixels), *choices)))

    @staticmethod
    def tiles(request: Request, unit: Unit, pixels: int) -> range:
        """Whole sets, most first."""
        return range(max(min(unit.max_tile, request.node.type.shape[2]) // pixels, 1) * pixels, 0, -pixels)


def _refuse(request: Request, unit: Unit) -> str | None:
    op, x = request.node.op, request.inputs[0]
    assert isinstance(op, Conv2d)
    if not op.groups == op.out_channels == x.shape[0]:
        return f"takes one group a channel, got {op.groups} groups of {x.shape[0]} channels"
    return refuse(request, unit, in_planes=True)


def _taps(op: Conv2d, cut: Cut) -> Array:
    """Of each kernel's row, quad and pixel of a set: a weight a column, zero where it is no tap: int8 [out, ...]."""
    filled = np.concatenate([op.weight[:, 0], np.zeros((*op.weight[:, 0].shape[:2], 1), np.int8)], axis=2)
    steps = [filled[:, :, list(taps)] for quad in cut.quads for taps in quad.taps]  # tap -1 is the zero behind the row
    weight = np.stack(steps, axis=2)  # [channels, kernel's rows, quads x pixels, 4]
    return weight.reshape(op.out_channels, -1)


def _product(request: Request, cut: Cut) -> tuple[Array, Product]:
    """The weights as `_taps`, and the instructions for them."""
    op, source = request.node.op, request.alternatives[request.node.inputs[0]]
    assert isinstance(op, Conv2d)
    weight = _taps(op, cut)
    return weight, cut.panels.unit.product(weight, request.inputs[0], source, request.features)


def _build(request: Request, unit: Unit, tiling: Tiling, *, packed: bool) -> BuiltKernel:
    cut = Cut.of(request, unit, packed=packed, tiling=tiling)
    weight, dots = _product(request, cut)
    constants = cut.panels.pack(weight), *per_channel(request, cut.panels, dots)
    return build_function(request, constants, lambda buffers: _Loops(request, cut, dots, buffers).emit())


class _Loops:
    """Emits the loops of one convolution."""

    def __init__(self, request: Request, cut: Cut, product: Product, buffers: tuple[Any, ...]) -> None:
        op = request.node.op
        assert isinstance(op, Conv2d)
        self.window, self.cut, self.batch = op.window, cut, request.batch
        self.height, self.width = request.node.type.shape[1:]
        self.product, self.unit = product, cut.panels.unit
        self.result = Result(request, self.unit, buffers)
        self.x, self.weight = flat(buffers[0]), buffers[len(request.inputs)]

    def emit(self) -> None:
        """One task is a row."""
        with (T.parallel if self.cut.threads else T.serial)(self.batch * self.height) as task:
            n, h = task // self.height, task % self.height
            with T.serial(self.cut.panels.blocks) as block:
                for_block(self.cut.panels, block, lambda vectors: self._block(block, vectors, n, h))

    def _block(self, block: Expr, vectors: int, n: Expr, h: Expr) -> None:
        cut = self.cut

        def tiles() -> None:
            with T.serial(cut.tiles) as number:
                start = tirx.min(number * cut.tile, self.width - cut.tile)
                tile = DotTile(self.product, cut.tile, vectors, self.unit.lanes)
                self.result.start(tile, block, vectors)
                self._accumulate(tile, block, vectors, (n, h, start))
                self.result.finish(tile, block, vectors, range(cut.tile), (n, h, start))

        self.result.in_frame(block, vectors, n, h, tiles)

    def _accumulate(self, tile: DotTile, block: Expr, vectors: int, at: tuple[Expr, Expr, Expr]) -> None:
        """All products of a tile."""
        plane, window, cut = self.result.source, self.window, self.cut
        (n, h, start), (sy, sx), (top, left, _, _) = at, window.strides, window.pads
        corner = plane.index(n, h * sy + (plane.top - top), start * sx + (plane.left - left), block * self.unit.pair)
        with T.serial(window.kernel[0]) as ry:
            row = corner + ry * (window.dilations[0] * plane.width * plane.together)
            for index, quad in enumerate(cut.quads):
                for first in range(0, cut.tile, cut.pixels):
                    columns = [row + (first * sx + column) * plane.together for column in quad.columns]
                    quadruples = self._interleaved(columns, vectors)
                    for pixel in range(cut.pixels):
                        if max(quad.taps[pixel]) < 0:
                            continue
                        step = (ry * len(cut.quads) + index) * cut.pixels + pixel
                        address = block * cut.panels.panel_bytes + step * cut.panels.step_bytes(vectors)
                        for vector, quadruple in enumerate(quadruples):
                            weight = weights_of(cut.panels, self.product, self.weight, address, vector)
                            tile.multiply(first + pixel, vector, quadruple, weight)

    def _interleaved(self, columns: list[Expr], vectors: int) -> list[Expr]:
        """Four columns of a block, a lane holding those of its channel, as products take them: for each vector."""
        lanes, unit = vectors * self.unit.lanes, self.unit
        loaded = [self.x[ramp(column, lanes)] for column in columns]
        order = [lane + half * lanes for lane in range(lanes) for half in range(2)]
        pairs = [tir.reinterpret(f"uint16x{lanes}", shuffle(loaded[first : first + 2], order)) for first in (0, 2)]
        channels = unit.order if vectors == 2 else tuple(range(lanes))
        quadruples = []
        for vector in range(vectors):
            own = channels[vector * unit.lanes : (vector + 1) * unit.lanes]
            order = [channel + half * lanes for channel in own for half in range(2)]
            count = DOT_STEP * unit.lanes
            quadruple = self.product.operand(tir.reinterpret(f"uint8x{count}", shuffle(pairs, order)), count)
            quadruples.append(tir.reinterpret(f"int8x{count}", quadruple))
        return quadruples


def _cost(request: Request, cut: Cut) -> float:
    """Of the columns that are interleaved, which pixels that are computed twice need again; products hide behind it."""
    type = request.node.type
    storage = request.alternatives[request.node.name]
    pixels = request.batch * type.shape[1] * cut.tiles * cut.tile
    quads = cut.panels.steps // cut.pixels
    interleaved = pixels // cut.pixels * quads * DOT_STEP * cut.panels.channels
    return cut.panels.unit.cost("depthwise vnni", Work(0, storage.size_bytes(type, request.batch), interleaved))


def depthwise_kernels(unit: Unit) -> tuple[Kernel, Kernel]:
    """Of four-bit weights, which stay packed, and of bytes, or of such as are unpacked when compiled."""

    def offer(request: Request, *, packed: bool) -> Offer | str:
        storages = decline(request, Conv2d, PACKED_WEIGHT if packed else ANY_WEIGHT) or request.channels_last()
        if isinstance(storages, str):
            return storages
        reason = _refuse(request, unit)
        if reason is not None:
            return reason
        cut = Cut.of(request, unit, packed=packed)
        plain = Offer.of_candidates(
            storages,
            _cost(request, cut),
            Tiling.choose(request, unit, cut.pixels),
            lambda: Tiling.candidates(request, unit, cut.pixels),
            lambda tiling: _build(request, unit, tiling, packed=packed),
            lambda: _product(request, cut)[1].decided if unit.saturates else None,
        )
        return with_weights(plain, request, packed=packed)

    return (
        Kernel(f"conv2d_depthwise_u8s4s32_{unit.name}", partial(offer, packed=True)),
        Kernel(f"conv2d_depthwise_u8s8s32_{unit.name}", partial(offer, packed=False)),
    )
