"""Which values share memory: never two that are alive together, in little more than what is alive at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax

from hawq_tvm.backends.tvm import lower as lowering
from hawq_tvm.backends.tvm.info import MAIN
from hawq_tvm.backends.tvm.lower import Machine, lower
from hawq_tvm.backends.tvm.memory import Life, plan_memory, share_storages
from hawq_tvm.backends.tvm.storage import plan_storages
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.quantizer import Range
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.frontend.capture import capture
from hawq_tvm.sources.models import load_model

from .builders import integers_of
from .gpu_functions import add_one

LIVES = st.lists(
    st.builds(
        lambda size, first, length: Life(size, first, first + length),
        st.integers(1, 100),
        st.integers(0, 20),
        st.integers(0, 6),
    ),
    max_size=20,
)


def taken(lives: list[Life]) -> int:
    return sum(share_storages(lives)[1])


@given(LIVES)
def test_values_of_one_storage_are_never_alive_together(lives: list[Life]) -> None:
    numbers, sizes = share_storages(lives)
    calls: set[tuple[int, int]] = set()
    for life, number in zip(lives, numbers, strict=True):
        assert life.size_bytes <= sizes[number]
        held = {(number, call) for call in range(life.first, life.last + 1)}
        assert not held & calls
        calls |= held


@given(LIVES)
def test_storages_take_what_is_alive_at_once_and_at_most_everything(lives: list[Life]) -> None:
    alive = [sum(life.size_bytes for life in lives if life.first <= call <= life.last) for call in range(27)]
    assert max(alive) <= taken(lives) <= sum(life.size_bytes for life in lives)


def test_a_chain_takes_two_storages() -> None:
    sizes = (3, 9, 5, 7, 2)
    assert taken([Life(size, call, call + 1) for call, size in enumerate(sizes)]) == 9 + 5


def test_a_value_that_is_read_late_keeps_its_storage() -> None:
    assert share_storages([Life(4, 0, 3), Life(4, 1, 2), Life(4, 2, 3), Life(4, 4, 4)])[0] == [0, 1, 2, 2]


# In Relax's functions


def written(name: str, pairs: tuple[str, ...], target: str) -> tuple[Any, Any]:
    """A network whose kernels write into tensors, before memory is planned, and the machine."""
    graph, machine = integers_of(name, pairs), Machine.resolve(TARGETS[target])
    plan = plan_storages(graph, machine.target, machine.vector_bits, batch=2)
    with machine.tvm_target:
        return lowering._WRITES(lowering._RelaxBuilder(graph, machine, 2, plan).build()), machine


def operator_of(binding: Any) -> str:
    """The name of the operator that a variable is bound to a call of; empty where it is something else."""
    return getattr(getattr(binding.value, "op", None), "name", "")


def storages_of(function: Any) -> int:
    """Bytes of all storages."""
    bindings = function.body.blocks[0].bindings
    return sum(int(b.value.args[0].values[0]) for b in bindings if operator_of(b) == "relax.memory.alloc_storage")


def overwritten(function: Any) -> list[str]:
    """Tensors that a kernel reads after another was written into their storage; all calls in order."""
    storages: dict[Any, Any] = {}  # of each tensor and view
    holds: dict[Any, Any] = {}  # the tensor that was last written, by storage
    tensors: dict[Any, Any] = {}
    wrong = []
    for binding in function.body.blocks[0].bindings:
        value, name = binding.value, operator_of(binding)
        if name == "relax.memory.alloc_tensor":
            storages[binding.var], tensors[binding.var] = value.args[0], binding.var
        elif name == "relax.builtin.alloc_tensor":
            storages[binding.var] = tensors[binding.var] = binding.var
        elif isinstance(value, relax.Call) and isinstance(value.op, relax.GlobalVar):
            *read, result = value.args
            for tensor in read:
                if tensor in tensors and holds[storages[tensor]] != tensors[tensor]:
                    wrong.append(f"{tensor} of {value.op}")
            holds[storages[result]] = tensors[result]
        elif isinstance(value, relax.Var) or name == "relax.reshape":
            source = value if isinstance(value, relax.Var) else value.args[0]
            storages[binding.var], tensors[binding.var] = storages[source], tensors[source]
    assert holds
    return wrong


@pytest.mark.parametrize("name", ["Residual", "Concat", "Mobile", "Pools", "Shared", "Ends", "Padded"])
@pytest.mark.parametrize("target", ["llvm", "nvidia/t4"])
def test_no_kernel_reads_what_another_has_overwritten(name: str, target: str) -> None:
    module, machine = written(name, ("w4a4", "w8a8"), target)
    planned = plan_memory(module, MAIN)
    assert overwritten(planned[MAIN]) == []
    relax.analysis.well_formed(planned)
    with machine.tvm_target:
        usual = relax.transform.StaticPlanBlockMemory()(module)
    assert 0 < storages_of(planned[MAIN]) <= storages_of(usual[MAIN]), "no more than by TVM's own plan"


def test_a_view_keeps_its_tensor() -> None:
    """A tensor that is read through a view after another was made."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1000,), "int8"))
    with builder.function(MAIN, [x]):
        with builder.dataflow():
            called = builder.add_func(add_one.without_attr("global_symbol"), "called")

            def call(argument: Any) -> Any:
                return builder.emit(relax.call_tir(called, [argument], relax.TensorType((1000,), "int8")))

            rows = builder.emit(relax.op.reshape(call(x), (10, 100)))
            call(call(x))
            result = builder.emit_output(call(call(builder.emit(relax.op.reshape(rows, (1000,))))))
        builder.emit_func_output(result)
    assert overwritten(plan_memory(lowering._WRITES(builder.get()), MAIN)[MAIN]) == []


def test_what_a_signed_value_leaves_serves_an_unsigned_one() -> None:
    planned = plan_memory(written("Residual", ("w8a8",), "llvm")[0], MAIN)
    dtypes: dict[Any, set[str]] = {}
    for binding in planned[MAIN].body.blocks[0].bindings:
        if operator_of(binding) == "relax.memory.alloc_tensor":
            dtypes.setdefault(binding.value.args[0], set()).add(str(binding.value.args[3].value))
    assert {"int8", "uint8"} in dtypes.values()


# The network that is deployed


def planned_bytes(graph: FloatGraph, bits: BitConfig) -> int:
    ranges = dict.fromkeys([graph.input_name, *(node.name for node in graph)], Range(-1.0, 1.0))
    return lower(integerize(graph, ranges, bits), TARGETS["nvidia/t4"]).planned_bytes


@pytest.mark.slow
def test_int4_takes_half_of_int8() -> None:
    """ResNet-50 where the values of the first stage, the largest, are stored at 4 bits, whatever later sums are."""
    graph = capture(load_model("resnet50").module, torch.zeros(1, 3, 224, 224), name="resnet50")
    first, *inner, last = (layer.name for layer in graph.layers)
    stored = {name: 4 for name in (node.name for node in graph) if name.startswith("layer1.")}
    narrow = {first: Bits(8, 8), **dict.fromkeys(inner, Bits(4, 4)), last: Bits(8, 8)}
    int8 = planned_bytes(graph, BitConfig.uniform((first, *inner, last), Bits(8, 8)))
    assert planned_bytes(graph, BitConfig(narrow, stored=stored)) <= 0.55 * int8
    assert planned_bytes(graph, BitConfig(narrow, residual=4)) <= 0.55 * int8
    assert planned_bytes(graph, BitConfig(narrow)) > 0.8 * int8, "sums of 8 bits are the most of it"
