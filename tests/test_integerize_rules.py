"""Integerising by its rules, one at a time, on graphs of a few nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from hawq_tvm.core.errors import AllocationError, CalibrationError, GraphError
from hawq_tvm.core.float32_rescale import float32_is_exact, odd_multipliers
from hawq_tvm.core.float_ir import Clip, FloatGraph, FloatNode
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Graph, Rescale, Window
from hawq_tvm.core.ops import AvgPool2d, Conv2d, Linear, MaxPool2d, WeightedOperator
from hawq_tvm.core.quantizer import Range, quantize_weight, weight_scales
from hawq_tvm.core.specs import BitConfig, Bits

from .float_graphs import RELU, SHAPE, conv, graph, linear, node

COUNTS = np.full((6, 6), 9, np.float32)
POOL = Window((3, 3), pads=(1, 1, 1, 1))


def integers(net: FloatGraph, ranges: Mapping[str, Range] | None = None, default: str = "w8a8", **bits: str) -> Graph:
    """The integer graph; each value has a range of its own where none is given, each layer `default` bits."""
    found = {name: Range(-1 - 0.1 * i, 2 + 0.3 * i) for i, name in enumerate(net.shapes)}
    config = BitConfig({layer.name: Bits.parse(bits.get(layer.name, default)) for layer in net.layers})
    return integerize(net, {**found, **(ranges or {})}, config)


def types(net: FloatGraph, **bits: str) -> dict[str, str]:
    return {name: repr(type.dtype) for name, type in integers(net, **bits).types.items()}


def ratios(rescale: Rescale | None) -> np.ndarray[Any, Any]:
    """The real numbers that the multipliers stand for, those of a residual behind."""
    assert rescale is not None
    every = [*rescale.multiplier.ravel(), *([] if rescale.residual is None else rescale.residual)]
    return np.array([float(Fraction(int(m), 2**rescale.shift)) for m in every])


# which type a value has


def test_a_value_is_stored_at_the_most_bits_that_a_reader_asks_for() -> None:
    net = graph(
        conv("a", "x", clip=RELU), conv("b", "a"), conv("c", "a"), node("sum", "add", "b", "c"), conv("last", "sum")
    )
    assert types(net, b="w8a3", c="w8a5", last="w4a4", a="w8a6") == {
        "x": "s6", "a": "u5", "a.u3": "u3", "b": "s8", "c": "s8", "sum": "s4", "last": "s32",
    }  # fmt: skip


def test_a_residual_is_stored_at_eight_bits_and_what_is_read_first_is_not() -> None:
    net = graph(conv("a", "x", clip=RELU), conv("b", "x", clip=RELU), conv("c", "b", "a"), conv("last", "c"))
    found = types(net, c="w8a4", last="w8a4")
    assert (found["a"], found["b"], found["c"]) == ("u8", "u4", "s4")


def test_views_and_pools_pass_on_what_their_readers_ask_for() -> None:
    net = graph(
        conv("a", "x", clip=RELU), node("max", "max_pool2d", "a", window=POOL),
        node("mean", "avg_pool2d", "max", window=POOL, counts=COUNTS), node("flat", "flatten", "mean", shape=(144,)),
        linear("fc", "flat", features=144),
    )  # fmt: skip
    assert types(net, fc="w8a3") == {"x": "s8", "a": "u3", "max": "u3", "mean": "u3", "flat": "u3", "fc": "s32"}


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([conv("n", "x")], "s32"),
        ([conv("a", "x"), conv("b", "x"), node("n", "add", "a", "b")], "s32"),
        ([conv("a", "x"), node("n", "avg_pool2d", "a", window=POOL, counts=COUNTS)], "s32"),
        ([conv("a", "x"), node("n", "global_avg_pool2d", "a", shape=(4, 1, 1))], "s32"),
        ([conv("m", "x"), node("n", "flatten", "m", shape=(144,))], "s32"),
        ([conv("m", "x"), node("n", "max_pool2d", "m", window=POOL)], "s8"),
        ([conv("a", "x"), conv("b", "x"), node("n", "concat", "a", "b", shape=(8, 6, 6))], "s8"),
        ([node("n", "flatten", "x", shape=(144,))], "s8"),
        ([conv("a", "x"), node("n", "clip", "a", clip=Clip(-1, 1))], "s8"),
    ],
)
def test_the_result_keeps_32_bits_where_its_operator_sums(nodes: list[FloatNode], expected: str) -> None:
    found = types(graph(*nodes))
    assert found["n"] == expected
    assert all(name in "nm" or type == "s8" for name, type in found.items()), "nothing else is wide"


def test_what_a_summing_result_reads_is_stored_at_eight_bits() -> None:
    net = graph(conv("a", "x"), node("n", "global_avg_pool2d", "a", shape=(4, 1, 1)), output="n")
    assert types(net)["a"] == "s8"


# which scale


def test_scales_come_from_ranges_and_types() -> None:
    net = graph(conv("a", "x", clip=RELU), conv("b", "a"), conv("last", "b"))
    made = integers(net, {"x": Range(-3.0, 2.0), "a": Range(0.0, 6.0), "b": Range(-1.0, 4.0)}, b="w8a4")
    assert [made.types[name].scale for name in ("x", "a", "b")] == pytest.approx([3 / 127, 6 / 15, 4 / 127])
    assert [made.types[name].shape for name in ("x", "a", "b")] == [SHAPE] * 3


def test_the_result_takes_the_scale_of_what_it_sums() -> None:
    ranges = {"x": Range(-127, 1), "a": Range(-254, 1), "b": Range(-508, 1)}
    for inputs in (("a", "b"), ("b", "a")):
        net = graph(conv("a", "x"), conv("b", "x"), node("n", "add", *inputs))
        assert integers(net, ranges).output_type.scale == 4 / 2**16
    gap = node("n", "global_avg_pool2d", "a", shape=(4, 1, 1))
    assert integers(graph(conv("a", "x"), gap), ranges).output_type.scale == pytest.approx(2 / 36)
    counts = np.where(np.arange(36).reshape(6, 6) == 7, 9, 4).astype(np.float32)
    mean = node("n", "avg_pool2d", "a", window=POOL, counts=counts)
    assert integers(graph(conv("a", "x"), mean), ranges).output_type.scale == pytest.approx(2 / 9)


@pytest.mark.parametrize(("factor", "residual_decides"), [(1.0, False), (1e-9, True)])
def test_the_scale_of_a_layer_that_is_the_result(factor: float, residual_decides: bool) -> None:
    """The coarsest channel's accumulator, or 2^-16 of the residual's where that is coarser."""
    last = conv("last", "a", "b")
    assert last.weight is not None
    last = replace(last, weight=last.weight * np.float32(factor), bias=np.zeros(4, np.float32))
    made = integers(graph(conv("a", "x"), conv("b", "x"), last))
    a, b = made.types["a"].scale, made.types["b"].scale
    coarsest = weight_scales(last.weight, 8).max() * a
    assert made.output_type.scale == pytest.approx(b / 2**16 if residual_decides else coarsest)
    assert (b / 2**16 > coarsest) == residual_decides


# what is computed


@pytest.mark.parametrize("bits", [3, 8])
def test_layers_carry_the_ratio_of_scales(bits: int) -> None:
    flat = node("flat", "flatten", "c", shape=(144,))
    net = graph(
        conv("a", "x"), conv("b", "x"), conv("c", "a", "b", clip=RELU), flat, linear("fc", "flat", features=144)
    )
    made = integers(net, default=f"w{bits}a8")
    for name in ("a", "b", "c", "fc"):
        layer, op = net.by_name[name], made.node(name).op
        assert isinstance(op, WeightedOperator)
        assert layer.weight is not None
        assert layer.bias is not None
        scales = weight_scales(layer.weight, bits)
        source, result = (made.types[value].scale for value in (made.node(name).inputs[0], name))
        assert op.weight_bits == bits
        assert np.array_equal(op.weight, quantize_weight(layer.weight, scales, bits))
        assert np.array_equal(op.bias, np.floor(layer.bias / (scales * source) + 0.5))
        expected = [*(scales * source / result)]
        if name == "c":
            expected.append(made.types["b"].scale / result)
            assert made.node("c").inputs == ("a", "b")
        found, layers = ratios(op.rescale), len(op.bias)
        exactly = pytest.approx(np.array(expected[:layers]), rel=0 if name == "fc" else 2**-23, abs=2**-30)
        assert found[:layers] == exactly
        assert found[layers:] == pytest.approx(np.array(expected[layers:]), abs=2**-14), "13 digits from 1 on"
    assert isinstance(made.node("a").op, Conv2d)
    assert isinstance(made.node("fc").op, Linear)


def test_other_operators_carry_the_ratio_of_scales() -> None:
    counts = np.arange(1, 37, dtype=np.float32).reshape(6, 6)
    net = graph(
        conv("a", "x"), conv("b", "x"), node("sum", "add", "a", "b"),
        concat("both", "a", "sum"), node("relu", "clip", "sum", clip=RELU),
        node("even", "avg_pool2d", "a", window=POOL, counts=COUNTS),
        node("uneven", "avg_pool2d", "b", window=POOL, counts=counts),
        node("gap", "global_avg_pool2d", "both", shape=(8, 1, 1)),
        concat("joined", "relu", "even", "uneven"),
        output="joined",
    )  # fmt: skip
    made = integers(net)
    scale = {name: type.scale for name, type in made.types.items()}

    def carried(name: str) -> list[float]:
        return list(ratios(made.node(name).op.rescale_or_none))

    def near(*values: float) -> Any:
        return pytest.approx(list(values), rel=2**-23, abs=2**-30)

    assert carried("sum") == pytest.approx([scale[name] / scale["sum"] for name in "ab"], rel=0, abs=2**-30)
    assert carried("both") == near(scale["a"] / scale["both"], scale["sum"] / scale["both"])
    assert carried("relu") == near(scale["sum"] / scale["relu"])
    assert carried("even") == near(scale["a"] / 9 / scale["even"])
    assert carried("uneven") == near(*(scale["b"] / counts.ravel().astype(float) / scale["uneven"]))
    assert carried("gap") == near(scale["both"] / 36 / scale["gap"])
    even, uneven = made.node("even").op, made.node("uneven").op
    assert isinstance(even, AvgPool2d)
    assert isinstance(uneven, AvgPool2d)
    assert (even.rescale.multiplier.shape, uneven.rescale.multiplier.shape) == ((1, 1), (6, 6))
    assert even.window == POOL


def test_one_product_that_becomes_few_bits_has_a_multiplier_for_float32() -> None:
    """A sum of two products keeps 31 bits."""
    net = graph(
        conv("a", "x"), conv("b", "a"), conv("c", "a", "b"), node("sum", "add", "b", "c"),
        node("pool", "avg_pool2d", "sum", window=POOL, counts=COUNTS), conv("last", "pool"),
    )  # fmt: skip
    made = integers(net, b="w8a4")

    def is_odd(name: str) -> bool:
        rescale = made.node(name).op.rescale_or_none
        assert rescale is not None
        return np.array_equal(rescale.multiplier, odd_multipliers(rescale.multiplier, rescale.shift))

    assert [name for name in made.types if name not in ("x", "last") and is_odd(name)] == ["a", "a.s4", "b", "pool"]
    for name in ("a", "b", "c", "pool"):
        node_ = made.node(name)
        bounds, rescale = node_.op.bounds([made.types[value] for value in node_.inputs]), node_.op.rescale_or_none
        assert bounds is not None
        assert rescale is not None
        assert float32_is_exact(rescale, bounds) == (name != "c"), name


@pytest.mark.parametrize("size", [(1, 3), (3, 1), (1, 1)])
def test_windows_that_all_count_alike_share_a_multiplier(size: tuple[int, int]) -> None:
    window = Window((6 // size[0], 6 // size[1]), (6 // size[0], 6 // size[1]))
    counts = np.full(size, 36 // (size[0] * size[1]), np.float32)
    pool = node("pool", "avg_pool2d", "a", shape=(4, *size), window=window, counts=counts)
    op = integers(graph(conv("a", "x"), pool, conv("b", "pool", shape=(4, *size)))).node("pool").op
    assert isinstance(op, AvgPool2d)
    assert op.rescale.multiplier.shape == (1, 1)


def test_a_narrower_copy_is_made_once_and_carries_the_ratio_of_scales() -> None:
    net = graph(
        conv("a", "x"), conv("b", "a"), conv("c", "a"), conv("d", "a"), node("s", "add", "b", "c"), conv("e", "s", "d")
    )
    made = integers(net, b="w8a4", c="w8a4", d="w8a8")
    assert [(n.name, n.op.kind) for n in made][:3] == [("a", "conv2d"), ("a.s4", "requantize"), ("b", "conv2d")]
    assert [n.inputs for n in made if n.name in "bcd"] == [("a.s4",), ("a.s4",), ("a",)]
    assert len([n for n in made if n.op.kind == "requantize"]) == 1
    copy = made.node("a.s4")
    assert list(ratios(copy.op.rescale_or_none)) == pytest.approx([made.types["a"].scale / copy.type.scale], rel=2**-28)
    rescale = copy.op.rescale_or_none
    assert rescale is not None
    assert (rescale.lo, rescale.hi) == (-8, 7)


def test_a_copy_of_a_view_has_the_scale_of_what_is_viewed() -> None:
    pool = node("p", "max_pool2d", "a", window=POOL)
    made = integers(graph(conv("a", "x"), pool, conv("b", "p"), conv("c", "p"), node("s", "add", "b", "c")), b="w8a4")
    top = made.types["a"].scale * 127
    assert made.types["p.s4"].scale == pytest.approx(top / 7)
    assert made.node("p").op.__class__ is MaxPool2d
    assert made.types["p"] == made.types["a"]


@pytest.mark.parametrize("taken", [["a.s4"], ["a.s4", "a.s4_"]])
def test_a_copy_takes_a_name_that_no_layer_has(taken: list[str]) -> None:
    others = [conv(name, "x") for name in taken]
    for nodes in (
        [conv("a", "x"), conv("b", "a"), *others, conv("c", "a")],
        [conv("a", "x"), *others, conv("b", "a"), conv("c", "a")],
    ):
        made = integers(graph(*nodes), default="w8a8", b="w8a4")
        assert made.node("b").inputs == (taken[-1] + "_",)


def test_a_copy_does_not_take_the_inputs_name() -> None:
    net = replace(graph(conv("a", "a.s4"), conv("b", "a"), conv("c", "a")), input_name="a.s4")
    assert integers(net, b="w8a4").node("b").inputs == ("a.s4_",)


@pytest.mark.parametrize(
    ("clip", "bounds"),
    [
        (RELU, (0, 255)),
        (Clip(-float("inf"), 1.0), (-128, 50)),
        (Clip(-0.5, 0.75), (-25, 38)),
        (Clip(-0.51, 0.49), (-25, 25)),
        (Clip(-9.0, 9.0), (-128, 127)),
        (None, (-128, 127)),
    ],
)
def test_clips_become_integer_bounds_rounded_half_up(clip: Clip | None, bounds: tuple[int, int]) -> None:
    """At a scale of 1/50; ties go up, as everywhere: -25.5 to -25 and 37.5 to 38."""
    net = graph(conv("a", "x"), node("n", "clip", "a", clip=clip), node("m", "add", "n", "a"))
    made = integers(net, {"n": Range(0.0, 255 / 50) if clip is RELU else Range(-127 / 50, 0.0)})
    rescale = made.node("n").op.rescale_or_none
    assert rescale is not None
    assert (rescale.lo, rescale.hi) == bounds


# concatenations


def concat(name: str, *inputs: str, parts: int | None = None) -> FloatNode:
    return node(name, "concat", *inputs, shape=(4 * (parts or len(inputs)), 6, 6))


def test_values_that_only_a_concatenation_reads_share_its_scale() -> None:
    pool = node("p", "max_pool2d", "b", window=POOL)
    net = graph(
        conv("a", "x"), conv("b", "x"), pool, conv("c", "x"), concat("n", "a", "p", "c"), concat("m", "n", "c", parts=4)
    )
    scale = {name: type.scale for name, type in integers(net).types.items()}
    assert scale["a"] == scale["b"] == scale["p"] == scale["n"] == scale["m"], (
        "through pools, and concatenations of them"
    )
    assert scale["c"] != scale["m"], "two read it"


def test_a_value_that_is_read_elsewhere_too_keeps_its_scale() -> None:
    pool = node("p", "max_pool2d", "b", window=POOL)
    net = graph(
        conv("a", "x"),
        conv("b", "x"),
        pool,
        concat("n", "a", "p"),
        node("s", "add", "p", "a"),
        concat("m", "n", "s", parts=3),
    )
    scale = {name: type.scale for name, type in integers(net).types.items()}
    assert len({scale["a"], scale["b"], scale["m"]}) == 3
    assert scale["s"] == scale["n"] == scale["m"]


def test_the_input_may_share_a_concatenations_scale() -> None:
    net = graph(node("p", "max_pool2d", "x", window=POOL), concat("n", "p", "p"), concat("m", "n", "x", parts=3))
    assert integers(net).types["x"].scale != integers(net).types["m"].scale
    net = graph(node("p", "max_pool2d", "x", window=POOL), node("q", "max_pool2d", "p", window=POOL), concat("n", "q"))
    assert integers(net).types["x"].scale == integers(net).types["n"].scale


def test_a_result_that_a_concatenation_reads_keeps_its_scale() -> None:
    pool = node("p", "max_pool2d", "a", window=POOL)
    made = integers(graph(conv("a", "x"), conv("b", "x"), pool, concat("n", "p", "b"), output="p"))
    assert made.types["b"].scale == made.types["n"].scale
    assert made.types["a"].scale != made.types["n"].scale


# what is refused


def test_bits_for_every_layer_and_for_no_other() -> None:
    net = graph(conv("a", "x"), conv("b", "a"))
    ranges = dict.fromkeys("xab", Range(-1, 1))
    eight = Bits(8, 8)
    with pytest.raises(AllocationError, match="no bits for layer 'a'; the layers are a, b"):
        integerize(net, ranges, BitConfig({"b": eight}))
    with pytest.raises(AllocationError, match="bits for unknown layer 'c'; the layers are a, b"):
        integerize(net, ranges, BitConfig({"a": eight, "b": eight, "c": eight}))


@pytest.mark.parametrize("name", ["x", "a"])
def test_a_value_without_a_range_or_with_one_of_nothing(name: str) -> None:
    net = graph(conv("a", "x"), conv("b", "a"))
    ranges = dict.fromkeys("xab", Range(-1, 1))
    bits = BitConfig.uniform(("a", "b"), Bits(8, 8))
    with pytest.raises(CalibrationError, match=f"no range for '{name}'"):
        integerize(net, {n: r for n, r in ranges.items() if n != name}, bits)
    for range in (Range(0.0, 0.0), Range(float("nan"), float("nan"))):
        with pytest.raises(CalibrationError, match=f"'{name}' has the range .*: a dead layer"):
            integerize(net, {**ranges, name: range}, bits)


def test_a_ratio_that_no_number_carries_names_its_layer() -> None:
    with pytest.raises(GraphError, match="layer 'a': a scale ratio of"):
        integers(graph(conv("a", "x"), conv("b", "a")), {"a": Range(-1e-12, 0)})


@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_name_their_layer(part: str, value: float) -> None:
    bad = conv("a", "x")
    broken = np.array(getattr(bad, part))
    broken.flat[1] = value
    with pytest.raises(CalibrationError, match="layer 'a' holds weights or biases that are NaN or infinite"):
        integers(graph(replace(bad, **{part: broken}), conv("b", "a")))


def test_channels_of_zeros_take_the_largest_scale_and_layers_of_zeros_are_refused() -> None:
    layer = conv("a", "x")
    assert layer.weight is not None
    assert layer.bias is not None
    weight = layer.weight.copy()
    weight[1] = 0
    made = integers(graph(replace(layer, weight=weight), conv("b", "a")))
    op = made.node("a").op
    assert isinstance(op, Conv2d)
    largest = np.abs(weight).max() / 127
    assert op.bias[1] == np.floor(layer.bias[1] / (largest * made.types["x"].scale) + 0.5)
    with pytest.raises(CalibrationError, match="layer 'a' is dead: all its weights are 0"):
        integers(graph(replace(layer, weight=0 * weight), conv("b", "a")))


def test_a_bias_that_would_not_fit_raises_its_channels_scale() -> None:
    layer = conv("a", "x")
    bias = np.array([1e12, 0.5, -1e12, 0.0], np.float32)
    made = integers(graph(replace(layer, bias=bias), conv("b", "a")), {"a": Range(-1e12, 0)})
    op = made.node("a").op
    assert isinstance(op, Conv2d)
    assert op.bias[[0, 2]].tolist() == [2**30, -(2**30)], "half of what the accumulator holds"
    assert abs(int(op.bias[1])) < 2**20
