from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hawq_tvm.backends.onnx.io import to_onnx
from hawq_tvm.backends.onnx.runner import OnnxRuntimeModule
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule, _exact_parts
from hawq_tvm.calibration import make_observer, observe_ranges
from hawq_tvm.core import interpreter
from hawq_tvm.core.errors import AllocationError, CalibrationError, GraphError, OverflowRefused
from hawq_tvm.core.float_ir import FloatGraph, FloatNode
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import IntType, Rescale, TensorType, Window
from hawq_tvm.core.ops import AvgPool2d, Concat, Conv2d, Requantize, WeightedOperator
from hawq_tvm.core.quantizer import Range
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.frontend.capture import capture

from . import networks
from .builders import captured, integer_samples, integers_of, one_node_graph, ranges_of, same, samples


def signal_to_noise(name: str, pairs: tuple[str, ...]) -> float:
    """Decibels between the float network's outputs and the integer network's error."""
    graph = integers_of(name, pairs)
    x = samples(16)
    with torch.no_grad():
        expected = FloatModule(captured(name))(x).numpy()
    integers = interpreter.run(graph, interpreter.quantize_input(x.numpy(), graph.input_type))[graph.output]
    error = interpreter.dequantize_output(integers, graph.output_type) - expected
    return float(10 * np.log10((expected**2).sum() / (error**2).sum()))


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_eight_bits_come_close_to_the_float_network(name: str) -> None:
    assert signal_to_noise(name, ("w8a8",)) > 25


@pytest.mark.parametrize("name", ["Residual", "Mobile"])
def test_more_bits_come_closer(name: str) -> None:
    by_bits = [signal_to_noise(name, (f"w{bits}a{bits}",)) for bits in (2, 4, 6, 8)]
    assert by_bits == sorted(by_bits)
    assert by_bits[-1] > by_bits[0] + 15


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(2, 8), st.integers(2, 8)), min_size=5, max_size=5))
def test_any_layer_may_have_any_bits(pairs: list[tuple[int, int]]) -> None:
    names = [layer.name for layer in captured("Residual").layers]
    bits = {name: Bits(*pair) for name, pair in zip(names, pairs, strict=True)}
    graph = integerize(captured("Residual"), ranges_of("Residual"), BitConfig(bits))
    types = graph.types
    for node in graph:
        if isinstance(node.op, WeightedOperator):
            assert node.op.weight_bits == bits[node.name].weight
            assert types[node.inputs[0]].dtype.bits == bits[node.name].activation
            assert np.abs(node.op.weight).max() <= 2 ** (bits[node.name].weight - 1) - 1
    x = integer_samples(graph)
    assert same(interpreter.run(graph, x), IntegerModule(graph).run(x)) == []


def test_a_value_is_stored_at_the_most_bits_asked_for_and_narrowed_once() -> None:
    graph = integers_of("Concat", ("w8a8", "w4a4", "w8a8", "w8a4"))
    assert graph.types["stem"].dtype.bits == 8
    narrowed = [node for node in graph if isinstance(node.op, Requantize)]
    assert [(node.name, node.inputs, repr(node.type.dtype)) for node in narrowed] == [("stem.u4", ("stem",), "u4")]
    assert graph.node("left").inputs == ("stem.u4",)
    assert graph.node("right").inputs == ("stem",)


def test_branches_of_a_concatenation_share_its_scale_and_copy() -> None:
    graph = integers_of("Concat")
    scales = {graph.types[name].scale for name in ("left", "right", "concat", "pool")}
    assert len(scales) == 1
    op = graph.node("concat").op
    assert isinstance(op, Concat)
    assert op.rescale.shift == 30
    assert op.rescale.multiplier.tolist() == [2**30, 2**30]


def test_types_follow_what_a_value_can_be() -> None:
    types = integers_of("Mobile").types
    assert repr(types["stem"].dtype) == "u8", "after ReLU6"
    assert repr(types["project"].dtype) == "s8", "a sum without ReLU"
    assert repr(types["fc"].dtype) == "s32", "the result"
    assert repr(integers_of("Ends").output_type.dtype) == "s8", "a max-pool of the result keeps its type"


