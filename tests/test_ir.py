from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.core.errors import GraphError, OverflowRefused
from hawq_tvm.core.ir import Bounds, Graph, IntType, Rescale, TensorType, Window, frozen_array
from hawq_tvm.core.ops import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    Requantize,
)

from .builders import integers_of, one_node_graph

U8, S8 = IntType(8, signed=False), IntType(8, signed=True)


def conv(**changes: Any) -> Conv2d:
    weight = np.arange(-8, 8).reshape(4, 4, 1, 1)
    fields = {
        "weight": weight,
        "weight_bits": 5,
        "bias": np.arange(4),
        "rescale": Rescale(np.full(4, 2**30), 35, 0, 255),
        "window": Window((1, 1)),
    }
    return Conv2d(**{**fields, **changes})


def graph(**changes: Any) -> Graph:
    return one_node_graph(conv(**changes), [TensorType(U8, (4, 3, 3), 0.1)], U8)


@pytest.mark.parametrize(
    ("type", "lo", "hi", "carrier"),
    [("u4", 0, 15, "uint8"), ("s4", -8, 7, "int8"), ("u2", 0, 3, "uint8"), ("s8", -128, 127, "int8")],
)
def test_int_types(type: str, lo: int, hi: int, carrier: str) -> None:
    parsed = IntType.parse(type)
    assert (parsed.lo, parsed.hi, parsed.carrier, repr(parsed)) == (lo, hi, carrier, type)


@pytest.mark.parametrize("text", ["u1", "s9", "u32", "x8", "8", "", "u", "ux", "s-8", "u8x"])
def test_other_int_types_are_refused(text: str) -> None:
    with pytest.raises(GraphError):
        IntType.parse(text)


@pytest.mark.parametrize("bits", [1, 9, 16, 31, 33])
@pytest.mark.parametrize("signed", [True, False])
def test_int_types_of_other_widths_are_refused(bits: int, signed: bool) -> None:
    with pytest.raises(GraphError, match=f"integer types have 2 to 8 bits, or 32 signed; got {bits} bits"):
        IntType(bits, signed)


def test_the_type_of_the_result_leaves_out_what_no_accumulator_reaches() -> None:
    s32 = IntType(32, signed=True)
    assert (s32.lo, s32.hi, s32.magnitude, s32.carrier) == (-(2**31) + 1, 2**31 - 1, 2**31 - 1, "int32")
    assert [IntType.parse(text).magnitude for text in ("u2", "s2", "u8", "s8")] == [3, 2, 255, 128]


def test_a_window_is_plain_where_nothing_is_said() -> None:
    assert Window((3, 2)) == Window((3, 2), strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1))
    assert conv().groups == 1


def test_operators_nodes_and_graphs_are_equal_to_themselves_alone() -> None:
    """They hold arrays, whose equality is an array: what is compared and hashed is the object."""
    rescale = Rescale([1], 1, 0, 1)
    made = graph()
    operators = [
        conv(), Linear([[1]], 2, [0], rescale), Requantize(rescale), Add(rescale), Concat(rescale), Flatten(),
        MaxPool2d(Window((1, 1))), AvgPool2d(Window((1, 1)), rescale), GlobalAvgPool2d(rescale),
    ]  # fmt: skip
    things = [rescale, made, made.node("layer"), *operators]
    twins = [replace(thing) for thing in things]
    assert len({*things, *twins}) == 2 * len(things)


def test_windows_count_like_pytorch() -> None:
    import torch

    window = Window((3, 2), (2, 1), (1, 0, 2, 1), (2, 3))
    x = torch.nn.functional.pad(torch.zeros(1, 1, 11, 9), (0, 1, 1, 2))
    expected = torch.nn.functional.conv2d(x, torch.zeros(1, 1, 3, 2), stride=(2, 1), dilation=(2, 3)).shape[2:]
    assert window.output_size(11, 9) == tuple(expected)


@pytest.mark.parametrize(("kernel", "size"), [((5, 5), (3, 3)), ((3, 1), (2, 9)), ((1, 3), (9, 2))])
def test_a_window_larger_than_the_image_is_refused(kernel: tuple[int, int], size: tuple[int, int]) -> None:
    with pytest.raises(GraphError, match="does not fit an input of {}x{}".format(*size)):
        Window(kernel).output_size(*size)
    assert Window(kernel).output_size(*kernel) == (1, 1)


