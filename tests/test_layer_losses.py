"""Losses of one changed layer against whole networks with that layer changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule, clipped, weighted
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.errors import SensitivityError
from hawq_tvm.core.float_ir import FloatNode
from hawq_tvm.core.quantizer import Range
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.posttraining.changes import Change, Network, RealNetwork
from hawq_tvm.posttraining.divergence import output_divergence
from hawq_tvm.posttraining.layer_losses import layer_losses, mean_results, network_loss, with_means_of
from hawq_tvm.posttraining.simulate import Grid, SimulatedNetwork

from . import networks
from .builders import captured, ranges_of, rounded, samples
from .float_graphs import RELU, conv, graph, linear, node

GRID = Grid(0.25, -7, 7)


def pieces() -> list[Tensor]:
    return [samples(3), samples(2, seed=1), samples(1, seed=2)]


def simulated(name: str, bits: str = "w4a4") -> SimulatedNetwork:
    config = BitConfig.uniform(tuple(layer.name for layer in captured(name).layers), Bits.parse(bits))
    return SimulatedNetwork(captured(name), ActivationTypes(captured(name), ranges_of(name), config))


def four_bits(name: str, layer: str) -> Tensor:
    return torch.from_numpy(rounded(name)[layer][WeightFormat(4)].restored.astype(np.float32))


class _Reads(RealNetwork):
    """A float network in which one layer reads its first input on a grid."""

    def __init__(self, name: str, layer: str) -> None:
        super().__init__(captured(name))
        self._layer = layer

    def reads(self, node: FloatNode, x: Tensor) -> Tensor:
        return GRID.nearest(x) if node.name == self._layer else x


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_nothing_changed_is_the_network_itself(name: str) -> None:
    real = RealNetwork(captured(name))
    changes = {layer.name: Change(layer.name) for layer in captured(name).layers}
    assert set(layer_losses(real, changes, pieces(), reference=real).values()) == {0.0}
    quantised = simulated(name)
    whole = network_loss(quantised, pieces(), reference=real)
    assert whole > 0
    assert set(layer_losses(quantised, changes, pieces(), reference=real).values()) == {whole}
    x = samples(3)
    expected = float(output_divergence(FloatModule(captured(name))(x), quantised(x)).mean())
    assert network_loss(quantised, [x], reference=real) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_a_changed_layer_is_the_whole_network_with_that_layer_changed(name: str) -> None:
    real = RealNetwork(captured(name))
    for of in (lambda: RealNetwork(captured(name)), lambda: simulated(name)):
        for layer in captured(name).layers:
            change = Change(layer.name, four_bits(name, layer.name), torch.ones(len(real.biases[layer.name])))
            network: Network = of()
            found = layer_losses(network, {0: change}, pieces(), reference=real)[0]
            assert change.weight is not None and change.bias is not None
            network.weights[layer.name], network.biases[layer.name] = change.weight, change.bias
            assert found == network_loss(network, pieces(), reference=real) > 0, layer.name


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_an_input_on_a_grid_is_that_of_its_layer_alone(name: str) -> None:
    """Not of others that read the same value."""
    real = RealNetwork(captured(name))
    changes = {layer.name: Change(layer.name, reads=GRID) for layer in captured(name).layers}
    found = layer_losses(real, changes, pieces(), reference=real)
    for layer in captured(name).layers:
        assert found[layer.name] == network_loss(_Reads(name, layer.name), pieces(), reference=real), layer.name


def test_exact_inputs_are_those_before_rounding_through_nodes_that_keep_elements() -> None:
    weight = np.random.default_rng(0).normal(0, 0.05, (3, 288)).astype(np.float32)
    net = graph(
        conv("a", "x", clip=RELU),
        conv("b", "x"),
        node("joined", "concat", "a", "b", shape=(8, 6, 6)),
        node("flat", "flatten", "joined", shape=(288,)),
        replace(linear("fc", "flat", features=288), weight=weight, bias=np.zeros(3, np.float32)),
    )
    ranges = {name: Range(-4.0, 4.0) for name in ("x", "a", "b", "joined")}
    types = ActivationTypes(net, ranges, BitConfig.uniform(("a", "b", "fc"), Bits(8, 2)))
    network, real = SimulatedNetwork(net, types), RealNetwork(net)
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    read = network.start(x)
    a, b = (weighted(net.by_name[n], read, real.weights[n], real.biases[n]) for n in ("a", "b"))
    exact = torch.cat([clipped(a, RELU), b], 1).flatten(1)
    expected = weighted(net.by_name["fc"], exact, real.weights["fc"], real.biases["fc"])
    found = layer_losses(network, {0: Change("fc", exact=True)}, [x], reference=real)[0]
    assert found == pytest.approx(float(output_divergence(FloatModule(net)(x), expected).mean()))
    assert found != pytest.approx(network_loss(network, [x], reference=real))
    first = layer_losses(network, {0: Change("a", exact=True)}, [x], reference=real)[0]
    assert first != pytest.approx(network_loss(network, [x], reference=real)), "the network's input too"


def test_threads_change_nothing() -> None:
    real, network = RealNetwork(captured("Mobile")), simulated("Mobile")
    changes = {layer.name: Change(layer.name, exact=True) for layer in captured("Mobile").layers}
    one, three = (layer_losses(network, changes, pieces(), reference=real, threads=n) for n in (1, 3))
    assert one == three
    means = [with_means_of(real, network, changes, pieces, threads=n) for n in (1, 3)]
    for key in changes:
        first, second = (found[key].bias for found in means)
        assert first is not None and second is not None and torch.equal(first, second)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_corrected_biases_give_each_channel_its_mean_in_the_float_network(name: str) -> None:
    real, network = RealNetwork(captured(name)), simulated(name)
    layers = captured(name).layers
    changes = {layer.name: Change(layer.name, four_bits(name, layer.name), reads=GRID) for layer in layers}
    wanted = mean_results(real, {layer.name: Change(layer.name) for layer in layers}, pieces())
    for of in (real, network):
        found = mean_results(of, with_means_of(real, of, changes, pieces), pieces())
        for key, mean in found.items():
            torch.testing.assert_close(mean, wanted[key], rtol=1e-4, atol=1e-4)


def test_progress_counts_samples() -> None:
    real, seen = RealNetwork(captured("Residual")), list[int]()
    layer_losses(real, {0: Change(captured("Residual").layers[0].name)}, pieces(), reference=real, progress=seen.append)
    assert seen == [3, 5, 6]


def test_what_cannot_be_measured_is_told() -> None:
    real = RealNetwork(captured("Residual"))
    layer = captured("Residual").layers[1].name
    for measure in (
        lambda: layer_losses(real, {0: Change(layer)}, [], reference=real),
        lambda: network_loss(real, [], reference=real),
        lambda: mean_results(real, {0: Change(layer)}, []),
    ):
        with pytest.raises(SensitivityError, match="no samples to measure losses on"):
            measure()
    broken = Change(layer, torch.full_like(real.weights[layer], torch.nan))
    with pytest.raises(SensitivityError, match=f"not finite where '{layer}' is quantised"):
        layer_losses(real, {0: broken}, pieces(), reference=real)


def test_a_change_is_left_as_it_is() -> None:
    real = RealNetwork(captured("Residual"))
    change = Change(captured("Residual").layers[0].name, reads=GRID)
    corrected = with_means_of(real, real, {0: change}, pieces)[0]
    assert change.bias is None and corrected.bias is not None
    assert replace(corrected, bias=None).reads == GRID
