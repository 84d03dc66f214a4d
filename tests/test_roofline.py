"""Each call beside the machine's bounds, on numbers that can be worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.info import LibraryInfo
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.core.errors import RuntimeModuleError
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.core.targets import find_target
from hawq_tvm.measure.ceilings import Ceilings
from hawq_tvm.measure.roofline import Roofline, roofline

from .builders import integers_of

GOPS, FAR, NEAR = 100.0, 2.0, 8.0
BATCH = 2


@pytest.fixture(scope="module")
def graph() -> Graph:
    return integers_of("Residual")


@pytest.fixture(scope="module")
def info(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> LibraryInfo:
    path = tmp_path_factory.mktemp("roofline") / "model.so"
    lowered = lower(graph, find_target("llvm/portable"), batch=BATCH, storages="channels_last")
    return build_library(lowered, path)


def look(graph: Graph, info: LibraryInfo, gops: float | None = GOPS) -> Roofline:
    everything = sum(info.constants.values()) + info.planned_bytes
    peaks = {} if gops is None else {"avx2": gops}
    ceilings = Ceilings(1, peaks, {everything: FAR, info.planned_bytes: NEAR})
    return Roofline(ceilings, roofline(dict.fromkeys(info.calls, 5.0), info, graph, ceilings))


def test_every_call_is_there_with_its_kernel(graph: Graph, info: LibraryInfo) -> None:
    found = look(graph, info)
    assert [call.name for call in found.calls] == list(info.calls)
    assert {call.name: call.kernel for call in found.calls} == info.call_kernels


def test_bounds_are_operations_over_the_peak_and_bytes_over_the_bandwidth(graph: Graph, info: LibraryInfo) -> None:
    found = {call.name: call for call in look(graph, info).calls}
    for node in graph:
        if not isinstance(node.op, WeightedOperator):
            continue
        call = found[node.name]
        assert call.macs == node.op.macs(node.type) * BATCH
        assert call.compute_us == pytest.approx(2 * call.macs / (GOPS * 1e9) * 1e6)
        assert call.weight_bytes == info.constants[node.name] >= node.op.weight.size
        types = [*(info.values[name] for name in node.inputs), info.values[node.name]]
        stored = sum(value.storage.size_bytes(value.type, BATCH) for value in types)
        assert call.activation_bytes == stored
        assert call.memory_us == pytest.approx((call.weight_bytes / FAR + stored / NEAR) / 1e3)
        assert call.floor_us == max(call.compute_us or 0, call.memory_us)
        assert call.bound_by == ("compute" if (call.compute_us or 0) > call.memory_us else "memory")
        assert call.gops == pytest.approx(2 * call.macs / 5e-6 / 1e9)


def test_both_bounds_occur(graph: Graph, info: LibraryInfo) -> None:
    assert {call.bound_by for call in look(graph, info, gops=1e9).calls} == {"memory"}
    assert "compute" in {call.bound_by for call in look(graph, info, gops=1e-3).calls}


def test_conversions_move_bytes_and_compute_nothing(graph: Graph, info: LibraryInfo) -> None:
    copies = [call for call in look(graph, info).calls if call.name in info.conversions]
    assert copies, "the input at least is converted"
    for call in copies:
        item = info.conversions[call.name]
        value = info.values[item.value]
        sizes = value.storage.size_bytes(value.type, BATCH) + item.storage.size_bytes(value.type, BATCH)
        assert (call.macs, call.compute_us, call.activation_bytes) == (0, 0, sizes)
        assert call.bound_by == "memory"
        assert call.writes == str(item.storage)


def test_the_share_of_the_peak_is_that_of_the_layers_with_weights(graph: Graph, info: LibraryInfo) -> None:
    found = look(graph, info)
    weighted = [call for call in found.calls if call.macs]
    assert found.share_of_peak == pytest.approx(sum(call.compute_us or 0 for call in weighted) / (5.0 * len(weighted)))
    assert [found.share(call) is None for call in found.calls] == [not call.macs for call in found.calls]


def test_a_machine_without_a_known_peak_has_bounds_of_memory_alone(graph: Graph, info: LibraryInfo) -> None:
    found = look(graph, info, gops=None)
    assert found.share_of_peak is None
    assert {call.bound_by for call in found.calls} == {"memory"}
    json.dumps(found.to_json())


def test_kernels_of_other_operators_and_layers_are_not_told_of(graph: Graph, info: LibraryInfo) -> None:
    name = next(iter(node.name for node in graph if isinstance(node.op, WeightedOperator)))
    told = (
        "conv2d_fast: this CPU has no amx_int8",
        "conv2d_w8_fast: stores weights in 8 bits, these have 4 and stay packed",
        "depthwise: takes one group a channel, got 2 groups of 16 channels",
    )
    others = (
        "linear_fast: computes linear, not conv2d",
        "conv2d_w4_fast: stores weights in 4 bits, these have 8",
        "depthwise: takes one group a channel, got 1 groups of 16 channels",
    )
    found = look(graph, replace(info, declines={**dict.fromkeys(info.declines, ()), name: (*others, *told)}))
    assert found.declines == {reason: [name] for reason in told}
    kinds = {node.op.kind for node in graph}
    assert not any(reason.endswith(f", not {kind}") for reason in look(graph, info).declines for kind in kinds)


def test_a_library_whose_json_does_not_tell_constants_is_refused(info: LibraryInfo, tmp_path: Path) -> None:
    lacking = replace(info, constants={name: size for name, size in info.constants.items() if name != info.calls[-1]})
    lacking.write(tmp_path / "model.so")
    with pytest.raises(RuntimeModuleError, match=f"constants does not name '{info.calls[-1]}'; compile the library"):
        LibraryInfo.read(tmp_path / "model.so")
