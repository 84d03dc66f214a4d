"""The network in reals against the integer graph that it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hawq_tvm.core import interpreter
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.dyadic import round_half_up
from hawq_tvm.core.float_ir import Clip, FloatGraph
from hawq_tvm.core.integerize import integerize, round_to_nearest
from hawq_tvm.core.ir import Graph, IntType, TensorType
from hawq_tvm.core.quantizer import Range, RangeTable
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.posttraining.simulate import Grid, SimulatedNetwork

from . import networks
from .builders import captured, ranges_of, samples
from .float_graphs import conv, graph, node

MIXED = ("w8a8", "w4a4", "w8a4", "w5a6", "w4a8")


def both(net: FloatGraph, ranges: RangeTable, bits: BitConfig) -> tuple[SimulatedNetwork, Graph]:
    """A network in reals with the weights and biases of the integer graph beside it."""
    types = ActivationTypes(net, ranges, bits)
    rounded = {
        layer.name: round_to_nearest(layer, bits.layers[layer.name].format, types.reads(layer).scale)
        for layer in net.layers
    }
    weights = {name: torch.from_numpy(found.restored.astype(np.float32)) for name, found in rounded.items()}
    biases = {}
    for layer in net.layers:
        assert layer.bias is not None
        steps = rounded[layer.name].scales * types.reads(layer).scale
        biases[layer.name] = torch.from_numpy((round_half_up(layer.bias / steps) * steps).astype(np.float32))
    return SimulatedNetwork(net, types, weights, biases), integerize(net, ranges, bits)


def mixed(net: FloatGraph) -> BitConfig:
    pairs = [Bits.parse(MIXED[i % len(MIXED)]) for i in range(len(net.layers))]
    return BitConfig(dict(zip((layer.name for layer in net.layers), pairs, strict=True)))


def integers(graph: Graph, x: Tensor) -> dict[str, Tensor]:
    """Every value of the integer graph in reals."""
    found = interpreter.run(graph, interpreter.quantize_input(x.numpy(), graph.input_type))
    types = graph.types
    return {name: torch.from_numpy(interpreter.dequantize_output(v, types[name])) for name, v in found.items()}


@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_node_makes_of_the_same_inputs_what_the_integers_make(name: str, seed: int) -> None:
    net = captured(name)
    network, exact = both(net, ranges_of(name), mixed(net))
    values = integers(exact, samples(8, seed))
    assert torch.equal(network.start(samples(8, seed)), values[net.input_name])
    for node_ in net:
        got, expected = network.node(node_, [values[i] for i in node_.inputs]), values[node_.name]
        step = exact.types[node_.name].scale
        if node_.name == network.types.wide:  # not rounded here
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=2 * step)
            continue
        apart = ((got - expected) / step).abs()
        assert apart.max() < 1.001, node_.name
        assert (apart > 0.5).double().mean() < 2e-3, node_.name


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_the_whole_network_stays_beside_the_integers(name: str) -> None:
    net = captured(name)
    network, exact = both(net, ranges_of(name), mixed(net))
    values, seen = integers(exact, samples(16)), dict[str, Tensor]()
    result = network(samples(16), tap=seen.__setitem__)
    assert list(seen) == [net.input_name, *(node_.name for node_ in net)]
    assert result is seen[net.output]
    error = (result - values[net.output]).square().sum() / values[net.output].square().sum()
    assert error < 1e-3  # a few elements beside a tie, carried on
    for value, got in seen.items():
        if value != network.types.wide and net.source(value) != network.types.wide:
            type = exact.types[value]
            points = torch.arange(type.dtype.lo, type.dtype.hi + 1).float() * type.scale
            assert torch.isin(got, points).all(), f"{value} is off its grid"


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(2, 8), st.integers(2, 8)), min_size=6, max_size=6))
def test_any_layer_reads_at_any_bits(pairs: list[tuple[int, int]]) -> None:
    net = captured("Mobile")
    bits = {layer.name: Bits(*pair) for layer, pair in zip(net.layers, pairs, strict=True)}
    network, exact = both(net, ranges_of("Mobile"), BitConfig(bits))
    values = integers(exact, samples(4))
    by_name = {node_.name: node_ for node_ in exact}
    for layer in net.layers:
        read = by_name[layer.name].inputs[0]
        got = network.reads(layer, values[layer.inputs[0]])
        apart = ((got - values[read]) / exact.types[read].scale).abs()
        assert apart.max() < 1.001 and (apart > 0.5).double().mean() < 2e-3


def test_weights_and_biases_may_be_others_and_may_change() -> None:
    net = captured("Residual")
    types = ActivationTypes(net, ranges_of("Residual"), mixed(net))
    last, x = net.layers[-1], samples(4)
    assert last.weight is not None and last.bias is not None
    zero = {last.name: torch.zeros(last.weight.shape)}
    bias = {last.name: torch.arange(5.0)}
    assert torch.equal(SimulatedNetwork(net, types, zero, bias)(x), torch.arange(5.0).expand(4, 5))
    network = SimulatedNetwork(net, types)
    before = network(x)
    network.biases[last.name] += 1
    torch.testing.assert_close(network(x), before + 1)
    assert torch.equal(torch.from_numpy(last.bias) + 1, network.biases[last.name]), "the graph keeps its own"


def test_one_range_a_width_is_read_at_its_width() -> None:
    net = graph(conv("a", "x"), conv("b", "a"), conv("c", "a"), node("sum", "add", "b", "c"))
    ranges: RangeTable = {
        **dict.fromkeys(("x", "b", "c", "sum"), Range(-4, 4)),
        "a": {4: Range(-1, 1), 8: Range(-4, 4)},
    }
    bits = BitConfig({"a": Bits(8, 8), "b": Bits(8, 4), "c": Bits(8, 8)})
    network = SimulatedNetwork(net, ActivationTypes(net, ranges, bits))
    x = torch.full((1, 4, 6, 6), 3.0)
    assert network.reads(net.by_name["b"], x).max() == pytest.approx(1.0)
    assert network.reads(net.by_name["c"], x) is x


def test_ties_go_up_and_clips_end_on_the_grid() -> None:
    quarter = Grid(0.25, -8, 7)
    x = torch.tensor([-0.125, -0.375, 0.125, 0.375, 9.0, -9.0])
    assert quarter.nearest(x).tolist() == [0.0, -0.25, 0.25, 0.5, 1.75, -2.0]
    type = TensorType(IntType(4, signed=True), (1,), 0.25)
    assert Grid.of(type) == quarter
    assert Grid.of(type, Clip(-0.125, 0.875)) == Grid(0.25, 0, 4)
    assert Grid.of(type, Clip(-float("inf"), float("inf"))) == quarter
