"""Convolution for every window and every number of groups: a thread for each word of output channels of a pixel.

The simple exact form: int32 multiply-adds on values that are unpacked one by one. The Tensor Core kernels take what
matters; this one takes everything, the depthwise convolutions among it, in which a thread reads its own channels alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.gpu_model import Prediction
from hawq_tvm.core.ir import Array
from hawq_tvm.core.ops import Conv2d, WeightedOperator
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.cuda.acceptance import canonical, packed
from hawq_tvm.kernels.cuda.costs import simple_cost
from hawq_tvm.kernels.cuda.launch import node_by_words
from hawq_tvm.kernels.cuda.pooling import over_taps
from hawq_tvm.kernels.cuda.registers import local
from hawq_tvm.kernels.cuda.values import Place, Value, field, int32
from hawq_tvm.kernels.generic.expressions import Expr, int64, rounded
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request

CODE_INSTRUCTIONS = {"NCHW": 240, "NHWC": 900}
"""Of the kernel, in machine code for sm_75, by how its result is stored; less where it has groups."""


def per_channel(op: WeightedOperator, channels: int) -> list[Array]:
    """Bias, multipliers and, where there is one, the residual's: int32 [channels], which 2^31 bounds, then zeros."""
    values = [op.bias, *op.multipliers]
    filled = np.zeros((len(values), channels), np.int32)
    for row, array in zip(filled, values, strict=True):
        row[: len(array)] = array
    return list(filled)


def weight_words(weight: Array, lanes: int, channels: int) -> Array:
    """Weights with the output channels that one thread computes side by side.

    Args:
        weight: int8 [out, taps].
        lanes: channels a thread: 1, 4 or 8.
        channels: stored channels of the result; those that fill up have weights of 0.

    Returns:
        int8 [taps, channels] where a thread computes one channel, else int32 [taps, channels / 4], four a word.
    """
    filled = np.zeros((weight.shape[1], channels), np.int8)
    filled[:, : len(weight)] = weight.T
    return filled if lanes == 1 else filled.view(np.int32)


def load_weights(weights: Any, tap: Expr, c: Expr, lanes: int) -> list[Expr]:
    """A tap's weights of a thread's channels, from what `weight_words` makes, as int32."""
    if lanes == 1:
        return [weights[tap, c].astype("int32")]
    found = []
    for start in range(0, lanes, 4):
        word = T.bind(weights[tap, (c + start) // 4])
        found += [field(word, int32(8 * lane), 8, signed=True) for lane in range(4)]
    return found


def finish(
    sums: Sequence[Expr], op: WeightedOperator, constants: Sequence[Any], residual: Sequence[Expr], c: Expr
) -> list[Expr]:
    """Residual, rounding and clip of a thread's sums, which hold their bias."""
    found = []
    for lane, total in enumerate(sums):
        scaled = int64(total) * int64(constants[0][c + lane])
        if residual:
            scaled = scaled + int64(residual[lane]) * int64(constants[1][c + lane])
        found.append(rounded(scaled, op.rescale))
    return found


def _build(request: Request, reads: tuple[Storage, ...], writes: Storage) -> BuiltKernel:
    op, node = request.node.op, request.node
    assert isinstance(op, Conv2d)
    channels = writes.channels(node.type)
    lanes = 1 if writes.order == "NCHW" else 32 // writes.bits
    taps = op.weight.transpose(0, 2, 3, 1).reshape(op.out_channels, -1)
    constants = [weight_words(taps, lanes, channels), *per_channel(op, channels)]

    def body(inputs: Sequence[Value], given: Sequence[Any], y: Value, at: Place) -> list[Expr]:
        weights, bias, *multipliers = given
        sums = local(lanes, "int32")
        for lane in range(lanes):
            T.buffer_store(sums, bias[at[1] + lane], [lane])

        def add(values: Sequence[Expr], tap: Expr) -> None:
            for lane, weight in enumerate(load_weights(weights, tap, at[1], lanes)):
                T.buffer_store(sums, sums[lane] + values[lane] * weight, [lane])

        def tap(ky: Expr, kx: Expr, h: Expr, w: Expr) -> None:
            index = ky * op.window.kernel[1] + kx
            if op.depthwise:
                add(inputs[0].load_run(at[0], at[1], h, w, lanes), index)
                return
            per_group = op.weight.shape[1]
            with T.serial(per_group) as ci:
                add(_inputs_of(inputs[0], op, (at[0], at[1], h, w), ci, lanes), index * per_group + ci)

        over_taps(op.window, inputs[0].size, at, tap)
        residual = inputs[1].load_run(*at, lanes) if len(inputs) > 1 else ()
        return finish([sums[lane] for lane in range(lanes)], op, multipliers, residual, at[1])

    return node_by_words(request, reads, writes, body, constants)


def _inputs_of(x: Value, op: Conv2d, at: Place, ci: Expr, lanes: int) -> list[Expr]:
    """What each of a thread's output channels reads as its group's input channel `ci`."""
    n, c, h, w = at
    if op.groups == 1:
        return [T.bind(x.load(n, ci, h, w))] * lanes
    out_per_group, in_per_group = op.out_channels // op.groups, op.weight.shape[1]
    last = op.groups - 1  # channels that fill up read some group, and multiply it by 0
    if out_per_group % lanes == 0:
        group = c // out_per_group
        return [T.bind(x.load(n, tirx.min(group, last) * in_per_group + ci, h, w))] * lanes
    groups = [tirx.min((c + lane) // out_per_group, last) for lane in range(lanes)]
    return [x.load(n, group * in_per_group + ci, h, w) for group in groups]


def _cost(request: Request, reads: tuple[Storage, ...], writes: Storage) -> Prediction:
    op = request.node.op
    assert isinstance(op, Conv2d)
    code = CODE_INSTRUCTIONS[writes.order]
    return simple_cost(request, reads, writes, prod(op.weight.shape[1:]), op.weight.size, code)


CONV2D_CUDA = Kernel("conv2d_x8w8s32_cuda", canonical(Conv2d, _cost, _build))
CONV2D_CUDA_NHWC = Kernel("conv2d_x8w8s32_cuda_nhwc", packed(Conv2d, _cost, _build))
