"""From sums of stored bytes to stored bytes, by one multiplier for all lanes of a vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx import op

from hawq_tvm.core.float32_rescale import float32_is_exact
from hawq_tvm.core.ir import Array, Bounds, Rescale, TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.dot.float32 import ratios, rounded_in_float32
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.dot.vectors import constant, shuffle
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.interface import Request


@dataclass(frozen=True, eq=False)
class SharedRescale:
    """The rounding law where all lanes of a vector share a multiplier.

    Attributes:
        unit: the instructions.
        rescale: the operator's, without a residual.
        in_float32: whether float32 is proved exact.
    """

    unit: Unit
    rescale: Rescale
    in_float32: bool

    @classmethod
    def of(cls, request: Request, unit: Unit) -> SharedRescale:
        """Of a node's one result."""
        layer = request.node.op
        rescale, bounds = layer.rescale_or_none, layer.bounds(request.inputs)
        assert rescale is not None and bounds is not None
        return cls.within(rescale, bounds, unit)

    @classmethod
    def within(cls, rescale: Rescale, bounds: Bounds, unit: Unit) -> SharedRescale:
        """Of sums within those bounds."""
        return cls(unit, rescale, float32_is_exact(rescale, bounds))

    @property
    def multipliers(self) -> Array:
        """A kernel's constant: float32, their ratios, where that is exact, else int32; one row."""
        values = self.rescale.multiplier.reshape(-1)
        if self.in_float32:
            return ratios(values, self.rescale)
        return values.astype(np.int32)

    def stored(self, sums: Expr, multiplier: Expr, *, start: int, offset: int, dtype: str) -> Expr:
        """Sums as they are stored.

        Args:
            sums: of one vector's lanes, or of two, as `in_lanes` takes them.
            multiplier: one of `multipliers`.
            start: what the sums began with.
            offset: of the storage that is written.
            dtype: of its elements.
        """
        lanes = self.unit.lanes
        shared = tirx.Broadcast(multiplier, lanes)
        wide = in_lanes(sums, start, self.unit)
        if self.in_float32:
            values = [rounded_in_float32(value, shared, lanes) for value in wide]
        else:
            values = [self.unit.rounded([(value, shared)], self.rescale) for value in wide]
        return self.unit.packed(values, self.rescale, offset, dtype)


def sum_type(type: TensorType, storage: Storage, bits: int = 16) -> str:
    """The dtype in which a value's stored bytes are summed."""
    return f"{storage.dtype(type).rstrip('8')}{bits}"


def in_lanes(sums: Expr, start: int, unit: Unit) -> list[Expr]:
    """Sums less what they began with, int32 in the order that `unit.packed` wants.

    Args:
        sums: of one vector's lanes, any integers; of two, 16 bits each.
        start: what they began with.
        unit: the instructions.
    """
    if sums.ty.dtype.lanes == unit.lanes:
        wide = [sums.astype(f"int32x{unit.lanes}")]
    else:
        wide = [_widened(sums, unit.order[vector * unit.lanes :][: unit.lanes]) for vector in range(2)]
    return [value - constant(start, "int32", unit.lanes) if start else value for value in wide]


def _widened(words: Expr, lanes: tuple[int, ...]) -> Expr:
    """Those lanes of 16 bits as 32; of unsigned ones as what they are between zeros: ``vpunpcklwd`` and its like."""
    if words.ty.dtype.type_code != tirx.const(0, "uint16").ty.dtype.type_code:
        return shuffle([words, words], lanes).astype(f"int32x{len(lanes)}")
    count = 2 * len(lanes)
    order = [index for lane in lanes for index in (lane, count)]
    return op.reinterpret(f"int32x{len(lanes)}", shuffle([words, constant(0, "uint16", count)], order))
