"""How x86 CPUs add dot products of bytes: by VNNI's one instruction, or by what came before it.

``vpdpbusd`` multiplies unsigned activations by signed weights and adds four products at once. Before it there was
``vpmaddubsw``, whose sums of two products saturate at 16 bits. It is used where no two weights of a layer can reach
them, or where few can, whose excess is multiplied apart (`kernels/dot/excess.py`); and else ``vpmaddwd`` on even and
odd bytes apart.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, VPDPBUSD, PMADDUBSW, PMADDWD.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from tvm.tirx import op

from hawq_tvm.core.float32_residual import FloorForm
from hawq_tvm.core.ir import Array, Rescale, TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.dot.excess import excess_of_pairs
from hawq_tvm.kernels.dot.product import Dot, Product
from hawq_tvm.kernels.dot.unit import Factors, Residual, Unit
from hawq_tvm.kernels.dot.vectors import LANE_BYTES, clipped, constant, halves_of_bytes, shuffle
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.x86.epilogue import floored, rounded, stored_floors
from hawq_tvm.kernels.x86.storages import AVX512, AVX512_VNNI, MULTIPLY_ADD, NIBBLES, UNSIGNED_OFFSET
from hawq_tvm.kernels.x86.vectors import (
    LANES,
    bytes_in_quads,
    dot,
    dot_of_pairs,
    dot_of_words,
    dot_pairs_of_bytes,
    nibbles,
    pack_signed,
    pack_unsigned,
    packed_lanes,
)


@dataclass(frozen=True)
class X86Unit(Unit):
    """An x86 CPU's, with signed activations at +128.

    Attributes:
        shifting_cost: how many times as long multiply-accumulates take where halves of bytes are made by shifts.
    """

    shifting_cost: float = 1.0

    @property
    def order(self) -> tuple[int, ...]:
        return packed_lanes(self.lanes)

    @property
    def vnni(self) -> bool:
        """Whether there is one instruction for it."""
        return any(name.endswith("vnni") for name in self.needs)

    def product(
        self,
        weight: Array,
        type: TensorType,
        storage: Storage,
        features: frozenset[str],
        *,
        may_exceed: bool = False,
    ) -> Product:
        flipped, offset = self.flips(type, storage, signed=False)
        multiply: Callable[..., Expr] = dot
        excess: Array | None = None
        decided: str | None = None
        if self.saturates:
            multiply, decided = dot_of_pairs, "pairs"
            if not pairs_fit(weight, type.dtype.hi + offset):
                excess, steps = self._worthwhile_excess(weight, type.dtype.hi + offset) if may_exceed else (None, 0)
                multiply, decided = (
                    (dot_of_words, "words") if excess is None else (dot_of_pairs, f"{steps} steps twice")
                )
        plain = partial(halves_of_bytes, count=LANE_BYTES * self.lanes)
        halves = partial(nibbles, lanes=self.lanes) if features >= NIBBLES else plain
        return Product(partial(multiply, lanes=self.lanes), flipped, offset, halves, excess, decided)

    def _worthwhile_excess(self, weight: Array, largest: int) -> tuple[Array | None, int]:
        """What pairs of weights have too much, where few enough steps of all blocks have any, and how many do."""
        excess = excess_of_pairs(weight, largest)
        blocks = np.pad(excess != 0, ((0, -len(excess) % self.pair), (0, 0))).reshape(-1, self.pair, *weight.shape[1:])
        steps = blocks.any(axis=1).reshape(len(blocks), -1, self.step).any(axis=2)
        return excess if steps.mean() <= MOST_EXCESS else None, int(steps.sum())

    def packed_cost(self, features: frozenset[str]) -> float:
        return 1.0 if features >= NIBBLES else self.shifting_cost

    def rounded(self, factors: Sequence[Factors], rescale: Rescale) -> Expr:
        return rounded(factors, rescale, self.lanes)

    def with_residual(self, product: Factors, residual: Residual, rescale: Rescale, features: frozenset[str]) -> Expr:
        if self.lanes < LANES or not features >= MULTIPLY_ADD or residual.offset or residual.vectors < 2:
            return super().with_residual(product, residual, rescale, features)
        lanes = self.order[residual.vector * LANES :][:LANES]
        quads = bytes_in_quads(residual.stored, lanes[::2]), bytes_in_quads(residual.stored, lanes[1::2])
        return rounded([product], rescale, LANES, (quads, residual.factor))

    @property
    def saturates(self) -> bool:
        return not self.vnni

    @property
    def dot_words(self) -> Dot | None:
        return dot_pairs_of_bytes if self.vnni and self.lanes == LANES else None

    @property
    def floors(self) -> bool:
        return self.vnni and self.lanes == LANES

    def floored(self, product: Factors, residual: Residual, form: FloorForm) -> Expr:
        words = residual.stored.astype(f"int16x{residual.vectors * LANES}")
        lanes = self.order[residual.vector * LANES :][:LANES] if residual.vectors == 2 else range(LANES)
        pairs = shuffle([words, words], [lane for lane in lanes for _ in range(2)])
        return floored(*product, pairs, form)

    def packed_floors(self, values: Sequence[Expr], rescale: Rescale, offset: int, form: FloorForm) -> Expr:
        return stored_floors(values, rescale, offset, form)

    def packed(self, values: Sequence[Expr], rescale: Rescale, offset: int, dtype: str) -> Expr:
        lanes, pair = self.lanes * len(values), len(values) == 2
        if not offset:
            packed, carrier = (
                (pack_unsigned(values[0], values[1], self.lanes), "uint16") if pair else (values[0], "int32")
            )
            return clipped(packed, rescale.lo, rescale.hi, carrier, lanes).astype(f"uint8x{lanes}")
        packed, carrier = (pack_signed(values[0], values[1], self.lanes), "int16") if pair else (values[0], "int32")
        signed = clipped(packed, rescale.lo, rescale.hi, carrier, lanes).astype(f"int8x{lanes}")
        return op.reinterpret(f"uint8x{lanes}", signed) ^ constant(offset, "uint8", lanes)


def pairs_fit(weight: Array, largest: int) -> bool:
    """Whether no sum of two neighbouring products leaves 16 bits, whatever the activations from 0 to the largest.

    Args:
        weight: int8 [..., an even number].
        largest: activation as the instruction sees it.

    >>> pairs_fit(np.array([[64, 64, -64, -64]]), 255), pairs_fit(np.array([[127, 2, 0, 0]]), 255)
    (True, False)
    """
    pairs = weight.reshape(-1, 2).astype(np.int64)
    most, least = np.maximum(pairs, 0).sum(axis=1), np.minimum(pairs, 0).sum(axis=1)
    return bool(np.all(most * largest <= 2**15 - 1) and np.all(least * largest >= -(2**15)))


MOST_EXCESS = 0.5
"""The largest share of steps taken twice by which ``vpmaddubsw`` still is quicker than ``vpmaddwd`` on halves."""

AVX2 = frozenset({"avx2", "fma"})
"""What the 256-bit kernels are made of."""

VNNI_512 = X86Unit(
    "avx512vnni", AVX512_VNNI, LANES, max_tile=8, signed_offset=UNSIGNED_OFFSET, spare_tile=1, last_steps=2
)
"""Of its 32 registers a tile of 8 pixels leaves half to the epilogue, which spills a residual's factors with fewer; 12
were seen to take 5 % longer with a residual, and no less without. Rows of 17 pixels (Inception-V3's) are two tiles of 9
and 8, which take 6 % less than three of 6 do, one of whose pixels is computed twice."""

WORDS_512 = X86Unit("avx512bw", AVX512, LANES, max_tile=8, signed_offset=UNSIGNED_OFFSET, relative_cost=3.5)
VNNI_256 = X86Unit(
    "avxvnni", AVX2 | {"avxvnni"}, LANES // 2, max_tile=5, signed_offset=UNSIGNED_OFFSET, relative_cost=2
)
WORDS_256 = X86Unit("avx2", AVX2, 8, max_tile=4, signed_offset=UNSIGNED_OFFSET, relative_cost=7, shifting_cost=1.17)
"""Small tiles unpack often: ResNet-50's convolutions compiled for Haswell took 1.14 to 1.18 times as long so as with
bytes on an AMD EPYC (Zen 5); with 512 bits, compiled for Cascade Lake, 0.89 to 1.04 times."""

X86_UNITS = (VNNI_512, WORDS_512, VNNI_256, WORDS_256)
"""Best first."""