@settings(max_examples=300)
@given(
    kernel=st.tuples(*[st.integers(1, 3)] * 2), strides=st.tuples(*[st.integers(1, 3)] * 2),
    pads=st.tuples(*[st.integers(0, 4)] * 4), dilations=st.tuples(*[st.integers(1, 4)] * 2),
    size=st.tuples(*[st.integers(1, 5)] * 2),
)  # fmt: skip
def test_a_window_sees_the_input_where_a_tap_of_each_lies_inside(
    kernel: tuple[int, int], strides: tuple[int, int], pads: tuple[int, int, int, int], dilations: tuple[int, int],
    size: tuple[int, int],
) -> None:  # fmt: skip
    window = Window(kernel, strides, pads, dilations)
    spans = [dilations[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    padded = [size[axis] + pads[axis] + pads[axis + 2] for axis in (0, 1)]
    if any(span > room for span, room in zip(spans, padded, strict=True)):
        return
    assert window.reach == tuple(spans)
    seen = []
    for axis in (0, 1):
        starts = range(-pads[axis], size[axis] + pads[axis + 2] - spans[axis] + 1, strides[axis])
        seen.append([any(0 <= s + t * dilations[axis] < size[axis] for t in range(kernel[axis])) for s in starts])
    assert window.output_size(*size) == (len(seen[0]), len(seen[1]))
    assert window.sees_input(*size) == (all(seen[0]) and all(seen[1]))


def test_arrays_in_a_graph_cannot_be_written() -> None:
    op = conv()
    with pytest.raises(ValueError, match="read-only"):
        op.weight[0, 0, 0, 0] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_bits": 3}, "weights leave the range of 3 bits"),
        ({"weight_bits": 9}, "2 to 8 bits"),
        ({"bias": np.arange(3)}, "bias must have a shape"),
        ({"rescale": Rescale(np.full(4, 2**31), 35, 0, 255)}, "multiplier must lie"),
        ({"rescale": Rescale(np.full(4, -1), 35, 0, 255)}, "multiplier must lie"),
        ({"rescale": Rescale(np.full(3, 1), 35, 0, 255)}, "multiplier must have a shape"),
        ({"rescale": Rescale(np.full(4, 1), 0, 0, 255)}, "shift must lie"),
        ({"rescale": Rescale(np.full(4, 1), 63, 0, 255)}, "shift must lie"),
        ({"rescale": Rescale(np.full(4, 1), 35, -1, 255)}, "clip bounds"),
        ({"rescale": Rescale(np.full(4, 1), 35, 9, 8)}, "clip bounds"),
        ({"groups": 2}, "does not fit 4 channels"),
        ({"window": Window((3, 3))}, "does not fit its window"),
    ],
)
def test_check_refuses_what_breaks_the_contract(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        graph(**changes)


def test_a_graph_knows_its_nodes_by_name() -> None:
    made = integers_of("Residual")
    assert made.node("conv2") is next(node for node in made if node.name == "conv2")
    for ask in (made.node, made.replace_node):
        with pytest.raises(GraphError, match="graph 'Residual' has no node 'conv9'"):
            ask("conv9")


@pytest.mark.parametrize("values", [[0, 2**31], [-1, 0], [2**31, 2**31], [-1, -1]])
def test_one_multiplier_out_of_range_is_enough(values: list[int]) -> None:
    output, fine = TensorType(U8, (2,), 1.0), Rescale([0, 2**31 - 1], 35, 0, 255, [2**31 - 1, 0])
    for shift in (1, 62):
        replace(fine, shift=shift).check(output)
    span = rf"must lie in \[0, 2\^31\), got {min(values)} to {max(values)}"
    with pytest.raises(GraphError, match=f"a multiplier {span}"):
        replace(fine, multiplier=values).check(output)
    with pytest.raises(GraphError, match=f"a residual multiplier {span}"):
        replace(fine, residual=values).check(output)
    for lo, hi in ((-1, 255), (0, 256), (200, 100)):
        with pytest.raises(GraphError, match=f"clip bounds {lo}..{hi} do not fit"):
            replace(fine, lo=lo, hi=hi).check(output)
    replace(fine, lo=7, hi=7).check(output)


def test_check_names_the_node() -> None:
    good = integers_of("Residual")
    bad = good.replace_node("conv1", type=replace(good.node("conv1").type, shape=(1, 2, 3)))
    with pytest.raises(GraphError, match=r"'conv1' \(conv2d\).*\(12, 3, 3\).*\(1, 2, 3\)"):
        bad.check()


def test_check_finds_missing_and_doubled_values() -> None:
    good = integers_of("Residual")
    with pytest.raises(GraphError, match="no earlier node makes"):
        replace(good, nodes=good.nodes[1:]).check()
    with pytest.raises(GraphError, match="two values are named"):
        replace(good, nodes=(*good.nodes, good.nodes[-1])).check()
    with pytest.raises(GraphError, match="made by no node"):
        replace(good, output="nothing").check()


def test_an_accumulator_that_could_overflow_is_refused_by_name_and_numbers() -> None:
    channels = 2**31 // (255 * 127) + 1
    op = Conv2d(np.full((1, channels, 1, 1), 127), 8, [0], Rescale([1], 30, 0, 255), Window((1, 1)))
    with pytest.raises(OverflowRefused, match="layer 'wide': the accumulator can reach") as caught:
        one_node_graph(op, [TensorType(U8, (channels, 1, 1), 1.0)], U8, name="wide")
    assert caught.value.layer == "wide"
    assert caught.value.bound == channels * 127 * 255
    assert caught.value.limit == 2**31


def test_just_under_the_limit_is_accepted() -> None:
    channels = (2**31 - 1) // (255 * 127)
    spare = 2**31 - 1 - channels * 127 * 255
    op = Conv2d(np.full((1, channels, 1, 1), 127), 8, [spare], Rescale([2**31 - 1], 62, 0, 255), Window((1, 1)))
    made = one_node_graph(op, [TensorType(U8, (channels, 1, 1), 1.0)], U8)
    assert made.bounds()["layer"].accumulator == 2**31 - 1
    assert made.bounds()["layer"].dyadic_sum < 2**63
    with pytest.raises(OverflowRefused):
        one_node_graph(replace(op, bias=np.array([spare + 1])), [TensorType(U8, (channels, 1, 1), 1.0)], U8)


@pytest.mark.parametrize(
    ("quantity", "limit"), [("accumulator", 2**31), ("dyadic_sum", 2**63), ("rounded", 2**31)]
)  # fmt: skip
def test_every_bound_stays_under_its_limit(quantity: str, limit: int) -> None:
    fine = Bounds(accumulator=1, dyadic_sum=1, rounded=1)
    replace(fine, **{quantity: limit - 1}).check("layer")
    with pytest.raises(OverflowRefused) as caught:
        replace(fine, **{quantity: limit}).check("layer")
    assert (caught.value.layer, caught.value.bound, caught.value.limit) == ("layer", limit, limit)
    advice = "check both" if quantity == "rounded" else "split its input channels"
    assert str(caught.value).endswith(advice)


def test_a_result_that_could_leave_32_bits_before_its_clip_is_refused() -> None:
    op = Requantize(Rescale([2**30], 6, 0, 255))
    with pytest.raises(OverflowRefused, match="layer 'steep': the rounded result can reach .*: check both") as caught:
        one_node_graph(op, [TensorType(U8, (1,), 1.0)], U8, name="steep")
    assert (caught.value.quantity, caught.value.bound, caught.value.limit) == ("rounded result", 255 * 2**24, 2**31)
    gentler = replace(op, rescale=replace(op.rescale, shift=7))
    made = one_node_graph(gentler, [TensorType(U8, (1,), 1.0)], U8)
    assert made.bounds()["layer"].rounded == 255 * 2**23


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_scale_is_positive_and_finite(scale: float) -> None:
    good = graph()
    with pytest.raises(GraphError, match="the input 'x' must have a positive and finite scale"):
        replace(good, input_type=replace(good.input_type, scale=scale)).check()
    with pytest.raises(GraphError, match=r"'layer' \(conv2d\): its result must have a positive and finite scale"):
        good.replace_node("layer", type=replace(good.node("layer").type, scale=scale)).check()


@pytest.mark.parametrize(
    "changes",
    [{"kernel": (0, 1)}, {"strides": (1, 0)}, {"dilations": (-1, 1)}, {"pads": (0, 0, -1, 0)}],
)
def test_a_window_of_nothing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(GraphError, match=re.escape(f"{next(iter(changes))}={next(iter(changes.values()))}")):
        Window(**{"kernel": (2, 2), **changes})


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([[200]], "int8"), ([-129], "int8"), ([2**31], "int32"), ([2**70], "int64"), ([0.5], "int64"), ([np.nan], "int8")],
)
def test_arrays_hold_what_they_are_given_or_refuse_it(values: Any, dtype: str) -> None:
    with pytest.raises(GraphError, match=dtype):
        frozen_array(values, dtype)


