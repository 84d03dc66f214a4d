"""Networks on the emulated GPU, kernel by kernel in the storages of the plan: every stored byte of every value."""

from __future__ import annotations

import numpy as np
import pytest

from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.backends.tvm.storage import Plan, plan_storages
from hawq_tvm.core import interpreter
from hawq_tvm.core.ir import Array, Graph
from hawq_tvm.core.storage import Storage, pack
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.kernels import Offer

from .builders import integer_samples, integers_of, random_integers
from .emulated import needs_compiler
from .gpu_kernels import emulated, held_before
from .test_joins import nested

T4 = TARGETS["nvidia/t4"]
BATCH = 2


def calls_of(graph: Graph, plan: Plan) -> list[tuple[str, Offer, tuple[str, ...], Storage]]:
    """Every kernel call: the value that it makes, its offer, the values that it reads, the storage that it writes."""
    nodes = {node.name: node for node in graph}
    made = [(name, plan.offers[name], nodes[name].inputs, plan.offers[name].writes) for name in plan.kernels]
    copied = [
        (item.value, offer, (item.value,), item.to)
        for item, (_, offer) in zip(plan.conversions, plan.converters, strict=True)
    ]
    return [*made, *copied]


def stored_wrongly(graph: Graph, plan: Plan, x: Array) -> list[str]:
    """What calls leave that `pack` does not make of the interpreter's values."""
    values: dict[str, Array] = interpreter.run(graph, x)
    wrong = []
    for name, offer, inputs, writes in calls_of(graph, plan):
        read = [pack(values[x], graph.types[x], s) for x, s in zip(inputs, offer.reads, strict=True)]
        got = emulated(offer.build(), read, held_before(graph.types[name], writes, BATCH), T4)
        if not np.array_equal(got, pack(values[name], graph.types[name], writes)):
            wrong.append(f"{name} as {writes}")
    return wrong


@needs_compiler
@pytest.mark.parametrize("name", ["Residual", "Concat", "Mobile", "Pools", "Padded"])
@pytest.mark.parametrize("pairs", [("w8a8",), ("w4a4", "w8a8", "w4a8")], ids=["int8", "mixed"])
def test_networks_in_packed_storages(name: str, pairs: tuple[str, ...]) -> None:
    graph = integers_of(name, pairs)
    plan = plan_storages(graph, T4, 128, batch=BATCH, palette="channels_last")
    assert any(storage.order == "NHWC" for storage in plan.storages.values())
    assert stored_wrongly(graph, plan, integer_samples(graph, BATCH)) == []


@needs_compiler
@pytest.mark.parametrize("dtype", ["u8", "s8", "u4"])
def test_concatenations_are_made_of_branches_that_lie_apart(dtype: str) -> None:
    """Channels that fill whole chunks, as those that CPUs write in place."""
    graph = nested(dtype)
    plan = plan_storages(graph, T4, 128, batch=BATCH, palette="channels_last")
    assert not any(storage.is_part for storage in plan.storages.values())
    assert stored_wrongly(graph, plan, random_integers(graph.input_type, BATCH)) == []
    assert lower(graph, T4, storages="channels_last").joins == {}


def test_values_of_up_to_4_bits_stay_packed() -> None:
    """Between 4-bit layers nothing is unpacked: their kernels read and write two values a byte."""
    graph = integers_of("Residual", ("w4a4",))
    plan = plan_storages(graph, T4, 128, batch=BATCH, palette="channels_last")
    narrow = [name for name, type in graph.types.items() if type.dtype.bits <= 4 and len(type.shape) == 3]
    packed = [name for name in narrow if plan.storages[name].bits == 4]
    assert packed
    assert set(narrow) - set(packed) <= {graph.input_name, "gap"}, "what users give, and vectors, are canonical"