@pytest.mark.parametrize(("magnitude", "bounds"), [(1.5, (-127, 127)), (3.0, (-63, 64))])
def test_finite_clips_become_integer_bounds(magnitude: float, bounds: tuple[int, int]) -> None:
    ranges = {**ranges_of("Mobile"), "grouped": Range(-magnitude, magnitude)}
    rescale = integerize(captured("Mobile"), ranges, uniform(captured("Mobile"))).node("grouped").op.rescale_or_none
    assert rescale is not None
    assert (rescale.lo, rescale.hi) == bounds, "a hardtanh at 1.5; 1.5 / (3 / 127) = 63.5, ties up"


def test_border_windows_have_multipliers_of_their_own() -> None:
    graph = integers_of("Pools")
    inner, outer = graph.node("inner").op, graph.node("outer").op
    assert isinstance(inner, AvgPool2d)
    assert isinstance(outer, AvgPool2d)
    assert inner.rescale.multiplier.shape == (6, 6)
    corner, edge, middle = (int(inner.rescale.multiplier[at]) for at in ((0, 0), (0, 1), (1, 1)))
    assert corner / middle == pytest.approx(9 / 4)
    assert edge / middle == pytest.approx(9 / 6)


def test_a_bias_too_large_for_its_scale_raises_the_scale() -> None:
    layer = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        layer.weight[0] = 1e-12
        layer.bias[:] = torch.tensor([50.0, 0.5])
    graph = capture(nn.Sequential(layer, nn.ReLU(), nn.Conv2d(2, 2, 1)), samples())
    network = FloatModule(graph)
    ranges = {graph.input_name: Range(-4, 4), "0": Range(0, 52), "2": Range(-60, 60)}
    integers = integerize(graph, ranges, BitConfig.uniform(("0", "2"), Bits(8, 8)))
    op = integers.node("0").op
    assert isinstance(op, Conv2d)
    assert np.abs(op.bias).max() <= 2**30
    x = samples(4)
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        network(x, tap=lambda name, value: seen.__setitem__(name, value))
    values = interpreter.run(integers, interpreter.quantize_input(x.numpy(), integers.input_type))
    restored = values["0"][:, 0] * integers.types["0"].scale
    assert np.abs(restored - seen["0"][:, 0].numpy()).max() <= integers.types["0"].scale


def test_a_channel_of_zeros_keeps_its_bias() -> None:
    layer = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        layer.weight[1] = 0.0
        layer.bias[1] = 0.75
    graph = capture(nn.Sequential(layer, nn.ReLU(), nn.Conv2d(2, 2, 1)), samples())
    ranges = {graph.input_name: Range(-4, 4), "0": Range(0, 1), "2": Range(-2, 2)}
    integers = integerize(graph, ranges, BitConfig.uniform(("0", "2"), Bits(8, 8)))
    values = interpreter.run(integers, integer_samples(integers))
    assert (values["0"][:, 1] == 191).all(), "0.75 / (1 / 255) = 191.25"


def test_bits_must_fit_the_layers() -> None:
    names = [layer.name for layer in captured("Residual").layers]
    complete = dict.fromkeys(names, Bits(8, 8))
    with pytest.raises(AllocationError, match="no bits for layer 'fc'"):
        integerize(captured("Residual"), ranges_of("Residual"), BitConfig({n: complete[n] for n in names[:-1]}))
    with pytest.raises(AllocationError, match="unknown layer 'typo'"):
        integerize(captured("Residual"), ranges_of("Residual"), BitConfig({**complete, "typo": Bits(8, 8)}))


def uniform(graph: FloatGraph) -> BitConfig:
    return BitConfig.uniform(tuple(layer.name for layer in graph.layers), Bits(8, 8))


def changed(name: str, **fields: object) -> FloatGraph:
    graph = captured("Residual")
    nodes = tuple(replace(node, **fields) if node.name == name else node for node in graph)  # type: ignore[arg-type]
    return replace(graph, nodes=nodes)


