"""Convolutions on AMX, rescaled as their blocks are done.

A task takes some panels of 32 channels over some blocks of 32 pixels. It keeps a panel's weights in its caches while
the pixels go by, and writes all that the result's plane holds there: zeros right of each row, above and below, and
channels that fill up. Where k-steps are many, the rescale of a block is spread over the next one's, so that vectors and
tiles work side by side; where they are few, it follows the block at once. Where all pixels are two blocks, as in the
last layers of a network, they are one tall block, and each tile of weights is loaded once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.core.ir import TensorType
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.dot.product import first_sums
from hawq_tvm.kernels.dot.vectors import flat, ramp
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.functions import constant_parameters, function, stored_parameter
from hawq_tvm.kernels.interface import BuiltKernel, Request
from hawq_tvm.kernels.x86 import amx_tiles as tiles
from hawq_tvm.kernels.x86.amx_copies import PIXEL, copy_phases, fill, interleave, zero_of
from hawq_tvm.kernels.x86.amx_epilogue import Rescaling, in_lanes
from hawq_tvm.kernels.x86.amx_operands import Operand, by_phases, in_place, of_few_channels
from hawq_tvm.kernels.x86.amx_product import (
    Beside,
    Product,
    Split,
    Sums,
    keep_size,
    multiply_by_tiles,
    multiply_by_vectors,
    multiply_tall_by_tiles,
)
from hawq_tvm.kernels.x86.amx_storages import BLOCK_CHANNELS, BLOCK_PIXELS, PLANE_CHANNELS, Plane
from hawq_tvm.kernels.x86.amx_weights import Stream, Weights, pack_weight, unpacked_panel
from hawq_tvm.kernels.x86.vectors import LANES

BLOCK_SUMS = BLOCK_PIXELS * BLOCK_CHANNELS
HALF = BLOCK_CHANNELS  # bytes of a panel's channels in a pixel of a plane
TALL_PIXELS = 2 * BLOCK_PIXELS
"""Outputs of 33 to so many pixels, counted along their rows, are one tall block: weights then are read once."""

PAIRS = BLOCK_PIXELS // 2  # the rescale takes two pixels at a time

MANY_STEPS = 16
"""Steps over which a rescale is worth spreading, of a window of one pixel; wider windows always have enough."""


@dataclass(frozen=True, eq=False)
class Source:
    """What a convolution multiplies.

    Attributes:
        reads: how its input lies.
        operand: the left matrix.
        copy: makes the operand's memory of the input's buffer; None where that is the input.
    """

    reads: Storage
    operand: Operand
    copy: Callable[[Any, Any], None] | None


def source_of(request: Request, plane: Plane) -> Source:
    """Of a blocked input, for an output that lies in `plane`s."""
    op, x = request.node.op, request.inputs[0]
    assert isinstance(op, Conv2d)
    storage = request.alternatives[request.node.inputs[0]]
    lies = Plane.of(x, storage)
    if op.window.strides == (1, 1):
        return Source(storage, in_place(op.window, x.shape, lies), None)
    phases = by_phases(op.window, x.shape, plane)
    threads = _spread(request, phases.operand)

    def copy(source: Any, work: Any) -> None:
        copy_phases(flat(source), work, phases, x, lies, request.batch, threads)

    return Source(storage, phases.operand, copy)


def source_of_few_channels(request: Request, plane: Plane) -> Source | None:
    """Of a canonical input; None where it has too many channels."""
    op, x = request.node.op, request.inputs[0]
    assert isinstance(op, Conv2d)
    to = of_few_channels(op.window, x.shape, plane)
    if to is None:
        return None
    threads = _spread(request, to.operand)

    def copy(source: Any, work: Any) -> None:
        interleave(source, work, to, x, request.batch, threads)

    return Source(Storage.canonical(x), to.operand, copy)


def _spread(request: Request, operand: Operand) -> bool:
    """Whether a copy is worth threads."""
    return request.batch * operand.sample_bytes >= 200_000


@dataclass(frozen=True)
class Tiling:
    """What is free in how the work is cut.

    Attributes:
        tall: whether all pixels are one tall block, each tile of weights read once; only where they are two blocks.
        panels: of a task.
        blocks: of a task.
    """

    tall: bool
    panels: int
    blocks: int

    @classmethod
    def choose(cls, request: Request, source: Source) -> Tiling:
        """Tall where it can be, and tasks that are worth a thread."""
        panels, blocks = _extent(request)
        tall = blocks * BLOCK_PIXELS == TALL_PIXELS
        split = Split.choose(panels, 1 if tall else blocks, source.operand.steps, request.batch)
        return cls(tall, split.panels, blocks if tall else split.blocks)

    @classmethod
    def candidates(cls, request: Request, source: Source) -> tuple[Tiling, ...]:
        """All that are worth timing, the chosen one first."""
        panels, blocks = _extent(request)
        own = cls.choose(request, source)
        found = [own]
        for tall in {own.tall, False}:
            lengths = (blocks,) if tall else sorted({-(-blocks // parts) for parts in (1, 2, 4)} | {own.blocks})
            each = sorted({-(-panels // parts) for parts in (1, 2, 4, 8, 16)} | {own.panels})
            found += [cls(tall, *choice) for choice in product(each, lengths)]
        return tuple(dict.fromkeys(found))


def _extent(request: Request) -> tuple[int, int]:
    """Panels and blocks of a sample."""
    plane = Plane.of(request.node.type, request.alternatives[request.node.name])
    return -(-request.node.type.shape[0] // BLOCK_CHANNELS), plane.blocks


def build_conv2d(request: Request, source: Source, tiling: Tiling, *, packed: bool) -> BuiltKernel:
    """The function and its constants; `packed`: whether two weights share a byte."""
    op, node = request.node.op, request.node
    assert isinstance(op, Conv2d)
    rescaling = Rescaling.choose(op, request.inputs, node.type)
    lanes = rescaling.lanes
    operand = source.operand
    tall = tiling.tall
    constants = (
        pack_weight(in_lanes(op.weight, lanes), operand, packed=packed, apart=tall),
        operand.offsets,
        in_lanes(first_sums(op, zero_of(request.inputs[0])), lanes),
        rescaling.parameters,
        rescaling.order,
    )
    panels, blocks = _extent(request)
    storages = [source.reads, *(request.alternatives[name] for name in (*node.inputs[1:], node.name))]
    types = [*request.inputs, node.type]
    *images, result = (
        stored_parameter(f"image{i}", type, storage, request.batch)
        for i, (type, storage) in enumerate(zip(types, storages, strict=True))
    )
    parameters = [*images, *constant_parameters(constants), result]
    split = Split.cut(panels, blocks, tiling.panels, tiling.blocks)

    def body(*buffers: Any) -> None:
        x, *residual = buffers[: len(types) - 1]
        weight, offsets, bias, factors, order = buffers[len(types) - 1 : -1]
        left = flat(x)
        if source.copy is not None:
            left = T.alloc_buffer((request.batch * operand.sample_bytes,), "uint8")
            source.copy(x, left)
        constant = flat(weight)

        def product_of(n: Expr, unpack: bool) -> Product:
            weights = Weights(constant, panels, operand.steps, unpacked_panel(operand.steps) if unpack else None, tall)
            return Product(operand, left, n * operand.sample_bytes, weights, bias, offsets)

        kernel = _Convolution(
            request,
            rescaling,
            product_of,
            (factors, order),
            _Planes.of(buffers[-1], node.type, storages[-1]),
            _Planes.of(residual[0], request.inputs[1], storages[1]) if residual else None,
            split,
            packed,
        )
        overlapped = operand.steps > MANY_STEPS or op.window.kernel != (1, 1)
        kernel.emit(kernel.tall if tall else kernel.overlapped if overlapped else kernel.one_by_one)

    return BuiltKernel(function(parameters, body), constants)


@dataclass(frozen=True, eq=False)
class _Planes:
    """A blocked value in a function's buffer."""

    buffer: Any
    plane: Plane
    planes: int

    @classmethod
    def of(cls, buffer: Any, type: TensorType, storage: Storage) -> _Planes:
        return cls(flat(buffer), Plane.of(type, storage), storage.channels(type) // PLANE_CHANNELS)

    def at(self, n: Expr, panel: Expr, pixel: Expr) -> Expr:
        """The first byte of a panel's 32 channels of a pixel, counted from the image's first."""
        pixels = (n * self.planes + panel // 2) * self.plane.pixels + self.plane.start + pixel
        return pixels * PIXEL + panel % 2 * HALF


@dataclass(frozen=True, eq=False)
class _Part:
    """What a task computes: some panels over some blocks of a sample."""

    sample: Expr
    first_panel: Expr
    panels: Expr
    first_block: Expr
    blocks: Expr


@dataclass(frozen=True, eq=False)
class _Convolution:
    """The loops of a convolution's function."""

    request: Request
    rescaling: Rescaling
    product: Callable[[Expr, bool], Product]
    parameters: tuple[Any, Any]
    y: _Planes
    residual: _Planes | None
    split: Split
    packed: bool

    @property
    def panels(self) -> int:
        return -(-self.request.node.type.shape[0] // BLOCK_CHANNELS)

    def emit(self, with_tiles: Callable[[Any, _Part], None]) -> None:
        """Ask for tiles, then every task, with them or without."""
        split = self.split
        tasks = self.request.batch * split.tasks
        granted = T.bind(tiles.permission())
        with (T.parallel if tasks > 1 else T.serial)(tasks) as task:
            first_panel = task // split.along % split.across * split.panels
            first_block = task % split.along * split.blocks
            part = _Part(
                task // split.tasks,
                first_panel,
                tirx.min(split.panels, self.panels - first_panel),
                first_block,
                tirx.min(split.blocks, self.y.plane.blocks - first_block),
            )
            sums = T.alloc_buffer((2 * BLOCK_SUMS,), "int32")
            keep_size(sums)
            with T.If(granted == 0):
                with T.Then():
                    tiles.configure()
                    with_tiles(sums, part)
                    tiles.release()
                with T.Else():
                    self.one_by_one(sums, part, on_tiles=False)
            self._zeros(part)

    def one_by_one(self, sums: Any, part: _Part, *, on_tiles: bool = True) -> None:
        """Each block, and then its rescale."""
        product = self.product(part.sample, self.packed)
        with T.serial(part.panels) as p:
            panel = part.first_panel + p
            product.weights.unpack(panel)
            with T.serial(part.blocks) as b:
                block = part.first_block + b
                if on_tiles:
                    ahead = (b, self.split.blocks)
                    multiply_by_tiles(product, panel, block * BLOCK_PIXELS, _tiles_of(sums, 0), ahead=ahead)
                else:
                    multiply_by_vectors(product, panel, block * BLOCK_PIXELS, _tiles_of(sums, 0))
                with T.serial(PAIRS) as pair:
                    self._rescale(part.sample, panel, block, sums, 0, pair)

    def overlapped(self, sums: Any, part: _Part) -> None:
        """Each block's rescale beside the product of the next one, whose sums go to the other half of memory."""
        product = self.product(part.sample, self.packed)

        def place(index: Expr) -> tuple[Expr, Expr]:
            return part.first_panel + index // part.blocks, part.first_block + index % part.blocks

        def multiply(index: Expr, beside: Beside | None) -> None:
            panel, block = place(index)
            ahead = (index % part.blocks, self.split.blocks)
            if self.packed:
                with T.If(index % part.blocks == 0), T.Then():
                    product.weights.unpack(panel)
            half = index % 2 * BLOCK_SUMS
            multiply_by_tiles(product, panel, block * BLOCK_PIXELS, _tiles_of(sums, half), beside=beside, ahead=ahead)

        def rescale(index: Expr, pair: Expr) -> None:
            self._rescale(part.sample, *place(index), sums, index % 2 * BLOCK_SUMS, pair)

        multiply(tirx.const(0, "int32"), None)
        with T.serial(part.panels * part.blocks - 1) as before:
            multiply(before + 1, Beside(PAIRS, lambda pair: rescale(before, pair)))
        with T.serial(PAIRS) as pair:
            rescale(part.panels * part.blocks - 1, pair)

    def tall(self, sums: Any, part: _Part) -> None:
        """All pixels by one panel at a time, its rescale beside the product of the next one's first half."""
        product = self.product(part.sample, False)
        stream = Stream.of(product.weights, part.first_panel, part.panels, packed=self.packed)
        pairs = TALL_PIXELS // 2

        def multiply(index: Expr, beside: Beside | None) -> None:
            first = index * (2 * product.operand.steps)
            multiply_tall_by_tiles(product, stream, part.first_panel + index, first, _tiles_of(sums, 0), beside)

        def rescale(index: Expr, pair: Expr) -> None:
            self._rescale(part.sample, part.first_panel + index, 0, sums, 0, pair)

        multiply(tirx.const(0, "int32"), None)
        with T.serial(part.panels - 1) as before:
            multiply(before + 1, Beside(pairs, lambda pair: rescale(before, pair)))
        with T.serial(pairs) as pair:
            rescale(part.panels - 1, pair)

    def _rescale(self, n: Expr, panel: Expr, block: Expr, sums: Any, half: Expr, pair: Expr) -> None:
        """Two pixels of a block, 32 channels of each; in a tall block pairs go on past the first 32 pixels."""
        parameters, order = self.parameters
        pixel = block * BLOCK_PIXELS + 2 * pair
        row = half + pair // 8 * (2 * LANES * LANES) + pair % 8 * (2 * LANES)
        rounded: list[list[Expr]] = []
        for index in range(2):
            rounded.append([])
            for group in range(2):
                sum_ = sums[ramp(row + (group * LANES + index) * LANES, LANES)]
                residual, at = None, 0
                if self.residual is not None:
                    residual = self.residual.buffer
                    at = self.residual.at(n, panel, pixel + index) + group * LANES
                rounded[-1].append(self.rescaling.round(sum_, parameters, panel * 2 + group, residual, at))
        packed = self.rescaling.pack(rounded, order[ramp(0, 64)])
        for index in range(2):
            part = tir.call_llvm_pure_intrin(
                "int8x32", "llvm.vector.extract", packed, tirx.const(index * HALF, "int64")
            )
            value = tir.reinterpret("uint8x32", part)
            T.buffer_store(self.y.buffer, value, [ramp(self.y.at(n, panel, pixel + index), HALF)])

    def _zeros(self, part: _Part) -> None:
        """What a task's panels hold beside the image, and the channels that fill a plane up behind the last panel."""
        n, first_panel, panels = part.sample, part.first_panel, part.panels
        first_block, blocks = part.first_block, part.blocks
        plane, zero = self.y.plane, zero_of(self.request.node.type)
        first, behind = first_block * BLOCK_PIXELS, (first_block + blocks) * BLOCK_PIXELS
        end = plane.pixels - plane.start
        is_first, is_last = first_block == 0, first_block + blocks == plane.blocks

        def pixels(panel: Expr, start: Expr, count: Expr) -> None:
            fill(self.y.buffer, self.y.at(n, panel, start), count, PIXEL, HALF, zero)

        def above_and_below(panel: Expr, image_end: int) -> None:
            if plane.above:
                with T.If(is_first), T.Then():
                    pixels(panel, -plane.start, plane.start)
            if end > image_end:
                with T.If(is_last), T.Then():
                    pixels(panel, image_end, end - image_end)

        with T.serial(panels) as p:
            panel = first_panel + p
            above_and_below(panel, plane.height * plane.pitch)
            if plane.pitch > plane.width:
                with T.serial(plane.height) as row, T.serial(plane.pitch - plane.width) as column:
                    pixel = row * plane.pitch + plane.width + column
                    with T.If(tirx.all(pixel >= first, tirx.any(pixel < behind, is_last))), T.Then():
                        pixels(panel, pixel, 1)
        if self.panels % 2:
            with T.If(first_panel + panels == self.panels), T.Then():
                panel = tirx.const(self.panels, "int32")
                above_and_below(panel, plane.blocks * BLOCK_PIXELS)
                pixels(panel, first, behind - first)


def _tiles_of(sums: Any, start: Expr) -> Sums:
    """Four tiles, one after the other."""
    tile = LANES * LANES
    return Sums(sums, start, LANES, 2 * tile, tile)
