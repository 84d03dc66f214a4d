"""The float32 form against the law, with the machine's own fused multiply-add."""

from __future__ import annotations

import ctypes
import ctypes.util
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hawq_tvm.core.dyadic import rescale
from hawq_tvm.core.float32_rescale import DIGITS, MAGIC, float32_is_exact, odd_multipliers
from hawq_tvm.core.ir import Bounds, Rescale

MATHS = ctypes.CDLL(ctypes.util.find_library("m"))
MATHS.fmaf.restype, MATHS.fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3

multipliers = st.integers(0, 31).flatmap(lambda digits: st.integers(0, 2**digits - 1))
accumulators = st.integers(0, 31).flatmap(lambda digits: st.integers(-(2**digits) + 1, 2**digits - 1))


@given(multipliers, st.integers(1, 62))
def test_odd_multipliers_are_the_nearest(m: int, shift: int) -> None:
    found = int(odd_multipliers([m], shift)[0])
    excess = max(m.bit_length() - DIGITS, 0)
    if m % 2**shift == 0:
        assert found == m, "it rounds nothing"
        return
    assert found.bit_length() == m.bit_length()
    assert found % 2**excess == 0
    assert (found >> excess) % 2 == 1
    assert abs(found - m) <= 2**excess, "the next odd ones are two apart"


@given(multipliers, st.integers(1, 62))
def test_odd_multipliers_stay_what_they_are(m: int, shift: int) -> None:
    once = odd_multipliers([m], shift)
    assert odd_multipliers(once, shift).tolist() == once.tolist()


@given(m=multipliers, shift=st.integers(1, 62), data=st.data(), lo=st.integers(-128, 0), hi=st.integers(1, 255))
def test_the_float32_form_is_the_law_where_it_is_said_to_be(
    m: int, shift: int, data: st.DataObject, lo: int, hi: int
) -> None:
    m = data.draw(st.sampled_from([m, int(odd_multipliers([m], shift)[0])]))
    parameters = Rescale([m], shift, lo, hi)
    reach = abs(data.draw(accumulators))
    assume(float32_is_exact(parameters, Bounds.of(reach, reach * m, shift)))
    near = round(Fraction(2**shift, max(m, 1)) * Fraction(data.draw(st.integers(-600, 600)), 2))
    drawn = data.draw(st.lists(st.integers(-reach, reach), max_size=20))
    special = [reach, -reach, 2**24, 2**24 - 1, 2**24 + 1, 2**25 + 1, near - 1, near, near + 1]
    for acc in [*drawn, *special, *(-value for value in special)]:
        if abs(acc) <= reach:
            expected = int(rescale(np.array([acc * m], np.int64), shift, lo, hi)[0])
            assert float32_form(acc, parameters) == expected, (acc, m, shift)


@given(ratio=st.floats(2.0**-20, 0.4), reach=st.integers(1, 2**24 - 1))
def test_odd_multipliers_make_it_exact_for_ordinary_layers(ratio: float, reach: int) -> None:
    shift = 30 - int(np.floor(np.log2(ratio)))
    m = odd_multipliers([min(int(ratio * 2.0**shift), 2**31 - 1)], shift)
    bounds = Bounds.of(reach, reach * int(m[0]), shift)
    assume(bounds.rounded < 2**21)
    assert float32_is_exact(Rescale(m, shift, 0, 255), bounds)


@pytest.mark.parametrize(
    ("m", "shift", "acc", "why"),
    [
        (2**24 + 1, 40, 2**20, "25 significant bits"),
        (2**23, 32, 2**8, "a tie at 2^8 * 2^23 / 2^32"),
        (3, 2, 2, "a tie at 6 / 4"),
        (2**24 - 1, 48, 2**25, "accumulators that float32 rounds, and no clip"),
        (2**24 - 1, 26, 2**23, "results beyond the interval of integers"),
    ],
)
def test_each_condition_is_needed(m: int, shift: int, acc: int, why: str) -> None:
    assert not float32_is_exact(Rescale([m], shift, -(2**31) + 1, 2**31 - 1), Bounds.of(acc, acc * m, shift)), why


def test_a_tie_is_where_the_forms_part() -> None:
    parameters = Rescale([2**23], 24, 0, 255)
    assert not float32_is_exact(parameters, Bounds.of(1, 2**23, 24))
    assert rescale(np.array([2**23]), 24, 0, 255)[0] == 1
    assert float32_form(1, parameters) == 0


def test_large_accumulators_are_clipped_in_either_form() -> None:
    m = int(odd_multipliers([2**30], 46)[0])
    clipped, open_above = Rescale([m], 46, 0, 255), Rescale([m], 46, 0, 2**20)
    bounds = Bounds.of(2**28, 2**28 * m, 46)
    assert float32_is_exact(clipped, bounds)
    assert not float32_is_exact(open_above, bounds)


def test_a_residual_is_rounded_with_the_sum() -> None:
    m = odd_multipliers([2**30], 40)
    bounds = Bounds.of(2**10, 2**40, 40)
    assert float32_is_exact(Rescale(m, 40, 0, 255), bounds)
    assert not float32_is_exact(Rescale(m, 40, 0, 255, residual=m), bounds)


def float32_form(acc: int, parameters: Rescale) -> int:
    """As hardware computes it, clipped."""
    factor = float(np.ldexp(float(parameters.multiplier[0]), -parameters.shift))
    assert np.float32(factor) == factor, "the factor is a float32"
    result = int(MATHS.fmaf(float(np.float32(acc)), factor, MAGIC) - MAGIC)
    return min(max(result, parameters.lo), parameters.hi)
