"""Weights as kernels want them: cut into blocks of output channels, and two 4-bit values a byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.ir import Array


def pack_nibbles(low: Array, high: Array) -> NDArray[np.uint8]:
    """Two arrays of 4-bit integers as one of bytes; `unpack_nibbles` is the inverse.

    Args:
        low: int8 of any shape, values -8..7, for the low nibbles.
        high: the same for the high nibbles.

    Returns:
        uint8 of the same shape.
    """
    low_bits, high_bits = (np.ascontiguousarray(part).view(np.uint8) & np.uint8(15) for part in (low, high))
    return np.asarray(low_bits | (high_bits << np.uint8(4)), np.uint8)


def unpack_nibbles(packed: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """The low and the high 4-bit integers of each byte, sign extended.

    Args:
        packed: uint8 of any shape.

    Returns:
        Two int8 arrays of that shape.
    """
    low, high = (packed << 4).view(np.int8) >> 4, packed.view(np.int8) >> 4
    return low, high


def pack_channel_blocks(values: Array, groups: int, halves: int, lanes: int) -> Array:
    """Cut the channel axis into blocks of ``halves * lanes``, filling the last block of each group with zeros.

    Args:
        values: [groups * per_group, ...], the channel axis first.
        groups: of the convolution; 1 for anything else.
        halves: half blocks a block; two halves share their bytes when they are 4 bits wide.
        lanes: channels a half block: what one vector register takes.

    Returns:
        [groups, blocks, ..., halves, lanes].
    """
    per_group = len(values) // groups
    block = halves * lanes
    blocks = -(-per_group // block)
    rest = values.shape[1:]
    filled = np.zeros((groups, blocks * block, *rest), values.dtype)
    filled[:, :per_group] = values.reshape(groups, per_group, *rest)
    split = filled.reshape(groups, blocks, halves, lanes, *rest)
    return np.ascontiguousarray(np.moveaxis(split, (2, 3), (-2, -1)))