def test_refusing_a_nan_warns_of_nothing() -> None:
    with warnings.catch_warnings(), pytest.raises(GraphError, match="int8 holds whole numbers"):
        warnings.simplefilter("error")
        frozen_array([np.nan], "int8")


def test_arrays_are_copied_unless_they_cannot_change() -> None:
    given = np.arange(3.0)
    frozen = frozen_array(given, "int8")
    assert (frozen.dtype, frozen.tolist()) == (np.dtype("int8"), [0, 1, 2])
    assert frozen_array(frozen, "int8") is frozen
    with pytest.raises(GraphError, match="int8 holds whole numbers in -128..127, got int64 values in 200..200"):
        conv(weight=np.array([[200]]))


def test_numpy_numbers_and_pythons_have_one_fingerprint() -> None:
    made = [
        one_node_graph(conv(window=window), [TensorType(U8, shape, scale)], U8)
        for window, shape, scale in (
            (Window((1, 1)), (4, 3, 3), 0.1),
            (Window(tuple(np.ones(2, int))), tuple(np.array([4, 3, 3])), np.float64(0.1)),
        )
    ]
    assert made[0].fingerprint() == made[1].fingerprint()


def test_the_fingerprint_sees_every_number() -> None:
    base = graph()
    node = base.node("layer")
    op = node.op
    assert isinstance(op, Conv2d)
    variants = [
        base.replace_node("layer", op=conv(bias=np.array([0, 1, 2, 4]))),
        base.replace_node("layer", op=conv(weight=op.weight[::-1])),
        base.replace_node("layer", op=conv(weight_bits=6)),
        base.replace_node("layer", op=conv(rescale=Rescale(np.full(4, 2**30), 36, 0, 255))),
        base.replace_node("layer", op=conv(rescale=Rescale(np.full(4, 2**30), 35, 0, 254))),
        base.replace_node("layer", type=replace(node.type, scale=0.2)),
        replace(base, input_type=replace(base.input_type, dtype=S8)),
        replace(base, name="other"),
    ]
    prints = {variant.fingerprint() for variant in (base, *variants)}
    assert len(prints) == len(variants) + 1
    assert graph().fingerprint() == base.fingerprint()


def test_a_graph_prints_for_review() -> None:
    assert str(integers_of("Residual", ("w8a8", "w4a4"))).splitlines() == [
        "Residual(x: s8[3,12,12]) -> fc",
        "  stem: u4[8,12,12] = conv2d(x) s8[8,3,3,3] 3x3 pads 1,1,1,1 >> 42 clip 0..15",
        "  pool: u4[8,6,6] = max_pool2d(stem) 2x2 stride 2,2",
        "  conv1: u8[12,3,3] = conv2d(pool) s4[12,8,3,3] 3x3 stride 2,2 pads 1,1,1,1 >> 30 clip 0..255",
        "  conv2: s8[12,3,3] = conv2d(conv1) s8[12,12,3,3] 3x3 pads 1,1,1,1 >> 41 clip -128..127",
        "  project: u8[12,3,3] = conv2d(pool, conv2) s4[12,8,1,1] 1x1 stride 2,2 + residual >> 30 clip 0..255",
        "  gap: u8[12,1,1] = global_avg_pool2d(project) >> 33 clip 0..255",
        "  flatten: u8[12] = flatten(gap)",
        "  fc: s32[5] = linear(flatten) s8[5,12] >> 30 clip -2147483647..2147483647",
    ]
