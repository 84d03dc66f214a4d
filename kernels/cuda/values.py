"""Values in a GPU's memory: single elements, and words of neighbouring channels, read and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ir import TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.cuda.storages import WORD_BITS
from hawq_tvm.kernels.generic.expressions import Expr

Place = tuple[Expr, Expr, Expr, Expr]
"""Where an element lies: its sample, channel, row and column."""


def int32(value: int) -> Expr:
    return tirx.const(value, "int32")


def field(word: Expr, position: Expr, bits: int, signed: bool) -> Expr:
    """The integer of some bits that starts at bit `position` of a 32-bit word, as int32.

    Args:
        word: int32.
        position: int32, a multiple of `bits`.
        bits: 4 or 8.
        signed: whether its highest bit is the sign.
    """
    if signed:
        return (word << (int32(WORD_BITS - bits) - position)) >> int32(WORD_BITS - bits)
    return (word >> position) & int32((1 << bits) - 1)


def joined(values: Sequence[Expr], bits: int) -> Expr:
    """Integers as fields of one 32-bit word, the first in its lowest bits; the inverse of `field`."""
    mask = int32((1 << bits) - 1)
    word = values[0] & mask
    for lane, value in enumerate(values[1:], 1):
        word = word | ((value & mask) << int32(lane * bits))
    return word


def words_of(buffer: Any, dtype: str = "int32") -> Any:
    """A view of a buffer as 32-bit words; to be called in the function's body."""
    size = prod(int(extent) for extent in buffer.shape) * np.dtype(str(buffer.dtype)).itemsize
    return IRBuilder.name(f"{buffer.name}_words", T.decl_buffer((size // 4,), dtype, data=buffer.data))


@dataclass(frozen=True, eq=False)
class Value:
    """A value in a function's buffer, canonical or channels last.

    Attributes:
        buffer: as the function takes it.
        type: the value's; vectors count as images of one pixel.
        storage: without frame, blocks or offset.
        words: the same memory as int32 words; None where a row of channels is not whole words.
    """

    buffer: Any
    type: TensorType
    storage: Storage
    words: Any

    @classmethod
    def of(cls, buffer: Any, type: TensorType, storage: Storage) -> Value:
        """To be called in the function's body: it declares the words there."""
        words = None
        if storage.order == "NHWC":
            words = words_of(buffer)
        return cls(buffer, type, storage, words)

    @property
    def lanes(self) -> int:
        """Channels that lie in one word, and that one thread computes: 4 or 8; 1 where it is canonical."""
        return 1 if self.words is None else WORD_BITS // self.storage.bits

    @property
    def signed(self) -> bool:
        return self.type.dtype.signed

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.type.shape[1], self.type.shape[2]) if len(self.type.shape) == 3 else (1, 1)

    def _word(self, n: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        """The index of the word that holds a channel."""
        height, width = self.size
        channels = self.storage.channels(self.type)
        return (((n * height + h) * width + w) * channels + c) // self.lanes

    def load(self, n: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        """One integer, as int32."""
        if self.words is None:
            index = [n, c, h, w] if len(self.type.shape) == 3 else [n, c]
            return self.buffer[tuple(index)].astype("int32")
        return field(
            self.words[self._word(n, c, h, w)], c % self.lanes * self.storage.bits, self.storage.bits, self.signed
        )

    def load_run(self, n: Expr, c: Expr, h: Expr, w: Expr, count: int, inside: Expr = None) -> list[Expr]:
        """The integers of `count` neighbouring channels, as int32.

        Args:
            n: sample.
            c: first channel, a multiple of `count`.
            h: row.
            w: column.
            count: 1, 4 or 8.
            inside: a condition; where it is false nothing is read and all are 0.

        Channels past the last one are 0, and not read: another value's storage may fill up further.
        """
        if self.words is None:
            return [self._load_or_zero(n, c + lane, h, w, count, inside) for lane in range(count)]
        bits, channels, found = self.storage.bits, self.storage.channels(self.type), []
        for start in range(0, count, self.lanes):
            word = T.bind(self.word_or_zero(n, c + start, h, w, both(inside, c + start < channels)))
            first = c % self.lanes * bits  # a run may be half a word
            for lane in range(min(self.lanes, count)):
                position = first + lane * bits if count < self.lanes else int32(lane * bits)
                found.append(field(word, position, bits, self.signed))
        return found

    def word_or_zero(self, n: Expr, c: Expr, h: Expr, w: Expr, inside: Expr) -> Expr:
        """The word that holds a channel; 0, and nothing read, where the condition is false."""
        return when(inside, self.words[self._word(n, c, h, w)])

    def _load_or_zero(self, n: Expr, c: Expr, h: Expr, w: Expr, count: int, inside: Expr) -> Expr:
        """One integer of a canonical value; 0 past the last channel, where runs of `count` reach past it."""
        channels = self.type.shape[0]
        there = inside if channels % count == 0 else both(inside, c < channels)
        return when(there, self.load(n, c, h, w))

    def store_run(self, values: Sequence[Expr], n: Expr, c: Expr, h: Expr, w: Expr) -> None:
        """Write the integers of `lanes` neighbouring channels, the first a multiple of `lanes`."""
        if self.words is None:
            index = [n, c, h, w] if len(self.type.shape) == 3 else [n, c]
            T.buffer_store(self.buffer, values[0].astype(self.buffer.dtype), index)
        else:
            T.buffer_store(self.words, joined(values, self.storage.bits), [self._word(n, c, h, w)])


def both(first: Expr, second: Expr) -> Expr:
    """Two conditions; the first may be none."""
    return second if first is None else tirx.all(first, second)


def when(condition: Expr, value: Expr) -> Expr:
    """An int32 that is only computed where a condition holds, and 0 elsewhere; no condition always holds."""
    return value if condition is None else tirx.if_then_else(condition, value, int32(0))
