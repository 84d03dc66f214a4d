"""Every operator's reference against the definition in plain Python integers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.core.errors import GraphError
from hawq_tvm.core.ir import Array, IntType, Operator, Rescale, TensorType, Window
from hawq_tvm.core.ops import (
    OPS,
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    PadChannels,
    Requantize,
)

from .builders import one_node_graph, random_integers

S8, U8, U4, S32 = (IntType.parse(text) for text in ("s8", "u8", "u4", "s32"))


def law(total: int, rescale: Rescale) -> int:
    return max(rescale.lo, min(rescale.hi, (total + (1 << (rescale.shift - 1))) >> rescale.shift))


def each_output(x: Array, window: Window) -> Any:
    """Every output place with the taps that fall inside the image, in plain loops."""
    _, _, height, width = x.shape
    top, left, _, _ = window.pads
    out_h, out_w = window.output_size(height, width)
    for h, w in itertools.product(range(out_h), range(out_w)):
        taps = []
        for ky, kx in itertools.product(range(window.kernel[0]), range(window.kernel[1])):
            y = h * window.strides[0] + ky * window.dilations[0] - top
            z = w * window.strides[1] + kx * window.dilations[1] - left
            if 0 <= y < height and 0 <= z < width:
                taps.append((ky, kx, y, z))
        yield h, w, taps


windows = st.builds(
    Window,
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
)


@settings(max_examples=40)
@given(
    window=windows, groups=st.sampled_from([1, 2, 4]), residual=st.sampled_from([None, 1, 4]), seed=st.integers(0, 999)
)
def test_conv2d(window: Window, groups: int, residual: int | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_type = TensorType(S8 if seed % 2 else U8, (4, 7, 6), 1.0)
    weight = rng.integers(-128, 128, (4, 4 // groups, *window.kernel))
    rescale = Rescale(
        rng.integers(0, 2**31, 4), 38, -100, 90, None if residual is None else rng.integers(0, 2**31, residual)
    )
    op = Conv2d(weight, 8, rng.integers(-5000, 5000, 4), rescale, window, groups)
    shape = (4, *window.output_size(7, 6))
    inputs = [random_integers(x_type, 2, seed)]
    if residual is not None:
        inputs.append(random_integers(TensorType(S8, shape, 1.0), 2, seed))
    expected = np.empty((2, *shape), int)
    for n, o in itertools.product(range(2), range(4)):
        group = o // (4 // groups)
        for h, w, taps in each_output(inputs[0], window):
            total = int(op.bias[o])
            for c, (ky, kx, y, z) in itertools.product(range(4 // groups), taps):
                total += int(weight[o, c, ky, kx]) * int(inputs[0][n, group * (4 // groups) + c, y, z])
            total *= int(rescale.multiplier[o])
            if rescale.residual is not None:
                total += int(inputs[1][n, o, h, w]) * int(rescale.residual[o % rescale.residual.size])
            expected[n, o, h, w] = law(total, rescale)
    assert np.array_equal(op.evaluate(inputs), expected)


@pytest.mark.parametrize(
    ("weight", "groups", "depthwise"),
    [((4, 1), 4, True), ((2, 1), 2, True), ((1, 1), 1, False), ((4, 2), 4, False), ((8, 1), 4, False)],
)
def test_depthwise_is_a_channel_from_each_channel(weight: tuple[int, int], groups: int, depthwise: bool) -> None:
    out = weight[0]
    op = Conv2d(np.ones((*weight, 1, 1)), 8, np.zeros(out), Rescale([1] * out, 1, 0, 9), Window((1, 1)), groups)
    assert op.depthwise == depthwise


def test_linear() -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.integers(-8, 8, (5, 7)), rng.integers(-99, 99, 5)
    op = Linear(weight, 4, bias, Rescale(rng.integers(0, 2**31, 5), 33, -128, 127))
    x = random_integers(TensorType(U4, (7,), 1.0), 3)
    expected = [
        [
            law(
                (int(weight[o].astype(int) @ row.astype(int)) + int(bias[o])) * int(op.rescale.multiplier[o]),
                op.rescale,
            )
            for o in range(5)
        ]
        for row in x
    ]
    assert np.array_equal(op.evaluate([x]), expected)


def elementwise(op: Operator, rescale: Rescale, inputs: Sequence[Array]) -> list[int]:
    terms = zip(*(x.ravel().tolist() for x in inputs), strict=True)
    return [law(sum(v * int(m) for v, m in zip(values, rescale.multiplier, strict=True)), rescale) for values in terms]


def test_add_and_requantize() -> None:
    a = random_integers(TensorType(S8, (3, 2, 2), 1.0), 2, 0)
    b = random_integers(TensorType(U8, (3, 2, 2), 1.0), 2, 1)
    both = Rescale([2**30, 2**31 - 1], 31, -128, 127)
    assert Add(both).evaluate([a, b]).ravel().tolist() == elementwise(Add(both), both, [a, b])
    one = Rescale([2**29 + 1], 33, -8, 7)
    assert Requantize(one).evaluate([a]).ravel().tolist() == elementwise(Requantize(one), one, [a])


def test_an_identity_rescale_copies() -> None:
    a = random_integers(TensorType(S8, (3, 2, 2), 1.0), 2)
    assert np.array_equal(Requantize(Rescale([2**30], 30, -128, 127)).evaluate([a]), a)


def test_concat() -> None:
    a = random_integers(TensorType(U8, (2, 3, 3), 1.0), 2, 0)
    b = random_integers(TensorType(S8, (1, 3, 3), 1.0), 2, 1)
    op = Concat(Rescale([2**30, 2**29], 30, -128, 255))
    result = op.evaluate([a, b])
    assert np.array_equal(result[:, :2], a)
    assert result[:, 2:].ravel().tolist() == [(int(v) * 2**29 + 2**29) >> 30 for v in b.ravel()]


@settings(max_examples=30)
@given(window=windows, seed=st.integers(0, 99))
def test_max_pool2d(window: Window, seed: int) -> None:
    x_type = TensorType(S8 if seed % 2 else U8, (2, 7, 6), 1.0)
    op = MaxPool2d(window)
    x = random_integers(x_type, 1, seed)
    if any(pad >= window.kernel[axis % 2] for axis, pad in enumerate(window.pads)):
        with pytest.raises(GraphError, match="pads as much as its kernel"):
            op.output_shape([x_type])
        return
    assert all(taps for _, _, taps in each_output(x, window)), "images this large are always met"
    op.output_shape([x_type])
    result = op.evaluate([x])
    for h, w, taps in each_output(x, window):
        for c in range(2):
            assert result[0, c, h, w] == max(int(x[0, c, y, z]) for _, _, y, z in taps)


@settings(max_examples=200)
@given(
    taps=st.integers(1, 3), stride=st.integers(1, 3), dilation=st.integers(1, 5), size=st.integers(1, 5),
    pads=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)  # fmt: skip
def test_a_max_pool_needs_a_tap_inside_the_image(
    taps: int, stride: int, dilation: int, size: int, pads: tuple[int, int]
) -> None:
    """As with a dilation that steps over a small image: such a maximum would be the padding's."""
    window = Window((taps, 1), (stride, 1), (pads[0], 0, pads[1], 0), (dilation, 1))
    x = np.zeros((1, 1, size, 2), np.uint8)
    type = TensorType(U8, (1, size, 2), 1.0)
    if size + sum(pads) < window.reach[0] or max(pads) >= taps:
        with pytest.raises(GraphError):
            MaxPool2d(window).output_shape([type])
    elif all(found for _, _, found in each_output(x, window)):
        assert MaxPool2d(window).output_shape([type]) == (1, *window.output_size(size, 2))
    else:
        with pytest.raises(GraphError, match=f"wholly in the padding of an input of {size}x2"):
            MaxPool2d(window).output_shape([type])


