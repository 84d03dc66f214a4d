"""AMX kernels by themselves, in guarded memory: no graph, no planner, no library around them.

Inputs, constants and results lie between pages that nothing may touch. As many kernels as there are cases are compiled
at once.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm

from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.backends.tvm.storage import alternatives_of
from hawq_tvm.core import interpreter
from hawq_tvm.core.ir import Array, Graph
from hawq_tvm.core.storage import pack
from hawq_tvm.core.targets import Target
from hawq_tvm.kernels import KERNELS, Offer, Request

from .builders import random_integers
from .soft_tiles import library

POISON = 0x5B


@dataclass(frozen=True, eq=False)
class Case:
    """A kernel to try: a node of a graph, what computes it, on how many samples, and by which of its variants."""

    graph: Graph
    kernel: str
    batch: int = 1
    node: str = "layer"
    variant: int | None = None


def offer_of(case: Case, target: Target) -> Offer | str:
    """The kernel's answer, asked as the planner would."""
    machine = Machine.resolve(target)
    node, types = case.graph.node(case.node), case.graph.types
    storages = alternatives_of(case.graph, target, machine.vector_bits, machine.features)
    inputs = tuple(types[name] for name in node.inputs)
    request = Request(node, inputs, case.batch, target, machine.vector_bits, storages, machine.features)
    return next(kernel for kernel in KERNELS if kernel.name == case.kernel).offer(request)


def differences(cases: Sequence[Case], target: Target) -> dict[str, str]:
    """The cases whose kernel writes another byte than `pack` of the interpreter's values, each with what is wrong.

    Each runs twice: with tiles, and as where Linux does not grant them.
    """
    machine = Machine.resolve(target)
    functions: dict[str, Any] = {}
    offers: list[Offer] = []
    constants: list[Sequence[Array]] = []
    for index, case in enumerate(cases):
        offer = offer_of(case, target)
        assert isinstance(offer, Offer), f"case {index}: {offer}"
        built = (offer if case.variant is None else offer.variants()[case.variant]).build()
        offers.append(offer)
        constants.append(built.constants)
        functions[f"case{index}"] = built.function.with_attr("global_symbol", f"case{index}")
    compiled = tvm.compile(tvm.IRModule(functions), target=machine.tvm_target)
    found = {}
    for index, case in enumerate(cases):
        x = random_integers(case.graph.input_type, case.batch, seed=index)
        values = interpreter.run(case.graph, x)
        for granted in (True, False):
            library().soft_grant(granted)
            wrong = _difference(case, offers[index], constants[index], compiled[f"case{index}"], values)
            library().soft_grant(True)
            if wrong:
                found[f"case {index}, {'with' if granted else 'without'} tiles"] = wrong
    return found


def _difference(
    case: Case, offer: Offer, constants: Sequence[Array], function: Any, values: Mapping[str, Array]
) -> str:
    node, types = case.graph.node(case.node), case.graph.types
    given = [pack(values[name], types[name], storage) for name, storage in zip(node.inputs, offer.reads, strict=True)]
    expected = pack(values[node.name], node.type, offer.writes)
    memory = [Guarded(array) for array in (*given, *constants)]
    result = Guarded(np.full(expected.nbytes, POISON, np.uint8).view(expected.dtype).reshape(expected.shape))
    function(*(tvm.runtime.from_dlpack(part.array) for part in (*memory, result)))
    for part, array in zip(memory, (*given, *constants), strict=True):
        if not np.array_equal(part.array, array):
            return "an input was written to"
    count = np.count_nonzero(result.array != expected)
    return f"{count} of {expected.size} elements are wrong" if count else ""


class Guarded:
    """A copy of an array between two pages that cannot be read or written; it ends at most 63 bytes before the second.

    TVM wants tensors at multiples of 64 bytes. What is left of the last 64 is told by its poison.
    """

    def __init__(self, array: Array) -> None:
        size, page = array.nbytes, mmap.PAGESIZE
        room = -(-size // page) * page
        self._map = mmap.mmap(-1, room + 2 * page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (address, address + page + room):
            assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
        start = page + room - -(-size // 64) * 64
        whole = np.frombuffer(self._map, np.uint8)
        self.array = whole[start : start + size].view(array.dtype).reshape(array.shape)
        self.array[...] = array