def layer(name: str) -> FloatNode:
    return captured("Residual").by_name[name]


def test_dead_and_broken_layers_are_refused_by_name() -> None:
    dead = changed("conv2", weight=np.zeros_like(layer("conv2").weight))
    with pytest.raises(CalibrationError, match="layer 'conv2' is dead"):
        integerize(dead, ranges_of("Residual"), uniform(dead))
    broken = changed("conv2", bias=np.full_like(layer("conv2").bias, np.nan))
    with pytest.raises(CalibrationError, match="layer 'conv2' holds weights or biases that are NaN"):
        integerize(broken, ranges_of("Residual"), uniform(broken))
    graph = captured("Residual")
    with pytest.raises(CalibrationError, match="'conv1' has the range .* a dead layer"):
        integerize(graph, {**ranges_of("Residual"), "conv1": Range(0.0, 0.0)}, uniform(graph))
    with pytest.raises(CalibrationError, match="no range for 'conv1'"):
        integerize(graph, {n: r for n, r in ranges_of("Residual").items() if n != "conv1"}, uniform(graph))


def test_a_range_far_below_the_accumulator_is_refused_by_layer() -> None:
    graph = captured("Residual")
    with pytest.raises(GraphError, match="layer 'conv1': a scale ratio of"):
        integerize(graph, {**ranges_of("Residual"), "conv1": Range(0.0, 1e-12)}, uniform(graph))


def test_a_layer_that_could_overflow_is_refused_by_name() -> None:
    channels = 70_000
    wide = nn.Linear(channels, 2, bias=False)
    nn.init.ones_(wide.weight)
    network = nn.Sequential(nn.Conv2d(3, channels, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), wide)
    graph = capture(network, samples(2)[:, :, :1, :1])
    ranges = {graph.input_name: Range(-1, 1), **{node.name: Range(0, 1) for node in graph}}
    with pytest.raises(OverflowRefused, match=f"layer '4': the accumulator can reach {channels * 127 * 255}"):
        integerize(graph, ranges, uniform(graph))
    integerize(graph, ranges, BitConfig({"0": Bits(8, 8), "4": Bits(4, 8)}))


@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.parametrize("pairs", [("w8a8",), ("w4a4",), ("w2a5", "w8a8", "w3a2")])
def test_pytorch_computes_the_same_integers(name: str, pairs: tuple[str, ...]) -> None:
    graph = integers_of(name, pairs)
    x = integer_samples(graph)
    expected = interpreter.run(graph, x)
    module = IntegerModule(graph)
    assert same(expected, module.run(x)) == []
    lean = module.values(torch.from_numpy(x), keep=False)
    assert np.array_equal(lean[graph.output].numpy(), expected[graph.output])
    real = samples(4)
    logits = interpreter.dequantize_output(expected[graph.output], graph.output_type)
    assert np.array_equal(module(real).numpy(), logits)
    assert np.array_equal(module.quantize(real).numpy(), x)


def test_input_channels_are_split_where_float32_would_round() -> None:
    """Weights and inputs at their extremes, far over 2^24, where an unsplit float32 sum would be wrong."""
    rng = np.random.default_rng(0)
    weight = np.where(rng.random((3, 400, 3, 3)) < 0.9, 127, -126)
    type = TensorType(IntType(8, signed=False), (400, 5, 5), 1.0)
    op = Conv2d(weight, 8, [1, 2, 3], Rescale([2**30] * 3, 30, -(2**31) + 1, 2**31 - 1), Window((3, 3)))
    graph = one_node_graph(op, [type], IntType(32, signed=True))
    parts = _exact_parts(op, type)
    assert len(parts) > 4
    x = rng.integers(250, 256, (2, 400, 5, 5)).astype(np.uint8)
    expected = interpreter.run(graph, x)["layer"]
    assert np.array_equal(IntegerModule(graph).run(x)["layer"], expected)
    rounded = torch.nn.functional.conv2d(torch.from_numpy(x).float(), torch.from_numpy(op.weight.copy()).float())
    assert not np.array_equal(rounded.numpy() + op.bias.reshape(1, 3, 1, 1), expected), "the case is hard enough"


