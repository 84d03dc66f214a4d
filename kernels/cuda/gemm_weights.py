"""What a product of matrices is given beside its input: weights, bias and multipliers, laid out for its threads.

    weights  [channel tiles][steps over chunks][rows of a tile][chunks of a step], 16 bytes each

A step of a tile is what a block copies to shared memory, in the order in which it does (`gemm_shared.Layout`). For
`mma.sync` rows are not in the order of their channels: the sums of an 8x8 product lie two neighbouring columns a lane,
so rows are permuted until all that a lane holds is neighbouring channels, which it stores as whole words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.ir import Array
from hawq_tvm.core.ops import Conv2d, WeightedOperator
from hawq_tvm.kernels.cuda.gemm import Gemm, Tile
from hawq_tvm.kernels.cuda.gemm_shared import Layout
from hawq_tvm.kernels.cuda.storages import CHUNK_BYTES
from hawq_tvm.kernels.packing import pack_nibbles


def channel_of_row(tile: Tile) -> NDArray[np.intp]:
    """The channel of each row of a tile, counted from its first channel.

    Column 2t + e of the warp's block b belongs to lane t (`ptx.multiply`), which so holds the channels from
    t * `lane_channels` on.

    >>> channel_of_row(Tile(32, 32, 4, 1, 1))[:10].tolist()
    [0, 1, 8, 9, 16, 17, 24, 25, 2, 3]
    """
    row = np.arange(tile.n)
    warp, block, column = row // tile.warp_n, row % tile.warp_n // 8, row % 8
    lane, element = column // 2, column % 2
    return np.asarray(warp * tile.warp_n + lane * tile.lane_channels + block * 2 + element, np.intp)


def pack_weights(op: WeightedOperator, gemm: Gemm, layout: Layout, channels: NDArray[np.intp]) -> Array:
    """The weights as a kernel copies them.

    Args:
        op: the layer.
        gemm: its product.
        layout: of a step in shared memory.
        channels: the channel of each row of a tile, counted from its first channel.

    Returns:
        uint32 [channel tiles, steps, words of a step].
    """
    tile = layout.tile
    rows = _bytes_of_rows(_rows_of_weights(op, gemm), gemm)
    (_, tiles), steps = gemm.tiles(tile), gemm.steps(tile)
    filled = np.zeros((tiles * tile.n, steps * tile.k, CHUNK_BYTES), np.uint8)
    filled[: len(rows), : gemm.chunks] = rows.reshape(len(rows), gemm.chunks, CHUNK_BYTES)
    ordered = filled.reshape(tiles, tile.n, steps, tile.k, CHUNK_BYTES)[:, channels].swapaxes(1, 2)
    return layout.step_in_memory(ordered).view(np.uint32)


def _rows_of_weights(op: WeightedOperator, gemm: Gemm) -> NDArray[np.int8]:
    """int8 [out, chunks x elements], in the order in which the input lies, zeros where it is filled up."""
    weight = op.weight.transpose(0, 2, 3, 1) if isinstance(op, Conv2d) else op.weight
    taps = weight.reshape(op.out_channels, gemm.taps, -1)
    stored = np.zeros((op.out_channels, gemm.taps, gemm.channels), np.int8)
    stored[:, :, : taps.shape[2]] = taps
    rows = np.zeros((op.out_channels, gemm.chunks * gemm.chunk_elements), np.int8)
    rows[:, : gemm.taps * gemm.channels] = stored.reshape(op.out_channels, -1)
    if gemm.widens:  # a word of eight 4-bit values becomes its even ones, then its odd ones
        rows = rows.reshape(op.out_channels, -1, 4, 2).swapaxes(2, 3).reshape(op.out_channels, -1)
    return np.ascontiguousarray(rows)


def _bytes_of_rows(rows: NDArray[np.int8], gemm: Gemm) -> NDArray[np.uint8]:
    return pack_nibbles(rows[:, ::2], rows[:, 1::2]) if gemm.bits == 4 else rows.view(np.uint8)


def first_sums(op: WeightedOperator, gemm: Gemm) -> Array:
    """What the sums start from, int32 [out]: the bias, less what `Gemm.added` adds to every product.

    Sums wrap around, so that nothing is lost on the way.
    """
    weights = op.weight.reshape(op.out_channels, -1).astype(np.int64).sum(axis=1)
    sums = op.bias.astype(np.int64) - gemm.added * weights
    return np.asarray((sums + 2**31) % 2**32 - 2**31, np.int32)


def filled_up(values: Array, tile: Tile) -> Array:
    """One value a channel, int32, with zeros up to whole tiles."""
    filled = np.zeros(-(-len(values) // tile.n) * tile.n, np.int32)
    filled[: len(values)] = values
    return filled
