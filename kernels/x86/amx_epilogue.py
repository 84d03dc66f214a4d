"""From accumulators to bytes: the rounding law on 16 channels at once, in the fewest instructions that are exact.

The law is ``clip((acc * m [+ res * m_res] + 2^(s-1)) >> s)``. Three forms compute it, and each layer takes the first
that is proved for its weights, multipliers and clip (`Rescaling.choose`):

- `FLOAT`: one fused multiply-add in float32 (`hawq_tvm.core.float32_rescale`).
- `HIGH`: ``vpmuldq``, and of the 64-bit product the high half alone, where nothing is rounded below it.
- `WIDE`: the law as it stands, in 64 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.tirx import op as tir

from hawq_tvm.core.float32_rescale import MAGIC, float32_is_exact
from hawq_tvm.core.ir import Array, Bounds, Rescale, TensorType
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.x86.amx_storages import BLOCK_CHANNELS
from hawq_tvm.kernels.x86.storages import UNSIGNED_OFFSET
from hawq_tvm.kernels.x86.vectors import LANES, constant, pack_signed, ramp

FLOAT, HIGH, WIDE = "float", "high", "wide"

_MAGIC_BITS = int(np.float32(MAGIC).view(np.int32))
_MULTIPLIER_LIMIT = 1 << 31  # of vpmuldq, which is signed
_RESIDUAL_LIMIT = 1 << 44  # of vpmadd52luq, which keeps 52 bits of the product with a byte


def float_is_exact(op: WeightedOperator, inputs: Sequence[TensorType]) -> bool:
    """Whether the float32 form is proved: for the layer's largest accumulator, or channel by channel for its own."""
    if float32_is_exact(op.rescale, op.bounds(inputs)):
        return True
    return all(
        float32_is_exact(
            replace(op.rescale, multiplier=[multiplier]), Bounds.of(bound, bound * multiplier, op.rescale.shift)
        )
        for bound, multiplier in zip(op.accumulator_bounds(inputs), map(int, op.rescale.multiplier), strict=True)
    )