def test_no_operator_with_a_window_or_weights_takes_a_wide_input() -> None:
    wide, vector = TensorType(S32, (2, 4, 4), 1.0), TensorType(S32, (3,), 1.0)
    rescale = Rescale([1], 31, -128, 127)
    cases: list[tuple[Operator, TensorType]] = [
        (Conv2d(np.ones((1, 2, 1, 1)), 2, [0], rescale, Window((1, 1))), wide),
        (Linear([[1, 1, 1]], 2, [0], rescale), vector),
        (MaxPool2d(Window((2, 2))), wide),
        (AvgPool2d(Window((2, 2)), replace(rescale, multiplier=[[1]])), wide),
    ]
    for op, type in cases:
        with pytest.raises(GraphError, match=r"takes inputs of up to 8 bits, got s32\["):
            one_node_graph(op, [type], S32 if op.kind == "max_pool2d" else S8)


ONE, TWO = Rescale([1], 31, -128, 127), Rescale([1, 1], 31, -128, 127)
IMAGE, VECTOR = TensorType(S8, (4, 5, 6), 1.0), TensorType(S8, (4,), 1.0)
CONV = Conv2d(np.ones((1, 4, 2, 2)), 2, [0], ONE, Window((2, 2)))
LINEAR = Linear([[1, 1, 1, 1]], 2, [0], ONE)
RESIDUAL = replace(ONE, residual=[1])
POOLS = (MaxPool2d(Window((2, 2))), AvgPool2d(Window((2, 2)), replace(ONE, multiplier=[[1]])), GlobalAvgPool2d(ONE))


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (CONV, [], "takes an input of shape"),
        (CONV, [VECTOR], "takes an input of shape"),
        (CONV, [IMAGE, IMAGE], "takes 1 inputs, got 2"),
        (CONV, [replace(IMAGE, shape=(5, 5, 6))], "does not fit 5 channels"),
        (replace(CONV, weight=np.ones((1, 4, 2))), [IMAGE], "does not fit its window"),
        (replace(CONV, weight=np.ones((1, 4, 2, 1))), [IMAGE], "does not fit its window"),
        (replace(CONV, weight=np.ones((3, 2, 2, 2)), groups=2), [IMAGE], "in 2 groups does not fit 4 channels"),
        (replace(CONV, rescale=RESIDUAL), [IMAGE], "takes 2 inputs, got 1"),
        (
            replace(CONV, rescale=RESIDUAL),
            [IMAGE, IMAGE],
            r"its residual has the shape \(4, 5, 6\), its result \(1, 4, 5\)",
        ),
        (LINEAR, [], "does not fit an input"),
        (LINEAR, [replace(VECTOR, shape=(5,))], "does not fit an input"),
        (LINEAR, [VECTOR, VECTOR], "takes 1 inputs, got 2"),
        (replace(LINEAR, rescale=RESIDUAL), [VECTOR, VECTOR], r"its residual has the shape \(4,\), its result \(1,\)"),
        (Add(TWO), [IMAGE], "takes two inputs of one shape"),
        (Add(TWO), [IMAGE, VECTOR], "takes two inputs of one shape"),
        (Add(TWO), [IMAGE, IMAGE, IMAGE], "takes two inputs of one shape"),
        (Concat(TWO), [], "differ in channels alone"),
        (Concat(TWO), [IMAGE, replace(IMAGE, shape=(4, 6, 6))], "differ in channels alone"),
        (Concat(TWO), [IMAGE, replace(IMAGE, shape=(4, 5, 5))], "differ in channels alone"),
        (Requantize(ONE), [IMAGE, IMAGE], "takes one input, got 2"),
        (Flatten(), [], "takes one input, got 0"),
        *((pool, [VECTOR], r"takes samples of rank 3, got the shape \(4,\)") for pool in POOLS),
        *((pool, [IMAGE, IMAGE], "takes one input, got 2") for pool in POOLS),
    ],
)
def test_inputs_that_do_not_fit_are_refused(op: Operator, inputs: list[TensorType], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        op.output_shape(inputs)


THREE = Rescale([1, 1, 1], 31, -128, 127)


@pytest.mark.parametrize(
    ("op", "inputs", "output", "message"),
    [
        (replace(CONV, bias=[0, 0]), [IMAGE], (1, 4, 5), r"the bias must have a shape of \(1,\), got \(2,\)"),
        (replace(CONV, rescale=TWO), [IMAGE], (1, 4, 5), r"the multiplier must have a shape of \(1,\), got \(2,\)"),
        (
            replace(CONV, rescale=replace(ONE, residual=[1, 1])), [IMAGE, replace(IMAGE, shape=(1, 4, 5))], (1, 4, 5),
            r"the residual multiplier must have a shape of \(1,\) or \(1,\), got \(2,\)",
        ),
        (replace(LINEAR, weight=[[2, 0, 0, 0]]), [VECTOR], (1,), r"weights leave the range of 2 bits, -2\.\.1"),
        (replace(LINEAR, weight=[[-3, 0, 0, 0]]), [VECTOR], (1,), r"weights leave the range of 2 bits, -2\.\.1"),
        (replace(LINEAR, weight_bits=1), [VECTOR], (1,), "weights have 2 to 8 bits, got 1"),
        (Requantize(TWO), [VECTOR], (4,), r"the multiplier must have a shape of \(1,\), got \(2,\)"),
        (Add(THREE), [VECTOR, VECTOR], (4,), r"the multiplier must have a shape of \(2,\), got \(3,\)"),
        (Concat(THREE), [VECTOR, VECTOR], (8,), r"the multiplier must have a shape of \(2,\), got \(3,\)"),
        (
            AvgPool2d(Window((2, 2)), replace(ONE, multiplier=[[1, 1]])), [IMAGE], (4, 4, 5),
            r"the multiplier must have a shape of \(1, 1\) or \(4, 5\), got \(1, 2\)",
        ),
        (GlobalAvgPool2d(TWO), [IMAGE], (4, 1, 1), r"the multiplier must have a shape of \(1,\), got \(2,\)"),
        (GlobalAvgPool2d(replace(ONE, hi=128)), [IMAGE], (4, 1, 1), "clip bounds -128..128 do not fit"),
        (AvgPool2d(Window((2, 2)), replace(ONE, multiplier=[[1]], hi=128)), [IMAGE], (4, 4, 5), "clip bounds"),
        (Requantize(replace(ONE, hi=128)), [VECTOR], (4,), "clip bounds"),
        (Add(replace(TWO, hi=128)), [VECTOR, VECTOR], (4,), "clip bounds"),
        (Concat(replace(TWO, hi=128)), [VECTOR, VECTOR], (8,), "clip bounds"),
        (Linear(np.zeros((0, 4)), 2, [], replace(ONE, multiplier=[1])), [VECTOR], (0,), "weights leave the range"),
        (Linear([[1]], 2, [0], ONE), [replace(VECTOR, shape=(1,))], (1,), ""),
        (LINEAR, [VECTOR], (1,), ""),
        (replace(LINEAR, weight=[[-2, 1, 0, 0]]), [VECTOR], (1,), ""),
        (replace(LINEAR, weight_bits=8, weight=[[-128, 127, 0, 0]]), [VECTOR], (1,), ""),
        (replace(CONV, rescale=RESIDUAL), [IMAGE, replace(IMAGE, shape=(1, 4, 5))], (1, 4, 5), ""),
        (AvgPool2d(Window((2, 2)), replace(ONE, multiplier=np.ones((4, 5)))), [IMAGE], (4, 4, 5), ""),
    ],
)  # fmt: skip
def test_parameters_that_break_the_contract_are_refused(
    op: Operator, inputs: list[TensorType], output: tuple[int, ...], message: str
) -> None:
    type = TensorType(S8, output, 1.0)
    assert op.output_shape(inputs) == output
    if message:
        with pytest.raises(GraphError, match=message):
            op.check_parameters(inputs, type)
    else:
        op.check_parameters(inputs, type)


@pytest.mark.parametrize("op", [MaxPool2d(Window((1, 1))), Flatten(), PadChannels(1, 2)])
def test_what_moves_integers_keeps_their_type_and_scale(op: Operator) -> None:
    x = TensorType(U8, (2, 1, 1), 0.5)
    output = replace(x, shape=op.output_shape([x]))
    op.check_parameters([x], output)
    for other in (replace(output, dtype=S8), replace(output, scale=0.25)):
        with pytest.raises(GraphError, match="keeps type and scale, got u8"):
            op.check_parameters([x], other)


def test_an_average_pool_takes_no_dilation() -> None:
    op = AvgPool2d(Window((2, 2), dilations=(1, 2)), Rescale([[1]], 2, 0, 255))
    with pytest.raises(GraphError, match=r"takes no dilation, got \(1, 2\)"):
        one_node_graph(op, [TensorType(U8, (1, 5, 5), 1.0)], U8)


@pytest.mark.parametrize("shared", [True, False])
def test_avg_pool2d(shared: bool) -> None:
    window = Window((3, 2), (2, 2), (1, 0, 1, 1))
    x = random_integers(TensorType(S8, (2, 7, 6), 1.0), 2)
    shape = window.output_size(7, 6)
    multiplier = np.array([[2**27]]) if shared else np.random.default_rng(0).integers(0, 2**28, shape)
    op = AvgPool2d(window, Rescale(multiplier, 29, -128, 127))
    result = op.evaluate([x])
    full = np.broadcast_to(multiplier, shape)
    for h, w, taps in each_output(x, window):
        for n, c in itertools.product(range(2), range(2)):
            total = sum(int(x[n, c, y, z]) for _, _, y, z in taps)
            assert result[n, c, h, w] == law(total * int(full[h, w]), op.rescale)


def test_global_avg_pool2d_and_flatten() -> None:
    x = random_integers(TensorType(U8, (3, 5, 4), 1.0), 2)
    op = GlobalAvgPool2d(Rescale([2**30], 34, 0, 255))
    expected = [law(int(image.astype(int).sum()) * 2**30, op.rescale) for image in x.reshape(-1, 20)]
    assert op.evaluate([x]).ravel().tolist() == expected
    assert np.array_equal(Flatten().evaluate([x]), x.reshape(2, -1))


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000))
def test_bounds_hold_and_are_reached(seed: int) -> None:
    """The bound of a 1x1 convolution is the largest partial sum over all inputs and all orders of summation."""
    rng = np.random.default_rng(seed)
    type = (IntType(2, signed=False), IntType(2, signed=True), IntType(3, signed=True))[seed % 3]
    weight, bias = rng.integers(-4, 4, (2, 3)), rng.integers(-9, 9, 2)
    op = Linear(weight, 3, bias, Rescale([3, 5], 4, -128, 127))
    bounds = op.bounds([TensorType(type, (3,), 1.0)])
    each = [0, 0]
    for x in itertools.product(range(type.lo, type.hi + 1), repeat=3):
        for o in range(2):
            terms = [*(int(w) * v for w, v in zip(weight[o], x, strict=True)), int(bias[o])]
            sums = [sum(part) for size in range(5) for part in itertools.combinations(terms, size)]
            each[o] = max(each[o], *(abs(value) for value in sums))
    assert op.accumulator_bounds([TensorType(type, (3,), 1.0)]) == each
    assert bounds.accumulator == max(each)
    assert bounds.dyadic_sum == max(each[0] * 3, each[1] * 5) + 8
    assert bounds.rounded == bounds.dyadic_sum >> 4


