"""Concatenation along channels, by whole vectors of channels; see `hawq_tvm.kernels.generic.nhwc_concat`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ops import Concat
from hawq_tvm.kernels.dot.images import Plane, Vectors, refuse_images
from hawq_tvm.kernels.dot.sums import SharedRescale, sum_type
from hawq_tvm.kernels.dot.unit import Unit, missing
from hawq_tvm.kernels.dot.vectors import flat, ramp
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.nhwc_concat import Branch, Row, offer_concat
from hawq_tvm.kernels.interface import Kernel, Offer, Request


def _vectors(request: Request, unit: Unit, branch: Branch) -> Vectors | None:
    """How a branch's channels are cut; in planes none lies in two of them."""
    channels, in_planes = branch.type.shape[0], request.alternatives[request.node.name].order != "NHWC"
    for lanes in (unit.pair, unit.lanes):
        if lanes <= channels and not (in_planes and (branch.start % lanes or channels % lanes)):
            return Vectors(channels, lanes)
    return None


def _refuse(request: Request, unit: Unit, branches: Sequence[Branch]) -> str | None:
    reason = missing(request.features, unit.needs) or refuse_images(request, unit, in_planes=True)
    if reason:
        return reason
    for branch in branches:
        if _vectors(request, unit, branch) is None:
            name, channels = request.node.inputs[branch.number], branch.type.shape[0]
            return f"takes whole vectors of {unit.lanes} channels, not {channels} from {branch.start} on, of '{name}'"
    return None


def _row(request: Request, unit: Unit) -> Row:
    op, whole, y_type = request.node.op, request.alternatives[request.node.name], request.node.type
    assert isinstance(op, Concat)
    bounds, y_plane = op.bounds(request.inputs), Plane.of(y_type, whole)

    def row(branch: Branch, x: Any, y: Any, n: Expr, h: Expr) -> None:
        vectors, x_plane = _vectors(request, unit, branch), Plane.of(branch.type, branch.storage)
        assert vectors is not None
        multiplier = op.rescale.multiplier[branch.number : branch.number + 1]
        law = SharedRescale.within(replace(op.rescale, multiplier=multiplier), bounds, unit)
        factor = tirx.const(law.multipliers[0].item(), str(law.multipliers.dtype))
        words = sum_type(branch.type, branch.storage)
        with T.serial(y_type.shape[2]) as w, T.serial(vectors.count) as vector:
            channel = vectors.first(vector)
            place = x_plane.index(n, h + x_plane.top, w + x_plane.left, channel)
            value = flat(x)[ramp(place, vectors.lanes)].astype(f"{words}x{vectors.lanes}")
            start, offset = branch.storage.offset, whole.offset
            stored = law.stored(value, factor, start=start, offset=offset, dtype=str(y.dtype))
            place = y_plane.index(n, h + y_plane.top, w + y_plane.left, branch.start + channel)
            T.buffer_store(flat(y), stored.astype(f"{y.dtype}x{vectors.lanes}"), [ramp(place, vectors.lanes)])

    return row


def concat_kernel(unit: Unit) -> Kernel:
    """Of branches that are not written in place."""

    def offer(request: Request) -> Offer | str:
        return offer_concat(
            request,
            lambda work: unit.bytes_cost("requantize dot", work),
            lambda request: _row(request, unit),
            lambda request, branches: _refuse(request, unit, branches),
        )

    return Kernel(f"concat_{unit.name}", offer)