@dataclass(frozen=True, eq=False)
class Rescaling:
    """A layer's rounding.

    Attributes:
        form: `FLOAT`, `HIGH` or `WIDE`.
        parameters: int32 [groups of 16 channels, rows, 16]; what the rows are is the form's affair.
        shift: what is left to shift the 32-bit result by; of `WIDE`, the law's.
        rescale: the layer's.
        residual_offset: what is added to a stored residual; None where there is none.
        signed: whether results are stored with 128 added.
    """

    form: str
    parameters: Array
    shift: int
    rescale: Rescale
    residual_offset: int | None
    signed: bool

    @classmethod
    def choose(cls, op: WeightedOperator, inputs: Sequence[TensorType], output: TensorType) -> Rescaling:
        """The cheapest form that is proved."""
        rescale = op.rescale
        offset = None
        if rescale.residual is not None:
            offset = UNSIGNED_OFFSET if inputs[1].dtype.signed else 0
        rest = rescale, offset, output.dtype.signed
        if offset is None and float_is_exact(op, inputs):
            factors = np.ldexp(rescale.multiplier.astype(np.float64), -rescale.shift).astype(np.float32)
            return cls(FLOAT, _groups(factors.view(np.int32))[:, None], 0, *rest)
        least = 33 if offset is None else 32  # so that the rounding term lies in the high half, or is added before
        raised = max(0, least - rescale.shift)
        largest = int(rescale.multiplier.max()) << raised
        residual = np.zeros(1, np.int64) if rescale.residual is None else rescale.residual
        if largest < _MULTIPLIER_LIMIT and int(residual.max()) << raised < _RESIDUAL_LIMIT:
            shift = rescale.shift + raised
            lanes = np.arange(LANES) if offset is None else _EVEN_ODD
            rows = _even_odd_rows(_groups((rescale.multiplier << raised).astype(np.int32))[:, lanes])
            if offset is not None:
                factors = np.broadcast_to(residual << raised, (op.out_channels,))
                constants = (1 << (shift - 1)) - offset * factors
                rows += _halves(factors) + _halves(constants)
            return cls(HIGH, np.stack(rows, axis=1), shift - 32, *rest)
        rows = [_groups(rescale.multiplier.astype(np.int32))]
        if offset is not None:
            rows.append(_groups(np.broadcast_to(residual, (op.out_channels,)).astype(np.int32)))
        return cls(WIDE, np.stack(rows, axis=1), rescale.shift, *rest)

    @property
    def lanes(self) -> Array:
        """The channel of a group of 16 that each lane of an accumulator holds.

        Beside a residual of the form `HIGH` even lanes hold the first eight channels, so that eight neighbouring bytes
        widen to the 64-bit lanes that they are added to.
        """
        if self.form == HIGH and self.residual_offset is not None:
            return _EVEN_ODD
        return np.arange(LANES)

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
        rows = [parameters[group, row, ramp(0, LANES)] for row in range(self.parameters.shape[1])]
        if self.form == FLOAT:
            factor = tir.reinterpret("float32x16", rows[0])
            magic = tirx.Broadcast(tirx.const(MAGIC, "float32"), LANES)
            rounded = tir.call_llvm_pure_intrin(
                "float32x16", "llvm.fma", accumulator.astype("float32x16"), factor, magic
            )
            return tir.reinterpret("int32x16", rounded) - constant(_MAGIC_BITS, "int32", LANES)
        if self.form == HIGH:
            return self._round_high(accumulator, rows, residual, at)
        total = accumulator.astype("int64x16") * rows[0].astype("int64x16")
        if residual is not None:
            value = residual[ramp(at, LANES)].astype("int64x16") - constant(self.residual_offset or 0, "int64", LANES)
            total += value * rows[1].astype("int64x16")
        total += constant(1 << (self.shift - 1), "int64", LANES)
        return tir.shift_right(total, constant(self.shift, "int64", LANES)).astype("int32x16")

    def _round_high(self, accumulator: Expr, rows: Sequence[Expr], residual: Any, at: Expr) -> Expr:
        """The high halves of 64-bit sums, even and odd lanes apart."""
        lanes = tir.reinterpret("int64x8", accumulator)
        even, odd, *rest = (tir.reinterpret("int64x8", row) for row in rows)
        upper = tir.shift_right(lanes, constant(32, "int64", 8))
        sums = [_low_half(lanes) * _low_half(even), upper * _low_half(odd)]
        if residual is not None:
            for half in range(2):
                value = residual[ramp(at + 8 * half, 8)].astype("int64x8")
                factor, added = rest[half], rest[2 + half]
                name = "llvm.x86.avx512.vpmadd52l.uq.512"
                sums[half] += tir.call_llvm_pure_intrin("int64x8", name, added, value, factor)
        high = tir.bitwise_or(
            tir.bitwise_and(sums[1], constant(-(1 << 32), "int64", 8)),
            tir.bitwise_and(tir.shift_right(sums[0], constant(32, "int64", 8)), constant((1 << 32) - 1, "int64", 8)),
        )
        result = tir.reinterpret("int32x16", high)
        if residual is None:
            result += constant(1 << (self.shift - 1), "int32", LANES)
        return tir.shift_right(result, constant(self.shift, "int32", LANES)) if self.shift else result

    def pack(self, rounded: Sequence[Sequence[Expr]], order: Expr) -> Expr:
        """The stored bytes of two pixels and 32 channels.

        Args:
            rounded: int32x16 by pixel and group.
            order: int8x64, `order`.

        Returns:
            int8x64, clipped: 32 bytes of each pixel.
        """
        words = [pack_signed(*pixel) for pixel in rounded]
        name = "packsswb" if self.signed else "packuswb"  # both saturate, as the law's clip does after them
        packed = tir.call_llvm_pure_intrin("int8x64", f"llvm.x86.avx512.{name}.512", *words)
        dtype, lowest, highest = ("int8", -128, 127) if self.signed else ("uint8", 0, 255)
        values = packed if self.signed else tir.reinterpret("uint8x64", packed)
        if self.rescale.hi < highest:
            values = te.min(values, constant(self.rescale.hi, dtype, 64))
        if self.rescale.lo > lowest:
            values = te.max(values, constant(self.rescale.lo, dtype, 64))
        stored = values if self.signed else tir.reinterpret("int8x64", values)
        if self.signed:
            stored = tir.bitwise_xor(stored, constant(-UNSIGNED_OFFSET, "int8", 64))  # + 128
        return tir.call_llvm_pure_intrin("int8x64", "llvm.x86.avx512.permvar.qi.512", stored, order)


_EVEN_ODD = np.arange(LANES).reshape(2, 8).T.reshape(-1)  # 0, 8, 1, 9, ...


def _groups(values: Array) -> Array:
    """[channels] as [groups, 16], whole blocks of 32, filled up with zeros."""
    filled = np.zeros(-(-len(values) // BLOCK_CHANNELS) * BLOCK_CHANNELS, values.dtype)
    filled[: len(values)] = values
    return filled.reshape(-1, LANES)


def in_lanes(values: Array, lanes: Array) -> Array:
    """Per-channel values, filled up to whole blocks, each group of 16 in the order of `lanes`.

    Args:
        values: [channels, ...].
        lanes: of `Rescaling.lanes`.
    """
    channels = -(-len(values) // BLOCK_CHANNELS) * BLOCK_CHANNELS
    filled = np.zeros((channels, *values.shape[1:]), values.dtype)
    filled[: len(values)] = values
    return filled.reshape(-1, LANES, *values.shape[1:])[:, lanes].reshape(filled.shape)


def _even_odd_rows(lanes: Array) -> list[Array]:
    """The low halves of 64-bit lanes: as they are, and the odd ones moved to where those are."""
    moved = np.zeros_like(lanes)
    moved[:, 0::2] = lanes[:, 1::2]
    return [lanes, moved]


def _halves(values: Array) -> list[Array]:
    """64-bit values of the first and of the last eight channels of each group, as rows of 16 words."""
    words = _groups(values.astype(np.int64)).view(np.int32)  # [groups, 32]
    return [np.ascontiguousarray(words[:, :LANES]), np.ascontiguousarray(words[:, LANES:])]


def _low_half(lanes: Expr) -> Expr:
    """The low 32 bits of each 64-bit lane, sign extended: what ``vpmuldq`` reads."""
    thirty_two = constant(32, "int64", 8)
    return tir.shift_right(tir.shift_left(lanes, thirty_two), thirty_two)
