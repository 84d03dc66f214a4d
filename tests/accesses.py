"""Proofs about a PrimFunc: no access leaves its buffer, and no thread writes what another one keeps."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import SBlock
from tvm.sym import Analyzer, detect_linear_equation
from tvm_ffi.structural import structural_visit

TAKE = "tirx.TVMBackendAllocWorkspace"
"""What takes memory where it stands."""


def accesses_outside(function: Any) -> list[str]:
    """Every load and store whose index may leave its buffer, as text; conditions around an access are believed.

    Args:
        function: a scheduled PrimFunc, its loops not yet lowered.
    """
    analyzer = Analyzer()
    found: list[str] = []

    def check(buffer: Any, indices: Any) -> None:
        for index, extent in zip(indices, buffer.shape, strict=True):
            first, reach = (index.base, int(index.lanes) - 1) if isinstance(index, tirx.Ramp) else (index, 0)
            bound = analyzer.const_int_bound(first)
            if bound.min_value < 0 or bound.max_value + reach >= int(extent):
                found.append(f"{buffer.name}[{index}]: {bound.min_value}..{bound.max_value + reach} of {extent}")

    def guarded(condition: Any, then: Any, otherwise: Any, visitor: Any) -> None:
        visitor.visit(condition)
        for assumed, branch in ((condition, then), (analyzer.simplify(tirx.Not(condition)), otherwise)):
            if branch is not None:
                with analyzer.constraint_scope(assumed):
                    visitor.visit(branch)

    def visit(node: Any, visitor: Any) -> Any:
        if isinstance(node, tirx.For):
            analyzer.bind(node.loop_var, tvm.ir.Range.from_min_extent(node.min, node.extent))
        elif isinstance(node, SBlock):
            for axis in node.iter_vars:
                analyzer.bind(axis.var, axis.dom)
        elif isinstance(node, tirx.IfThenElse):
            return guarded(node.condition, node.then_case, node.else_case, visitor)
        elif isinstance(node, tvm.ir.Call) and getattr(node.op, "name", "") == "prim.if_then_else":
            return guarded(*node.args, visitor)
        elif isinstance(node, tvm.ir.expr.TensorLoad):
            check(node.source, node.indices)
        elif isinstance(node, tirx.stmt.BufferStore):
            check(node.buffer, node.indices)
        return visitor.default_visit(node)

    structural_visit(function.body, visit)
    return found


def shared_between_threads(function: Any) -> list[str]:
    """Names of buffers that threads write though they are one for all of them.

    These are what a parallel loop writes and an allocation outside it made, where not every task is proved to write
    parts of its own; and what all threads write (`in_each_thread`) beside such loops, but memory that each took there.
    """
    analyzer, outside, tasks = Analyzer(), [[]], []
    taken: list[Any] = []
    own: list[Any] = []
    everywhere: list[Any] = []
    found: list[str] = []
    periods: dict[tuple[Any, Any], set[int]] = {}

    def visit(node: Any, visitor: Any) -> Any:
        if isinstance(node, tirx.For):
            analyzer.bind(node.loop_var, tvm.ir.Range.from_min_extent(node.min, node.extent))
        if isinstance(node, tirx.stmt.AllocBuffer):
            outside[-1].append(node.buffer)
        elif isinstance(node, tirx.stmt.BufferStore):
            shared = (buffer for allocations in outside[:-1] for buffer in allocations)
            if everywhere and not tasks:
                found.extend([str(node.buffer.name)] * (not any(node.buffer.same_as(buffer) for buffer in own)))
            elif any(buffer.same_as(node.buffer) for buffer in shared):
                key = str(node.buffer.name), tasks[-1]
                periods[key] = _periods(node, tasks[-1], analyzer, periods.get(key))
                found.extend([key[0]] * (not periods[key]))
        elif isinstance(node, tirx.stmt.Bind) and getattr(getattr(node.value, "op", None), "name", "") == TAKE:
            taken.append(node.var)
        elif isinstance(node, tirx.stmt.DeclBuffer) and any(node.data.same_as(memory) for memory in taken):
            (own if everywhere or tasks else outside[-1]).append(node.buffer)
        elif isinstance(node, tirx.stmt.AttrStmt) and node.attr_key == "pragma_parallel_launch_point":
            everywhere.append(node)
            result = visitor.default_visit(node)
            everywhere.pop()
            return result
        elif isinstance(node, tirx.For) and node.kind == tirx.ForKind.PARALLEL:
            outside.append([])
            tasks.append(node)
            result = visitor.default_visit(node)
            tasks.pop()
            outside.pop()
            return result
        return visitor.default_visit(node)

    structural_visit(function.body, visit)
    return found


def _periods(store: Any, task: Any, analyzer: Analyzer, candidates: set[int] | None) -> set[int]:
    """Periods of a buffer, one row of elements, in each of which every task stores in a part of its own.

    An index is then a multiple of the task's number, and something that is smaller than what the number is multiplied
    by, but for whole periods. A single task has all to itself.
    """
    if int(task.extent) == 1:
        return {1}
    if len(store.indices) > 1:
        return set()
    (index,), (size,) = store.indices, store.buffer.shape
    first, reach = (index.base, int(index.lanes) - 1) if isinstance(index, tirx.Ramp) else (index, 0)
    linear = detect_linear_equation(analyzer.simplify(first), [task.loop_var])
    if not linear or not isinstance(linear[0], tirx.IntImm):
        return set()
    part, rest = int(linear[0]), linear[1]
    least = max(1, part * int(task.extent))
    if candidates is None:
        candidates = {period for period in range(least, int(size) + 1) if int(size) % period == 0}
    found = set()
    for period in candidates:
        bound = analyzer.const_int_bound(analyzer.simplify(rest % period))
        if period >= least and bound.min_value >= 0 and bound.max_value + reach < part:
            found.add(period)
    return found
