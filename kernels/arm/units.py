"""How 64-bit Arm CPUs add dot products of bytes: FEAT_DotProd's ``sdot``, and FEAT_I8MM's ``usdot`` and matrices.

``sdot`` takes signed bytes alone: unsigned activations are flipped where they are read. ``usdot`` takes unsigned
activations as they are; ``smmla`` and ``usmmla`` multiply two pixels by two channels, eight bytes each, and do twice as
many products an instruction.

Source: Arm Architecture Reference Manual (DDI 0487), C7.2, SDOT, USDOT, SMMLA, USMMLA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from tvm.tirx import op

from hawq_tvm.core.ir import Array, Rescale, TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.arm.matrix_tile import MatrixTile
from hawq_tvm.kernels.dot.product import DOT_STEP, Product
from hawq_tvm.kernels.dot.tile import Tile
from hawq_tvm.kernels.dot.unit import Factors, Unit
from hawq_tvm.kernels.dot.vectors import clipped, constant, halves_of_bytes, shuffle
from hawq_tvm.kernels.generic.expressions import Expr

LANES = 4
"""32-bit lanes of a NEON vector."""


@dataclass(frozen=True)
class NeonUnit(Unit):
    """A 64-bit Arm CPU's, with values stored as they are."""

    @property
    def order(self) -> tuple[int, ...]:
        return tuple(range(self.pair))

    @property
    def matrices(self) -> bool:
        """Whether an instruction multiplies two pixels by two channels."""
        return self.step > DOT_STEP

    def product(
        self,
        weight: Array,
        type: TensorType,
        storage: Storage,
        features: frozenset[str],
        *,
        may_exceed: bool = False,
    ) -> Product:
        signed = storage.dtype(type) == "int8"
        flipped, offset = False, storage.offset
        if "i8mm" in self.needs:
            name = ("s" if signed else "us") + ("mmla" if self.matrices else "dot")
        else:
            name = "sdot"
            flipped, offset = self.flips(type, storage, signed=True)
        return Product(
            partial(_multiply, name), flipped, offset, partial(halves_of_bytes, count=self.lanes * self.step)
        )

    def tile(self, product: Product, pixels: int, vectors: int) -> Tile:
        return MatrixTile(product, pixels, vectors) if self.matrices else super().tile(product, pixels, vectors)

    def rounded(self, factors: Sequence[Factors], rescale: Rescale) -> Expr:
        halves = [_rounded_half(factors, rescale, lanes) for lanes in ((0, 1), (2, 3))]
        return shuffle(halves, range(LANES))

    def packed(self, values: Sequence[Expr], rescale: Rescale, offset: int, dtype: str) -> Expr:
        lanes = LANES * len(values)
        words = shuffle(values, range(lanes)) if len(values) > 1 else values[0]
        return clipped(words, rescale.lo, rescale.hi, "int32", lanes).astype(f"{dtype}x{lanes}")


def _multiply(name: str, accumulator: Expr, activations: Expr, weights: Expr) -> Expr:
    """An instruction: int32x4 from int32x4 and int8x16 twice; of matrices, rows of activations by rows of weights."""
    full = f"llvm.aarch64.neon.{name}.v4i32.v16i8"
    return op.call_llvm_pure_intrin(f"int32x{LANES}", full, accumulator, activations, weights)


def _rounded_half(factors: Sequence[Factors], rescale: Rescale, lanes: tuple[int, int]) -> Expr:
    """The rounding law on two lanes, in 64 bits: ``smull`` or ``smull2``, and ``sshr``."""
    first, *rest = (shuffle([x], lanes).astype("int64x2") * shuffle([m], lanes).astype("int64x2") for x, m in factors)
    for product in rest:
        first = first + product
    half_unit, places = constant(1 << (rescale.shift - 1), "int64", 2), constant(rescale.shift, "int64", 2)
    return op.shift_right(first + half_unit, places).astype("int32x2")


_DOTS = frozenset({"neon", "dotprod"})

I8MM = NeonUnit("i8mm", _DOTS | {"i8mm"}, LANES, 8, 0, relative_cost=2.2, step=8, pixels_at_once=2)
USDOT = NeonUnit("usdot", _DOTS | {"i8mm"}, LANES, 8, 0, relative_cost=4)
SDOT = NeonUnit("sdot", _DOTS, LANES, 8, 0, relative_cost=4)
ARM_UNITS = (I8MM, USDOT, SDOT)
"""Best first; a tile of 8 pixels by two vectors takes half of NEON's 32 registers."""
