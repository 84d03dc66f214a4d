"""How a dot-product kernel cuts its work: output channels into vector lanes, pixels into register tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import te

from hawq_tvm.core.ir import Array
from hawq_tvm.kernels.generic.expressions import Expr, nibble
from hawq_tvm.kernels.packing import pack_channel_blocks, pack_nibbles


@dataclass(frozen=True)
class Blocking:
    """A block of output channels is ``halves * lanes`` wide; `tile` output pixels of a row are computed together.

    Attributes:
        halves: 2, so that 4-bit weights of both halves share bytes; 1 where a group's channels fill no more than one
            vector, or are odd in number.
        lanes: channels a half block.
        tile: pixels.
        vector: ``channels`` where lanes fill a vector, ``pixels`` where a group has too few channels.
    """

    halves: int
    lanes: int
    tile: int
    vector: str

    @property
    def block(self) -> int:
        return self.halves * self.lanes

    @classmethod
    def choose(cls, channels: int, width: int, vector_bits: int, *, groups: int = 1) -> Blocking:
        """The blocking for rows of `width` output pixels.

        The accumulators of a tile, ``halves * tile`` vectors, leave a few of the 32 (AVX-512) or 16 registers for
        weights and inputs.

        Args:
            channels: output channels a group.
            width: output pixels a row; 1 for a linear layer.
            vector_bits: of the machine's vector registers.
            groups: of the convolution. With several, blocks divide a group's channels exactly; with one, the last block
                may be filled up.
        """
        vector = max(vector_bits // 32, 4)
        if groups == 1:
            halves, lanes = (1, vector) if channels <= vector else (2, vector)
            while lanes > 4 and lanes // 2 >= channels:
                lanes //= 2
        else:
            halves = 2 if channels % 2 == 0 else 1
            per_half = channels // halves
            lanes = next(size for size in range(min(vector, per_half), 0, -1) if per_half % size == 0)
        if lanes < 4:
            return cls(halves, lanes, min(vector, width), "pixels")
        widest = (16 if vector_bits >= 512 else 12) // halves
        tiles = range(min(widest, width), 0, -1)
        return cls(halves, lanes, best_tile(width, tiles), "channels")


def best_tile(width: int, sizes: Iterable[int]) -> int:
    """Of these sizes of a tile the one by which a row of `width` pixels is least work, with a cost a tile."""
    return min(sizes, key=lambda size: (-(-width // size) * (size + 1), -size))


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """Weights packed for a kernel, and how the kernel reads them.

    Four-bit weights of the two half blocks share bytes; where there is one half only, neighbouring taps do.

    Attributes:
        array: what is stored: int8 [groups, blocks, ..., halves, lanes], or uint8 with two 4-bit weights a byte.
        read: the weight at (group, block, reduction indices, half, lane) as an int32 expression; takes the tensor or
            buffer that holds `array` first.
    """

    array: Array
    read: Callable[..., Expr]

    @classmethod
    def pack(cls, weight: Array, groups: int, blocking: Blocking, nibbles: bool) -> PackedWeight:
        """Pack int8 weights, the output channel first; `nibbles` asks for 4-bit storage."""
        blocks = pack_channel_blocks(weight, groups, blocking.halves, blocking.lanes)
        if not nibbles:
            return cls(blocks, lambda source, *index: source[index].astype("int32"))
        if blocking.halves == 2:
            array = pack_nibbles(*(np.ascontiguousarray(blocks[..., half, :]) for half in (0, 1)))

            def read_half(source: Any, *index: Expr) -> Expr:
                *outer, half, lane = index
                return nibble(source[(*outer, lane)], half)

            return cls(array, read_half)
        sizes = weight.shape[1:]
        taps = blocks.reshape(*blocks.shape[:2], prod(sizes), blocking.lanes)
        taps = np.pad(taps, ((0, 0), (0, 0), (0, taps.shape[2] % 2), (0, 0)))
        array = pack_nibbles(*(np.ascontiguousarray(taps[:, :, half::2]) for half in (0, 1)))

        def read_tap(source: Any, group: Expr, block: Expr, *index: Expr) -> Expr:
            tap: Expr = 0
            for position, size in zip(index[:-2], sizes, strict=True):
                tap = tap * size + position
            return nibble(source[group, block, tap // 2, index[-1]], tap % 2)

        return cls(array, read_tap)


class PerChannel:
    """Constants with one value per output channel, packed like the weights."""

    def __init__(self, groups: int, blocking: Blocking) -> None:
        self._groups = groups
        self._blocking = blocking
        self.arrays: list[Array] = []
        self.placeholders: list[Any] = []

    def add(self, name: str, values: Array) -> Any:
        """Take in int32 or int64 [out]; returns its placeholder [groups, blocks, halves, lanes]."""
        packed = pack_channel_blocks(values, self._groups, self._blocking.halves, self._blocking.lanes)
        self.arrays.append(packed)
        self.placeholders.append(te.placeholder(packed.shape, str(packed.dtype), name=name))
        return self.placeholders[-1]
