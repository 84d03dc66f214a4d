"""What a kernel is asked and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hawq_tvm.core.ir import Array, Node, TensorType
from hawq_tvm.core.targets import Target


@dataclass(frozen=True, eq=False)
class Request:
    """One node to compute.

    Attributes:
        node: the node, with its weights.
        inputs: the types of its inputs, in order.
        batch: how many samples a call takes.
        target: the machine.
        vector_bits: how wide its vector registers are.
    """

    node: Node
    inputs: tuple[TensorType, ...]
    batch: int
    target: Target
    vector_bits: int


@dataclass(frozen=True, eq=False)
class BuiltKernel:
    """A kernel made for one request.

    Attributes:
        function: a scheduled TIR PrimFunc; its parameters are the node's inputs, `constants`, and the output last.
        constants: weights, biases and multipliers as the function wants them packed.
    """

    function: Any
    constants: tuple[Array, ...]


@dataclass(frozen=True)
class Kernel:
    """A way to compute nodes.

    Attributes:
        name: says what it does, in the field's spirit: operator, operand types, technique.
        decline: a sentence that says why it does not take a request, or None where it does.
        build: makes the function.
    """

    name: str
    decline: Callable[[Request], str | None]
    build: Callable[[Request], BuiltKernel]


@dataclass(frozen=True)
class Decline:
    """Why a kernel that stands earlier in the table was not taken."""

    kernel: str
    reason: str