@settings(max_examples=60)
@given(
    multiplier=st.integers(0, 2**31 - 1), shift=st.integers(1, 40), type=st.sampled_from([S8, U8, U4]),
)  # fmt: skip
def test_the_bound_of_the_rounded_result_holds(multiplier: int, shift: int, type: IntType) -> None:
    op = Requantize(Rescale([multiplier], shift, 0, 0))
    bounds = op.bounds([TensorType(type, (1,), 1.0)])
    rounded = [(value * multiplier + (1 << (shift - 1))) >> shift for value in (type.lo, type.hi)]
    largest = max(map(abs, rounded))
    assert largest <= bounds.rounded <= largest + 1


def test_bounds_of_a_sum_count_the_residual() -> None:
    rescale = Rescale([7], 3, -128, 127, np.array([11]))
    op = Linear([[2]], 3, [5], rescale)
    bounds = op.bounds([TensorType(U8, (1,), 1.0), TensorType(S8, (1,), 1.0)])
    assert bounds.accumulator == 2 * 255 + 5
    assert bounds.dyadic_sum == (2 * 255 + 5) * 7 + 128 * 11 + 4
    assert bounds.rounded == bounds.dyadic_sum // 8


S3, U3 = IntType.parse("s3"), IntType.parse("u3")
FACTORS = st.integers(0, 40)


