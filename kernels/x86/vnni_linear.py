"""Matrix product of activations [N, in] on AVX512-VNNI, with the rescale and the residual fused.

With one sample each weight is read once, so it is the stream of weights that takes the time: blocks of 128 outputs,
eight vectors, keep enough products in flight while it passes. The last block moves left until it fits; so does the last
step of four features, whose weights are zero where the step before has been.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.core.ir import Array
from hawq_tvm.core.ops import Linear
from hawq_tvm.kernels.generic.acceptance import BYTE_WEIGHT, PACKED_WEIGHT, decline
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
    Registers,
    clipped,
    constant,
    dot,
    flat,
    in_all_lanes,
    nibbles,
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
    """

    outputs: int
    features: int
    vectors: int
    samples: int
    packed: bool

    @classmethod
    def of(cls, request: Request) -> Cut:
        op = request.node.op
        assert isinstance(op, Linear)
        outputs, features = op.weight.shape
        vectors = next(size for size in (MAX_VECTORS, 4, 2, 1) if size * LANES <= outputs)
        return cls(outputs, features, vectors, min(request.batch, MAX_SAMPLES), op.weight_bits in PACKED_WEIGHT)

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


def _refuse(request: Request) -> str | None:
    op = request.node.op
    assert isinstance(op, Linear)
    packed = op.weight_bits in PACKED_WEIGHT
    lacking = missing(request.features, AVX512_VNNI | (NIBBLES if packed else frozenset()))
    if lacking:
        return lacking
    outputs, features = op.weight.shape
    if outputs < LANES or features < STEP:
        return f"takes at least {STEP} features and {LANES} outputs, got {features} and {outputs}"
    return None


def _build(request: Request) -> BuiltKernel:
    op, cut, type = request.node.op, Cut.of(request), request.node.type
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
    threads = cut.outputs * cut.features >= MIN_WEIGHTS
    with (T.parallel if threads else T.serial)(cut.blocks) as block, T.serial(-(-request.batch // cut.samples)) as tile:
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


def _kernel(name: str, weight_bits: range) -> Kernel:
    def offer(request: Request) -> Offer | str:
        reason = decline(request, Linear, weight_bits) or _refuse(request)
        if reason is not None:
            return reason
        cut = Cut.of(request)
        work = Work(request.batch * cut.blocks * cut.block * cut.steps * STEP, request.batch * cut.outputs)
        microseconds = cost("linear vnni w4" if cut.packed else "linear vnni", request, work)
        return Offer(*request.canonical(), microseconds, lambda: _build(request))

    return Kernel(name, offer)


LINEAR_W4_VNNI = _kernel("linear_u8s4s32_avx512vnni", PACKED_WEIGHT)
LINEAR_W8_VNNI = _kernel("linear_u8s8s32_avx512vnni", BYTE_WEIGHT)
