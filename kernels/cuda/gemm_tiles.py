"""The tiles that there are; `gemm_costs` says which one a product is cut into."""

from __future__ import annotations

from hawq_tvm.kernels.cuda.gemm import Tile

TILES: tuple[Tile, ...] = (
    Tile(128, 128, 2, 2, 4),
    Tile(64, 128, 2, 1, 4),
    Tile(128, 64, 4, 4, 2),
    Tile(64, 128, 4, 1, 4),
    Tile(128, 64, 4, 2, 2),
    Tile(64, 64, 4, 2, 2),
    Tile(64, 64, 2, 2, 2),
    Tile(32, 64, 4, 1, 2),
    Tile(64, 32, 4, 2, 1),
    Tile(64, 32, 2, 2, 1),
    Tile(64, 64, 8, 2, 2, 2),
    Tile(32, 64, 16, 1, 1, 4),
    Tile(32, 64, 8, 1, 2, 4),
    Tile(32, 32, 16, 1, 1, 8),
    Tile(32, 32, 8, 1, 1, 4),
    Tile(32, 32, 4, 1, 1),
)
"""What is chosen from, largest first.

Registers and shared memory leave room for two blocks on a T4, but for the tile with steps of 24 KiB: that one is for
layers with fewer blocks than multiprocessors, where it counts how many steps there are, each with its latency.
"""

WMMA_TILES: tuple[Tile, ...] = (
    Tile(128, 64, 4, 4, 2),
    Tile(64, 64, 4, 2, 2),
    Tile(32, 64, 4, 1, 2),
    Tile(32, 32, 4, 1, 1),
)
"""The same for WMMA."""

MIN_BLOCKS = 2
"""Blocks of a multiprocessor at least: 128 registers for each of 256 threads."""
