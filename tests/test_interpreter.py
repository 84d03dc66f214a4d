"""The two float steps around the integer graph, and what the oracle refuses."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.core.errors import DataError
from hawq_tvm.core.interpreter import check_batch, check_integers, dequantize_output, quantize_input, run
from hawq_tvm.core.ir import IntType, Rescale, TensorType
from hawq_tvm.core.ops import Requantize

from .builders import one_node_graph

U4, S8, S32 = (IntType.parse(text) for text in ("u4", "s8", "s32"))


@pytest.mark.parametrize("elements", [0, 1, 7, 16383, 16384, 16385, 40000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inputs_of_any_size_and_order_are_quantised_whole(elements: int, dtype: str) -> None:
    x = np.random.default_rng(elements).normal(0, 40, (2, elements, 3)).astype(dtype).transpose(0, 2, 1)
    type = TensorType(S8, (3, elements), 0.37)
    expected = np.clip(np.floor(x.astype(np.float64) / 0.37 + 0.5), -128, 127).astype(np.int8)
    before = x.copy()
    assert np.array_equal(quantize_input(x, type), expected)
    assert np.array_equal(x, before)


@given(value=st.floats(-300, 300, width=32), scale=st.sampled_from([0.5, 1.0, 2.0, 0.1, 1 / 3]))
def test_inputs_are_rounded_half_up_in_float64(value: float, scale: float) -> None:
    got = quantize_input(np.array([[value]], np.float32), TensorType(S8, (1,), scale))
    exact = floor(Fraction(value / scale) + Fraction(1, 2))
    assert got.dtype == np.int8
    assert abs(Fraction(value) / Fraction(scale) - exact) <= Fraction(1, 2) + Fraction(1, 10**9)
    assert got.item() == max(-128, min(127, exact))


def test_float32_inputs_are_not_divided_in_float32() -> None:
    value, scale = np.float32(1.05), 0.7
    assert value.astype(np.float64) / scale < 1.5 <= value / np.float32(scale)
    assert quantize_input(np.array([[value]]), TensorType(S8, (1,), scale)).item() == 1


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_refused(hole: float) -> None:
    with pytest.raises(DataError, match="the input holds NaN or infinity"):
        quantize_input(np.array([[1.0, hole]], np.float32), TensorType(S8, (2,), 1.0))


def test_logits_are_multiplied_in_float64() -> None:
    integers = np.array([[2**24 + 1, -3]], np.int32)
    logits = dequantize_output(integers, TensorType(S32, (2,), 3.0))
    assert logits.dtype == np.float32
    assert logits.tolist() == [[np.float32((2**24 + 1) * 3), -9.0]]
    assert np.float32(2**24 + 1) * np.float32(3) != logits[0, 0], "in float32 it would be another number"


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (2, 4, 3), (2, 3, 4, 1), (4,)])
def test_batches_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as caught:
        check_batch(np.zeros(shape), TensorType(S8, (3, 4), 1.0), "the image")
    assert str(caught.value) == f"the image has the shape {shape}, expected [N, 3, 4]"
    check_batch(np.zeros((0, 3, 4)), TensorType(S8, (3, 4), 1.0))
    with pytest.raises(DataError, match="the input has the shape"):
        quantize_input(np.zeros(shape), TensorType(S8, (3, 4), 1.0))


def test_integers_must_be_of_the_type_and_within_it() -> None:
    type = TensorType(U4, (2,), 1.0)
    check_integers(np.array([[0, 15]], np.uint8), type)
    check_integers(np.zeros((0, 2), np.uint8), type)
    with pytest.raises(DataError, match=r"the input holds 0\.\.16, more than u4 can"):
        check_integers(np.array([[0, 16]], np.uint8), type)
    with pytest.raises(DataError, match=r"the input holds -9\.\.0, more than s4 can"):
        check_integers(np.array([[-9, 0]], np.int8), TensorType(IntType.parse("s4"), (2,), 1.0))
    with pytest.raises(DataError, match="the input has dtype int8, expected uint8"):
        check_integers(np.array([[0, 1]], np.int8), type)
    with pytest.raises(DataError, match="the input has the shape"):
        check_integers(np.zeros((1, 3), np.uint8), type)
    with pytest.raises(DataError, match=r"the input holds -2147483648\.\."):
        check_integers(np.array([[-(2**31), 0]], np.int32), TensorType(S32, (2,), 1.0))
    check_integers(np.array([[-128, 127]], np.int8), TensorType(S8, (2,), 1.0))
    for text, value in (("u7", 128), ("s7", 64), ("s7", -65), ("u2", 4)):
        dtype = IntType.parse(text)
        with pytest.raises(DataError, match=f"more than {text} can"):
            check_integers(np.array([[0, value]], dtype.carrier), TensorType(dtype, (2,), 1.0))


def test_a_run_keeps_every_value_in_its_carrier() -> None:
    graph = one_node_graph(Requantize(Rescale([2**30], 31, -128, 127)), [TensorType(S32, (2,), 1.0)], S8)
    x = np.array([[7, -1000]], np.int32)
    values = run(graph, x)
    assert list(values) == ["x", "layer"]
    assert values["x"] is x
    assert (values["layer"].dtype, values["layer"].tolist()) == (np.dtype("int8"), [[4, -128]])
    with pytest.raises(DataError, match="dtype int64"):
        run(graph, x.astype(np.int64))
