"""Rounding whole networks: what it gains, that it is the same on any number of threads and after being cut off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from hawq_tvm.backends.pytorch.float_module import FloatModule, weighted
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.calibration.moments import MomentSums
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.float_ir import FloatGraph, FloatNode
from hawq_tvm.core.hashing import own_seed
from hawq_tvm.core.integerize import integerize, round_to_nearest
from hawq_tvm.core.ir import Window
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.core.quantizer import LayerWeights, Range, weight_limit
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.posttraining.alone import round_alone
from hawq_tvm.posttraining.layer import Found
from hawq_tvm.posttraining.walk import Walk, samples_that_fit
from hawq_tvm.settings import RoundingSettings

from .builders import captured, ranges_of, samples

FOUR, EIGHT = WeightFormat(4), WeightFormat(8)
NETWORKS = ("Residual", "Mobile", "Concat")
NEAREST = RoundingSettings("nearest", scale_search=False, slope=False, bias=False)


def pieces(count: int = 24, size: int = 8) -> list[torch.Tensor]:
    return list(samples(count, seed=1).split(size))


def bits_of(graph: FloatGraph, pair: str) -> BitConfig:
    return BitConfig.uniform(tuple(layer.name for layer in graph.layers), Bits.parse(pair))


def rounded(
    name: str, pair: str = "w4a8", settings: RoundingSettings | None = None, **words: object
) -> Mapping[str, LayerWeights]:
    graph = captured(name)
    types = ActivationTypes(graph, ranges_of(name), bits_of(graph, pair))
    return Walk(graph, types, settings or RoundingSettings(), **words).run(pieces())


def same(a: Mapping[str, LayerWeights], b: Mapping[str, LayerWeights]) -> bool:
    parts = ("integers", "scales", "bias", "bits")
    return a.keys() == b.keys() and all(
        np.array_equal(getattr(a[name], part), getattr(b[name], part)) for name in a for part in parts
    )


def output_error(name: str, pair: str, weights: Mapping[str, LayerWeights] | None) -> float:
    """Mean squared error of the integer network's output over that of its values, on samples not seen before."""
    graph = captured(name)
    x = samples(32, seed=2)
    with torch.no_grad():
        expected = FloatModule(graph)(x)
        got = IntegerModule(integerize(graph, ranges_of(name), bits_of(graph, pair), weights))(x)
    return float((got - expected).square().mean() / expected.var())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pair", ["w4a8", "w3a8"])
def test_least_error_beats_nearest_on_other_samples(name: str, pair: str) -> None:
    assert output_error(name, pair, rounded(name, pair)) < 0.8 * output_error(name, pair, None)


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_off_is_what_integerize_does_by_itself(name: str) -> None:
    weights = rounded(name, "w4a8", NEAREST)
    graph = captured(name)
    mine, theirs = (integerize(graph, ranges_of(name), bits_of(graph, "w4a8"), given) for given in (weights, None))
    for a, b in zip(mine, theirs, strict=True):
        assert getattr(a.op, "weight", None) is None or np.array_equal(a.op.weight, b.op.weight)
        assert getattr(a.op, "bias", None) is None or np.array_equal(a.op.bias, b.op.bias)


@pytest.mark.parametrize("name", NETWORKS)
def test_integers_fit_their_bits_and_scales_are_above_zero(name: str) -> None:
    for pair in ("w2a4", "w4a4", "w8a8"):
        for layer in rounded(name, pair).values():
            assert np.abs(layer.integers).max() <= weight_limit(layer.bits)
            assert (layer.scales > 0).all()
            assert np.isfinite(layer.bias).all()


def test_the_same_on_any_number_of_threads() -> None:
    one, two, three = (rounded("Residual", threads=threads) for threads in (1, 2, 3))
    assert same(one, two)
    assert same(one, three)


def test_the_seed_decides_which_positions_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hawq_tvm.posttraining.layer.ROWS", 24 * 10)  # ten of each sample's, and not all
    assert same(rounded("Residual", seed=3), rounded("Residual", seed=3))
    assert not same(rounded("Residual", seed=3), rounded("Residual", seed=4))
    assert len({own_seed(seed, index) for seed in range(5) for index in range(5)}) == 25


@pytest.mark.parametrize("name", NETWORKS)
def test_a_walk_that_was_cut_off_ends_with_the_same_integers(name: str) -> None:
    graph = captured(name)
    walk = Walk(graph, ActivationTypes(graph, ranges_of(name), bits_of(graph, "w4a4")), RoundingSettings())
    kept: dict[str, Found] = {}

    class CutOffError(Exception):
        pass

    def keep(layer: str, found: Found) -> None:
        kept[layer] = found
        if len(kept) == 2:
            raise CutOffError

    with pytest.raises(CutOffError):
        walk.run(pieces(), keep=keep)
    late: list[str] = []
    resumed = walk.run(pieces(), done=kept, keep=lambda layer, found: late.append(layer))
    assert same(resumed, walk.run(pieces()))
    assert late == [layer.name for layer in graph.layers][2:]


