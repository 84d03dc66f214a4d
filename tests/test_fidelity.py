"""How much of the signal is left: the figures are right, and each cause is named, in a network made to have it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.calibration import make_observer, observe_ranges
from hawq_tvm.core.errors import DataError, RunError
from hawq_tvm.core.float_ir import Clip, FloatGraph, FloatNode
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import IntType, TensorType
from hawq_tvm.core.quantizer import LayerWeights, Range, quantize_weight, weight_scales
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.measure.causes import MOST_WARNINGS, least_db
from hawq_tvm.measure.fidelity import Fidelity
from hawq_tvm.measure.meters import Meter, decibels
from hawq_tvm.measure.sqnr import measure_fidelity, restored

from . import networks
from .builders import captured, integers_of, samples
from .float_graphs import POINT, RELU, node

CHANNELS = 16
SHAPE = (CHANNELS, 6, 6)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def layer(name: str, *inputs: str, seed: int = 0, columns: int = CHANNELS, **fields: Any) -> FloatNode:
    """A convolution of random weights that keeps the size of what it reads."""
    weight = fields.pop("weight", random(CHANNELS, columns, 1, 1, seed=seed) * (2 / columns) ** 0.5)
    constants = {"weight": weight.astype(np.float32), "bias": np.zeros(CHANNELS, np.float32), "window": POINT}
    return node(name, "conv2d", *inputs, shape=SHAPE, **{**constants, **fields})


def network(*nodes: FloatNode) -> FloatGraph:
    return FloatGraph("net", "x", SHAPE, nodes, nodes[-1].name)


def noise(count: int = 16, seed: int = 0) -> Tensor:
    return torch.from_numpy(random(count, *SHAPE, seed=seed))


def assessed(
    float_graph: FloatGraph,
    x: Tensor | None = None,
    *,
    pair: str = "w8a8",
    pins: Mapping[str, str] | None = None,
    ranges: Mapping[str, Range] | None = None,
    observer: str = "max",
    weights: Mapping[str, LayerWeights] | None = None,
) -> Fidelity:
    """The fidelity of a float graph at uniform bits but for the pins, calibrated on the samples it is measured on."""
    x = noise() if x is None else x
    module = FloatModule(float_graph)
    found = observe_ranges(lambda batch, tap: module(batch, tap=tap), [x], make_observer(observer))
    given = {name: (pins or {}).get(name, pair) for name in (item.name for item in float_graph.layers)}
    bits = BitConfig({name: Bits.parse(text) for name, text in given.items()})
    integers = integerize(float_graph, {**found, **(ranges or {})}, bits, weights)
    return measure_fidelity(float_graph, integers, x.split(5))


# the figures


@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.parametrize("pairs", [("w8a8",), ("w4a4", "w8a8")])
def test_the_accumulated_figure_is_that_of_the_networks_themselves(name: str, pairs: tuple[str, ...]) -> None:
    graph, x = integers_of(name, pairs), samples(8)
    exact: dict[str, Tensor] = {}
    FloatModule(captured(name))(x, tap=exact.__setitem__)
    module = IntegerModule(graph)
    integers = module.values(module.quantize(x))
    found = measure_fidelity(captured(name), graph, x.split(3))
    assert found.samples == 8
    for value in found.values:
        if value.name not in exact:
            continue  # a narrower copy
        y = exact[value.name].double()
        error = integers[value.name].double() * graph.types[value.name].scale - y
        assert value.accumulated_db == pytest.approx(
            decibels(float(y.square().sum()), float(error.square().sum())), abs=1e-3
        )
        assert value.largest == pytest.approx(float(y.abs().max()))


def test_alone_is_one_node_on_the_float_networks_inputs() -> None:
    graph, x = integers_of("Residual", ("w4a8",)), samples(8)
    exact: dict[str, Tensor] = {}
    FloatModule(captured("Residual"))(x, tap=exact.__setitem__)
    project = next(item for item in graph if item.name == "project")
    inputs = []
    for name in project.inputs:
        type = graph.types[name]
        inputs.append(np.clip(np.floor(exact[name].numpy() / type.scale + 0.5), type.dtype.lo, type.dtype.hi))
    got = project.op.evaluate([item.astype(np.int64) for item in inputs]) * project.type.scale
    y = exact["project"].numpy().astype(np.float64)
    value = measure_fidelity(captured("Residual"), graph, [x]).of("project")
    assert value.alone_db == pytest.approx(decibels(np.square(y).sum(), np.square(got - y).sum()), abs=0.01)
    assert value.weight_bits == 4
    assert value.weights_db < min(value.inputs_db, value.output_db), "4 bits lose more than 8"
    assert value.alone_db < value.weights_db + 0.5


def test_parts_of_independent_noise_add_up() -> None:
    found = assessed(network(layer("one", "x"), layer("two", "one", seed=1)))
    value = found.of("one")
    parts = sum(10 ** (-part / 10) for part in (value.inputs_db, value.weights_db, value.output_db))
    assert value.alone_db == pytest.approx(-10 * np.log10(parts), abs=0.5)


def test_every_value_has_its_figures_but_those_that_move_integers() -> None:
    found = measure_fidelity(captured("Concat"), integers_of("Concat", ("w8a8",)), [samples(4)])
    assert [value.name for value in found.values][:4] == ["x", "stem", "left", "right"]
    assert {value.kind for value in found.values} == {"input", "conv2d", "concat", "global_avg_pool2d"}
    result = found.values[-1]
    assert result.bits == 32
    assert result.range_use is None
    assert result.levels is None
    assert result.effective_bits is None


def test_the_restored_weights_are_those_of_the_integers() -> None:
    graph = integers_of("Mobile", ("w4a8",))
    found = restored(captured("Mobile"), graph)
    for made, again in zip(captured("Mobile").layers, found.layers, strict=True):
        scales = np.abs(made.weight.reshape(len(made.weight), -1)).max(axis=1) / 7
        shape = (-1, *(1,) * (made.weight.ndim - 1))
        assert (np.abs(again.weight - made.weight) <= 0.501 * scales.reshape(shape)).all()
        assert again.bias == pytest.approx(made.bias, abs=1e-3)


def test_the_same_figures_however_samples_are_cut() -> None:
    graph, x = integers_of("Residual", ("w4a4",)), samples(8)
    one, many = (measure_fidelity(captured("Residual"), graph, x.split(size)) for size in (8, 3))
    for a, b in zip(one.values, many.values, strict=True):
        assert a.name == b.name
        assert a.alone_db == (None if b.alone_db is None else pytest.approx(b.alone_db, abs=1e-3))
        assert (a.clipped, a.levels, a.effective_bits) == (b.clipped, b.levels, b.effective_bits)


def test_no_samples_are_an_error() -> None:
    with pytest.raises(DataError, match="no samples"):
        measure_fidelity(captured("Residual"), integers_of("Residual"), [])


def test_it_is_read_back_as_it_was_written() -> None:
    found = measure_fidelity(captured("Residual"), integers_of("Residual", ("w4a4",)), [samples(4)])
    text = json.dumps(found.to_json())
    assert Fidelity.from_json(JsonReader("f", RunError, "").parse(text.encode())) == found
    with pytest.raises(RunError, match=r"samples"):
        Fidelity.from_json({**found.to_json(), "samples": "many"})
    assert found.of("nothing") is None


# the meter


def metered(y: list[float], dtype: IntType, scale: float) -> Meter:
    """A meter of one channel that has seen these elements."""
    meter = Meter.of(TensorType(dtype, (1, 1, len(y)), scale))
    values = torch.tensor(y).view(1, 1, 1, -1)
    q = torch.floor(values / scale + 0.5).clamp(dtype.lo, dtype.hi)
    meter.add(values, q, {"output": q * scale})
    return meter


def test_what_the_range_clips_is_counted() -> None:
    meter = metered([0.0, 1.0, 15.0, 15.4, 15.6, 40.0], IntType(4, signed=False), 1.0)
    assert meter.clipped == 2, "15.4 is rounded, 15.6 would be 16"
    assert meter.clipped_noise == pytest.approx(0.6**2 + 25.0**2)
    assert meter.range_use == pytest.approx(40 / 15)
    assert meter.db("output") == pytest.approx(
        10 * np.log10((1 + 225 + 15.4**2 + 15.6**2 + 1600) / (0.4**2 + 0.6**2 + 625)), abs=1e-4
    )
    below = metered([-9.0, -8.4, 7.0], IntType(4, signed=True), 1.0)
    assert below.clipped == 1
    assert below.range_use == pytest.approx(9 / 7)


def test_zeros_of_a_relu_and_the_networks_own_clip_count_as_nothing() -> None:
    meter = metered([0.0] * 1000 + [6.0] * 10, IntType(8, signed=False), 6 / 255)
    assert meter.clipped == 0
    assert meter.levels.sum() == 10
    assert meter.effective_bits == pytest.approx(8.0)


def test_effective_bits_are_those_of_the_bulk() -> None:
    outlier = metered([3.0] * 1999 + [255.0], IntType(8, signed=False), 1.0)
    assert outlier.effective_bits == pytest.approx(2.0)
    assert outlier.levels_used == 2 / 256
    signed = metered([-3.0, 3.0] * 999 + [127.0], IntType(8, signed=True), 1.0)
    assert signed.effective_bits == pytest.approx(np.log2(7))
    assert metered([0.0], IntType(8, signed=True), 1.0).effective_bits is None


def test_dead_channels_do_not_count_as_weak_ones() -> None:
    meter = Meter.of(TensorType(IntType(8, signed=True), (3, 1, 1), 1.0))
    values = torch.tensor([100.0, 0.5, 0.0]).view(1, 3, 1, 1)
    meter.add(values, values.round(), {"output": values.round()})
    assert meter.channel_spread == pytest.approx(200.0)
    assert list(meter.live) == [True, True, False]


def test_no_noise_and_no_signal_have_no_ratio() -> None:
    assert decibels(0.0, 1.0) is None
    assert decibels(1.0, 0.0) is None
    assert decibels(100.0, 1.0) == pytest.approx(20.0)


# the causes, each by a network that has it and one next to it that has not


def only(found: Fidelity) -> str:
    """The one sentence about a place; that about the network as a whole may follow it."""
    about = [text for text in found.warnings if not text.startswith("the integer network")]
    assert len(about) == 1, about
    return about[0]


HEALTHY = (layer("one", "x", clip=RELU), layer("two", "one", seed=1, clip=RELU), layer("three", "two", seed=2))


@pytest.mark.parametrize("pair", ["w8a8", "w6a6", "w4a8"])
def test_a_healthy_network_is_left_in_peace(pair: str) -> None:
    assert assessed(network(*HEALTHY), pair=pair).warnings == ()


def test_four_bits_are_no_fault_of_a_layer() -> None:
    for text in assessed(network(*HEALTHY), pair="w4a4").warnings:
        assert text.startswith("the integer network as a whole")


def test_a_range_that_clips_is_named() -> None:
    found = assessed(network(*HEALTHY), ranges={"one": Range(0.0, 0.5)})
    text = only(found)
    assert "'one' keeps" in text
    assert f"clips {found.of('one').clipped:.2%} of its elements" in text
    assert "widen it" in text
    assert "which reach" in text
    assert found.of("one").clipped > 0.1


def test_a_clip_of_the_networks_own_is_not() -> None:
    nodes = (replace(HEALTHY[0], clip=Clip(0.0, 0.5)), *HEALTHY[1:])
    found = assessed(network(*nodes))
    assert found.of("one").clipped == 0.0
    assert found.warnings == ()


def test_a_range_far_too_wide_is_named() -> None:
    text = only(assessed(network(*HEALTHY), ranges={"one": Range(0.0, 60.0)}))
    assert text.startswith("'one' uses")
    assert "its range" in text
    assert "narrow it" in text


@pytest.mark.parametrize("pair", ["w8a8", "w4a4"])
def test_outliers_are_named(pair: str) -> None:
    x = noise()
    x.view(-1)[::2500] *= 1000.0
    text = only(assessed(network(*HEALTHY), x, pair=pair))
    assert text.startswith("outliers set the range of 'x'")
    assert f"of its {pair[-1]} bits" in text
    assert "calibrate with --observer mse" in text


def joined(small: float) -> FloatGraph:
    """Two branches, one of them `small` times the other, side by side."""
    weak = layer("weak", "x", seed=1, weight=small * random(CHANNELS, CHANNELS, 1, 1, seed=1))
    strong = layer("strong", "x", seed=2, weight=random(CHANNELS, CHANNELS, 1, 1, seed=2))
    meet = node("meet", "concat", "weak", "strong", shape=(2 * CHANNELS, 6, 6))
    return network(weak, strong, meet, layer("read", "meet", seed=3, columns=2 * CHANNELS))


def test_one_scale_for_branches_600_times_apart_is_named() -> None:
    text = only(assessed(joined(1 / 600)))
    assert text.startswith("one scale serves branches of 'meet'")
    (apart,) = (int(word) for word in text.split() if word.isdecimal() and int(word) > 100)
    assert 400 < apart < 900
    assert "of 'weak' it keeps" in text
    assert assessed(joined(0.5)).warnings == ()


def summed(small: float, *, fused: bool) -> FloatGraph:
    """A weak term and a strong one that is the same in all channels, and a layer that takes the strong one away."""
    weak = layer("weak", "x", weight=small * random(CHANNELS, CHANNELS, 1, 1, seed=1))
    same = np.repeat(random(1, CHANNELS, 1, 1, seed=2), CHANNELS, axis=0)
    if fused:
        terms = weak, layer("meet", "x", "weak", weight=same)
    else:
        terms = weak, layer("strong", "x", weight=same), node("meet", "add", "weak", "strong", shape=SHAPE)
    signs = np.where(np.arange(CHANNELS) % 2, 1.0, -1.0)
    weight = np.stack([np.random.default_rng(row).permutation(signs) for row in range(CHANNELS)])[..., None, None]
    return network(*terms, layer("read", "meet", weight=weight), layer("last", "read", seed=4))


@pytest.mark.parametrize("fused", [False, True])
def test_one_scale_for_terms_600_times_apart_is_named(fused: bool) -> None:
    text = only(assessed(summed(1 / 600, fused=fused)))
    assert text.startswith("'read' keeps")
    assert "one scale serves the sum 'meet' and 'weak', a term of it" in text
    assert assessed(summed(1.0, fused=fused)).warnings == ()


def test_a_weak_term_that_nobody_needs_is_not() -> None:
    nodes = summed(1 / 600, fused=True).nodes
    assert assessed(network(*nodes[:2], layer("read", "meet", seed=5))).warnings == ()


def spread(weak: float) -> FloatGraph:
    """A tensor of which half of the channels are `weak` times the others, and whose reader needs those."""
    sizes = np.where(np.arange(CHANNELS) % 2, weak, 1.0).reshape(-1, 1, 1, 1)
    first = layer("first", "x", weight=random(CHANNELS, CHANNELS, 1, 1, seed=1) * sizes)
    second = layer("second", "first", weight=random(CHANNELS, 1, 1, 1, seed=2) / sizes, groups=CHANNELS)
    return network(first, second, layer("third", "second", seed=3))


def test_channels_far_apart_whose_reader_needs_the_weak_ones_are_named() -> None:
    found = assessed(spread(1 / 600))
    text = only(found)
    assert text.startswith("'second' keeps")
    assert "channels of 'first' up to" in text
    assert f"{CHANNELS // 2} of the {CHANNELS} that carry a signal" in text
    assert assessed(spread(0.25)).warnings == ()


def test_weak_channels_that_nobody_needs_are_not() -> None:
    first, _, third = spread(1 / 600).nodes
    assert assessed(network(first, replace(third, inputs=("first",)))).warnings == ()


@pytest.mark.parametrize("pair", ["w8a8", "w4a8"])
def test_weights_of_one_input_channel_that_set_the_scales_are_named(pair: str) -> None:
    weight = random(CHANNELS, CHANNELS, 1, 1)
    weight[:, 5] *= 300.0
    x = noise()
    x[:, 5] = 0.0
    found = assessed(network(layer("one", "x", weight=weight), layer("two", "one")), x, pair=pair)
    text = only(found)
    assert text.startswith("the weights of 'one' keep")
    assert "input channel 5 are" in text
    assert f"at {pair[1]} bits" in text
    assert ("--pin 'one=w8a8'" in text) == (pair == "w4a8")
    weight[:, 5] /= 300.0
    assert assessed(network(layer("one", "x", weight=weight), layer("two", "one")), x, pair=pair).warnings == ()


def test_weights_spread_within_each_output_channel_are_named() -> None:
    weight = random(CHANNELS, CHANNELS, 1, 1)
    weight[np.arange(CHANNELS), np.random.default_rng(1).permutation(CHANNELS)] = 300.0
    twice = node("twice", "concat", "x", "x", shape=(2 * CHANNELS, 6, 6))
    again = np.where(weight > 100, -weight, weight)  # the large weights cancel
    wide = layer("one", "twice", weight=np.concatenate([weight, again], 1))
    text = only(assessed(network(twice, wide, layer("two", "one"))))
    assert text.startswith("the weights of 'one' keep")
    assert "times the typical one" in text


def times(factor: float, made: FloatNode) -> LayerWeights:
    """A layer's weights at 8 bits, deployed as `factor` times what they are."""
    assert made.weight is not None and made.bias is not None
    scales = weight_scales(made.weight, 8)
    return LayerWeights(quantize_weight(made.weight, scales, 8), factor * scales, made.bias, 8)


