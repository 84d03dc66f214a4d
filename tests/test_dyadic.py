from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.core.dyadic import MULTIPLIER_LIMIT, SHIFT_RANGE, rescale, round_half_up, to_dyadic
from hawq_tvm.core.errors import GraphError

accumulators = st.integers(-(2**31) + 1, 2**31 - 1)
multipliers = st.integers(0, 2**31 - 1)
shifts = st.integers(1, 62)


@given(acc=accumulators, m=multipliers, s=shifts, res=st.integers(-255, 255), m_res=multipliers)
def test_rescale_is_exact_rounding_half_up(acc: int, m: int, s: int, res: int, m_res: int) -> None:
    exact = Fraction(acc * m + res * m_res, 2**s)
    expected = floor(exact + Fraction(1, 2))
    total = np.array([acc * m + res * m_res], np.int64)
    assert rescale(total, s, -(2**40), 2**40)[0] == max(-(2**40), min(2**40, expected))


@pytest.mark.parametrize(("total", "expected"), [(-3, -1), (-2, -1), (-1, 0), (0, 0), (1, 1), (2, 1), (3, 2)])
def test_ties_go_toward_plus_infinity(total: int, expected: int) -> None:
    assert rescale(np.array([total]), 1, -128, 127)[0] == expected


@given(st.lists(st.floats(1e-12, 2.0**29), min_size=1, max_size=8))
def test_to_dyadic_is_as_near_as_one_shift_allows(ratios: list[float]) -> None:
    m, s = to_dyadic(ratios)
    assert 1 <= s <= 62
    assert m.min() >= 0
    assert m.max() < MULTIPLIER_LIMIT
    for ratio, multiplier in zip(ratios, m, strict=True):
        assert abs(Fraction(int(multiplier), 2**s) - Fraction(ratio)) <= Fraction(1, 2 ** (s + 1))
    larger = floor(Fraction(max(ratios)) * 2 ** (s + 1) + Fraction(1, 2))
    assert s == 62 or larger >= MULTIPLIER_LIMIT, "a larger shift would have kept more bits"


@pytest.mark.parametrize("exponent", [-40, -31, -1, 0, 1, 20, 29])
def test_powers_of_two_are_carried_exactly(exponent: int) -> None:
    m, s = to_dyadic([2.0**exponent])
    assert Fraction(int(m[0]), 2**s) == Fraction(2) ** exponent


@pytest.mark.parametrize("power", [1.0, 2.0**-7, 2.0**10])
def test_a_mantissa_that_rounds_up_to_2_31_takes_the_shift_below(power: float) -> None:
    ratio = np.nextafter(power, 0.0)  # rounds to exactly 2^31 at the shift that its exponent suggests
    m, s = to_dyadic([ratio])
    assert (int(m[0]), s) == (2**30, 30 - int(np.log2(power)))


def test_the_largest_ratio_sets_the_shift_for_all() -> None:
    m, s = to_dyadic([1.0, 2.0**-35])
    assert (int(m[0]), int(m[1]), s) == (2**30, 0, 30)


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (2.0**31, r"a scale ratio of 2.147e\+09 is too large"),
        (2.0**30, r"a scale ratio of 1.074e\+09 is too large"),
        (-1.0, "must be finite and not negative, got -1.0 to 0.5"),
        (float("nan"), "must be finite and not negative, got nan to nan"),
        (float("inf"), "must be finite and not negative, got 0.5 to inf"),
    ],
)
def test_ratios_that_no_dyadic_number_carries_are_refused(ratio: float, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        to_dyadic([0.5, ratio])


def test_a_ratio_of_zero_is_carried_and_nothing_has_nothing_to_carry() -> None:
    assert to_dyadic([0.0])[0].tolist() == [0]
    assert [part.tolist() for part in map(np.asarray, to_dyadic([1.0, 0.0]))] == [[2**30, 0], 30]
    multipliers, shift = to_dyadic([])
    assert multipliers.tolist() == []
    assert SHIFT_RANGE[0] <= shift <= SHIFT_RANGE[1]


def test_float32_ratios_are_rounded_in_float64() -> None:
    below_half = np.nextafter(np.float32(0.5), np.float32(0))
    assert below_half + np.float32(0.5) == 1.0, "in float32 it would round up"
    ratios = np.array([1.0, below_half * np.float32(2.0**-30)], np.float32)
    assert [part.tolist() for part in map(np.asarray, to_dyadic(ratios))] == [[2**30, 0], 30]


@given(st.floats(-1e6, 1e6))
def test_round_half_up(value: float) -> None:
    rounded = int(round_half_up(value))
    assert abs(Fraction(value) - rounded) <= Fraction(1, 2) + Fraction(1, 2**30)
