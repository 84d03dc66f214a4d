"""Depthwise convolution: a thread for each word of channels of an output pixel, four products an instruction.

``dp4a`` sums over four neighbouring bytes, and in memory neighbours are channels, which a depthwise convolution does
not sum over. So a thread loads the words of four window taps and transposes them, eight ``prmt`` for sixteen products:
then a word is one channel's four taps, and meets one word of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.gpu_model import Prediction
from hawq_tvm.core.ir import Array
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.cuda import ptx
from hawq_tvm.kernels.cuda.acceptance import packed
from hawq_tvm.kernels.cuda.conv2d import finish, per_channel
from hawq_tvm.kernels.cuda.costs import simple_cost
from hawq_tvm.kernels.cuda.launch import node_by_words
from hawq_tvm.kernels.cuda.ptx import uint32
from hawq_tvm.kernels.cuda.registers import load_channels, local
from hawq_tvm.kernels.cuda.values import Place, Value, both
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request

MAX_TAPS = 49
"""All taps are written out; 7x7 are the most that networks have."""

TAPS = 4
"""Taps that one instruction sums over."""


def _build(request: Request, reads: tuple[Storage, ...], writes: Storage) -> BuiltKernel:
    op, node = request.node.op, request.node
    assert isinstance(op, Conv2d)
    shifted = reads[0].bits == 4 and request.inputs[0].dtype.signed
    bias, *multipliers = per_channel(op, writes.channels(node.type))
    if shifted:
        bias[: op.out_channels] -= 8 * op.weight.reshape(op.out_channels, -1).sum(axis=1, dtype=np.int32)
    constants = [tap_words(op.weight, writes.channels(node.type)), bias, *multipliers]
    unsigned = shifted or not request.inputs[0].dtype.signed

    def body(inputs: Sequence[Value], given: Sequence[Any], y: Value, at: Place) -> list[Expr]:
        weights, first, *factors = given
        sums = load_channels(local(y.lanes, "int32"), first, at[1])
        for group in range(int(weights.shape[0])):
            columns = _columns(inputs[0], op, at, group, y.lanes)
            words = load_channels(local(y.lanes, "int32"), weights, group, at[1])
            for channel, column in columns:
                ptx.dot_bytes(sums[channel], column, words[channel], unsigned=unsigned)
        residual = inputs[1].load_run(*at, y.lanes) if len(inputs) > 1 else ()
        return finish([sums[lane] for lane in range(y.lanes)], op, factors, residual, at[1])

    return node_by_words(request, reads, writes, body, constants)


def tap_words(weight: Array, channels: int) -> Array:
    """The weights of four taps of a channel in a word, the last word filled up with zeros.

    Args:
        weight: int8 [out, 1, kh, kw].
        channels: stored channels of the result.

    Returns:
        int32 [words of taps, channels].
    """
    taps = weight.reshape(len(weight), -1)
    filled = np.zeros((channels, -(-taps.shape[1] // TAPS) * TAPS), np.int8)
    filled[: len(taps), : taps.shape[1]] = taps
    return np.ascontiguousarray(filled.view(np.int32).T)


def _columns(x: Value, op: Conv2d, at: Place, group: int, lanes: int) -> list[tuple[int, Expr]]:
    """Of each of a thread's channels its number and a word of its values at the four taps of a group."""
    taps = [group * TAPS + i for i in range(TAPS)]
    rows = [_bytes_of_tap(x, op, at, tap, lanes) for tap in taps]
    found = []
    for (channels, first), *others in zip(*rows, strict=True):
        found += list(zip(channels, _transposed([first, *(word for _, word in others)]), strict=True))
    return found


def _bytes_of_tap(x: Value, op: Conv2d, at: Place, tap: int, lanes: int) -> list[tuple[tuple[int, ...], Expr]]:
    """A tap's values of a thread's channels as words of four bytes, each with the channels that it holds."""
    if tap >= op.window.kernel[0] * op.window.kernel[1]:
        return [(channels, uint32(0)) for channels in _orders(x, lanes)]
    words = [_load(x, op, at, tap, start) for start in range(0, lanes, max(x.lanes, TAPS))]
    if x.lanes == TAPS:
        return list(zip(_orders(x, lanes), words, strict=True))
    (word,) = words
    if x.signed:
        word = word ^ uint32(0x88888888)
    low = uint32(0x0F0F0F0F)
    even, odd = T.bind(word & low), T.bind((word >> uint32(4)) & low)
    if lanes == x.lanes:
        return list(zip(_orders(x, lanes), (even, odd), strict=True))
    # Half a word: channels 0 and 2 of the four in the lower bytes, 1 and 3 in the upper ones.
    half = at[1] % x.lanes != 0
    selector = tirx.Select(half, uint32(0x7632), uint32(0x5410))
    return [(_orders(x, lanes)[0], _permuted(even, odd, selector))]


def _orders(x: Value, lanes: int) -> list[tuple[int, ...]]:
    """The channels that each word of `_bytes_of_tap` holds, by byte."""
    if x.lanes == TAPS:
        return [tuple(range(start, start + TAPS)) for start in range(0, lanes, TAPS)]
    return [(0, 2, 4, 6), (1, 3, 5, 7)] if lanes == x.lanes else [(0, 2, 1, 3)]


def _load(x: Value, op: Conv2d, at: Place, tap: int, start: int) -> Expr:
    """The stored word of a tap's pixel that holds channel `start` of the thread; zeros outside the image."""
    n, c, h, w = at
    window, (height, width) = op.window, x.size
    ky, kx = divmod(tap, window.kernel[1])
    row = h * window.strides[0] + (ky * window.dilations[0] - window.pads[0])
    column = w * window.strides[1] + (kx * window.dilations[1] - window.pads[1])
    inside = None
    if any(window.pads):
        inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
    inside = both(inside, c + start < x.storage.channels(x.type))
    return T.bind(x.word_or_zero(n, c + start, row, column, inside).astype("uint32"))


def _transposed(rows: Sequence[Expr]) -> list[Expr]:
    """Four words of four bytes: word i of the result is byte i of each."""
    low = [_permuted(rows[i], rows[i + 1], uint32(0x5140)) for i in (0, 2)]
    high = [_permuted(rows[i], rows[i + 1], uint32(0x7362)) for i in (0, 2)]
    return [_permuted(a, b, uint32(selector)) for a, b in (low, high) for selector in (0x5410, 0x7632)]


def _permuted(first: Expr, second: Expr, selector: Expr) -> Expr:
    result = local(1, "uint32")
    ptx.permute_bytes(result[0], first, second, selector)
    return result[0]


def _refuse(request: Request) -> str | None:
    op = request.node.op
    assert isinstance(op, Conv2d)
    if not op.depthwise:
        return "computes depthwise convolutions, in which each channel has one of its own"
    taps = op.window.kernel[0] * op.window.kernel[1]
    return None if taps <= MAX_TAPS else f"writes out up to {MAX_TAPS} taps, this window has {taps}"


def _cost(request: Request, reads: tuple[Storage, ...], writes: Storage) -> Prediction:
    op = request.node.op
    assert isinstance(op, Conv2d)
    return simple_cost(request, reads, writes, -(-op.weight[0].size // TAPS), op.weight.size)


CONV2D_DEPTHWISE = Kernel("conv2d_depthwise_x8w8s32_dp4a_nhwc", packed(Conv2d, _cost, _build, refuse=_refuse))
