"""When a GPU kernel takes a request, and in which storages."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from hawq_tvm.core.gpu_model import Prediction
from hawq_tvm.core.ir import Operator, TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.cuda.storages import channels_last
from hawq_tvm.kernels.interface import BuiltKernel, Offer, Request

INDEX_LIMIT = 2**31
"""Kernels count elements in 32 bits."""

Build = Callable[[Request, tuple[Storage, ...], Storage], BuiltKernel]
"""Makes the function for a request, the storages of its inputs and that of its result."""

Cost = Callable[[Request, tuple[Storage, ...], Storage], Prediction]
"""What the same takes of the GPU."""


def decline(request: Request, operator: type[Operator]) -> str | None:
    """Why a GPU kernel of one operator does not take a request; None where it does."""
    op = request.node.op
    if request.target.kind != "cuda":
        return f"written for NVIDIA GPUs, not for '{request.target.kind}'"
    if not isinstance(op, operator):
        return f"computes {operator.kind}, not {op.kind}"
    return too_large((*request.inputs, request.node.type), request.batch)


def too_large(types: tuple[TensorType, ...], batch: int) -> str | None:
    """Why values of these types cannot be indexed; None where they can."""
    for type in types:
        widest = channels_last(type) or Storage.canonical(type)
        elements = batch * widest.channels(type) * prod(type.shape[1:])
        if elements >= INDEX_LIMIT:
            return f"counts elements in 32 bits, and a batch of {batch} of {type} has {elements}; take a smaller batch"
    return None


def _nothing(request: Request) -> str | None:
    """No reason to decline."""
    return None


def canonical(
    operator: type[Operator], cost: Cost, build: Build, *, refuse: Callable[[Request], str | None] = _nothing
) -> Callable[[Request], Offer | str]:
    """The `offer` of a kernel of one operator that reads and writes canonical values.

    Args:
        operator: what it computes.
        cost: what it takes.
        build: makes the function.
        refuse: a further reason to decline.
    """

    def offer(request: Request) -> Offer | str:
        reason = decline(request, operator) or refuse(request)
        if reason is not None:
            return reason
        return _offer(request, *request.canonical(), cost, build)

    return offer


def packed(
    operator: type[Operator],
    cost: Cost,
    build: Build,
    *,
    writes_canonical: bool = False,
    refuse: Callable[[Request], str | None] = _nothing,
) -> Callable[[Request], Offer | str]:
    """The `offer` of a kernel that reads and writes the channels-last storages that are in play.

    Args:
        operator: what it computes.
        cost: what it takes.
        build: makes the function.
        writes_canonical: it writes the canonical value.
        refuse: a further reason to decline.
    """

    def offer(request: Request) -> Offer | str:
        storages = decline(request, operator) or request.channels_last(writes_canonical=writes_canonical)
        if isinstance(storages, str):
            return storages
        reason = refuse(request)
        if reason is not None:
            return reason
        return _offer(request, *storages, cost, build)

    return offer


def _offer(request: Request, reads: tuple[Storage, ...], writes: Storage, cost: Cost, build: Build) -> Offer:
    prediction = cost(request, reads, writes)
    return Offer(reads, writes, prediction.us(), lambda: build(request, reads, writes), prediction)
