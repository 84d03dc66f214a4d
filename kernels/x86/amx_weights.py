"""Weights as tiles take them: panels of 32 channels, each a stream of k-steps, in bytes or in packed nibbles.

Where a panel meets many blocks of pixels, its nibbles are unpacked once, into memory of the task. Where it meets one
tall block, each tile is read once: then a panel's first 16 channels come before its last 16, and nibbles are unpacked
into a ring of four tiles, three steps ahead, beside the products (`Stream`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.core.ir import Array
from hawq_tvm.kernels.dot.vectors import ramp
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.packing import pack_nibbles
from hawq_tvm.kernels.x86.amx_operands import Operand
from hawq_tvm.kernels.x86.amx_storages import BLOCK_CHANNELS
from hawq_tvm.kernels.x86.amx_tiles import ROW_BYTES, ROWS
from hawq_tvm.kernels.x86.vectors import nibbles

TILE_BYTES = ROWS * ROW_BYTES
STEP_BYTES = 2 * TILE_BYTES
"""A k-step of a panel, in bytes a weight."""

_LINE = 64

RING, AHEAD = 4, 3
"""Tiles of unpacked nibbles, and how many steps ahead each is made: loads must not meet stores in flight."""

FETCH_AHEAD = 64
"""Tiles of bytes: where each is read once, their stream is what a product waits for."""


def pack_weight(weight: Array, operand: Operand, *, packed: bool, apart: bool = False) -> Array:
    """Weights in the order in which they are read.

    Args:
        weight: int8 [out, ...].
        operand: what they meet.
        packed: whether two 4-bit weights share a byte: a row of 64 and the next one.
        apart: whether a panel's first 16 channels come before its last 16.

    Returns:
        int8 [out / 32, steps, 2, 16, 16, 4]: of each k-step two tiles of 16 channels, each 16 rows of four bytes a
        channel; channels are filled up with zeros. Packed uint8 [out / 32, steps, 2, 8, 64]. Where apart, 2 comes
        before the steps.
    """
    flat = weight.reshape(len(weight), -1)
    panels = -(-len(flat) // BLOCK_CHANNELS)
    filled = np.zeros((panels * BLOCK_CHANNELS, flat.shape[1] + 1), np.int8)  # the last column is NO_WEIGHT's
    filled[: len(flat), :-1] = flat
    met = filled[:, operand.taps].reshape(panels, 2, 16, operand.steps, 16, 4)
    tiles = np.ascontiguousarray(met.transpose(0, 3, 1, 4, 2, 5))
    if apart:
        tiles = np.ascontiguousarray(tiles.swapaxes(1, 2))
    if not packed:
        return tiles
    rows = tiles.reshape(*tiles.shape[:3], ROWS // 2, 2, ROW_BYTES)
    return pack_nibbles(rows[..., 0, :], rows[..., 1, :])


def unpacked_panel(steps: int) -> Any:
    """Memory for the bytes of one panel of nibbles, to be made inside a task."""
    return T.alloc_buffer((steps * STEP_BYTES,), "int8")


@dataclass(frozen=True, eq=False)
class Weights:
    """What a task multiplies by.

    Attributes:
        packed: the constant, flat.
        panels: of it.
        steps: of a panel.
        unpacked: memory of the task for one panel of nibbles; None where a weight is a byte.
        apart: as they were packed.
    """

    packed: Any
    panels: int
    steps: int
    unpacked: Any = None
    apart: bool = False

    @property
    def buffer(self) -> Any:
        """Where tiles are loaded from."""
        return self.packed if self.unpacked is None else self.unpacked

    def tile(self, panel: Expr, step: Expr, half: int) -> Expr:
        """Where the tile of a step's first or last 16 channels begins in `buffer`."""
        number = half * self.steps + step if self.apart else step * 2 + half
        return (number if self.unpacked is not None else panel * (2 * self.steps) + number) * TILE_BYTES

    def unpack(self, panel: Expr) -> None:
        """Make a panel's bytes; nothing where they are there."""
        if self.unpacked is None:
            return
        with T.serial(self.steps * STEP_BYTES // (2 * _LINE)) as line:
            _unpack(self.packed, panel * (self.steps * STEP_BYTES // (2 * _LINE)) + line, self.unpacked, line)

    def fetch(self, panel: Expr, step: Expr, number: Expr, blocks: int) -> None:
        """One block's share of a step of a panel, into the second-level cache.

        Args:
            panel: which; behind the last one there is nothing.
            step: which.
            number: of the block.
            blocks: how many share a step.
        """
        step_bytes = STEP_BYTES if self.unpacked is None else STEP_BYTES // 2
        lines = -(-step_bytes // _LINE // blocks)
        last = self.panels * self.steps * step_bytes - _LINE * lines

        def fetch() -> None:
            at = (panel * self.steps + step) * step_bytes + number * (_LINE * lines)
            _prefetch(self.packed, tirx.min(at, last), lines)

        if (blocks - 1) * lines * _LINE < step_bytes:
            fetch()
            return
        with T.If(number * (lines * _LINE) < step_bytes), T.Then():
            fetch()


@dataclass(frozen=True, eq=False)
class Stream:
    """The tiles of some panels in the order in which a task reads them, once each, by their number from 0.

    Attributes:
        weights: apart, not unpacked.
        first: the first tile, of all panels'.
        count: how many.
        ring: memory for `RING` tiles; None where a weight is a byte.
    """

    weights: Weights
    first: Expr
    count: Expr
    ring: Any

    @classmethod
    def of(cls, weights: Weights, panel: Expr, panels: Expr, *, packed: bool) -> Stream:
        """Of some panels; makes the ring, and what of it the first steps read."""
        ring = T.alloc_buffer((RING * TILE_BYTES,), "int8") if packed else None
        stream = cls(weights, panel * (2 * weights.steps), panels * (2 * weights.steps), ring)
        if packed:
            with T.serial(AHEAD) as number:
                stream._unpack(number)
        return stream

    def tile(self, number: Expr) -> tuple[Any, Expr]:
        """A buffer, and where the tile begins in it."""
        if self.ring is not None:
            return self.ring, number % RING * TILE_BYTES
        return self.weights.packed, (self.first + number) * TILE_BYTES

    def advance(self, number: Expr) -> None:
        """After a tile was read: make one that will be, or fetch one into the second-level cache."""
        if self.ring is not None:
            self._unpack(number + AHEAD)
            return
        last = self.weights.panels * 2 * self.weights.steps - 1
        tile = tirx.min(self.first + number + FETCH_AHEAD, last)
        _prefetch(self.weights.packed, tile * TILE_BYTES, TILE_BYTES // _LINE)

    def _unpack(self, number: Expr) -> None:
        tile = self.first + tirx.min(number, self.count - 1)  # behind the last one nothing is read
        pairs = TILE_BYTES // (2 * _LINE)
        for pair in range(pairs):
            _unpack(self.weights.packed, tile * pairs + pair, self.ring, number % RING * pairs + pair)


def _unpack(packed: Any, line: Expr, to: Any, pair: Expr) -> None:
    """A line of nibbles into a pair of lines of bytes."""
    values = packed[ramp(line * _LINE, _LINE)]
    for half in range(2):
        T.buffer_store(to, nibbles(values, half), [ramp((2 * pair + half) * _LINE, _LINE)])


def _prefetch(buffer: Any, start: Expr, lines: int) -> None:
    """Lines from an element on, into the second-level cache."""
    read, second_level, data = (tirx.const(value, "int32") for value in (0, 2, 1))
    for line in range(lines):
        address = tir.address_of(buffer[start + _LINE * line])
        T.evaluate(tir.call_llvm_intrin("void", "llvm.prefetch", address, read, second_level, data))
