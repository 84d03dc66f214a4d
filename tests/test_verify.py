"""Verification, and the negative controls: each fault is put into one executor, found, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper

from hawq_tvm.backends.onnx.io import to_onnx
from hawq_tvm.backends.onnx.runner import OnnxRuntimeModule
from hawq_tvm.backends.pytorch import integer_module as torch_integer
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.backends.tvm.info import LibraryInfo
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.backends.tvm.runtime import CompiledModule
from hawq_tvm.core import interpreter
from hawq_tvm.core.errors import DataError
from hawq_tvm.core.hashing import file_sha256
from hawq_tvm.core.ir import Array, Graph, Rescale
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.kernels.generic import (
    conv2d,
    elementwise,
    expressions,
    linear,
    nhwc_conv2d,
    nhwc_elementwise,
    nhwc_pooling,
    pooling,
)
from hawq_tvm.measure.verify import EMULATED, ON_GPU, Executor, Mismatch, VerifyReport, stronger, verify

from .builders import compiled, integer_samples, integers_of

SAMPLES = 64
LAYER = "conv1"


@pytest.fixture(scope="module")
def graph() -> Graph:
    return integers_of("Residual", ("w8a8", "w4a8"))


@pytest.fixture(scope="module")
def inputs(graph: Graph) -> Array:
    return integer_samples(graph, SAMPLES)


@pytest.fixture(scope="module")
def executors(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Executor]:
    return {
        "numpy": lambda x: interpreter.run(graph, x),
        "pytorch": IntegerModule(graph).run,
        "onnxruntime": OnnxRuntimeModule(to_onnx(graph)).run,
        "tvm": compiled(graph, tmp_path_factory.mktemp("library")).values,
    }


def test_all_four_agree(graph: Graph, inputs: Array, executors: dict[str, Executor]) -> None:
    done: list[int] = []
    report = verify(graph, executors, [inputs[:40], inputs[40:]], progress=done.append)
    assert report.ok
    assert (report.samples, report.layers, done) == (SAMPLES, len(graph.nodes), [40, SAMPLES])
    assert report.elements == SAMPLES * sum(int(np.prod(node.type.shape)) for node in graph)
    assert str(report).startswith("0 mismatches over 8 layers, 64 samples, ")
    assert "numpy = pytorch = onnxruntime = tvm" in str(report)


def fault_is_found(graph: Graph, inputs: Array, executors: dict[str, Executor], side: str, layer: str = LAYER) -> None:
    """The first mismatch is in that layer, and that side is alone; layers before it agree."""
    report = verify(graph, executors, [inputs[:40], inputs[40:]])
    assert not report.ok
    first = report.mismatches[0]
    assert first.layer == layer
    assert first.alone == side
    assert 0 < first.elements < first.total
    assert first.index is not None
    others = {value for name, value in first.values.items() if name != side}
    assert len(others) == 1
    assert first.values[side] not in others
    assert f"layer '{layer}'" in str(report)
    assert f"{side} is alone" in str(report)
    assert VerifyReport.from_json(report.to_json()) == report


def change_bias(op: Conv2d) -> Conv2d:
    bias = op.bias.copy()
    bias[3] += 1
    return replace(op, bias=bias)


def change_shift(op: Conv2d) -> Conv2d:
    return replace(op, rescale=replace(op.rescale, shift=op.rescale.shift + 1))


def swap_channels(op: Conv2d) -> Conv2d:
    weight = op.weight.copy()
    weight[[0, 1]] = weight[[1, 0]]
    return replace(op, weight=weight)


def flip_nibble(op: Conv2d) -> Conv2d:
    weight = op.weight.copy()
    weight.flat[7] ^= 1  # the lowest bit of the high nibble of the fourth byte
    return replace(op, weight=weight)


FAULTS: dict[str, Callable[[Conv2d], Conv2d]] = {
    "a bias off by one": change_bias,
    "a shift off by one": change_shift,
    "a swapped channel": swap_channels,
    "a flipped nibble": flip_nibble,
}


def faulty(graph: Graph, fault: str) -> Graph:
    op = graph.node(LAYER).op
    assert isinstance(op, Conv2d)
    assert op.weight_bits == 4
    return graph.replace_node(LAYER, op=FAULTS[fault](op))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_library(
    fault: str, graph: Graph, inputs: Array, executors: dict[str, Executor], tmp_path: Path
) -> None:
    broken = compiled(faulty(graph, fault), tmp_path)
    fault_is_found(graph, inputs, {**executors, "tvm": broken.values}, "tvm")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_pytorch_model(fault: str, graph: Graph, inputs: Array, executors: dict[str, Executor]) -> None:
    broken = IntegerModule(faulty(graph, fault))
    fault_is_found(graph, inputs, {**executors, "pytorch": broken.run}, "pytorch")


def bump_bias(model: ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == f"{LAYER}.bias")
    values = numpy_helper.to_array(tensor).copy()
    values.flat[3] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def flip_packed_nibble(model: ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == f"{LAYER}.weight")
    assert tensor.data_type == TensorProto.INT4
    data = bytearray(tensor.raw_data)
    data[3] ^= 0x10
    tensor.raw_data = bytes(data)


def bump_shift(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.name == LAYER)
    next(item for item in node.attribute if item.name == "shift").i += 1


def floor_instead_of_half_up(model: ModelProto) -> None:
    for function in model.functions:
        for node in function.node:
            if list(node.input) == ["total", "half"]:
                node.op_type = "Identity"
                del node.input[1:]


def swap_stored_channels(model: ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == f"{LAYER}.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[[0, 1]] = values[[1, 0]]
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize("change", [bump_bias, flip_packed_nibble, bump_shift, swap_stored_channels])
def test_a_fault_in_the_onnx_file(
    change: Callable[[ModelProto], None], graph: Graph, inputs: Array, executors: dict[str, Executor]
) -> None:
    model = to_onnx(graph)
    change(model)
    fault_is_found(graph, inputs, {**executors, "onnxruntime": OnnxRuntimeModule(model).run}, "onnxruntime")


def test_floor_instead_of_half_up_in_the_onnx_functions(
    graph: Graph, inputs: Array, executors: dict[str, Executor]
) -> None:
    model = to_onnx(graph)
    floor_instead_of_half_up(model)
    broken = {**executors, "onnxruntime": OnnxRuntimeModule(model).run}
    fault_is_found(graph, inputs, broken, "onnxruntime", layer="stem")


def test_floor_instead_of_half_up_in_the_pytorch_model(
    graph: Graph, inputs: Array, executors: dict[str, Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def floor(total: torch.Tensor, rescale: Rescale) -> torch.Tensor:
        return (total >> rescale.shift).clamp(rescale.lo, rescale.hi)

    monkeypatch.setattr(torch_integer, "_rescale", floor)
    fault_is_found(graph, inputs, executors, "pytorch", layer="stem")


def test_a_flipped_nibble_in_the_packed_bytes_of_the_library(
    graph: Graph, inputs: Array, executors: dict[str, Executor], tmp_path: Path
) -> None:
    """One bit of the file itself: of a weight that lies packed with another in a byte."""
    portable = TARGETS["llvm/portable"]  # others may unpack weights when they are compiled
    compiled(graph, tmp_path, target=portable)
    path = tmp_path / portable.library_name
    packed = lower(graph, portable).plan.offers[LAYER].build().constants[0]
    assert packed.dtype == np.uint8
    data = path.read_bytes()
    assert data.count(packed.tobytes()) == 1
    at = data.find(packed.tobytes()) + 3
    path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
    replace(LibraryInfo.read(path), sha256=file_sha256(path)).write(path)
    fault_is_found(graph, inputs, {**executors, "tvm": CompiledModule(path).values}, "tvm")


def test_a_comparison_of_nothing_is_an_error(graph: Graph, inputs: Array, executors: dict[str, Executor]) -> None:
    for given, message in (({}, "got 0: none"), ({"numpy": executors["numpy"]}, "got 1: numpy")):
        with pytest.raises(DataError, match=f"compares at least two executors, {message}"):
            verify(graph, given, [inputs[:2]])
    for batches in ([], [inputs[:0]]):
        pair = {name: executors[name] for name in ("numpy", "pytorch")}
        with pytest.raises(DataError, match="got no samples, so nothing was compared"):
            verify(graph, pair, batches)


def test_floor_instead_of_half_up_in_the_kernels(
    graph: Graph, inputs: Array, executors: dict[str, Executor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def floor(total: object, parameters: object, dtype: object) -> object:
        half = expressions.int64(1 << (parameters.shift - 1))  # type: ignore[attr-defined]
        return expressions.rescale(total - half, parameters, dtype)  # type: ignore[operator, arg-type]

    for kernels in (conv2d, linear, elementwise, pooling, nhwc_conv2d, nhwc_elementwise, nhwc_pooling):
        monkeypatch.setattr(kernels, "rescale", floor)
    broken = compiled(graph, tmp_path, target="llvm/portable")  # whose kernels these are
    fault_is_found(graph, inputs, {**executors, "tvm": broken.values}, "tvm", layer="stem")


def test_a_value_of_another_type_or_missing_is_a_mismatch(
    graph: Graph, inputs: Array, executors: dict[str, Executor]
) -> None:
    def wider(x: Array) -> dict[str, Array]:
        values = interpreter.run(graph, x)
        return {**values, LAYER: values[LAYER].astype(np.int32)}

    def lacking(x: Array) -> dict[str, Array]:
        values = interpreter.run(graph, x)
        del values[LAYER]
        return values

    for broken in (wider, lacking):
        report = verify(graph, {**executors, "odd": broken}, [inputs[:2]])
        assert [mismatch.layer for mismatch in report.mismatches] == [LAYER]
        assert report.mismatches[0].alone == "odd"
        assert report.mismatches[0].elements == report.mismatches[0].total > 0


def test_with_two_executors_none_is_alone(graph: Graph, inputs: Array, executors: dict[str, Executor]) -> None:
    broken = IntegerModule(faulty(graph, "a swapped channel"))
    report = verify(graph, {"numpy": executors["numpy"], "pytorch": broken.run}, [inputs[:8]])
    assert report.mismatches[0].layer == LAYER
    assert report.mismatches[0].alone is None


def test_counts_add_up_over_batches(graph: Graph, inputs: Array, executors: dict[str, Executor]) -> None:
    broken = {**executors, "pytorch": IntegerModule(faulty(graph, "a bias off by one")).run}
    whole = verify(graph, broken, [inputs]).mismatches[0]
    parts = verify(graph, broken, [inputs[i : i + 1] for i in range(SAMPLES)]).mismatches[0]
    assert parts.elements == whole.elements
    assert parts.index == whole.index
    assert parts.total == whole.total == SAMPLES * int(np.prod(graph.node(LAYER).type.shape))


# which of two reports on one library is kept

ALL = ("numpy", "pytorch", "onnxruntime", "tvm")
DIFFERENCE = Mismatch("conv1", "conv2d", 1, 9, (200, 0), {"numpy": 1, "tvm": 2}, None)


def found(samples: int, *mismatches: Mismatch, executors: tuple[str, ...] = ALL) -> VerifyReport:
    return VerifyReport(executors, samples, 8, samples * 100, mismatches)


def test_a_weak_proof_does_not_replace_a_strong_one() -> None:
    strong, weak = found(256), found(4)
    kept, sentence = stronger(strong, weak)
    assert kept is strong
    assert sentence is not None
    assert sentence.startswith("compared 4 samples now, and the run keeps its report over 256 samples")
    assert "0 mismatches over 8 layers, 256 samples" in sentence
    assert "verify at least as many samples" in sentence
    fewer = found(512, executors=("numpy", "tvm"))
    assert stronger(strong, fewer)[0] is strong, "more samples do not make up for an executor that is missing"


def test_a_proof_that_compares_as_much_replaces_the_earlier_one() -> None:
    for earlier in (None, found(4), found(256), found(256, DIFFERENCE), found(4, executors=ALL[:2])):
        latest = found(256)
        kept, sentence = stronger(earlier, latest)
        assert kept is latest
        assert sentence is None


def test_a_proof_on_the_gpu_replaces_an_emulated_one() -> None:
    real, emulated = (*ALL[:3], ON_GPU), (*ALL[:3], EMULATED)
    for earlier in (found(256, executors=emulated), found(4, DIFFERENCE, executors=emulated)):
        latest = found(4, executors=real)
        assert stronger(earlier, latest) == (latest, None)
    failed = found(256, DIFFERENCE, executors=emulated)
    kept, sentence = stronger(failed, found(4, executors=real))
    assert kept is failed, "four samples do not show that the difference is gone"
    assert sentence is not None and sentence.endswith("; verify at least as many samples to replace it")


def test_an_emulated_proof_does_not_replace_one_on_the_gpu() -> None:
    real, emulated = (*ALL[:3], ON_GPU), (*ALL[:3], EMULATED)
    for earlier in (found(4, executors=real), found(4, DIFFERENCE, executors=real)):
        kept, sentence = stronger(earlier, found(256, executors=emulated))
        assert kept is earlier
        assert sentence is not None and sentence.endswith("; verify at least as many samples on the GPU to replace it")
    latest = found(2, DIFFERENCE, executors=emulated)
    assert stronger(found(256, executors=real), latest) == (latest, None)


def test_a_difference_always_counts() -> None:
    latest = found(4, DIFFERENCE)
    for earlier in (None, found(256), found(256, DIFFERENCE)):
        assert stronger(earlier, latest) == (latest, None)
    earlier = found(256, DIFFERENCE)
    kept, sentence = stronger(earlier, found(4))
    assert kept is earlier
    assert sentence is not None
    assert "found a difference that these samples do not show: 1 mismatches" in sentence
