"""What the kernels of this wing ask of a CPU: 32-bit lanes, to which an instruction adds dot products of bytes.

A `Unit` is one CPU's way to do that: how wide its vectors are, which bytes the instruction takes, in which order
packing leaves lanes. The kernels are written once, over units. For a layer the unit names a `Product`: the instructions
that are exact for its weights and activations.

Units that would have to flip signed values in every read ask for them to be stored so (`signed_offset`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from hawq_tvm.core.float32_residual import FloorForm
from hawq_tvm.core.ir import Array, Rescale, TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.dot.product import DOT_STEP, FLIP, Dot, Product
from hawq_tvm.kernels.dot.tile import DotTile, Tile
from hawq_tvm.kernels.dot.vectors import constant, shuffle
from hawq_tvm.kernels.generic.costs import RATES, Work
from hawq_tvm.kernels.generic.expressions import Expr

FULL_LANES = 16
"""Lanes of the vectors that the rates in `kernels/generic/costs.py` were measured with."""


@dataclass(frozen=True)
class Residual:
    """A vector's share of the residual of a pixel.

    Attributes:
        stored: bytes of all vectors of the block, as they are stored.
        vectors: of the block.
        vector: which of them.
        factor: the residual's multipliers, int32 a lane; None for `Unit.floored`, whose form has them.
        offset: of the storage.
    """

    stored: Expr
    vectors: int
    vector: int
    factor: Expr
    offset: int


@dataclass(frozen=True)
class Unit(ABC):
    """One way to add dot products of bytes.

    Attributes:
        name: ends the names of its kernels.
        needs: the instruction sets that it is made of, by LLVM's names.
        lanes: 32-bit lanes of a vector.
        max_tile: pixels of a tile: its accumulators, two vectors each, leave registers for operands and the epilogue.
        signed_offset: what is added to stored signed values.
        relative_cost: of a multiply-accumulate of full vectors, beside one of AVX512-VNNI's vectors.
        step: neighbouring channels that the instruction takes at once.
        spare_tile: pixels that a tile may have more where no residual takes registers.
        pixels_at_once: pixels, or samples, that it takes at once.
        last_steps: how many steps of a convolution's tile are taken pixel by pixel, each of which is then finished: so
            that one pixel's rescale runs beside the next one's products.
    """

    name: str
    needs: frozenset[str]
    lanes: int
    max_tile: int
    signed_offset: int
    relative_cost: float = 1.0
    step: int = DOT_STEP
    spare_tile: int = 0
    pixels_at_once: int = 1
    last_steps: int = 0

    @property
    def pair(self) -> int:
        """Output channels of a block of two vectors."""
        return 2 * self.lanes

    @property
    def channels(self) -> int:
        """Stored channels are filled up to a multiple of this."""
        return max(self.lanes, self.step)

    @property
    @abstractmethod
    def order(self) -> tuple[int, ...]:
        """Which channel of a block of two vectors each lane holds, so that `packed` leaves channels in order."""

    @abstractmethod
    def product(
        self,
        weight: Array,
        type: TensorType,
        storage: Storage,
        features: frozenset[str],
        *,
        may_exceed: bool = False,
    ) -> Product:
        """The instructions for a layer.

        Args:
            weight: as it meets activations: int8 [..., a multiple of `step`].
            type: of the layer's first input.
            storage: in which that is read.
            features: the instruction sets of the CPU compiled for.
            may_exceed: whether there may be a `Product.excess`; `weight` is [out, ...] then.
        """

    @abstractmethod
    def rounded(self, factors: Sequence[Factors], rescale: Rescale) -> Expr:
        """The rounding law on a sum of products, int32 by int32, before its clip: int32.

        `Bounds` proves that no sum overflows 64 bits and that every rounded one fits 32.
        """

    @abstractmethod
    def packed(self, values: Sequence[Expr], rescale: Rescale, offset: int, dtype: str) -> Expr:
        """Clipped values as they are stored.

        Args:
            values: one vector of int32, or two, whose lanes lie as `order` says.
            rescale: whose clip lies in the bytes' range.
            offset: of the storage.
            dtype: of the storage.

        Returns:
            Vectors of `dtype`, in the order of channels.
        """

    def tile(self, product: Product, pixels: int, vectors: int) -> Tile:
        """Accumulators; to be made inside the loop over tasks."""
        return DotTile(product, pixels, vectors, self.lanes)

    def with_residual(self, product: Factors, residual: Residual, rescale: Rescale, features: frozenset[str]) -> Expr:
        """`rounded` of a product and a residual."""
        stored = residual.stored
        if residual.vectors == 2:
            stored = shuffle([stored], self.order[residual.vector * self.lanes :][: self.lanes])
        value = stored.astype(f"int32x{self.lanes}") - constant(residual.offset, "int32", self.lanes)
        return self.rounded([product, (value, residual.factor)], rescale)

    @property
    def saturates(self) -> bool:
        """Whether its quickest instructions hold some layers' sums and not others', which `product` then looks at."""
        return False

    @property
    def dot_words(self) -> Dot | None:
        """As `Product.dot`, of activations and weights of 16 bits, two a lane; None where no instruction does it."""
        return None

    @property
    def floors(self) -> bool:
        """Whether there are `floored` and `packed_floors`: a multiply-add that rounds down."""
        return False

    def floored(self, product: Factors, residual: Residual, form: FloorForm) -> Expr:
        """As `with_residual`, by a form that is proved; the product's second factor is the ratio in float32.

        Returns:
            int32, the stored result before its clip, and `form.base`.
        """
        raise NotImplementedError(f"{self.name} does not round down")

    def packed_floors(self, values: Sequence[Expr], rescale: Rescale, offset: int, form: FloorForm) -> Expr:
        """As `packed`, of what `floored` gives."""
        raise NotImplementedError(f"{self.name} does not round down")

    def whole(self, pixels: int) -> int:
        """Pixels that instructions compute where so many are wanted."""
        return -(-pixels // self.pixels_at_once) * self.pixels_at_once

    def cost(self, rates: str, work: Work) -> float:
        """Estimated microseconds at the rates of that name, which are of AVX512-VNNI."""
        narrower = FULL_LANES // self.lanes
        scaled = Work(round(work.macs * self.relative_cost), work.outputs * narrower, work.copied * narrower)
        return RATES[rates].microseconds(scaled, 32 * FULL_LANES)

    def bytes_cost(self, rates: str, work: Work) -> float:
        """As `cost`, of what is bound by vectors of bytes and not by products."""
        narrower = FULL_LANES // self.lanes
        scaled = Work(work.macs * narrower, work.outputs * narrower, work.copied * narrower)
        return RATES[rates].microseconds(scaled, 32 * FULL_LANES)

    def packed_cost(self, features: frozenset[str]) -> float:
        """How many times as long multiply-accumulates take on packed weights, on a CPU with these instruction sets."""
        return 1.0

    def flips(self, type: TensorType, storage: Storage, *, signed: bool) -> tuple[bool, int]:
        """What an instruction needs that takes signed, or unsigned, activations: `Product.flipped` and its offset."""
        stored_signed = storage.dtype(type) == "int8"
        if stored_signed == signed:
            return False, storage.offset
        return True, storage.offset + (FLIP if stored_signed else -FLIP)


Factors = tuple[Expr, Expr]
"""Two vectors of int32 whose lanes are multiplied to 64 bits."""


def missing(features: frozenset[str], needed: frozenset[str]) -> str | None:
    """The sentence of a kernel whose instruction sets are not all there; None where they are.

    >>> missing(frozenset({"avx512f"}), frozenset({"avx512f", "avx512vnni"}))
    'needs avx512vnni, which the CPU compiled for does not have'
    """
    lacking = sorted(needed - features)
    return f"needs {' and '.join(lacking)}, which the CPU compiled for does not have" if lacking else None