@pytest.mark.parametrize("groups", [1, 2])
def test_what_cannot_be_split_is_exact_too(groups: int) -> None:
    """One input channel that alone passes 2^24, and a grouped convolution whose groups do."""
    rng = np.random.default_rng(0)
    channels, size = (1, 48) if groups == 1 else (2 * 100, 3)
    weight = np.where(rng.random((4, channels // groups, size, size)) < 0.9, 127, -126)
    type = TensorType(IntType(8, signed=False), (channels, size + 2, size + 2), 1.0)
    rescale = Rescale([2**30] * 4, 30, -(2**31) + 1, 2**31 - 1)
    op = Conv2d(weight, 8, np.arange(4), rescale, Window((size, size)), groups)
    graph = one_node_graph(op, [type], IntType(32, signed=True))
    x = rng.integers(250, 256, (2, *type.shape)).astype(np.uint8)
    expected = interpreter.run(graph, x)["layer"]
    assert np.abs(expected).max() > 2**24
    assert np.array_equal(IntegerModule(graph).run(x)["layer"], expected)
    product = torch.nn.functional.conv2d(
        torch.from_numpy(x).float(), torch.from_numpy(op.weight.copy()).float(), groups=groups
    )
    assert not np.array_equal(product.numpy() + op.bias.reshape(1, 4, 1, 1), expected), "the case is hard enough"


class Faint(nn.Module):
    """The network's result is a sum whose layer weighs far less than its other branch."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        with torch.no_grad():
            self.b.weight.mul_(factor)
            self.b.bias.mul_(factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return y + self.b(torch.relu(y))


@pytest.mark.parametrize("factor", [1.0, 1e-3, 1e-5, 1e-8])
def test_a_residual_does_not_saturate_the_wide_result(factor: float) -> None:
    torch.manual_seed(0)
    graph = capture(Faint(factor), samples())
    network = FloatModule(graph)
    ranges = observe_ranges(lambda x, tap: network(x, tap=tap), [samples(16)], make_observer("max"))
    integers = integerize(graph, ranges, uniform(graph))
    assert repr(integers.output_type.dtype) == "s32"
    with torch.no_grad():
        expected = network(samples(16)).numpy()
    result = interpreter.run(integers, interpreter.quantize_input(samples(16).numpy(), integers.input_type))
    got = interpreter.dequantize_output(result[integers.output], integers.output_type)
    assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()


def test_a_clip_too_narrow_for_its_layer_is_refused_by_name() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Hardtanh(-1e-7, 1e-7), nn.Conv2d(8, 4, 1))
    graph = capture(network, samples())
    ranges = {graph.input_name: Range(-4, 4), "0": Range(-1e-7, 1e-7), "2": Range(-1, 1)}
    with pytest.raises(OverflowRefused, match="layer '0': the rounded result can reach"):
        integerize(graph, ranges, uniform(graph))


def test_copies_take_names_that_no_layer_has() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Conv2d(3, 4, 1)
            self.b.u4 = nn.Conv2d(4, 2, 1)
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.b(x))
            z = self.b.u4(y)
            return self.last(y) + z

    graph = capture(Named(), samples())
    assert {"b", "b.u4"} <= set(graph.by_name)
    ranges = {graph.input_name: Range(-4, 4), **{node.name: Range(-4, 4) for node in graph}}
    bits = BitConfig({"b": Bits(8, 8), "b.u4": Bits(8, 8), "last": Bits(4, 4)})
    integers = integerize(graph, ranges, bits)
    assert integers.node("last").inputs[0] == "b.u4_"
    assert integers.node("b.u4_").op.kind == "requantize"
    x = integer_samples(integers)
    assert same(interpreter.run(integers, x), OnnxRuntimeModule(to_onnx(integers)).run(x)) == []
