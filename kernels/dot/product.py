"""How the weights and activations of one layer are multiplied.

Instructions want bytes of one sign. Activations of the other sign have their highest bit flipped, which shifts them by
128, and what accumulators begin with makes up for it: exact, modulo 2^32, as accumulators count.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
from tvm.tirx import op

from hawq_tvm.core.ir import Array
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.kernels.dot.vectors import constant
from hawq_tvm.kernels.generic.expressions import Expr

DOT_STEP = 4
"""Neighbouring bytes that a dot product instruction takes for each 32-bit lane."""

FLIP = 0x80
"""The bit of a byte that tells signed from unsigned: flipping it adds 128 to signed ones, and takes 128 off others."""

Dot = Callable[[Expr, Expr, Expr], Expr]
"""To int32 accumulators, adds products of activations and weights, int8 each."""


@dataclass(frozen=True)
class Product:
    """The instructions of one layer.

    Attributes:
        dot: to int32 lanes adds the products of activations and weights, int8 each.
        flipped: whether the highest bits of activations are flipped before.
        offset: by how much the activations that `dot` takes exceed the values that they stand for.
        halves: splits packed bytes: their low or high four bits as signed bytes.
        excess: what is taken off the weights, to be multiplied in steps of its own; None where that is nothing.
        decided: what of all this the weights and the activations' range decided; None where they had no say.
    """

    dot: Dot
    flipped: bool
    offset: int
    halves: Callable[[Expr, int], Expr]
    excess: Array | None = None
    decided: Hashable = None

    def operand(self, bytes_: Expr, count: int) -> Expr:
        """So many activations as `dot` takes them, before they are in all lanes: LLVM 22 never ends on such flips."""
        return op.reinterpret(f"uint8x{count}", bytes_) ^ constant(FLIP, "uint8", count) if self.flipped else bytes_

    def first_sums(self, layer: WeightedOperator) -> Array:
        """What accumulators begin with: the bias, less what the offset of activations brings in.

        Returns:
            int32 [out], modulo 2^32, as accumulators count.
        """
        return first_sums(layer, self.offset)


def first_sums(layer: WeightedOperator, offset: int) -> Array:
    """The bias, less what an offset of the activations brings in: int32 [out], modulo 2^32, as accumulators count."""
    sums = layer.weight.reshape(layer.out_channels, -1).sum(axis=1, dtype=np.int64)
    return np.asarray(layer.bias.astype(np.int64) - offset * sums).astype(np.int32)
