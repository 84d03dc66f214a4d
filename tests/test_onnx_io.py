from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
import torch.nn.functional as F
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from hawq_tvm.backends.onnx.float_onnx import to_float_onnx
from hawq_tvm.backends.onnx.io import from_onnx, load_model, read_onnx, to_onnx
from hawq_tvm.backends.onnx.runner import OnnxRuntimeModule, make_session
from hawq_tvm.core import interpreter
from hawq_tvm.core.errors import ModelFileError
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Graph, IntType, Rescale, TensorType
from hawq_tvm.core.ops import Requantize
from hawq_tvm.core.quantizer import Range
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.frontend.capture import capture

from . import networks
from .builders import captured, integer_samples, integers_of, one_node_graph, same, samples

MIXED = ("w8a8", "w4a4", "w2a5", "w5a3")


@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.parametrize("pairs", [("w8a8",), MIXED])
def test_the_file_holds_the_graph_to_the_bit(name: str, pairs: tuple[str, ...], tmp_path: Path) -> None:
    graph = integers_of(name, pairs)
    onnx.save(to_onnx(graph), tmp_path / "model.onnx")
    back = read_onnx(tmp_path / "model.onnx")
    assert back.fingerprint() == graph.fingerprint()
    assert str(back) == str(graph)


@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.parametrize("optimize", [True, False])
def test_onnx_runtime_computes_every_value_exactly(name: str, optimize: bool) -> None:
    graph = integers_of(name, MIXED)
    x = integer_samples(graph)
    assert same(interpreter.run(graph, x), OnnxRuntimeModule(to_onnx(graph), optimize=optimize).run(x)) == []


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_the_reference_evaluator_computes_the_result_exactly(name: str) -> None:
    graph = integers_of(name, MIXED)
    x = integer_samples(graph, 2)
    (result,) = onnx.reference.ReferenceEvaluator(to_onnx(graph)).run(None, {graph.input_name: x})
    assert np.array_equal(result, interpreter.run(graph, x)[graph.output])


@pytest.mark.parametrize(
    ("multiplier", "shift"),
    [(1, 1), (2**30, 30), (2**30, 31), (2**31 - 1, 31), (2**31 - 1, 62), (1, 62), (0, 5), (3, 2)],
)
def test_ties_and_extremes_round_alike(multiplier: int, shift: int) -> None:
    wide = TensorType(IntType(32, signed=True), (17,), 1.0)
    op = Requantize(Rescale([multiplier], shift, -128, 127))
    graph = one_node_graph(op, [wide], IntType(8, signed=True))
    extremes = [-(2**31) + 1, 2**31 - 1, -(2**30), 2**30, -7, -6, -5, -3, -2, -1, 0, 1, 2, 3, 5, 6, 7]
    x = np.array([extremes], np.int32)
    expected = [max(-128, min(127, (v * multiplier + (1 << (shift - 1))) >> shift)) for v in extremes]
    assert interpreter.run(graph, x)["layer"][0].tolist() == expected
    assert OnnxRuntimeModule(to_onnx(graph)).run(x)["layer"][0].tolist() == expected
    (reference,) = onnx.reference.ReferenceEvaluator(to_onnx(graph)).run(None, {"x": x})
    assert reference[0].tolist() == expected


def test_four_bit_weights_are_packed_two_a_byte() -> None:
    model = to_onnx(integers_of("Residual", ("w8a8", "w4a4", "w3a8")))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    assert stored["stem.weight"].data_type == TensorProto.INT8
    for name in ("conv1.weight", "conv2.weight"):
        assert stored[name].data_type == TensorProto.INT4
        assert len(stored[name].raw_data) == np.prod(stored[name].dims) / 2
    assert len(to_onnx(integers_of("Residual", ("w4a8",))).SerializeToString()) < len(
        to_onnx(integers_of("Residual", ("w8a8",))).SerializeToString()
    )


def test_every_layer_is_one_node_and_the_checker_passes() -> None:
    graph = integers_of("Residual")
    model = to_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert [node.name for node in model.graph.node] == [node.name for node in graph]
    assert model.opset_import[0].version == 21
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


