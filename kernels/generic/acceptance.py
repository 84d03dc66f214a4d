"""What the generic kernels take: one operator each, on any CPU; and what they offer where they take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from hawq_tvm.core.ir import Operator, Rescale, TensorType
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.interface import LARGEST, BuiltKernel, Offer, Request

ANY_WEIGHT = range(2, 9)
PACKED_WEIGHT = range(2, 5)
BYTE_WEIGHT = range(5, 9)
"""Bits of weights: those that lie two a byte, those that lie one a byte."""

UNPACKED_PRICE = 1.1
"""Weights that could lie two a byte lie one a byte only where that saves more than a tenth of a layer's time: half the
memory is what their bits were chosen for."""


def decline(request: Request, operator: type[Operator], weight_bits: range = ANY_WEIGHT) -> str | None:
    """Why a CPU's kernel of one operator, for weights of some bits, does not take a request; None where it does."""
    op = request.node.op
    if request.target.kind != "llvm":
        return f"written for CPUs through LLVM, not for '{request.target.kind}'"
    if not isinstance(op, operator):
        return f"computes {operator.kind}, not {op.kind}"
    if isinstance(op, WeightedOperator) and op.weight_bits not in weight_bits:
        if op.weight_bits > weight_bits[-1]:
            return f"stores weights in {weight_bits[-1]} bits, these have {op.weight_bits}"
        return f"stores weights in {weight_bits[-1]} bits, these have {op.weight_bits} and stay packed"
    for x in (*request.inputs, request.node.type):
        if request.batch * prod(x.shape) > LARGEST:
            return f"addresses elements by 32 bits, {request.batch} samples of {x} are more; compile a smaller batch"
    return None


def canonical(
    operator: type[Operator],
    cost: Callable[[Request], float],
    build: Callable[[Request], BuiltKernel],
    *,
    weight_bits: range = ANY_WEIGHT,
    copied: Callable[[Request], int] = lambda request: 0,
) -> Callable[[Request], Offer | str]:
    """The `offer` of a kernel that takes every node of one operator and reads and writes NCHW.

    Args:
        operator: what it computes.
        cost: estimated microseconds.
        build: makes the function.
        weight_bits: of the weights that it takes.
        copied: elements of a copy of the input with its padding; 0 where there is none.
    """

    def offer(request: Request) -> Offer | str:
        reason = decline(request, operator, weight_bits)
        if reason is not None:
            return reason
        if copied(request) > LARGEST:
            return f"addresses elements by 32 bits, {request.batch} samples of {request.inputs[0]} are more when padded"
        plain = Offer(*request.canonical(), cost(request), lambda: build(request))
        return with_weights(plain, request, packed=weight_bits == PACKED_WEIGHT)

    return offer


def refuse_filling_up(storage: Storage, type: TensorType, rescale: Rescale) -> str | None:
    """Why a kernel that computes all stored channels alike cannot write those that fill up; None where it can."""
    if storage.channels(type) > type.shape[0] and not rescale.lo <= 0 <= rescale.hi:
        return f"channels that fill up hold zero, which its clip {rescale.lo}..{rescale.hi} leaves out"
    return None


def with_weights(offer: Offer, request: Request, *, packed: bool) -> Offer:
    """An offer that says how its weights lie, if there are any; those that could be packed and are not have a price."""
    op = request.node.op
    if not isinstance(op, WeightedOperator):
        return offer
    price = UNPACKED_PRICE if op.weight_bits in PACKED_WEIGHT and not packed else 1.0
    return replace(offer, cost=offer.cost * price, price=price, weight_bits=4 if packed else 8)
