"""Concatenation along channels, channels last.

Branches that lie in the result already (`hawq_tvm.backends.tvm.joins`) were written there by their makers. What is left
is to rescale the others into their places, beside those; where there is none left, nothing is computed at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ir import TensorType
from hawq_tvm.core.ops import Concat
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.generic.acceptance import decline
from hawq_tvm.kernels.generic.costs import Work, cost
from hawq_tvm.kernels.generic.expressions import Expr, int64, rescale
from hawq_tvm.kernels.generic.functions import function, stored_parameter
from hawq_tvm.kernels.generic.nhwc import Image, framed_rows, over_channels
from hawq_tvm.kernels.generic.parallel import MIN_ELEMENTS
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Offer, Request


@dataclass(frozen=True)
class Branch:
    """An input that is written into the result.

    Attributes:
        number: of the input.
        type: its own.
        storage: its own.
        start: its first channel in the result.
    """

    number: int
    type: TensorType
    storage: Storage
    start: int


def branches_apart(request: Request) -> tuple[Branch, ...]:
    """The inputs that do not lie in the result already; all images have a storage in play."""
    node, found, start = request.node, [], 0
    whole = request.alternatives[node.name]
    for number, (name, type) in enumerate(zip(node.inputs, request.inputs, strict=True)):
        storage = request.alternatives[name]
        if not storage.is_part or storage != whole.part(node.type, start, type, storage.multiple):
            found.append(Branch(number, type, storage, start))
        start += type.shape[0]
    return tuple(found)


Row = Callable[[Branch, Any, Any, Expr, Expr], None]
"""Emits a row of a branch: gets it, its buffer, the result's, the sample and the row."""


def build_concat(request: Request, branches: Sequence[Branch], row: Row) -> BuiltKernel:
    """The function of the branches that lie apart and of the result.

    Where others lie in the result already, each of these writes its own channels of the frame alone.
    """
    node, batch = request.node, request.batch
    whole = request.alternatives[node.name]
    threads = batch * prod(node.type.shape) >= MIN_ELEMENTS

    def into(y: Any, type: TensorType, storage: Storage, rows: Sequence[tuple[Branch, Any]]) -> None:
        """All rows of some branches, whose channels are an image of their own."""
        image = Image(y, type, storage)
        top, left, _, _ = storage.frame

        def emit(n: Expr, _block: Expr, h: Expr) -> None:
            for branch, x in rows:
                row(branch, x, y, n, h)
            image.zero(n, h + top, (left, type.shape[2]), (type.shape[0], image.filled_up))

        framed_rows(image, emit, batch=batch, threads=threads)

    def body(*buffers: Any) -> None:
        *inputs, y = buffers
        rows = list(zip(branches, inputs, strict=True))
        if len(branches) == len(node.inputs):
            into(y, node.type, whole, rows)
            return
        for branch, x in rows:
            channels = branch.type.shape[0]
            last = branch.start + channels == node.type.shape[0]
            multiple = whole.channels(node.type) - branch.start if last else channels
            into(y, branch.type, whole.part(node.type, branch.start, branch.type, multiple), [(branch, x)])

    parameters = [stored_parameter(f"image{branch.number}", branch.type, branch.storage, batch) for branch in branches]
    return BuiltKernel(function([*parameters, stored_parameter("y", node.type, whole, batch)], body), ())


def _row(request: Request) -> Row:
    op, whole, y_type = request.node.op, request.alternatives[request.node.name], request.node.type
    assert isinstance(op, Concat)

    def row(branch: Branch, x: Any, y: Any, n: Expr, h: Expr) -> None:
        source, target = Image(x, branch.type, branch.storage), Image(y, y_type, whole)
        factor = int64(int(op.rescale.multiplier[branch.number]))
        with T.serial(y_type.shape[2]) as w:

            def store(c: Expr) -> None:
                value = rescale(int64(source[n, c, h, w]) * factor, op.rescale, y_type.dtype)
                target.store(value, n, branch.start + c, h, w)

            over_channels(target, branch.start, branch.type.shape[0], store)

    return row


def offer_concat(
    request: Request,
    cost: Callable[[Work], float],
    row: Callable[[Request], Row],
    refuse: Callable[[Request, Sequence[Branch]], str | None] = lambda request, branches: None,
) -> Offer | str:
    """The offer of a kernel that rescales branches into their places.

    Args:
        request: what is asked.
        cost: microseconds of some work.
        row: makes what emits a branch's row.
        refuse: a further reason to decline.
    """
    storages = decline(request, Concat) or request.channels_last()
    if isinstance(storages, str):
        return storages
    branches = branches_apart(request)
    if not branches:
        return "copies branches, all of which are written in place"
    reason = refuse(request, branches)
    if reason is not None:
        return reason
    elements = request.batch * sum(prod(branch.type.shape) for branch in branches)
    return Offer(*storages, cost(Work(elements, elements)), lambda: build_concat(request, branches, row(request)))


def _offer_in_place(request: Request) -> Offer | str:
    storages = decline(request, Concat) or request.channels_last()
    if isinstance(storages, str):
        return storages
    apart = branches_apart(request)
    if apart:
        return f"computes nothing, and '{request.node.inputs[apart[0].number]}' is not written in place"

    def build() -> BuiltKernel:
        raise AssertionError("what is written in place is not built")

    return Offer(*storages, 0.0, build)


CONCAT_IN_PLACE = Kernel("concat_in_place", _offer_in_place)


def _offer(request: Request) -> Offer | str:
    return offer_concat(request, lambda work: cost("concat nhwc", request, work), _row)


CONCAT_NHWC = Kernel("concat_generic_nhwc", _offer)
