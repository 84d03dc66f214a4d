"""From accumulators to bytes: the rounding law on 16 channels at once, packed two pixels by 32 channels.

How 16 numbers are rounded is `hawq_tvm.kernels.x86.epilogue`'s; here is which form a layer takes, in which order its
channels lie in vectors, and how 64 results become two times 32 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.tirx import op as tir

from hawq_tvm.core.ir import Array, Rescale, TensorType
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.kernels.dot.float32 import float_is_exact, ratios, rounded_in_float32
from hawq_tvm.kernels.dot.vectors import clipped, constant, ramp
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.x86.amx_storages import BLOCK_CHANNELS
from hawq_tvm.kernels.x86.epilogue import rounded
from hawq_tvm.kernels.x86.storages import UNSIGNED_OFFSET
from hawq_tvm.kernels.x86.vectors import LANES, pack_signed

NATURAL = np.arange(LANES)
EVEN_ODD = NATURAL.reshape(2, 8).T.reshape(-1)  # 0, 8, 1, 9, ...


@dataclass(frozen=True, eq=False)
class Rescaling:
    """A layer's rounding.

    Attributes:
        in_float32: whether one fused multiply-add is proved to be exact.
        parameters: int32 [groups of 16 channels, rows, 16]: the multipliers, over 2^shift in float32 where that is
            exact; and those of the residual.
        rescale: the layer's.
        residual_offset: what is added to a stored residual; None where there is none.
        signed: whether results are stored with 128 added.
    """

    in_float32: bool
    parameters: Array
    rescale: Rescale
    residual_offset: int | None
    signed: bool

    @classmethod
    def choose(cls, op: WeightedOperator, inputs: Sequence[TensorType], output: TensorType) -> Rescaling:
        """The cheapest form that is proved."""
        rescale, signed = op.rescale, output.dtype.signed
        if rescale.residual is None:
            exact = float_is_exact(op, inputs)
            multiplier = rescale.multiplier.astype(np.int32)
            if exact:
                multiplier = ratios(rescale.multiplier, rescale).view(np.int32)
            return cls(exact, _in_groups([multiplier], NATURAL), rescale, None, signed)
        offset = UNSIGNED_OFFSET if inputs[1].dtype.signed else 0
        rows = [row.astype(np.int32) for row in op.multipliers]
        parameters = _in_groups(rows, NATURAL if offset else EVEN_ODD)
        return cls(False, parameters, rescale, offset, signed)

    @property
    def lanes(self) -> Array:
        """The channel of a group of 16 that each lane of an accumulator holds.

        Beside unsigned residuals even lanes hold the first eight channels, so that eight neighbouring bytes widen to
        the 64-bit lanes that they are added to.
        """
        return EVEN_ODD if self.residual_offset == 0 else NATURAL

    @property
    def order(self) -> Array:
        """int8 [64]: where the packed bytes of two pixels and 32 channels are to be taken from.

        The packing instructions work on four lanes of 128 bits, which take four channels of each of the four vectors.
        """
        order = np.zeros((2, 2, LANES), np.int8)  # pixel, group, channel
        for lane, channel in enumerate(self.lanes):
            for pixel, group in np.ndindex(2, 2):
                order[pixel, group, channel] = lane // 4 * 16 + pixel * 8 + group * 4 + lane % 4
        return order.reshape(-1)

    def round(self, accumulator: Expr, parameters: Any, group: Expr, residual: Any, at: Expr) -> Expr:
        """int32x16 before the clip.

        Args:
            accumulator: int32x16, lanes as `lanes` says.
            parameters: the buffer of `parameters`.
            group: of 16 channels.
            residual: a flat buffer of stored bytes; None where there is none.
            at: where the group's 16 residuals begin.
        """
        multiplier, *factors = (parameters[group, row, ramp(0, LANES)] for row in range(self.parameters.shape[1]))
        if self.in_float32:
            return rounded_in_float32(accumulator, tir.reinterpret(f"float32x{LANES}", multiplier), LANES)
        product = accumulator, multiplier
        if residual is None:
            return rounded([product], self.rescale, LANES)
        if self.residual_offset:
            value = residual[ramp(at, LANES)].astype(f"int32x{LANES}") - constant(self.residual_offset, "int32", LANES)
            return rounded([product, (value, factors[0])], self.rescale, LANES)
        first, last = (residual[ramp(at + half, 8)].astype("int64x8") for half in (0, 8))
        return rounded([product], self.rescale, LANES, ((first, last), factors[0]))

    def pack(self, values: Sequence[Sequence[Expr]], order: Expr) -> Expr:
        """The stored bytes of two pixels and 32 channels.

        Args:
            values: int32x16 by pixel and group, not yet clipped.
            order: int8x64, `order`.

        Returns:
            int8x64: 32 bytes of each pixel.
        """
        words = [pack_signed(*pixel) for pixel in values]
        name, dtype = ("packsswb", "int8") if self.signed else ("packuswb", "uint8")  # saturate as the clip does
        packed = tir.call_llvm_pure_intrin("int8x64", f"llvm.x86.avx512.{name}.512", *words)
        bytes_ = clipped(tir.reinterpret(f"{dtype}x64", packed), self.rescale.lo, self.rescale.hi, dtype, 64)
        stored = tir.reinterpret("int8x64", bytes_)
        if self.signed:
            stored = tir.bitwise_xor(stored, constant(-UNSIGNED_OFFSET, "int8", 64))  # 128 more
        return tir.call_llvm_pure_intrin("int8x64", "llvm.x86.avx512.permvar.qi.512", stored, order)


def in_lanes(values: Array, lanes: Array) -> Array:
    """Per-channel values, filled up with zeros to whole blocks, each group of 16 in the order of `lanes`.

    Args:
        values: [channels, ...].
        lanes: as `Rescaling.lanes`.
    """
    channels = -(-len(values) // BLOCK_CHANNELS) * BLOCK_CHANNELS
    filled = np.zeros((channels, *values.shape[1:]), values.dtype)
    filled[: len(values)] = values
    return filled.reshape(-1, LANES, *values.shape[1:])[:, lanes].reshape(filled.shape)


def _in_groups(rows: Sequence[Array], lanes: Array) -> Array:
    """Several values a channel as [groups of 16, values, 16]."""
    return np.stack([in_lanes(row, lanes).reshape(-1, LANES) for row in rows], axis=1)
