"""Requests for single kernels, and what is offered for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hawq_tvm.core.ir import IntType, Node, Operator, TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.core.targets import Target
from hawq_tvm.kernels import KERNELS, Offer, Request


def node_request(
    op: Operator,
    inputs: Sequence[TensorType],
    output: IntType,
    target: Target,
    storage: Callable[[str, TensorType], Storage | None],
    *,
    batch: int,
    vector_bits: int,
) -> Request:
    """A node "y" of inputs "x0", "x1" and so on, which keeps the contract; `storage` is in play for each of them."""
    names = tuple(f"x{i}" for i in range(len(inputs)))
    node = Node("y", op, names, TensorType(output, op.output_shape(inputs), 1.0))
    op.check_parameters(inputs, node.type)
    bounds = op.bounds(inputs)
    if bounds is not None:
        bounds.check("y")
    values = dict(zip((*names, "y"), (*inputs, node.type), strict=True))
    in_play = {name: found for name, type in values.items() if (found := storage(name, type)) is not None}
    return Request(node, tuple(inputs), batch, target, vector_bits, in_play)


def offers_of(request: Request) -> dict[str, Offer]:
    """Every offer by its kernel's name; the others decline with a sentence."""
    answers = {kernel.name: kernel.offer(request) for kernel in KERNELS}
    assert all(isinstance(answer, Offer) or (isinstance(answer, str) and answer) for answer in answers.values())
    return {name: answer for name, answer in answers.items() if isinstance(answer, Offer)}
