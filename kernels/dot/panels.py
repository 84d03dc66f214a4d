"""Weights as one stream: a panel a block of output channels, read from front to back.

A block is two vectors of output channels; where the stored channels fill an odd number of vectors, the last block is
one. A panel holds, step after step, the weights of each lane that one instruction a vector takes:
[steps][vectors][lanes][4], or 8 for instructions that take as many. Of four-bit weights the two vectors of a pair share
their bytes. Lanes of a pair are ordered so that packed results leave in channel order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hawq_tvm.core.ir import Array
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.packing import pack_nibbles


@dataclass(frozen=True)
class Panels:
    """How output channels are cut into panels.

    Attributes:
        unit: whose vectors they are.
        channels: stored output channels, a multiple of the unit's lanes.
        steps: of a panel.
        packed: whether weights lie two a byte: of a pair, the first vector's in the low halves.
    """

    unit: Unit
    channels: int
    steps: int
    packed: bool = False

    @property
    def pair(self) -> int:
        """Output channels of a block of two vectors."""
        return self.unit.pair

    @property
    def vector_bytes(self) -> int:
        """Weights of a vector that one step takes."""
        return self.unit.lanes * self.unit.step

    @property
    def pairs(self) -> int:
        """Blocks of two vectors."""
        return self.channels // self.pair

    @property
    def blocks(self) -> int:
        """All blocks; the one that is no pair comes last."""
        return -(-self.channels // self.pair)

    def step_bytes(self, vectors: int) -> int:
        """Of a block of so many vectors."""
        return self.vector_bytes * (1 if self.packed else vectors)

    @property
    def panel_bytes(self) -> int:
        """Of a block of two vectors."""
        return self.steps * self.step_bytes(2)

    @property
    def size_bytes(self) -> int:
        last = self.blocks - self.pairs
        return self.pairs * self.panel_bytes + last * self.steps * self.step_bytes(1)

    def pack(self, weight: Array) -> Array:
        """The stream: int8 [size_bytes], or uint8 where `packed`.

        Args:
            weight: int8 [out, steps times those of a step], `out` at most `channels`; the rest are zeros.
        """
        step, lanes, order = self.unit.step, self.unit.lanes, list(self.unit.order)
        filled = np.zeros((self.channels, self.steps * step), np.int8)
        filled[: len(weight)] = weight
        split = self.pairs * self.pair
        pairs = filled[:split].reshape(-1, self.pair, self.steps, step)[:, order].transpose(0, 2, 1, 3)
        last = filled[split:].reshape(-1, lanes, self.steps, step).transpose(0, 2, 1, 3)
        if self.packed:
            nibbles = pack_nibbles(pairs[:, :, :lanes], pairs[:, :, lanes:]), pack_nibbles(last, np.zeros_like(last))
            return np.concatenate([part.ravel() for part in nibbles])
        return np.concatenate([pairs.ravel(), last.ravel()])

    def blocks_of(self, stream: Array) -> list[Array]:
        """What `pack` made, block by block: int8 [steps, bytes of a step]."""
        split = self.pairs * self.panel_bytes
        pairs = stream[:split].reshape(self.pairs, self.steps, self.step_bytes(2))
        return [*pairs, *stream[split:].reshape(self.blocks - self.pairs, self.steps, self.step_bytes(1))]

    def pack_lanes(self, values: Array) -> Array:
        """One number an output channel, in the order of the lanes: int32 [channels].

        Args:
            values: integers [out], taken modulo 2^32; the rest are zeros.
        """
        filled = np.zeros(self.channels, np.int64)
        filled[: len(values)] = values
        split = self.pairs * self.pair
        pairs = filled[:split].reshape(-1, self.pair)[:, list(self.unit.order)]
        return np.concatenate([pairs.ravel(), filled[split:]]).astype(np.uint32).view(np.int32)
