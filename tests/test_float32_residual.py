"""The floored float32 form against the law, in exact fractions; a fused multiply-add rounds them down once."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.core.dyadic import rescale, to_dyadic
from hawq_tvm.core.float32_residual import FACTOR_DIGITS, RESIDUAL_DIGITS, FloorForm, floor_form, residual_multipliers
from hawq_tvm.core.ir import IntType, Rescale

U8, S8 = IntType(8, signed=False), IntType(8, signed=True)


def rounded_down(value: Fraction) -> np.float32:
    """The largest float32 that is not above a number, which must not be huge or tiny."""
    near = np.float32(float(value))
    return near if Fraction(float(near)) <= value else np.nextafter(near, np.float32(-np.inf))


def by_form(acc: int, stored: int, parameters: Rescale, form: FloorForm, offset: int) -> int:
    """What a kernel computes, instruction by instruction."""
    t = np.int32(form.start + form.factor * stored).view(np.float32)
    ratio = Fraction(int(parameters.multiplier[0]), 2**parameters.shift)
    assert float(ratio) == np.float32(float(ratio)), "the ratio is a float32"
    total = rounded_down(Fraction(float(np.float32(acc))) * ratio + Fraction(float(t)))
    result = (int(total.view(np.int32)) >> form.digits) - form.base
    return min(max(result, parameters.lo + offset), parameters.hi + offset)


def by_law(acc: int, residual: int, parameters: Rescale) -> int:
    assert parameters.residual is not None
    total = acc * int(parameters.multiplier[0]) + residual * int(parameters.residual[0])
    return int(rescale(np.array([total]), parameters.shift, parameters.lo, parameters.hi)[0])


def offset_of(dtype: IntType) -> int:
    return 128 if dtype.signed else 0


@given(
    ratio=st.floats(1e-6, 0.5),
    residual_ratio=st.floats(1e-4, 3.9) | st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    residual=st.sampled_from([U8, S8, IntType(4, signed=False)]),
    result=st.sampled_from([U8, S8]),
    reach=st.integers(1, 2**31 - 1),
    data=st.data(),
)
def test_every_result_is_the_laws(
    ratio: float, residual_ratio: float, residual: IntType, result: IntType, reach: int, data: st.DataObject
) -> None:
    (m, r), shift = to_dyadic([ratio, residual_ratio])
    multiplier, factor = residual_multipliers([m], [r], shift)
    parameters = Rescale(multiplier, shift, result.lo, result.hi, factor)
    form = floor_form(parameters, reach, residual, residual_offset=offset_of(residual), offset=offset_of(result))
    if residual == U8 and result == U8 and residual_ratio < 2 and (reach < 2**24 or ratio > 2.0**-15):
        assert form is not None, "ordinary layers have one"
    if form is None:
        return
    assert 0 <= form.factor < 2**FACTOR_DIGITS - 1
    ends = [residual.lo, residual.hi, 0]
    for value in [*ends, *data.draw(st.lists(st.integers(residual.lo, residual.hi), max_size=3))]:
        step = Fraction(2**shift, int(multiplier[0]))
        edges = [floor(step * (Fraction(2 * k - 1, 2) - value * Fraction(int(factor[0]), 2**shift)))
                 for k in (result.lo, result.lo + 1, 1, result.hi, result.hi + 1)]  # fmt: skip
        special = [0, reach, -reach, 2**24 - 1, 2**24 + 1, 2**25 - 1, *edges, *(edge + 1 for edge in edges)]
        for acc in (*special, *(-value for value in special)):
            if abs(acc) <= reach:
                stored = value + offset_of(residual)
                found = by_form(acc, stored, parameters, form, offset_of(result)) - offset_of(result)
                assert found == by_law(acc, value, parameters), (acc, value)


@given(m=st.integers(0, 2**31 - 1), r=st.integers(0, 2**31 - 1), shift=st.integers(1, 62))
def test_multipliers_change_little_and_once(m: int, r: int, shift: int) -> None:
    (multiplier,), (factor,) = residual_multipliers([m], [r], shift)
    assert 0 <= m - multiplier < max(1, 2.0**-23 * m)
    unit = 2.0 ** max(0, shift - RESIDUAL_DIGITS) * max(1.0, 2.0 ** np.ceil(np.log2(max(r, 1) * 2.0**-shift + 1e-300)))
    assert abs(factor - r) <= max(1, unit) and factor < 2**31
    again = residual_multipliers([multiplier], [factor], shift)
    assert (again[0].item(), again[1].item()) == (multiplier, factor)


ORDINARY = Rescale([2**24 - 1], 40, 0, 255, [3 << 26])


@pytest.mark.parametrize(
    ("parameters", "reach", "residual", "why"),
    [
        (Rescale([2**24 + 1], 40, 0, 255, [3 << 26]), 2**20, U8, "25 significant bits"),
        (Rescale([2**24 - 1], 40, 0, 255, [(3 << 26) + 1]), 2**20, U8, "a residual that no float holds"),
        (Rescale([2**24 - 1] * 2, 40, 0, 255, [1 << 26, 1 << 27]), 2**20, U8, "two multipliers of the residual"),
        (Rescale([2**23 + 1], 47, 0, 255, [3 << 33]), 2**24, U8, "accumulators that float32 rounds, and no clip"),
        (Rescale([2**24 - 1], 24, 0, 255, [2**30]), 2**20, IntType(2, signed=False), "a factor of 17 bits"),
        (Rescale([2**24 - 1], 30, 0, 255, [2**31 - 2**24]), 2**20, U8, None),
        (Rescale([2**24 - 1], 40, 0, 255), 2**20, U8, "no residual"),
        (ORDINARY, 2**20, U8, None),
    ],
)
def test_each_condition_is_needed(parameters: Rescale, reach: int, residual: IntType, why: str | None) -> None:
    form = floor_form(parameters, reach, residual, residual_offset=offset_of(residual), offset=0)
    assert (form is None) == (why is not None)


def test_what_the_form_is_made_of() -> None:
    form = floor_form(ORDINARY, 2**20, U8, residual_offset=0, offset=0)
    assert form is not None
    zero = np.int32(form.start).view(np.float32)
    assert zero == 2.0**8 + 0.5
    one = np.int32(form.start + form.factor).view(np.float32)
    assert one - zero == 3 * 2.0**26 / 2.0**40
    assert form.base == np.float32(2.0**8).view(np.int32) >> form.digits
