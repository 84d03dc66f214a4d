"""Matrix product of activations [N, in] by dot products, with the rescale and the residual fused.

With one sample each weight is read once, so it is the stream of weights that takes the time: blocks of eight vectors
of outputs keep enough products in flight while it passes. The last block moves left until it fits; so does the last
step of features, whose weights are zero where the step before has been.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ir import Array
from hawq_tvm.core.ops import Linear
from hawq_tvm.kernels.dot.product import Product
from hawq_tvm.kernels.dot.tile import Tile
from hawq_tvm.kernels.dot.unit import Unit, missing
from hawq_tvm.kernels.dot.vectors import LINE_BYTES, clipped, flat, prefetch, ramp
from hawq_tvm.kernels.generic.acceptance import ANY_WEIGHT, PACKED_WEIGHT, decline, with_weights
from hawq_tvm.kernels.generic.costs import Work
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.functions import constant_parameters, function, stored_parameter
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Offer, Request
from hawq_tvm.kernels.packing import pack_nibbles

MIN_WEIGHTS = 500_000
"""Weights from which threads pay: about 20 us of one core."""

MAX_VECTORS = 8
"""Of a block."""


@dataclass(frozen=True)
class Cut:
    """How the work is cut.

    Attributes:
        unit: the instructions.
        outputs: of the layer.
        features: of the layer.
        vectors: of a block of outputs.
        samples: computed together; the last tile of samples moves left until it fits.
        packed: whether weights lie two a byte, those of a pair's second vector in the high halves.
        ahead: how many steps ahead of the one that is read memory is fetched; 0 for nothing.
        threads: whether blocks are shared among threads.
    """

    unit: Unit
    outputs: int
    features: int
    vectors: int
    samples: int
    packed: bool
    ahead: int
    threads: bool

    @classmethod
    def of(cls, request: Request, unit: Unit, *, packed: bool, tiling: Tiling | None = None) -> Cut:
        op, tiling = request.node.op, tiling or Tiling.choose(request, unit)
        assert isinstance(op, Linear)
        outputs, features = op.weight.shape
        samples = min(request.batch, 3, max(1, 3 * unit.max_tile // tiling.vectors))
        return cls(unit, outputs, features, tiling.vectors, samples, packed, tiling.ahead, tiling.threads)

    @property
    def block(self) -> int:
        return self.vectors * self.unit.lanes

    @property
    def blocks(self) -> int:
        return -(-self.outputs // self.block)

    @property
    def steps(self) -> int:
        return -(-self.features // self.unit.step)

    @property
    def vector_bytes(self) -> int:
        """Weights of a vector that one step takes."""
        return self.unit.lanes * self.unit.step

    @property
    def step_bytes(self) -> int:
        """Of a block's weights."""
        return self.vector_bytes * (-(-self.vectors // 2) if self.packed else self.vectors)

    @property
    def channels(self) -> Array:
        """The outputs of each block: [blocks, block]."""
        starts = np.minimum(np.arange(self.blocks) * self.block, self.outputs - self.block)
        return starts[:, None] + np.arange(self.block)

    def taps(self, weight: Array) -> Array:
        """The weights in the order in which activations are read: int8 [outputs, steps times those of a step]."""
        step = self.unit.step
        filled = np.zeros((self.outputs, self.steps * step), np.int8)
        filled[:, : self.features] = weight
        filled[:, -step:] = weight[:, self.features - step :]
        filled[:, (self.steps - 1) * step :][:, : self.steps * step - self.features] = 0
        return filled

    def pack(self, taps: Array) -> Array:
        """The stream: of each block, step after step, the weights of each lane of each vector."""
        lanes, step = self.unit.lanes, self.unit.step
        split = taps[self.channels].reshape(self.blocks, self.vectors, lanes, self.steps, step)
        stream = split.transpose(0, 3, 1, 2, 4)
        if self.packed:
            high = stream[:, :, 1::2] if self.vectors > 1 else np.zeros_like(stream)
            return pack_nibbles(stream[:, :, ::2], high).reshape(-1)
        return np.ascontiguousarray(stream).reshape(-1)


@dataclass(frozen=True)
class Tiling:
    """What is free in how the work is cut; attributes as of `Cut`."""

    vectors: int
    ahead: int
    threads: bool

    @classmethod
    def choose(cls, request: Request, unit: Unit) -> Tiling:
        """The one for a stream of weights, which the CPU fetches ahead by itself."""
        op = request.node.op
        assert isinstance(op, Linear)
        return cls(_sizes(op, unit)[0], 0, op.weight.size >= MIN_WEIGHTS)

    @classmethod
    def candidates(cls, request: Request, unit: Unit) -> tuple[Tiling, ...]:
        """All that are worth timing, the chosen one first."""
        op = request.node.op
        assert isinstance(op, Linear)
        choices = (cls(*choice) for choice in product(_sizes(op, unit), (0, 8, 16, 32), (True, False)))
        return tuple(dict.fromkeys((cls.choose(request, unit), *choices)))


def _sizes(op: Linear, unit: Unit) -> list[int]:
    """Vectors that a block may have."""
    return [size for size in (MAX_VECTORS, 4, 2, 1) if size * unit.lanes <= op.out_channels]


def _refuse(request: Request, unit: Unit) -> str | None:
    op = request.node.op
    assert isinstance(op, Linear)
    lacking = missing(request.features, unit.needs)
    if lacking:
        return lacking
    outputs, features = op.weight.shape
    if outputs < unit.lanes or features < unit.step:
        return f"takes at least {unit.step} features and {unit.lanes} outputs, got {features} and {outputs}"
    return None


def _product(request: Request, cut: Cut) -> tuple[Array, Product]:
    """The weights as `Cut.taps`, and the instructions for them."""
    op, (source, *_) = request.node.op, request.canonical()[0]
    assert isinstance(op, Linear)
    taps = cut.taps(op.weight)
    return taps, cut.unit.product(taps, request.inputs[0], source, request.features)


def _build(request: Request, unit: Unit, tiling: Tiling, *, packed: bool) -> BuiltKernel:
    op, cut, type = request.node.op, Cut.of(request, unit, packed=packed, tiling=tiling), request.node.type
    assert isinstance(op, Linear)
    reads, writes = request.canonical()
    taps, dots = _product(request, cut)
    values = [dots.first_sums(op), *(array.astype(np.int32) for array in op.multipliers)]
    constants = cut.pack(taps), *(array[cut.channels].reshape(-1) for array in values)
    *inputs, result = (
        stored_parameter(f"value{i}", value, storage, request.batch)
        for i, (value, storage) in enumerate(zip((*request.inputs, type), (*reads, writes), strict=True))
    )
    parameters = [*inputs, *constant_parameters(constants), result]
    return BuiltKernel(function(parameters, lambda *buffers: _emit(request, cut, dots, buffers)), constants)


def _emit(request: Request, cut: Cut, dots: Product, buffers: tuple[Any, ...]) -> None:
    """One task is a block of outputs of all samples."""
    with (
        (T.parallel if cut.threads else T.serial)(cut.blocks) as block,
        T.serial(-(-request.batch // cut.samples)) as number,
    ):
        first = tirx.min(number * cut.samples, request.batch - cut.samples)
        tile = cut.unit.tile(dots, cut.samples, cut.vectors)
        _accumulate(tile, request, cut, dots, buffers, block, first)
        _finish(tile, request, cut, buffers, block, first)


def _accumulate(
    tile: Tile, request: Request, cut: Cut, dots: Product, buffers: tuple[Any, ...], block: Expr, first: Expr
) -> None:
    """Bias and all products of some samples."""
    x, (weight, bias), unit = flat(buffers[0]), buffers[len(request.inputs) :][:2], cut.unit
    tile.start([bias[ramp(block * cut.block + vector * unit.lanes, unit.lanes)] for vector in range(cut.vectors)])
    with T.serial(cut.steps) as step:
        address = (block * cut.steps + step) * cut.step_bytes
        feature = step * unit.step
        if cut.features % unit.step:
            feature = tirx.min(feature, cut.features - unit.step)
        tile.add(
            lambda sample: x[ramp((first + sample) * cut.features + feature, unit.step)],
            lambda vector: _weights(weight, cut, dots, address, vector),
        )
        _fetch(weight, cut, address)


def _weights(buffer: Any, cut: Cut, dots: Product, step: Expr, vector: int) -> Expr:
    """One vector's weights of the step that begins there: int8."""
    count = cut.vector_bytes
    if cut.packed:
        return dots.halves(buffer[ramp(step + vector // 2 * count, count)], vector % 2)
    return buffer[ramp(step + vector * count, count)]


def _fetch(buffer: Any, cut: Cut, step: Expr) -> None:
    """The step that is so many ahead of the one that begins there."""
    if cut.ahead:
        last = cut.blocks * cut.steps * cut.step_bytes - 1
        for line in range(0, cut.step_bytes, LINE_BYTES):
            prefetch(buffer[tirx.min(step + cut.ahead * cut.step_bytes + line, last)])


def _finish(tile: Tile, request: Request, cut: Cut, buffers: tuple[Any, ...], block: Expr, first: Expr) -> None:
    """Residual, rounding, clip and store of some samples."""
    op, count, y, lanes = request.node.op, len(request.inputs), buffers[-1], cut.unit.lanes
    assert isinstance(op, Linear)
    _, multiplier, *residual_multiplier = buffers[count + 1 : -1]
    start = tirx.min(block * cut.block, cut.outputs - cut.block)
    for sample in range(cut.samples):
        for vector in range(cut.vectors):
            own = ramp(block * cut.block + vector * lanes, lanes)
            place = [first + sample, ramp(start + vector * lanes, lanes)]
            products = [(tile.sums(sample, vector), multiplier[own])]
            if residual_multiplier:
                residual = buffers[1][place[0], place[1]].astype(f"int32x{lanes}")
                products.append((residual, residual_multiplier[0][own]))
            value = clipped(cut.unit.rounded(products, op.rescale), op.rescale.lo, op.rescale.hi, "int32", lanes)
            T.buffer_store(y, value.astype(f"{y.dtype}x{lanes}"), place)


def linear_kernels(unit: Unit) -> tuple[Kernel, Kernel]:
    """Of four-bit weights, which stay packed, and of bytes, or of such as are unpacked when compiled."""

    def offer(request: Request, *, packed: bool) -> Offer | str:
        reason = decline(request, Linear, PACKED_WEIGHT if packed else ANY_WEIGHT) or _refuse(request, unit)
        if reason is not None:
            return reason
        cut = Cut.of(request, unit, packed=packed)
        samples = -(-request.batch // cut.samples) * unit.whole(cut.samples)
        work = Work(samples * cut.blocks * cut.block * cut.steps * unit.step, request.batch * cut.outputs)
        plain = Offer.of_candidates(
            request.canonical(),
            unit.cost("linear vnni w4" if packed else "linear vnni", work),
            Tiling.choose(request, unit),
            lambda: Tiling.candidates(request, unit),
            lambda tiling: _build(request, unit, tiling, packed=packed),
            lambda: _product(request, cut)[1].decided if unit.saturates else None,
        )
        return with_weights(plain, request, packed=packed)

    return (
        Kernel(f"linear_u8s4s32_{unit.name}", partial(offer, packed=True)),
        Kernel(f"linear_u8s8s32_{unit.name}", partial(offer, packed=False)),
    )
