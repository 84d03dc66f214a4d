"""Copies of activations that a product reads instead of the value itself: phases, few channels, samples as pixels."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.core.ir import TensorType
from hawq_tvm.kernels.dot.vectors import constant, flat, ramp
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.x86.amx_operands import Interleaved, Operand, Phases
from hawq_tvm.kernels.x86.amx_storages import PLANE_CHANNELS, Plane
from hawq_tvm.kernels.x86.storages import UNSIGNED_OFFSET

PIXEL = PLANE_CHANNELS  # bytes of a pixel of a plane


def zero_of(type: TensorType) -> int:
    """What a stored zero is: signed values have 128 added."""
    return UNSIGNED_OFFSET if type.dtype.signed else 0


def fill(buffer: Any, start: Expr, count: Expr, step: int, lanes: int, value: int) -> None:
    """`count` vectors of one byte value, `step` bytes apart, from `start` on."""
    with T.serial(count) as index:
        T.buffer_store(buffer, constant(value, "uint8", lanes), [ramp(start + index * step, lanes)])


def copy_phases(x: Any, work: Any, phases: Phases, type: TensorType, source: Plane, batch: int, threads: bool) -> None:
    """Every row of every phase, its zeros too.

    Args:
        x: the blocked value, flat.
        work: the copy, flat.
        phases: how it lies.
        type: the value's.
        source: how a plane of it lies.
        batch: samples.
        threads: whether rows are spread over threads.
    """
    planes = -(-type.shape[0] // PLANE_CHANNELS)
    to, zero, (sy, sx) = phases.plane, zero_of(type), phases.strides
    with (T.parallel if threads else T.serial)(batch * planes * to.rows) as task:
        n, plane, row = task // (planes * to.rows), task // to.rows % planes, task % to.rows
        for index, (p, q) in enumerate(phases.phases):
            image = index * planes + plane
            at = n * phases.operand.sample_bytes + (image * to.pixels + row * to.pitch) * PIXEL
            line = (row - to.above) * sy + p
            taken = max(0, -(-(phases.columns - q) // sx))
            with T.If(tirx.all(line >= 0, line < source.height)):
                with T.Then():
                    first = ((n * planes + plane) * source.pixels + source.start + line * source.pitch + q) * PIXEL
                    with T.serial(taken) as column:
                        value = x[ramp(first + column * (sx * PIXEL), PIXEL)]
                        T.buffer_store(work, value, [ramp(at + column * PIXEL, PIXEL)])
                    fill(work, at + taken * PIXEL, to.pitch - taken, PIXEL, PIXEL, zero)
                with T.Else():
                    fill(work, at, to.pitch, PIXEL, PIXEL, zero)


def interleave(x: Any, work: Any, to: Interleaved, type: TensorType, batch: int, threads: bool) -> None:
    """A canonical image with its channels, and the rows of a group, together.

    Args:
        x: [N, C, H, W].
        work: the copy, flat.
        to: how it lies.
        type: the value's.
        batch: samples.
        threads: whether groups are spread over threads.
    """
    height = type.shape[1]
    with (T.parallel if threads else T.serial)(batch * to.groups) as task:
        n, group = task // to.groups, task % to.groups
        at = n * to.operand.sample_bytes + group * (to.pitch * to.column_bytes)
        first = (group - to.above) * to.rows
        inside = [tirx.all(first + row >= 0, first + row < height) for row in range(to.rows)]
        lines = [tirx.min(tirx.max(first + row, 0), height - 1) for row in range(to.rows)]
        if to.column_bytes in (4, 8) and to.columns > 1:
            _interleave_words(x, work, to, type, n, at, inside, lines)
        else:
            _interleave_bytes(x, work, to, type, n, at, inside, lines)


def _interleave_words(
    x: Any, work: Any, to: Interleaved, type: TensorType, n: Expr, at: Expr, inside: list[Expr], lines: list[Expr]
) -> None:
    """Two or more columns of 4 or 8 bytes, as words of a vector: each byte is shifted to its place."""
    word = f"uint{8 * to.column_bytes}"
    lanes = min(64 // to.column_bytes, to.columns)
    words = T.decl_buffer((work.shape[0] // to.column_bytes,), word, data=work.data)
    sign = int.from_bytes(bytes([zero_of(type)] * to.column_bytes), "little")
    flip = tirx.Broadcast(tirx.const(sign, word), lanes)

    def columns(start: Expr) -> None:
        total = tirx.Broadcast(tirx.const(0, word), lanes)
        for row, line in enumerate(lines):
            for channel in range(type.shape[0]):
                byte = x[n, channel, line, ramp(start, lanes)]
                value = tir.reinterpret(f"uint8x{lanes}", byte).astype(f"{word}x{lanes}")
                value = te.if_then_else(inside[row], value, tirx.Broadcast(tirx.const(0, word), lanes))
                place = tirx.Broadcast(tirx.const(8 * (row * to.channels + channel), word), lanes)
                total = tir.bitwise_or(total, tir.shift_left(value, place))
        T.buffer_store(words, tir.bitwise_xor(total, flip), [ramp(at // to.column_bytes + start, lanes)])

    with T.serial(-(-to.columns // lanes)) as part:
        columns(tirx.min(part * lanes, to.columns - lanes))  # the last vector moves left until it fits
    with T.serial(to.pitch - to.columns) as column:
        zero = tirx.const(sign, word)
        T.buffer_store(words, zero, [at // to.column_bytes + to.columns + column])


def _interleave_bytes(
    x: Any, work: Any, to: Interleaved, type: TensorType, n: Expr, at: Expr, inside: list[Expr], lines: list[Expr]
) -> None:
    """Columns of any size, one by one."""
    zero = zero_of(type)
    with T.serial(to.pitch) as column:
        for row, line in enumerate(lines):
            there = tirx.all(inside[row], column < to.columns)
            with T.serial(to.channels) as channel:
                kept = tirx.min(column, to.columns - 1)
                value = x[n, tirx.min(channel, type.shape[0] - 1), line, kept].astype("int32")
                shifted = (value + tirx.const(zero, "int32")).astype("uint8")
                value = te.if_then_else(tirx.all(there, channel < type.shape[0]), shifted, tirx.const(zero, "uint8"))
                T.buffer_store(work, value, [at + (column * to.rows + row) * to.channels + channel])


def samples_as_pixels(x: Any, work: Any, operand: Operand, type: TensorType, batch: int) -> None:
    """The features of each sample in planes of 64, the last filled up with zeros.

    Args:
        x: [N, features] or [N, features, 1, 1].
        work: the copy, flat.
        operand: how it lies.
        type: the value's.
        batch: samples.
    """
    features, values = type.shape[0], flat(x)
    step = operand.sample_bytes // operand.steps  # from a plane to the next
    zero = tirx.const(zero_of(type), "int32")

    def copy(plane: Expr, count: int) -> None:
        with T.serial(batch) as n, T.serial(count) as feature:
            value = values[n * features + plane * PIXEL + feature].astype("int32") + zero
            T.buffer_store(work, value.astype("uint8"), [plane * step + n * PIXEL + feature])

    whole, rest = divmod(features, PIXEL)
    if whole:
        with T.serial(whole) as plane:
            copy(plane, PIXEL)
    if rest:
        copy(tirx.const(whole, "int32"), rest)
        with T.serial(batch) as n, T.serial(PIXEL - rest) as feature:
            T.buffer_store(work, zero.astype("uint8"), [whole * step + n * PIXEL + rest + feature])