@settings(max_examples=60)
@given(first=FACTORS, second=FACTORS, shift=st.integers(1, 6), types=st.tuples(*[st.sampled_from([S3, U3, U4])] * 2))
def test_bounds_of_operators_without_weights_hold_and_are_reached(
    first: int, second: int, shift: int, types: tuple[IntType, IntType]
) -> None:
    """Over all inputs; a sum adds its branches, a concatenation takes the larger, an average all of its window."""
    a, b = (TensorType(dtype, (3, 2, 1), 1.0) for dtype in types)
    largest = [max(abs(dtype.lo), dtype.hi) for dtype in types]
    half = 1 << (shift - 1)
    pair, one = Rescale([first, second], shift, 0, 0), Rescale([first], shift, 0, 0)
    cases: list[tuple[Operator, list[TensorType], int, int]] = [
        (Add(pair), [a, b], max(largest), largest[0] * first + largest[1] * second),
        (Concat(pair), [a, b], max(largest), max(largest[0] * first, largest[1] * second)),
        (Requantize(one), [a], largest[0], largest[0] * first),
        (GlobalAvgPool2d(one), [a], 2 * largest[0], 2 * largest[0] * first),
        (
            AvgPool2d(Window((3, 2), pads=(1, 1, 0, 0)), Rescale([[first], [second]], shift, 0, 0)), [a],
            6 * largest[0], 6 * largest[0] * max(first, second),
        ),
    ]  # fmt: skip
    for op, inputs, accumulator, total in cases:
        bounds = op.bounds(inputs)
        assert bounds is not None
        assert (bounds.accumulator, bounds.dyadic_sum) == (accumulator, total + half), op.kind
        assert bounds.rounded == (total + half) >> shift


