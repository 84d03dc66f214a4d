"""Which tiles there are, and which one a product is cut into."""

from __future__ import annotations

from collections.abc import Sequence

from hawq_tvm.core.gpu import WARP_SIZE, GpuFacts
from hawq_tvm.kernels.cuda.gemm import Gemm, Tile

TILES: tuple[Tile, ...] = (
    Tile(128, 128, 2, 2, 4),
    Tile(64, 128, 2, 1, 4),
    Tile(128, 64, 4, 4, 2),
    Tile(64, 128, 4, 1, 4),
    Tile(128, 64, 4, 2, 2),
    Tile(64, 64, 4, 2, 2),
    Tile(32, 64, 4, 1, 2),
    Tile(64, 32, 4, 2, 1),
    Tile(64, 64, 8, 2, 2, 2),
    Tile(32, 64, 8, 1, 2, 4),
    Tile(32, 32, 16, 1, 1, 8),
    Tile(32, 32, 4, 1, 1),
)
"""What is chosen from, largest first; registers and shared memory leave room for two blocks on a T4."""

WMMA_TILES: tuple[Tile, ...] = (
    Tile(128, 64, 4, 4, 2),
    Tile(64, 64, 4, 2, 2),
    Tile(32, 64, 4, 1, 2),
    Tile(32, 32, 4, 1, 1),
)
"""The same for WMMA."""

BUSY_WARPS = 8
"""Warps that keep a multiprocessor busy, two for each of its parts: while one waits, the other computes."""

FIXED_CHUNKS = 8
"""What starts and ends a block, as if it were so many chunks more."""


def choose_tile(gemm: Gemm, gpu: GpuFacts, tiles: Sequence[Tile] = TILES) -> Tile:
    """The tile for a product: the one place to change where tiles are ranked by a model or by measurements.

    Args:
        gemm: the product.
        gpu: the GPU.
        tiles: what to choose from; of equally good ones the first is taken.
    """
    return min(tiles, key=lambda tile: estimated_cycles(gemm, tile, gpu))


def estimated_cycles(gemm: Gemm, tile: Tile, gpu: GpuFacts) -> float:
    """What the busiest multiprocessor takes, in cycles of full tensor cores; an estimate, of use to compare.

    Larger tiles load less for every multiplication; smaller ones fill more multiprocessors and waste less at the edges.
    A block's work is its multiplications, the loads that they need (as long as they at 128 x 128, where each chunk
    serves 128 rows), and a start and an end. Few warps wait for what they load.
    """
    blocks = -(-gemm.rows // tile.m) * -(-gemm.out_channels // tile.n)
    waves = -(-blocks // gpu.sms)
    steps = -(-gemm.chunks // tile.k)
    loads = 64 * (1 / tile.m + 1 / tile.n)
    chunks = steps * tile.k * (1 + loads) + FIXED_CHUNKS
    waiting = max(1.0, BUSY_WARPS * WARP_SIZE / (waves * tile.threads))
    macs = waves * tile.m * tile.n * chunks * gemm.chunk_elements
    return macs * waiting / gpu.architecture.macs_per_cycle[gemm.bits]
