"""The steps of quantising an input, and the multiplication that they prove."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hawq_tvm.core.input_steps import LARGEST, Multiplication, exact_multiplication, input_steps
from hawq_tvm.core.interpreter import quantize_input
from hawq_tvm.core.ir import IntType, TensorType

SCALES = st.floats(2.0**-40, 2.0**40)
DTYPES = st.sampled_from(["u8", "s8", "s4", "u2"]).map(IntType.parse)


def type_of(dtype: IntType, scale: float, size: int = 1) -> TensorType:
    return TensorType(dtype, (size,), scale)


@given(dtype=DTYPES, scale=st.floats(1e-46, 1e39))
def test_every_step_is_the_least_float_of_its_integer(dtype: IntType, scale: float) -> None:
    steps = input_steps(type_of(dtype, scale))
    integers = np.arange(dtype.lo + 1, dtype.hi + 1)
    all_of_them = type_of(dtype, scale, len(steps))
    there = np.isfinite(steps)
    reached = quantize_input(np.minimum(steps, LARGEST)[None], all_of_them)[0]
    assert (reached[there] >= integers[there]).all()
    assert (reached[~there] < integers[~there]).all(), "the largest float does not reach them"
    inside = there & (steps > -LARGEST)
    below = np.nextafter(np.where(inside, steps, 0), -LARGEST)
    assert (quantize_input(below[None], all_of_them)[0] < integers)[inside].all()


@given(dtype=DTYPES, scale=SCALES | st.integers(1, 500).map(float), seed=st.integers(0, 2**32 - 1))
def test_a_proved_multiplication_agrees_on_random_reals(dtype: IntType, scale: float, seed: int) -> None:
    """In numpy, whose float64 product and sum round twice: away from the steps that is the same."""
    type = type_of(dtype, scale, 1000)
    by = exact_multiplication(type)
    assume(by is not None)
    assert by is not None
    x = np.random.default_rng(seed).uniform(-2 * dtype.hi - 2, 2 * dtype.hi + 2, 1000) * scale
    x = x.astype(np.float32)
    steps = input_steps(type)
    limited = np.clip(x, np.nextafter(steps[0], -LARGEST), steps[-1]).astype(np.float64)
    found = np.floor(limited * by.inverse + by.half)
    at_a_step = np.isin(limited, steps) | np.isin(limited, np.nextafter(steps, -LARGEST))
    assert np.array_equal(found[~at_a_step], quantize_input(x[None], type)[0][~at_a_step])


def test_every_scale_that_networks_have_is_proved() -> None:
    """That of a largest value, a float32, among them: half of it lies at a step, to either side by a digit's whim."""
    rng = np.random.default_rng(0)
    largest = rng.uniform(0.1, 9, 50).astype(np.float32).astype(np.float64)
    scales = [*rng.uniform(1e-3, 1, 50), *range(1, 50), *largest / 127, 1023.9999999998836]
    assert all(exact_multiplication(type_of(IntType(8, signed=True), float(scale))) for scale in scales)


def test_half_of_the_largest_input_may_fall_to_either_side() -> None:
    """Its quotient is 63.5 or the float64 below, and the multiplication follows."""
    for largest, integer in ((4.76171875, 63), (4.0, 64)):
        type = type_of(IntType(8, signed=True), largest / 127)
        by, x = exact_multiplication(type), np.float32(largest / 2)
        assert by is not None
        assert by(x) == integer == quantize_input(np.array([[x]]), type)[0, 0]


def test_scales_too_small_or_too_large_are_not_proved() -> None:
    for scale in (1e-40, 1e38):
        assert exact_multiplication(type_of(IntType(8, signed=True), scale)) is None


@pytest.mark.parametrize(("scale", "half"), [(49.0, 0.5), (0.037283522110637686, 0.5 + 2.0**-30)])
def test_a_multiplication_that_misses_a_step_is_noticed(scale: float, half: float) -> None:
    """Without anything added, 49 * (1 / 49) is less than 1; with too much, a float just under a step passes it."""
    type = type_of(IntType(8, signed=True), scale)
    by, steps = exact_multiplication(type), input_steps(type)
    assert by is not None and by.agrees(steps, type.dtype.lo)
    assert not Multiplication(by.inverse, half).agrees(steps, type.dtype.lo)