def test_only_layers_with_weights_cost_anything() -> None:
    assert LINEAR.macs(TensorType(S8, (1,), 1.0)) == 4
    assert Linear(np.ones((3, 5)), 2, np.zeros(3), THREE).macs(TensorType(S8, (3,), 1.0)) == 15
    assert [op.macs(IMAGE) for op in (*POOLS, Add(TWO), Requantize(ONE))] == [0] * 5


def test_channels_of_zeros() -> None:
    x = np.random.default_rng(0).integers(-128, 128, (2, 3, 4, 5))
    op = PadChannels(2, 1)
    found = op.evaluate([x])
    assert found.dtype == np.int64
    assert found.shape == (2, *op.output_shape([TensorType(S8, (3, 4, 5), 1.0)])) == (2, 6, 4, 5)
    assert np.array_equal(found[:, 2:5], x)
    assert not found[:, :2].any()
    assert not found[:, 5:].any()
    assert op.bounds([TensorType(S8, (3, 4, 5), 1.0)]) is None
    assert op.describe() == "2 before 1 after"
    assert PadChannels(0, 0).output_shape([TensorType(S8, (3, 4, 5), 1.0)]) == (3, 4, 5)
    with pytest.raises(GraphError, match="no fewer than 0 channels, got 2 before and -1 after"):
        PadChannels(2, -1).output_shape([TensorType(S8, (3, 4, 5), 1.0)])
    with pytest.raises(GraphError, match="samples of rank 3"):
        PadChannels(2, 1).output_shape([TensorType(S8, (3,), 1.0)])


