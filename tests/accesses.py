"""Proofs about a PrimFunc: no access leaves its buffer, and no thread writes what another one keeps."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import SBlock
from tvm.sym import Analyzer, detect_linear_equation
from tvm_ffi.structural import structural_visit


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
    """Names of buffers that a parallel loop writes though an allocation outside it made them: one for all threads.

    Those are left out of which every task is proved to write a part of its own.
    """
    analyzer, outside, tasks = Analyzer(), [[]], []
    found: list[str] = []

    def visit(node: Any, visitor: Any) -> Any:
        if isinstance(node, tirx.For):
            analyzer.bind(node.loop_var, tvm.ir.Range.from_min_extent(node.min, node.extent))
        if isinstance(node, tirx.stmt.AllocBuffer):
            outside[-1].append(node.buffer)
        elif isinstance(node, tirx.stmt.BufferStore):
            shared = (buffer for allocations in outside[:-1] for buffer in allocations)
            if tasks and not any(_is_apart(index, tasks[-1], analyzer) for index in node.indices):
                found.extend(str(buffer.name) for buffer in shared if buffer.same_as(node.buffer))
        elif isinstance(node, tirx.For) and node.kind == tirx.ForKind.PARALLEL:
            outside.append([])
            tasks.append(node.loop_var)
            result = visitor.default_visit(node)
            tasks.pop()
            outside.pop()
            return result
        return visitor.default_visit(node)

    structural_visit(function.body, visit)
    return found


def _is_apart(index: Any, task: Any, analyzer: Analyzer) -> bool:
    """Whether an index is a multiple of the task's number and something smaller than what it is multiplied by."""
    first, reach = (index.base, int(index.lanes) - 1) if isinstance(index, tirx.Ramp) else (index, 0)
    linear = detect_linear_equation(analyzer.simplify(first), [task])
    if not linear or not isinstance(linear[0], tirx.IntImm):
        return False
    distance, rest = int(linear[0]), analyzer.const_int_bound(linear[1])
    return bool(rest.min_value >= 0 and rest.max_value + reach < distance)
