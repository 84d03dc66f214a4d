"""The free-standing sum and requantize on AVX-512, by whole vectors of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ops import Add, Requantize
from hawq_tvm.kernels.generic.costs import cost, elementwise_work
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.nhwc import channels_last
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request
from hawq_tvm.kernels.x86.epilogue import SharedRescale, in_lanes, rounded, stored_bytes
from hawq_tvm.kernels.x86.images import Plane, Vectors, over_tiles, refuse_vectors
from hawq_tvm.kernels.x86.result import build_function
from hawq_tvm.kernels.x86.vectors import LANES, flat, ramp


def _over_pixels(
    request: Request, buffers: tuple[Any, ...], stored: Callable[[list[tuple[Expr, int]], Any], Expr]
) -> None:
    """Every vector of every pixel; `stored` makes it of the inputs' and their offsets, and of the multipliers."""
    node = request.node
    *inputs, multipliers, y = buffers
    storages = [request.alternatives[name] for name in (*node.inputs, node.name)]
    planes = [Plane.of(type, storage) for type, storage in zip((*request.inputs, node.type), storages, strict=True)]
    vectors = Vectors.of(storages[-1].channels(node.type), 2 * LANES)

    def pixel(n: Expr, h: Expr, w: Expr, channel: Expr) -> None:
        *places, place = (
            ramp(plane.index(n, h + plane.top, w + plane.left, channel), vectors.lanes) for plane in planes
        )
        loaded = [
            (flat(x)[index].astype(f"uint16x{vectors.lanes}"), storage.offset)
            for x, index, storage in zip(inputs, places, storages[:-1], strict=True)
        ]
        T.buffer_store(flat(y), stored(loaded, multipliers), [place])

    over_tiles(request, y, 1, vectors, pixel)


def _build_requantize(request: Request) -> BuiltKernel:
    law, offset = SharedRescale.of(request), request.alternatives[request.node.name].offset

    def stored(loaded: list[tuple[Expr, int]], multipliers: Any) -> Expr:
        ((value, start),) = loaded
        return law.stored(value, multipliers[0], start=start, offset=offset)

    return build_function(request, (law.multipliers,), lambda buffers: _over_pixels(request, buffers, stored))


def _build_add(request: Request) -> BuiltKernel:
    """A sum of two products is rounded once, in 64 bits: float32 would round each."""
    op, offset = request.node.op, request.alternatives[request.node.name].offset
    assert isinstance(op, Add)
    constants = (op.rescale.multiplier.astype(np.int32),)

    def stored(loaded: list[tuple[Expr, int]], multipliers: Any) -> Expr:
        factors = [tirx.Broadcast(multipliers[number], LANES) for number in range(len(loaded))]
        lanes = [in_lanes(value, start) for value, start in loaded]
        sums = [rounded(list(zip(values, factors, strict=True)), op.rescale) for values in zip(*lanes, strict=True)]
        return stored_bytes(sums, op.rescale, offset)

    return build_function(request, constants, lambda buffers: _over_pixels(request, buffers, stored))


def _cost(rates: str) -> Callable[[Request], float]:
    return lambda request: cost(rates, request, elementwise_work(request))


ADD_AVX512 = Kernel("add_avx512", channels_last(Add, _cost("add avx512"), _build_add, refuse=refuse_vectors))
REQUANTIZE_AVX512 = Kernel(
    "requantize_avx512", channels_last(Requantize, _cost("requantize avx512"), _build_requantize, refuse=refuse_vectors)
)
