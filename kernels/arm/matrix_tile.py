"""The accumulators of a tile where an instruction multiplies two pixels by two output channels.

An accumulator holds [[p c, p d], [q c, q d]] of pixels p and q and channels c and d. A vector of four output channels
is therefore two accumulators a pair of pixels; an odd pixel is paired with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.tirx import op

from hawq_tvm.kernels.dot.product import Product
from hawq_tvm.kernels.dot.tile import Tile
from hawq_tvm.kernels.dot.vectors import Registers, shuffle
from hawq_tvm.kernels.generic.expressions import Expr

_LANES, _BYTES = 4, 16  # of a vector
_HALVES = (0, 1)  # channels 0 and 1 of a vector, and 2 and 3


class MatrixTile(Tile):
    """Accumulators of 2x2 for each pair of pixels and pair of channels."""

    def __init__(self, product: Product, pixels: int, vectors: int) -> None:
        self._product, self._vectors = product, vectors
        self._pairs = [(first, min(first + 1, pixels - 1)) for first in range(0, pixels, 2)]
        self._accumulators = Registers(2 * len(self._pairs) * vectors, _LANES)

    def start(self, sums: Sequence[Expr]) -> None:
        for pair in range(len(self._pairs)):
            for vector in range(self._vectors):
                for half in _HALVES:
                    own = 2 * half, 2 * half + 1
                    self._accumulators[self._number(pair, vector, half)] = shuffle([sums[vector]], own * 2)

    def add(
        self, activations: Callable[[int], Expr], weights: Callable[[int], Expr], pixels: range | None = None
    ) -> None:
        assert pixels is None, "both pixels of a pair at once"
        loaded = [weights(vector) for vector in range(self._vectors)]
        for pair, both_pixels in enumerate(self._pairs):
            both = shuffle([activations(pixel) for pixel in both_pixels], range(_BYTES))
            rows = op.reinterpret(f"int8x{_BYTES}", both)
            for vector in range(self._vectors):
                for half in _HALVES:
                    number = self._number(pair, vector, half)
                    columns = shuffle([loaded[vector]], range(_BYTES * half, _BYTES * (half + 1)))
                    self._accumulators[number] = self._product.dot(self._accumulators[number], rows, columns)

    def sums(self, pixel: int, vector: int) -> Expr:
        pair, row = divmod(pixel, 2)
        halves = [self._accumulators[self._number(pair, vector, half)] for half in _HALVES]
        return shuffle(halves, [_LANES * half + 2 * row + channel for half in _HALVES for channel in range(2)])

    def _number(self, pair: int, vector: int, half: int) -> int:
        return (pair * self._vectors + vector) * 2 + half
