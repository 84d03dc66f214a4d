"""The accumulators of a tile, some pixels by a block of output channels, and what is added to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from hawq_tvm.kernels.dot.product import DOT_STEP, Product
from hawq_tvm.kernels.dot.vectors import Registers, in_all_lanes
from hawq_tvm.kernels.generic.expressions import Expr


class Sums(ABC):
    """What has been added up for some pixels, or samples, by some vectors of output channels."""

    @abstractmethod
    def sums(self, pixel: int, vector: int) -> Expr:
        """Of one of each: int32, a lane each output channel."""


class Tile(Sums):
    """Accumulators, and what is added to them."""

    @abstractmethod
    def start(self, sums: Sequence[Expr]) -> None:
        """All pixels begin with these sums: int32, for each vector."""

    @abstractmethod
    def add(
        self, activations: Callable[[int], Expr], weights: Callable[[int], Expr], pixels: range | None = None
    ) -> None:
        """Add one step: neighbouring bytes of each pixel, by its number, times weights of every vector, by its.

        Args:
            activations: four bytes of a pixel, or as many as the instruction takes.
            weights: of a vector.
            pixels: which ones; all where None.
        """


class DotTile(Tile):
    """An accumulator for each pixel and vector; four activations of a pixel meet the weights in all lanes."""

    def __init__(self, product: Product, pixels: int, vectors: int, lanes: int) -> None:
        self._product, self._lanes = product, lanes
        self._pixels, self._vectors = pixels, vectors
        self._accumulators = Registers(pixels * vectors, lanes)

    def start(self, sums: Sequence[Expr]) -> None:
        for pixel in range(self._pixels):
            for vector in range(self._vectors):
                self._accumulators[pixel * self._vectors + vector] = sums[vector]

    def add(
        self, activations: Callable[[int], Expr], weights: Callable[[int], Expr], pixels: range | None = None
    ) -> None:
        loaded = [weights(vector) for vector in range(self._vectors)]
        for pixel in range(self._pixels) if pixels is None else pixels:
            four = in_all_lanes(self._product.operand(activations(pixel), DOT_STEP), self._lanes)
            for vector in range(self._vectors):
                self.multiply(pixel, vector, four, loaded[vector])

    def multiply(self, pixel: int, vector: int, activations: Expr, weights: Expr) -> None:
        """Add the products of one accumulator, whose operands are as the instruction takes them."""
        number = pixel * self._vectors + vector
        self._accumulators[number] = self._product.dot(self._accumulators[number], activations, weights)

    def sums(self, pixel: int, vector: int) -> Expr:
        return self._accumulators[pixel * self._vectors + vector]
