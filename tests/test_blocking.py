"""How channels and pixels are cut into vectors and registers, and weights packed to match."""

from __future__ import annotations

from itertools import product
from math import ceil

import numpy as np
import pytest

from hawq_tvm.kernels.generic.blocking import Blocking, PackedWeight
from hawq_tvm.kernels.generic.nhwc import lanes_of


@pytest.mark.parametrize("bits", [64, 128, 256, 512])
def test_a_blocking_fills_vectors_and_registers(bits: int) -> None:
    for channels, groups, width in product(range(1, 41), (1, 2), (1, 2, 7, 13, 16, 17, 56)):
        check_blocking(channels, width, bits, groups)


def check_blocking(channels: int, width: int, bits: int, groups: int) -> None:
    blocking = Blocking.choose(channels, width, bits, groups=groups)
    vector = max(bits // 32, 4)
    if groups > 1:
        assert blocking.halves == 2 - channels % 2
        per_half = channels // blocking.halves
        assert blocking.lanes == max(lanes for lanes in range(1, vector + 1) if per_half % lanes == 0)
    elif channels > vector:
        assert (blocking.halves, blocking.lanes) == (2, vector)
    else:
        assert (blocking.halves, blocking.lanes) == (1, min(lanes for lanes in (4, 8, 16) if lanes >= channels))
    assert blocking.block == blocking.halves * blocking.lanes
    if blocking.lanes < 4:
        assert (blocking.vector, blocking.tile) == ("pixels", min(vector, width))
        return
    most = (16 if bits == 512 else 12) // blocking.halves
    costs = {tile: ceil(width / tile) * (tile + 1) for tile in range(1, min(most, width) + 1)}
    best = max(tile for tile, cost in costs.items() if cost == min(costs.values()))
    assert (blocking.vector, blocking.tile) == ("channels", best)


@pytest.mark.parametrize(
    ("channels", "widest", "expected"), [(1, 16, 1), (6, 16, 2), (8, 16, 8), (48, 16, 16), (48, 64, 16), (64, 8, 8)]
)
def test_lanes_divide_the_channels(channels: int, widest: int, expected: int) -> None:
    assert lanes_of(channels, widest) == expected


@pytest.mark.parametrize(
    ("channels", "groups", "window", "expected"),
    [
        (16, 1, (3, 3), (1, 1, 14, 16)),  # one half: 27 taps in pairs
        (16, 1, (1, 2), (1, 1, 3, 16)),
        (33, 1, (3, 3), (1, 2, 3, 3, 3, 16)),  # two halves, which share bytes
        (6, 2, (1, 1), (2, 1, 2, 3)),
    ],
)
def test_weights_of_four_bits_lie_two_a_byte(
    channels: int, groups: int, window: tuple[int, int], expected: tuple[int, ...]
) -> None:
    weight = np.ones((channels, 3, *window), np.int8)
    blocking = Blocking.choose(channels // groups, 8, 512, groups=groups)
    packed = PackedWeight.pack(weight, groups, blocking, True)
    assert (packed.array.shape, packed.array.dtype) == (expected, np.dtype("uint8"))
    bytes_ = PackedWeight.pack(weight, groups, blocking, False)
    assert (bytes_.array.shape[:2], bytes_.array.dtype) == (expected[:2], np.dtype("int8"))
