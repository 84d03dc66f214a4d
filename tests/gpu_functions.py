"""PrimFuncs for a GPU, as small as they can be: what the build is tested with besides the kernels."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.script import tirx as T

from hawq_tvm.backends.tvm import lower
from hawq_tvm.backends.tvm.info import MAIN
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.backends.tvm.memory import plan_memory
from hawq_tvm.core.targets import TARGETS

MACHINE = Machine.resolve(TARGETS["nvidia/t4"])


@T.prim_func(s_tir=True)
def add_one(x: T.Buffer((1000,), "int8"), y: T.Buffer((1000,), "int8")):  # type: ignore[no-untyped-def]
    for i in T.thread_binding(4, thread="blockIdx.x"):
        for j in T.thread_binding(256, thread="threadIdx.x"):
            with T.sblock("add"):
                v = T.axis.spatial(1000, i * 256 + j)
                T.where(i * 256 + j < 1000)
                y[v] = x[v] + T.int8(1)


@T.prim_func(s_tir=True)
def reverse(x: T.Buffer((2, 3, 128), "int32"), y: T.Buffer((2, 3, 128), "int32")):  # type: ignore[no-untyped-def]
    for i in T.thread_binding(2, thread="blockIdx.y"):
        for j in T.thread_binding(3, thread="blockIdx.x"):
            with T.sblock("root_of_block"):
                tile = T.sblock_alloc_buffer((128,), "int32", scope="shared")
                for k in T.thread_binding(128, thread="threadIdx.x"):
                    with T.sblock("load"):
                        vi, vj, vk = T.axis.remap("SSS", [i, j, k])
                        tile[vk] = x[vi, vj, vk]
                for k in T.thread_binding(128, thread="threadIdx.x"):
                    with T.sblock("store"):
                        vi, vj, vk = T.axis.remap("SSS", [i, j, k])
                        y[vi, vj, vk] = tile[127 - vk]


@T.prim_func(s_tir=True)
def of_any_length(a: T.handle, b: T.handle):  # type: ignore[no-untyped-def]
    n = T.int32()
    x = T.match_buffer(a, (n, 32), "int8")
    y = T.match_buffer(b, (n, 32), "int8")
    for i in T.thread_binding(n, thread="blockIdx.x"):
        for j in T.thread_binding(32, thread="threadIdx.x"):
            with T.sblock("copy"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = x[vi, vj]


def calling(function: Any, shape: tuple[int, ...], dtype: str, times: int = 2) -> Any:
    """A module whose main calls a function several times, one after the other, as `lower` leaves it."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            variable = builder.add_func(function.without_attr("global_symbol"), "called")
            value: Any = x
            for _ in range(times):
                value = builder.emit(relax.call_tir(variable, [value], relax.TensorType(shape, dtype)))
            result = builder.emit_output(value)
        builder.emit_func_output(result)
    with MACHINE.tvm_target:
        return lower._CALLS(plan_memory(lower._WRITES(builder.get()), MAIN))


def module(**functions: Any) -> Any:
    """A module of PrimFuncs by name."""
    return tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
