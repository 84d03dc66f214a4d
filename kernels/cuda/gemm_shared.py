"""How a step of both operands lies in shared memory: chunks that are read at once lie in different banks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.kernels.cuda.gemm import Tile
from hawq_tvm.kernels.cuda.storages import CHUNK_BYTES, CHUNK_WORDS

Index = Any
"""An integer, an array of them, or an expression of TIR."""

LINE_CHUNKS = 8
"""Chunks in 128 bytes, which are as wide as the 32 banks."""


@dataclass(frozen=True)
class Layout(ABC):
    """Where rows and chunks lie, in words.

    Attributes:
        tile: how the product is cut.
    """

    tile: Tile

    @property
    @abstractmethod
    def a_words(self) -> int:
        """Words of the left operand, behind which the right one starts."""

    @property
    @abstractmethod
    def stage_words(self) -> int:
        """Words of a step, of both operands."""

    @property
    @abstractmethod
    def finish_words(self) -> int:
        """Words that the sums pass through in the end, when no step is needed any more."""

    @abstractmethod
    def place(self, rows: int, row: Index, chunk: Index) -> Index:
        """The first word of a row's chunk in an operand of so many rows."""

    @abstractmethod
    def copied_place(self, number: Index) -> Index:
        """The first word of the right operand's chunk of that number in memory."""

    @abstractmethod
    def step_in_memory(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The right operand's chunks in the order of their numbers.

        Args:
            rows: [..., rows of a tile, chunks of a step, bytes of a chunk].

        Returns:
            [..., bytes of a step].
        """


@dataclass(frozen=True)
class Swizzled(Layout):
    """Rows one after the other, each one's chunks permuted by exclusive or with its number; no word is unused."""

    @property
    def a_words(self) -> int:
        return self.tile.m * self.tile.k * CHUNK_WORDS

    @property
    def stage_words(self) -> int:
        return (self.tile.m + self.tile.n) * self.tile.k * CHUNK_WORDS

    @property
    def finish_words(self) -> int:
        """Those of all slices, which are added up."""
        return self.tile.slices * self.tile.m * self.tile.n if self.tile.slices > 1 else 0

    def place(self, rows: int, row: Index, chunk: Index) -> Index:
        rows_a_line = max(1, LINE_CHUNKS // self.tile.k)
        swizzled = chunk ^ (row // rows_a_line % min(self.tile.k, LINE_CHUNKS))
        return (row * self.tile.k + swizzled) * CHUNK_WORDS

    def copied_place(self, number: Index) -> Index:
        return number * CHUNK_WORDS  # swizzled in memory already

    def step_in_memory(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        found = np.zeros((*rows.shape[:-3], self.tile.n * self.tile.k, CHUNK_BYTES), np.uint8)
        row = np.arange(self.tile.n)
        for chunk in range(self.tile.k):
            found[..., self.place(self.tile.n, row, chunk) // CHUNK_WORDS, :] = rows[..., row, chunk, :]
        return found.reshape(*rows.shape[:-3], -1)


@dataclass(frozen=True)
class Planes(Layout):
    """A plane a chunk, rows one after the other in it.

    For WMMA, whose matrices are rows at equal distances and start at multiples of 32 bytes ("CUDA C++ Programming
    Guide", "Warp Matrix Functions"). `PAD` words between planes spread the chunks of one row over the banks.
    """

    PAD = 8

    def _plane(self, rows: int) -> int:
        return rows * CHUNK_WORDS + self.PAD

    @property
    def a_words(self) -> int:
        return self.tile.k * self._plane(self.tile.m)

    @property
    def stage_words(self) -> int:
        return self.a_words + self.tile.k * self._plane(self.tile.n)

    @property
    def finish_words(self) -> int:
        """All of them: fragments are opaque, and memory is not."""
        return self.tile.m * self.tile.n

    def place(self, rows: int, row: Index, chunk: Index) -> Index:
        return chunk * self._plane(rows) + row * CHUNK_WORDS

    def copied_place(self, number: Index) -> Index:
        return self.place(self.tile.n, number % self.tile.n, number // self.tile.n)

    def step_in_memory(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(rows.swapaxes(-3, -2)).reshape(*rows.shape[:-3], -1)