def test_costs_count_multiply_accumulates() -> None:
    op = Conv2d(np.ones((6, 2, 3, 3)), 2, np.zeros(6), Rescale(np.ones(6), 1, 0, 255), Window((3, 3)), groups=2)
    shape = op.output_shape([TensorType(U8, (4, 8, 8), 1.0)])
    assert op.macs(TensorType(U8, shape, 1.0)) == 6 * 6 * 6 * 2 * 9
    assert Flatten().macs(TensorType(U8, (4,), 1.0)) == 0


def test_the_table_names_every_operator() -> None:
    assert set(OPS) == {
        "conv2d",
        "linear",
        "requantize",
        "add",
        "concat",
        "max_pool2d",
        "avg_pool2d",
        "global_avg_pool2d",
        "flatten",
        "pad_channels",
    }
    assert all(OPS[kind].kind == kind for kind in OPS)


@pytest.mark.parametrize(
    ("residual", "expected"), [(None, [[5, 6]]), ([7], [[5, 6], [7, 7]]), ([7, 8], [[5, 6], [7, 8]])]
)
def test_a_layer_has_a_multiplier_a_channel_for_each_of_its_products(
    residual: list[int] | None, expected: list[list[int]]
) -> None:
    layer = Linear(np.ones((2, 3)), 8, [0, 0], Rescale([5, 6], 30, -128, 127, residual))
    assert [array.tolist() for array in layer.multipliers] == expected
