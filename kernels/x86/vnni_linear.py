"""Matrix product of activations [N, in] on AVX512-VNNI, with the rescale and the residual fused.

With one sample each weight is read once, so it is the stream of weights that takes the time: blocks of 128 outputs,
eight vectors, keep enough products in flight while it passes. The last block moves left until it fits; so does the last
step of four features, whose weights are zero where the step before has been.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.core.ir import Array
from hawq_tvm.core.ops import Linear
from hawq_tvm.kernels.generic.acceptance import ANY_WEIGHT, PACKED_WEIGHT, decline, with_weights
from hawq_tvm.kernels.generic.costs import Work, cost
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.functions import constant_parameters, function, stored_parameter
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Offer, Request
from hawq_tvm.kernels.packing import pack_nibbles
from hawq_tvm.kernels.x86.epilogue import rounded
from hawq_tvm.kernels.x86.panels import STEP
from hawq_tvm.kernels.x86.storages import AVX512_VNNI, NIBBLES, UNSIGNED_OFFSET, first_sums, missing
from hawq_tvm.kernels.x86.vectors import (
    LANES,
    LINE_BYTES,
    Registers,
    clipped,
    constant,
    dot,
    flat,
    in_all_lanes,
    nibbles,
    prefetch,
    ramp,
)

MIN_WEIGHTS = 500_000
"""Weights from which threads pay: about 20 us of one core."""

MAX_VECTORS = 8
MAX_SAMPLES = 3
"""Of a tile: their product leaves 8 of 32 registers for weights, activations and the epilogue."""


@dataclass(frozen=True)
class Cut:
    """How the work is cut.

    Attributes:
        outputs: of the layer.
        features: of the layer.
        vectors: of a block of outputs.
        samples: computed together; the last tile of samples moves left until it fits.
        packed: whether weights lie two a byte, those of a pair's second vector in the high halves.
        ahead: how many steps ahead of the one that is read memory is fetched; 0 for nothing.
        threads: whether blocks are shared among threads.
    """

    outputs: int
    features: int
    vectors: int
    samples: int
    packed: bool
    ahead: int
    threads: bool

    @classmethod
    def of(cls, request: Request, *, packed: bool, tiling: Tiling | None = None) -> Cut:
        op, tiling = request.node.op, tiling or Tiling.choose(request)
        assert isinstance(op, Linear)
        outputs, features = op.weight.shape
        samples = min(request.batch, MAX_SAMPLES)
        return cls(outputs, features, tiling.vectors, samples, packed, tiling.ahead, tiling.threads)

    @property
    def block(self) -> int:
        return self.vectors * LANES

    @property
    def blocks(self) -> int:
        return -(-self.outputs // self.block)

    @property
    def steps(self) -> int:
        return -(-self.features // STEP)

    @property
    def step_bytes(self) -> int:
        """Of a block's weights."""
        return LANES * STEP * (-(-self.vectors // 2) if self.packed else self.vectors)

    @property
    def channels(self) -> Array:
        """The outputs of each block: [blocks, block]."""
        starts = np.minimum(np.arange(self.blocks) * self.block, self.outputs - self.block)
        return starts[:, None] + np.arange(self.block)

    def pack(self, weight: Array) -> Array:
        """The stream: of each block, step after step, the four weights of each lane of each vector."""
        last = self.features - STEP
        filled = np.zeros((self.outputs, self.steps * STEP), np.int8)
        filled[:, : self.features] = weight
        filled[:, -STEP:] = weight[:, last:]
        filled[:, (self.steps - 1) * STEP :][:, : self.steps * STEP - self.features] = 0
        split = filled[self.channels].reshape(self.blocks, self.vectors, LANES, self.steps, STEP)
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
    def choose(cls, request: Request) -> Tiling:
        """The one for a stream of weights."""
        op = request.node.op
        assert isinstance(op, Linear)
        return cls(_sizes(op)[0], 0, op.weight.size >= MIN_WEIGHTS)

    @classmethod
    def candidates(cls, request: Request) -> tuple[Tiling, ...]:
        """All that are worth timing, the chosen one first."""
        op = request.node.op
        assert isinstance(op, Linear)
        choices = (cls(*choice) for choice in product(_sizes(op), (0, 8, 16, 32), (True, False)))
        return tuple(dict.fromkeys((cls.choose(request), *choices)))


def _sizes(op: Linear) -> list[int]:
    """Vectors that a block may have."""
    return [size for size in (MAX_VECTORS, 4, 2, 1) if size * LANES <= op.out_channels]


def _refuse(request: Request, *, packed: bool) -> str | None:
    op = request.node.op
    assert isinstance(op, Linear)
    lacking = missing(request.features, AVX512_VNNI | (NIBBLES if packed else frozenset()))
    if lacking:
        return lacking
    outputs, features = op.weight.shape
    if outputs < LANES or features < STEP:
        return f"takes at least {STEP} features and {LANES} outputs, got {features} and {outputs}"
    return None


def _build(request: Request, tiling: Tiling, *, packed: bool) -> BuiltKernel:
    op, cut, type = request.node.op, Cut.of(request, packed=packed, tiling=tiling), request.node.type
    assert isinstance(op, Linear)
    offset = UNSIGNED_OFFSET if request.inputs[0].dtype.signed else 0
    values = [first_sums(op, offset), *(array.astype(np.int32) for array in op.multipliers)]
    constants = cut.pack(op.weight), *(array[cut.channels].reshape(-1) for array in values)
    reads, writes = request.canonical()
    *inputs, result = (
        stored_parameter(f"value{i}", value, storage, request.batch)
        for i, (value, storage) in enumerate(zip((*request.inputs, type), (*reads, writes), strict=True))
    )
    parameters = [*inputs, *constant_parameters(constants), result]
    return BuiltKernel(function(parameters, lambda *buffers: _emit(request, cut, buffers)), constants)


def _emit(request: Request, cut: Cut, buffers: tuple[Any, ...]) -> None:
    """One task is a block of outputs of all samples."""
    with (
        (T.parallel if cut.threads else T.serial)(cut.blocks) as block,
        T.serial(-(-request.batch // cut.samples)) as tile,
    ):
        first = tirx.min(tile * cut.samples, request.batch - cut.samples)
        accumulators = Registers(cut.samples * cut.vectors)
        _accumulate(accumulators, request, cut, buffers, block, first)
        _finish(accumulators, request, cut, buffers, block, first)


def _accumulate(
    accumulators: Registers, request: Request, cut: Cut, buffers: tuple[Any, ...], block: Expr, first: Expr
) -> None:
    """Bias and all products of some samples."""
    x, (weight, bias) = flat(buffers[0]), buffers[len(request.inputs) :][:2]
    for sample in range(cut.samples):
        for vector in range(cut.vectors):
            lanes = ramp(block * cut.block + vector * LANES, LANES)
            accumulators[sample * cut.vectors + vector] = bias[lanes]
    with T.serial(cut.steps) as step:
        address = (block * cut.steps + step) * cut.step_bytes
        loaded = [_weights(weight, cut, address, vector) for vector in range(cut.vectors)]
        _fetch(weight, cut, address)
        feature = step * STEP
        if cut.features % STEP:
            feature = tirx.min(feature, cut.features - STEP)
        for sample in range(cut.samples):
            four = x[ramp((first + sample) * cut.features + feature, STEP)]
            if request.inputs[0].dtype.signed:
                four = tir.reinterpret(f"uint8x{STEP}", four) ^ constant(UNSIGNED_OFFSET, "uint8", STEP)
            activations = in_all_lanes(four)
            for vector in range(cut.vectors):
                number = sample * cut.vectors + vector
                accumulators[number] = dot(accumulators[number], activations, loaded[vector])


def _weights(buffer: Any, cut: Cut, step: Expr, vector: int) -> Expr:
    """One vector's weights of the step that begins there: int8x64."""
    if cut.packed:
        return nibbles(buffer[ramp(step + vector // 2 * LANES * STEP, LANES * STEP)], vector % 2)
    return buffer[ramp(step + vector * LANES * STEP, LANES * STEP)]


def _fetch(buffer: Any, cut: Cut, step: Expr) -> None:
    """The step that is so many ahead of the one that begins there."""
    if cut.ahead:
        last = cut.blocks * cut.steps * cut.step_bytes - 1
        for line in range(0, cut.step_bytes, LINE_BYTES):
            prefetch(buffer[tirx.min(step + cut.ahead * cut.step_bytes + line, last)])


def _finish(
    accumulators: Registers, request: Request, cut: Cut, buffers: tuple[Any, ...], block: Expr, first: Expr
) -> None:
    """Residual, rounding, clip and store of some samples."""
    op, count, y = request.node.op, len(request.inputs), buffers[-1]
    assert isinstance(op, Linear)
    _, multiplier, *residual_multiplier = buffers[count + 1 : -1]
    start = tirx.min(block * cut.block, cut.outputs - cut.block)
    for sample in range(cut.samples):
        for vector in range(cut.vectors):
            lanes = ramp(block * cut.block + vector * LANES, LANES)
            place = [first + sample, ramp(start + vector * LANES, LANES)]
            products = [(accumulators[sample * cut.vectors + vector], multiplier[lanes])]
            if residual_multiplier:
                residual = buffers[1][place[0], place[1]].astype(f"int32x{LANES}")
                products.append((residual, residual_multiplier[0][lanes]))
            value = clipped(rounded(products, op.rescale), op.rescale.lo, op.rescale.hi, "int32")
            T.buffer_store(y, value.astype(f"{y.dtype}x{LANES}"), place)


def _offer(request: Request, *, packed: bool) -> Offer | str:
    reason = decline(request, Linear, PACKED_WEIGHT if packed else ANY_WEIGHT) or _refuse(request, packed=packed)
    if reason is not None:
        return reason
    cut = Cut.of(request, packed=packed)
    work = Work(request.batch * cut.blocks * cut.block * cut.steps * STEP, request.batch * cut.outputs)
    offer = Offer.of_candidates(
        request.canonical(),
        cost("linear vnni w4" if packed else "linear vnni", request, work),
        Tiling.choose(request),
        lambda: Tiling.candidates(request),
        lambda tiling: _build(request, tiling, packed=packed),
    )
    return with_weights(offer, request, packed=packed)


LINEAR_W4_VNNI = Kernel("linear_u8s4s32_avx512vnni", partial(_offer, packed=True))
LINEAR_W8_VNNI = Kernel("linear_u8s8s32_avx512vnni", partial(_offer, packed=False))