def test_weights_on_a_grid_stay_as_they_are() -> None:
    """A network that was trained with 4-bit weights loses none of them, whatever the largest of a channel is."""
    graph = captured("Residual")
    generator = np.random.default_rng(0)
    nodes, integers = [], {}
    for node in graph:
        if node.weight is not None:
            levels = generator.integers(-5, 6, node.weight.shape)
            levels.reshape(len(levels), -1)[:, 0] = 5
            levels.reshape(len(levels), -1)[:, -1] = 1
            integers[node.name] = levels
            scale = generator.uniform(0.01, 0.1, (len(levels), *(1,) * (levels.ndim - 1)))
            node = replace(node, weight=(levels * scale).astype(np.float32))
        nodes.append(node)
    graph = replace(graph, nodes=tuple(nodes))
    types = ActivationTypes(graph, ranges_of("Residual"), bits_of(graph, "w4a8"))
    found = Walk(graph, types, RoundingSettings()).run(pieces())
    for name, levels in integers.items():
        assert np.array_equal(found[name].integers, levels), name
    for layer in Walk(graph, types, RoundingSettings(slope=False)).run(pieces()).values():
        assert np.allclose(layer.restored, graph.by_name[layer_name(found, layer)].weight, rtol=1e-5)


def layer_name(found: Mapping[str, LayerWeights], layer: LayerWeights) -> str:
    return next(name for name, other in found.items() if np.array_equal(other.integers, layer.integers))


def test_given_scales_are_taken_as_they_are() -> None:
    graph = captured("Residual")
    first = graph.layers[0]
    scales = np.linspace(0.01, 0.02, len(first.weight))
    found = rounded("Residual", scales={first.name: scales})
    assert np.array_equal(found[first.name].scales, scales)
    free = rounded("Residual")
    assert not np.array_equal(free[first.name].scales, scales)


def test_fewer_samples_than_columns() -> None:
    graph = captured("Residual")
    types = ActivationTypes(graph, ranges_of("Residual"), bits_of(graph, "w4a8"))
    for layer in Walk(graph, types, RoundingSettings()).run([samples(1, seed=1)]).values():
        assert np.isfinite(layer.restored).all()


def test_a_dead_input_channel_and_an_input_of_zeros() -> None:
    graph = captured("Residual")
    types = ActivationTypes(graph, ranges_of("Residual"), bits_of(graph, "w4a8"))
    dead = samples(8, seed=1)
    dead[:, 1] = 0
    for x in (dead, torch.zeros_like(dead)):
        for layer in Walk(graph, types, RoundingSettings()).run([x]).values():
            assert np.isfinite(layer.restored).all()
            assert (layer.scales > 0).all()


def signal_db(graph: FloatGraph, x: torch.Tensor, settings: RoundingSettings) -> float:
    """Signal over error of a network at W4/A8 on samples like those that it was rounded on."""
    network = FloatModule(graph)
    ranges: dict[str, Range] = {}

    def tap(name: str, value: torch.Tensor) -> None:
        ranges[name] = Range(min(float(value.min()), 0.0), float(value.max()))

    with torch.no_grad():
        expected = network(x, tap=tap)
        weights = Walk(graph, ActivationTypes(graph, ranges, bits_of(graph, "w4a8")), settings).run(x.split(8))
        got = IntegerModule(integerize(graph, ranges, bits_of(graph, "w4a8"), weights))(x)
    return float(10 * torch.log10(expected.square().sum() / (got - expected).square().sum()))


@pytest.mark.parametrize("times", [3.0, 30.0, 316.0])
def test_large_weights_of_an_input_that_is_always_0_cost_nothing(times: float) -> None:
    """They set no scale, and the target and the integers do not serve them."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, 3, 3, generator=generator)
    weight[:, 1] *= times
    bias, window = np.zeros(8, np.float32), Window((3, 3), (1, 1), (1, 1, 1, 1))
    layer = FloatNode("layer", "conv2d", ("x",), (8, 6, 6), weight=weight.numpy(), bias=bias, window=window)
    graph = FloatGraph("dead", "x", (4, 6, 6), (layer,), "layer")
    x = torch.randn(32, 4, 6, 6, generator=generator)
    x[:, 1] = 0
    assert signal_db(graph, x, RoundingSettings()) > 20


@pytest.mark.parametrize("name", ["Residual", "Mobile"])
def test_without_a_bias_the_weights_see_to_the_means(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing corrects the means, they count in what the weights are fitted to."""
    alone = RoundingSettings("least-error", scale_search=False, slope=False, bias=False)
    error = output_error(name, "w4a8", rounded(name, settings=alone))
    centred = MomentSums.moments
    monkeypatch.setattr(MomentSums, "moments", lambda sums, **_: centred(sums))
    assert error < output_error(name, "w4a8", rounded(name, settings=alone))