class Named(nn.Module):
    """A module that holds a weight, and layers named like the parts of one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3, 1, 1))
        for part in ("bias", "multiplier", "residual"):
            self.add_module(part, nn.Conv2d(3, 3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.conv2d(x, self.weight))
        x = F.relu(self.bias(x))
        return x + self.residual(F.relu(self.multiplier(x)))


def test_a_layer_may_be_named_like_a_constant(tmp_path: Path) -> None:
    network = nn.Sequential()
    network.add_module("block", Named())
    floats = capture(network, samples())
    assert {"block", "block.bias", "block.multiplier", "block.residual"} <= set(floats.by_name)
    ranges = {floats.input_name: Range(-4, 4), **{node.name: Range(-9, 9) for node in floats}}
    graph = integerize(floats, ranges, BitConfig.uniform(tuple(layer.name for layer in floats.layers), Bits(8, 8)))
    onnx.save(to_onnx(graph), tmp_path / "model.onnx")
    assert read_onnx(tmp_path / "model.onnx").fingerprint() == graph.fingerprint()
    x = integer_samples(graph)
    assert same(interpreter.run(graph, x), OnnxRuntimeModule(to_onnx(graph)).run(x)) == []


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_the_float_peer_computes_the_float_network(name: str) -> None:
    import torch

    from hawq_tvm.backends.pytorch.float_module import FloatModule

    graph = captured(name)
    x = samples(3)
    (got,) = make_session(to_float_onnx(graph)).run(None, {graph.input_name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, FloatModule(graph)(x).numpy(), rtol=1e-4, atol=1e-5)


# bad files


@pytest.fixture
def graph() -> Graph:
    return integers_of("Residual", MIXED)


def refused(model: ModelProto, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        from_onnx(model)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        read_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file(graph: Graph, tmp_path: Path, share: float) -> None:
    data = to_onnx(graph).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelFileError, match="not a whole ONNX file|not written by hawq_tvm|corrupted"):
        read_onnx(path)


def test_a_file_of_noise(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(ModelFileError):
        read_onnx(path)


def test_a_file_that_is_not_ours() -> None:
    refused(to_float_onnx(captured("Residual")), "the PyTorch network instead")
    foreign = helper.make_model(helper.make_graph([], "empty", [], []), producer_name="someone")
    refused(foreign, "its producer is 'someone'")


def test_a_flipped_nibble_in_the_file(graph: Graph) -> None:
    model = to_onnx(graph)
    weight = next(tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT4)
    weight.raw_data = bytes([weight.raw_data[0] ^ 0x10]) + weight.raw_data[1:]
    refused(model, "fingerprint does not match|corrupted")


def test_a_changed_bias_in_the_file(graph: Graph) -> None:
    model = to_onnx(graph)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "conv1.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    refused(model, "fingerprint does not match")


def change_function(model: ModelProto) -> None:
    node = next(node for node in model.functions[0].node if node.output[0] == "half_u")
    node.op_type = "Identity"
    del node.input[1:], node.attribute[:]


def change_ones(model: ModelProto) -> None:
    ones = next(tensor for tensor in model.graph.initializer if tensor.name == "inner.ones")
    ones.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(ones) * 2, ones.name))


def change_axis(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Flatten")
    node.attribute[0].i = 2


def misspell(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "QConv2d")
    node.attribute.append(helper.make_attribute("auto_pads", "SAME_UPPER"))


def change_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 20


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (change_function, "functions"),
        (change_ones, "graph"),
        (change_axis, "graph"),
        (misspell, "graph"),
        (change_opset, "opset_import"),
    ],
)
def test_what_only_the_runtime_reads_may_not_change_either(change: Callable[[ModelProto], None], part: str) -> None:
    model = to_onnx(integers_of("Pools"))
    from_onnx(model)
    change(model)
    refused(model, f"corrupted or changed \\(its {part} differs")


def test_a_missing_initializer_and_an_unknown_node(graph: Graph) -> None:
    model = to_onnx(graph)
    del model.graph.initializer[1]
    refused(model, "corrupted")
    model = to_onnx(graph)
    model.graph.node[0].op_type = "QSomething"
    refused(model, "corrupted")


def test_another_format(graph: Graph) -> None:
    model = to_onnx(graph)
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"format": 1', '"format": 2')
    refused(model, "has format 2, this version reads 1")


# values in other files


def outside(tensor: TensorProto) -> TensorProto:
    """The tensor with its values in another file, ``values.bin``."""
    moved = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    moved.data_location = TensorProto.EXTERNAL
    moved.external_data.add(key="location", value="values.bin")
    return moved


TENSOR = numpy_helper.from_array(np.zeros(2, np.float32), "hidden")
SUBGRAPH = helper.make_graph([helper.make_node("Constant", [], ["y"], value=outside(TENSOR))], "inner", [], [])
SPARSE = onnx.SparseTensorProto(values=outside(TENSOR), dims=[2])


def in_an_initializer(model: ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(outside(model.graph.initializer[0]))


def in_an_attribute(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("value", outside(TENSOR)))


def in_a_list_of_tensors(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("values", [TENSOR, outside(TENSOR)]))


def in_a_subgraph(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("then", [SUBGRAPH]))


def in_a_function(model: ModelProto) -> None:
    model.functions[0].node[0].attribute.append(helper.make_attribute("then", SUBGRAPH))


def in_a_sparse_initializer(model: ModelProto) -> None:
    model.graph.sparse_initializer.append(SPARSE)


def in_a_sparse_attribute(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("value", SPARSE))


def in_the_training_information(model: ModelProto) -> None:
    model.training_info.add().initialization.initializer.append(outside(TENSOR))


def without_saying_so(model: ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="values.bin")


@pytest.mark.parametrize(
    "change",
    [
        in_an_initializer,
        in_an_attribute,
        in_a_list_of_tensors,
        in_a_subgraph,
        in_a_function,
        in_a_sparse_initializer,
        in_a_sparse_attribute,
        in_the_training_information,
        without_saying_so,
    ],
)
def test_values_in_another_file_are_refused(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[ModelProto], None]
) -> None:
    model = to_onnx(graph)
    first = model.graph.initializer[0].name
    (tmp_path / "values.bin").write_bytes(model.graph.initializer[0].raw_data)
    change(model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    monkeypatch.chdir(tmp_path)
    for read in (read_onnx, load_model):
        with pytest.raises(ModelFileError, match=f"values of tensor '(hidden|{first})' in another file, which is not"):
            read(Path("model.onnx"))
    refused(model, "in another file, which is not read")
