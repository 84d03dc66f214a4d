"""Steps that take a share of their weights a second time, since one instruction could not hold all of it exactly.

``vpmaddubsw`` adds two products in 16 bits. Few pairs of a layer's weights are so large that the sum might not fit;
what they have too much is left out of the panels and multiplied in steps of its own, which a block of output channels
takes after all others. A table says where the activations of each lie.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hawq_tvm.core.ir import Array


def excess_of_pairs(weight: Array, largest: int) -> Array:
    """What to take off weights so that no sum of two neighbouring products leaves 16 bits.

    Neither what is left nor what is taken off does so, for activations from 0 to `largest`, at most 255.

    Args:
        weight: int8 [..., an even number].
        largest: activation as the instruction sees it.

    Returns:
        int8 of that shape, mostly zeros: the first of a pair gives all, and keeps its sign.

    >>> excess_of_pairs(np.array([[127, 127, -128, -1, 64, 64]], np.int8), 255)
    array([[126,   0,  -1,   0,   0,   0]], dtype=int8)
    """
    pairs = weight.reshape(-1, 2).astype(np.int64)
    most, least = (2**15 - 1) // max(largest, 1), -(2**15 // max(largest, 1))
    sums = pairs.sum(axis=1)
    alike = (pairs[:, 0] > 0) == (pairs[:, 1] > 0)  # with unlike signs the larger one alone is the sum's bound
    excess = np.where(alike, np.maximum(sums - most, 0) + np.minimum(sums - least, 0), 0)
    return np.stack([excess, np.zeros_like(excess)], axis=1).astype(np.int8).reshape(weight.shape)


@dataclass(frozen=True, eq=False)
class Excess:
    """The further steps of all blocks.

    Attributes:
        stream: int8 [steps, bytes of a pair of vectors]: the weights, one step after the other.
        places: int32 [steps], where each step's activations lie, counted from those of a tile's first step.
        starts: int32 [blocks + 1], which steps are a block's.
    """

    stream: Array
    places: Array
    starts: Array

    @classmethod
    def of(cls, blocks: list[Array], places: Array) -> Excess:
        """Of the steps that are not all zeros.

        Args:
            blocks: int8 [steps, bytes] of each block.
            places: int32 [steps], of every step of a block.
        """
        kept = [np.flatnonzero(block.any(axis=1)) for block in blocks]
        room = max(block.shape[1] for block in blocks)
        stream = np.zeros((max(sum(map(len, kept)), 1), room), np.int8)
        start = 0
        for block, steps in zip(blocks, kept, strict=True):
            stream[start : start + len(steps), : block.shape[1]] = block[steps]
            start += len(steps)
        starts = np.cumsum([0, *map(len, kept)])
        chosen = np.concatenate([places[steps] for steps in kept])
        return cls(stream, np.resize(chosen, len(stream)).astype(np.int32), starts.astype(np.int32))

    @property
    def steps(self) -> int:
        """Of all blocks."""
        return int(self.starts[-1])

    @property
    def constants(self) -> tuple[Array, ...]:
        """What a kernel is given: the stream as one row, places and starts."""
        return self.stream.reshape(-1), self.places, self.starts
