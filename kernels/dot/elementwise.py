"""The free-standing sum and requantize, by whole vectors of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ir import Operator
from hawq_tvm.core.ops import Add, Requantize
from hawq_tvm.kernels.dot.images import Plane, Vectors, over_tiles, refuse_vectors
from hawq_tvm.kernels.dot.result import build_function
from hawq_tvm.kernels.dot.sums import SharedRescale, in_lanes, sum_type
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.dot.vectors import flat, ramp
from hawq_tvm.kernels.generic.costs import elementwise_work
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.nhwc import channels_last
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request

Loaded = list[tuple[Expr, int]]
"""A vector of each input as it is stored, 16 bits a lane, and what is added there."""


def _over_pixels(request: Request, unit: Unit, buffers: tuple[Any, ...], stored: Callable[[Loaded, Any], Expr]) -> None:
    """Every vector of every pixel; `stored` makes it of the inputs' and of the multipliers."""
    node = request.node
    *inputs, multipliers, y = buffers
    types = (*request.inputs, node.type)
    storages = [request.alternatives[name] for name in (*node.inputs, node.name)]
    planes = [Plane.of(type, storage) for type, storage in zip(types, storages, strict=True)]
    vectors = Vectors.of(storages[-1].channels(node.type), unit.pair, unit.lanes)

    def pixel(n: Expr, h: Expr, w: Expr, channel: Expr) -> None:
        *places, place = (
            ramp(plane.index(n, h + plane.top, w + plane.left, channel), vectors.lanes) for plane in planes
        )
        loaded = []
        for x, index, type, storage in zip(inputs, places, request.inputs, storages[:-1], strict=True):
            loaded.append((flat(x)[index].astype(f"{sum_type(type, storage)}x{vectors.lanes}"), storage.offset))
        value = stored(loaded, multipliers)
        T.buffer_store(flat(y), value.astype(f"{y.dtype}x{vectors.lanes}"), [place])

    over_tiles(request, y, 1, vectors, pixel)


def _written(request: Request) -> tuple[int, str]:
    """What is added to stored results, and the type of their elements."""
    storage = request.alternatives[request.node.name]
    return storage.offset, storage.dtype(request.node.type)


def _build_requantize(request: Request, unit: Unit) -> BuiltKernel:
    law, (offset, dtype) = SharedRescale.of(request, unit), _written(request)

    def stored(loaded: Loaded, multipliers: Any) -> Expr:
        ((value, start),) = loaded
        return law.stored(value, multipliers[0], start=start, offset=offset, dtype=dtype)

    return build_function(request, (law.multipliers,), lambda buffers: _over_pixels(request, unit, buffers, stored))


def _build_add(request: Request, unit: Unit) -> BuiltKernel:
    """A sum of two products is rounded once, in 64 bits: float32 would round each."""
    op, (offset, dtype) = request.node.op, _written(request)
    assert isinstance(op, Add)
    constants = (op.rescale.multiplier.astype(np.int32),)

    def stored(loaded: Loaded, multipliers: Any) -> Expr:
        factors = [tirx.Broadcast(multipliers[number], unit.lanes) for number in range(len(loaded))]
        lanes = [in_lanes(value, start, unit) for value, start in loaded]
        sums = [
            unit.rounded(list(zip(values, factors, strict=True)), op.rescale) for values in zip(*lanes, strict=True)
        ]
        return unit.packed(sums, op.rescale, offset, dtype)

    return build_function(request, constants, lambda buffers: _over_pixels(request, unit, buffers, stored))


def elementwise_kernels(unit: Unit) -> tuple[Kernel, Kernel]:
    """The sum and requantize."""

    def kernel(
        name: str, operator: type[Operator], rates: str, build: Callable[[Request, Unit], BuiltKernel]
    ) -> Kernel:
        offer = channels_last(
            operator,
            lambda request: unit.bytes_cost(rates, elementwise_work(request)),
            lambda request: build(request, unit),
            refuse=lambda request: refuse_vectors(request, unit),
        )
        return Kernel(f"{name}_{unit.name}", offer)

    return kernel("add", Add, "add dot", _build_add), kernel(
        "requantize", Requantize, "requantize dot", _build_requantize
    )