def test_weights_of_other_bits_are_refused() -> None:
    graph = captured("Residual")
    with pytest.raises(AllocationError, match="was rounded to 4 bits and is to have 8; round it again"):
        integerize(graph, ranges_of("Residual"), bits_of(graph, "w8a8"), rounded("Residual", "w4a8"))


def test_a_bias_that_does_not_fit_moves_its_channel_to_a_coarser_grid() -> None:
    graph = captured("Residual")
    given = dict(rounded("Residual", "w4a8"))
    first = graph.layers[0].name
    given[first] = replace(given[first], bias=given[first].bias + np.float32(1e7))
    network = integerize(graph, ranges_of("Residual"), bits_of(graph, "w4a8"), given)
    op = next(node.op for node in network if node.name == first)
    assert isinstance(op, Conv2d)
    assert np.abs(op.bias).max() <= 2**30 + 1


def test_samples_are_as_many_as_memory_is_set_apart_for(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = captured("Residual")
    many = samples_that_fit(graph)
    monkeypatch.setattr("hawq_tvm.posttraining.walk._MOST_BYTES", 1)
    assert samples_that_fit(graph) == 1 < many


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_alone_are_rounded_towards_themselves(name: str) -> None:
    """On float inputs the error of a layer's own outputs is less than that of nearest rounding, at each width."""
    graph = captured(name)
    found = round_alone(graph, pieces(), (FOUR, EIGHT), RoundingSettings(), threads=2)
    again = round_alone(graph, pieces(), (EIGHT, FOUR), RoundingSettings())
    assert [*found] == [layer.name for layer in graph.layers]
    inputs: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        FloatModule(graph)(torch.cat(pieces()), tap=inputs.__setitem__)

    def error(layer: FloatNode, weights: LayerWeights) -> float:
        """Of a layer's own results; its residual and its clip are the same in both."""
        assert layer.weight is not None and layer.bias is not None
        x = inputs[layer.inputs[0]]
        parts = [(weights.restored, weights.bias), (layer.weight, layer.bias)]
        got, wanted = (weighted(layer, x, *(torch.from_numpy(part).float() for part in pair)) for pair in parts)
        return float((got - wanted).square().mean())

    for layer in graph.layers:
        assert [*found[layer.name]] == [FOUR, EIGHT]
        nearest = {format: round_to_nearest(layer, format, 1.0) for format in (FOUR, EIGHT)}
        assert error(layer, found[layer.name][FOUR]) < error(layer, nearest[FOUR]), layer.name
        assert error(layer, found[layer.name][EIGHT]) <= 1.01 * error(layer, nearest[EIGHT]), layer.name
        for format, weights in found[layer.name].items():
            assert weights.format == format
            assert np.array_equal(weights.integers, again[layer.name][format].integers)


def test_given_scales_are_those_of_layers_alone_too() -> None:
    graph = captured("Residual")
    first, second = graph.layers[:2]
    assert first.weight is not None
    scales = np.full(len(first.weight), 0.0625)
    found = round_alone(
        graph, pieces(), (FOUR, EIGHT), RoundingSettings(), scales={first.name: scales, second.name: None}
    )
    for format in (FOUR, EIGHT):
        assert np.array_equal(found[first.name][format].scales, scales)
    free = round_alone(graph, pieces(), (FOUR,), RoundingSettings())
    assert not np.array_equal(free[first.name][FOUR].scales, scales)
    assert np.array_equal(free[second.name][FOUR].integers, found[second.name][FOUR].integers)


def test_a_layer_of_too_many_inputs_is_rounded_to_nearest_and_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second moments take memory with the square of the inputs; slope and bias do not."""
    monkeypatch.setattr("hawq_tvm.posttraining.solve.MOST_INPUTS", 1)
    found = rounded("Residual")
    monkeypatch.undo()
    corrected = rounded("Residual", settings=RoundingSettings("nearest", scale_search=False))
    names = [node.name for node in captured("Residual").layers if node.kind == "linear"]
    assert names
    for name in names:
        assert np.array_equal(found[name].integers, corrected[name].integers)
    assert not same(found, rounded("Residual"))