def test_weights_that_make_up_for_those_before_them_are_not_blamed() -> None:
    """The first layer gives 0.7 of its result, and the second takes that into account."""
    one, two, _ = HEALTHY
    found = assessed(network(*HEALTHY), weights={"one": times(0.7, one), "two": times(1 / 0.7, two)})
    refitted = found.of("two")
    assert refitted.weights_db < least_db(8) < refitted.accumulated_db
    assert only(found).startswith("the weights of 'one' keep")


def test_terms_that_cancel_are_named() -> None:
    """A large part that all channels share, and a layer that takes it away."""
    x = 0.05 * noise() + 3.0
    signs = np.where(np.arange(CHANNELS) % 2, 1.0, -1.0)
    weight = np.stack([np.random.default_rng(row).permutation(signs) for row in range(CHANNELS)])[..., None, None]
    found = assessed(network(layer("one", "x", weight=weight), layer("two", "one")), x)
    text = only(found)
    assert text.startswith("'one' keeps")
    assert "takes away what they have in common" in text


def test_what_adds_up_over_layers_is_named_with_the_layer_where_it_starts() -> None:
    nodes = [layer("n0", "x", clip=RELU)]
    for index in range(1, 12):
        nodes.append(layer(f"n{index}", nodes[-1].name, seed=index, clip=RELU))
    nodes.append(layer("result", nodes[-1].name, seed=99))
    found = assessed(network(*nodes), pair="w4a8", pins={"n0": "w8a8", "n1": "w8a8"})
    (text,) = found.warnings
    assert text.startswith("the integer network as a whole keeps")
    low = [value.name for value in found.values if value.accumulated_db is not None and value.accumulated_db < 15]
    assert low[0] not in ("n0", "n1", "n2")
    assert f"at '{low[0]}'" in text
    assert "its weights are rounded" in text
    assert "--rounding" not in text, "least error is what is done unless another is asked for"
    alone = [value.alone_db for value in found.values if value.alone_db is not None]
    assert min(alone) > found.values[-1].accumulated_db + 3
    assert assessed(network(*nodes)).warnings == ()


def test_a_fault_is_told_once_and_many_are_counted() -> None:
    bad = {f"n{index}": Range(0.0, 0.3) for index in range(MOST_WARNINGS + 4)}
    nodes = [layer("n0", "x", clip=RELU)]
    for index in range(1, len(bad) + 1):
        nodes.append(layer(f"n{index}", nodes[-1].name, seed=index, clip=RELU))
    found = assessed(network(*nodes), ranges=bad)
    places = [text for text in found.warnings if not text.startswith("the integer network")]
    assert len(places) == MOST_WARNINGS + 1
    assert places[-1].startswith("4 more places")


def test_expectations_rise_with_the_bits() -> None:
    assert [least_db(bits) for bits in (4, 8)] == [2.0, 23.0]
    assert all(5 < least_db(bits + 1) - least_db(bits) < 6.03 for bits in range(2, 8)), "at most 6 dB a bit"


def test_the_test_networks_are_left_in_peace_at_8_bits() -> None:
    for name in networks.NETWORKS:
        found = measure_fidelity(captured(name), integers_of(name, ("w8a8",)), [samples(16)])
        assert found.warnings == (), name
