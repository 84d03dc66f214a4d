"""Weights as tiles take them: panels of 32 channels, each a stream of k-steps, in bytes or in packed nibbles.

Nibbles are unpacked a panel at a time, into memory of the task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.core.ir import Array
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.packing import pack_nibbles
from hawq_tvm.kernels.x86.amx_operands import Operand
from hawq_tvm.kernels.x86.amx_storages import BLOCK_CHANNELS
from hawq_tvm.kernels.x86.amx_tiles import ROW_BYTES, ROWS
from hawq_tvm.kernels.x86.vectors import nibbles, ramp

TILE_BYTES = ROWS * ROW_BYTES
STEP_BYTES = 2 * TILE_BYTES
"""A k-step of a panel, in bytes a weight."""

_LINE = 64


def pack_weight(weight: Array, operand: Operand, *, packed: bool) -> Array:
    """Weights in the order in which they are read.

    Args:
        weight: int8 [out, ...].
        operand: what they meet.
        packed: whether two 4-bit weights share a byte: a row of 64 and the next one.

    Returns:
        int8 [out / 32, steps, 2, 16, 16, 4]: of each k-step two tiles of 16 channels, each 16 rows of four bytes a
        channel; channels are filled up with zeros. Packed uint8 [out / 32, steps, 2, 8, 64].
    """
    flat = weight.reshape(len(weight), -1)
    panels = -(-len(flat) // BLOCK_CHANNELS)
    filled = np.zeros((panels * BLOCK_CHANNELS, flat.shape[1] + 1), np.int8)  # the last column is NO_WEIGHT's
    filled[: len(flat), :-1] = flat
    met = filled[:, operand.taps].reshape(panels, 2, 16, operand.steps, 16, 4)
    tiles = np.ascontiguousarray(met.transpose(0, 3, 1, 4, 2, 5))
    if not packed:
        return tiles
    rows = tiles.reshape(panels, operand.steps, 2, ROWS // 2, 2, ROW_BYTES)
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
    """

    packed: Any
    panels: int
    steps: int
    unpacked: Any = None

    @property
    def buffer(self) -> Any:
        """Where tiles are loaded from."""
        return self.packed if self.unpacked is None else self.unpacked

    def step(self, panel: Expr, step: Expr) -> Expr:
        """Where a step's two tiles begin in `buffer`."""
        return (step if self.unpacked is not None else panel * self.steps + step) * STEP_BYTES

    def unpack(self, panel: Expr) -> None:
        """Make a panel's bytes; nothing where they are there."""
        if self.unpacked is None:
            return
        with T.serial(self.steps * STEP_BYTES // (2 * _LINE)) as line:
            at = (panel * (self.steps * STEP_BYTES // (2 * _LINE)) + line) * _LINE
            pairs = self.packed[ramp(at, _LINE)]
            for half in range(2):
                T.buffer_store(self.unpacked, nibbles(pairs, half), [ramp((2 * line + half) * _LINE, _LINE)])

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
            first = tirx.min(at, last)
            read, second_level, data = (tirx.const(value, "int32") for value in (0, 2, 1))
            for line in range(lines):
                address = tir.address_of(self.packed[first + _LINE * line])
                T.evaluate(tir.call_llvm_intrin("void", "llvm.prefetch", address, read, second_level, data))

        if (blocks - 1) * lines * _LINE < step_bytes:
            fetch()
            return
        with T.If(number * (lines * _LINE) < step_bytes), T.Then():
            fetch()
