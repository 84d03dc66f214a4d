"""Weights as one stream: a panel a block of output channels, read from front to back.

A block is two vectors of sixteen output channels; where the stored channels are an odd number of sixteens, the last
block is one vector. A panel holds, step after step, the four weights of each lane that one ``vpdpbusd`` a vector takes:
[steps][vectors][16 lanes][4]. Of four-bit weights the two vectors of a pair share their bytes. Lanes of a pair are
ordered so that packed results leave in channel order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hawq_tvm.core.ir import Array
from hawq_tvm.kernels.packing import pack_nibbles
from hawq_tvm.kernels.x86.vectors import LANES, PACKED_LANES

PAIR = 2 * LANES
"""Output channels of a block of two vectors."""

STEP = 4
"""Channels of an activation that one ``vpdpbusd`` takes."""


@dataclass(frozen=True)
class Panels:
    """How output channels are cut into panels.

    Attributes:
        channels: stored output channels, a multiple of 16.
        steps: of a panel.
        packed: whether weights lie two a byte: of a pair, the first vector's in the low halves.
    """

    channels: int
    steps: int
    packed: bool = False

    @property
    def pairs(self) -> int:
        """Blocks of two vectors."""
        return self.channels // PAIR

    @property
    def blocks(self) -> int:
        """All blocks; the one that is no pair comes last."""
        return -(-self.channels // PAIR)

    def step_bytes(self, vectors: int) -> int:
        """Of a block of so many vectors."""
        return LANES * STEP * (1 if self.packed else vectors)

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
            weight: int8 [out, 4 * steps], `out` at most `channels`; the rest are zeros.
        """
        filled = np.zeros((self.channels, self.steps * STEP), np.int8)
        filled[: len(weight)] = weight
        split = self.pairs * PAIR
        pairs = filled[:split].reshape(-1, PAIR, self.steps, STEP)[:, PACKED_LANES].transpose(0, 2, 1, 3)
        last = filled[split:].reshape(-1, LANES, self.steps, STEP).transpose(0, 2, 1, 3)
        if self.packed:
            nibbles = pack_nibbles(pairs[:, :, :LANES], pairs[:, :, LANES:]), pack_nibbles(last, np.zeros_like(last))
            return np.concatenate([part.ravel() for part in nibbles])
        return np.concatenate([pairs.ravel(), last.ravel()])

    def pack_lanes(self, values: Array) -> Array:
        """One number an output channel, in the order of the lanes: int32 [channels].

        Args:
            values: integers [out], taken modulo 2^32; the rest are zeros.
        """
        filled = np.zeros(self.channels, np.int64)
        filled[: len(values)] = values
        split = self.pairs * PAIR
        pairs = filled[:split].reshape(-1, PAIR)[:, PACKED_LANES]
        return np.concatenate([pairs.ravel(), filled[split:]]).astype(np.uint32).view(np.int32)
