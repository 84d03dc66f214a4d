"""The end of a product, in registers: residual, dyadic rescale, clip, and a store of whole words.

A lane holds `Tile.lane_channels` neighbouring channels of a row of each block of rows. Memory holds rows of the
result one after the other, channels last; what a lane holds is stored in as few pieces as the alignment of a row
allows, and pieces past the last stored channel are left out. Channels that fill up have weights, bias and multipliers
of 0, and come out as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ir import IntType, Rescale, TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.cuda import ptx
from hawq_tvm.kernels.cuda.gemm import Gemm
from hawq_tvm.kernels.cuda.gemm_kernel import Sums
from hawq_tvm.kernels.cuda.ptx import uint32
from hawq_tvm.kernels.cuda.registers import local
from hawq_tvm.kernels.cuda.storages import WORD_BITS
from hawq_tvm.kernels.cuda.values import field, int32
from hawq_tvm.kernels.generic.expressions import Expr, int64, shifted_half_up


@dataclass(frozen=True, eq=False)
class Rows:
    """A value as rows of channels in memory.

    Attributes:
        words: the memory as words.
        channels: elements of a row.
        bits: of an element: 4, 8 or 32.
        signed: whether it is.
    """

    words: Any
    channels: int
    bits: int
    signed: bool

    @classmethod
    def of(cls, words: Any, type: TensorType, storage: Storage) -> Rows:
        return cls(words, storage.channels(type), storage.bits, type.dtype.signed)

    @property
    def a_word(self) -> int:
        """Elements of a word."""
        return WORD_BITS // self.bits

    def pieces(self, lane_channels: int) -> int:
        """Words that are moved at once: 1, 2 or 4, as many as divide a row and what a lane holds."""
        words, held = self.channels // self.a_word, lane_channels // self.a_word
        return next(count for count in (4, 2, 1) if words % count == 0 and held % count == 0)

    def place(self, row: Expr, channel: Expr) -> Expr:
        """The word of an element, the first of its word."""
        return (row * self.channels + channel) // self.a_word


@dataclass(frozen=True, eq=False)
class Residual:
    """What is added before the rounding.

    Attributes:
        rows: the value.
        multipliers: uint32 registers, one a channel of the lane; none where `multiplier` serves all.
        multiplier: of all channels.
        words: uint32 registers for one row.
    """

    rows: Rows
    multipliers: Any
    multiplier: int
    words: Any


def signed(register: Expr) -> Expr:
    """The same 32 bits as int32. A cast would not do: TVM takes what it yields for not negative, and drops clips."""
    return tirx.reinterpret("int32", register)


def unsigned(value: Expr) -> Expr:
    """The inverse of `signed`."""
    return tirx.reinterpret("uint32", value)


def finish(
    gemm: Gemm, sums: Sums, rescale: Rescale, multiplier: Any, residual: Residual | None, y: Rows, at: tuple[Expr, Expr]
) -> None:
    """Store a block's tile.

    Args:
        gemm: the product.
        sums: of this lane, the bias among them.
        rescale: of the node.
        multiplier: uint32 registers, one a channel of the lane.
        residual: where there is one.
        y: the result.
        at: the tile's first row, and the lane's first channel.
    """
    count = sums.tile.lane_channels
    words = local(count // y.a_word, "uint32")
    for block in range(sums.row_blocks):
        row = T.bind(at[0] + sums.first_row + block * 8 + sums.lane // 4)
        there = row < gemm.rows
        with T.If(there if sums.tile.slices == 1 else tirx.all(there, sums.has_rows)), T.Then():
            if residual is not None:
                _load_row(residual, row, at[1], count)
            for start in range(0, count, y.a_word):
                values = [
                    shifted_half_up(_total(sums, multiplier, residual, block, start + lane), rescale)
                    for lane in range(y.a_word)
                ]
                _clip_and_join(values, rescale, y, words, start // y.a_word)
            _store_row(words, y, row, at[1], count)


def _total(sums: Sums, multiplier: Any, residual: Residual | None, block: int, channel: int) -> Expr:
    """What is rounded, int64."""
    total = int64(signed(sums.at(block, channel))) * int64(signed(multiplier[channel]))
    if residual is not None:
        rows = residual.rows
        word = signed(residual.words[channel // rows.a_word])
        value = field(word, int32(channel % rows.a_word * rows.bits), rows.bits, rows.signed)
        factor = (
            int64(residual.multiplier) if residual.multipliers is None else int64(signed(residual.multipliers[channel]))
        )
        total = total + int64(value) * factor
    return total


def _clip_and_join(values: Sequence[Expr], rescale: Rescale, y: Rows, words: Any, index: int) -> None:
    """Clip the integers of a word of the result, and put them into it.

    `ptx.pack_saturated` clips to what an element can hold, two at a time; only what the layer clips further is clipped
    before.
    """
    stored = IntType(y.bits, y.signed)
    if rescale.hi < stored.hi:
        values = [tirx.min(value, int32(rescale.hi)) for value in values]
    if rescale.lo > stored.lo:
        values = [tirx.max(value, int32(rescale.lo)) for value in values]
    if y.bits == WORD_BITS:
        T.buffer_store(words, unsigned(values[0]), [index])
        return
    for low in reversed(range(0, y.a_word, 2)):
        rest = uint32(0) if low == y.a_word - 2 else words[index]
        ptx.pack_saturated(words[index], values[low + 1], values[low], rest, y.bits, y.signed)


def _load_row(residual: Residual, row: Expr, channel: Expr, count: int) -> None:
    """A lane's channels of the residual's row; 0 past its last stored channel."""
    rows = residual.rows
    pieces = rows.pieces(count)
    for start in range(0, count // rows.a_word, pieces):
        registers = [residual.words[start + i] for i in range(pieces)]
        first = channel + start * rows.a_word
        for i in range(pieces):
            T.buffer_store(residual.words, 0, [start + i])
        ptx.load_global(registers, rows.words.ptr_to([rows.place(row, first)]), first < rows.channels)


def _store_row(words: Any, y: Rows, row: Expr, channel: Expr, count: int) -> None:
    """A lane's channels of the result's row, those past its last stored channel left out."""
    pieces = y.pieces(count)
    for start in range(0, count // y.a_word, pieces):
        first = channel + start * y.a_word
        registers = [words[start + i] for i in range(pieces)]
        with T.If(first < y.channels), T.Then():
            ptx.store_global(registers, y.words.ptr_to([y.place(row, first)]))
