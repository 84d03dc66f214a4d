"""Proofs about a PrimFunc: no access leaves its buffer, and no thread writes what another one keeps."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import SBlock
from tvm.sym import Analyzer
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
    """Names of buffers that a parallel loop writes though an allocation outside it made them: one for all threads."""
    outside: list[list[Any]] = [[]]
    found: list[str] = []

    def visit(node: Any, visitor: Any) -> Any:
        if isinstance(node, tirx.stmt.AllocBuffer):
            outside[-1].append(node.buffer)
        elif isinstance(node, tirx.stmt.BufferStore):
            shared = (buffer for allocations in outside[:-1] for buffer in allocations)
            found.extend(str(buffer.name) for buffer in shared if buffer.same_as(node.buffer))
        elif isinstance(node, tirx.For) and node.kind == tirx.ForKind.PARALLEL:
            outside.append([])
            result = visitor.default_visit(node)
            outside.pop()
            return result
        return visitor.default_visit(node)

    structural_visit(function.body, visit)
    return found
