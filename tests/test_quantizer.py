from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.core.ir import IntType
from hawq_tvm.core.quantizer import (
    Range,
    activation_scale,
    activation_type,
    quantize_weight,
    weight_limit,
    weight_scales,
)


@given(bits=st.integers(2, 8), seed=st.integers(0, 999))
def test_weights_round_to_the_nearest_level(bits: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(3, 4, 2, 2)).astype(np.float32)
    scales = weight_scales(weight, bits)
    integers = quantize_weight(weight, scales, bits)
    assert integers.dtype == np.int8
    assert np.abs(integers).max() == weight_limit(bits) == 2 ** (bits - 1) - 1
    error = np.abs(integers * scales.reshape(-1, 1, 1, 1) - weight)
    assert (error <= scales.reshape(-1, 1, 1, 1) * (0.5 + 1e-9)).all()


def test_each_output_channel_has_its_own_scale() -> None:
    weight = np.array([[1.0, -2.0], [0.01, 0.02], [0.0, 0.0]], np.float32)
    scales = weight_scales(weight, 4)
    assert scales == pytest.approx([2 / 7, 0.02 / 7, 0.0])
    with np.errstate(all="raise"):  # nothing is divided by the scale 0
        assert quantize_weight(weight, scales, 4).tolist() == [[4, -7], [4, 7], [0, 0]]


def test_weights_on_the_levels_lose_nothing() -> None:
    levels = np.random.default_rng(0).integers(-7, 8, (5, 30))
    levels[:, 0] = 7
    weight = (levels * 0.125).astype(np.float32)
    assert np.array_equal(quantize_weight(weight, weight_scales(weight, 4), 4), levels)


def test_activation_scales_cover_the_range() -> None:
    assert activation_scale(Range(0.0, 6.0), activation_type(4, nonnegative=True)) == pytest.approx(0.4)
    assert activation_scale(Range(-3.0, 1.0), activation_type(8, nonnegative=False)) == pytest.approx(3 / 127)
    assert activation_type(4, nonnegative=True) == IntType(4, signed=False)
    assert activation_type(4, nonnegative=False) == IntType(4, signed=True)
    assert activation_scale(Range(-1.0, 3.0), activation_type(8, nonnegative=False)) == pytest.approx(3 / 127)
    assert activation_scale(Range(-3.0, 1.0), activation_type(8, nonnegative=True)) == pytest.approx(1 / 255)


def test_weights_are_clipped_to_the_narrow_range() -> None:
    """As where a channel's scale was not taken from its own largest weight."""
    weight = np.array([[9.0, -9.0, 0.5, -0.5]], np.float32)
    assert quantize_weight(weight, np.array([1.0]), 4).tolist() == [[7, -7, 1, 0]]
    assert quantize_weight(weight * 100, np.array([1.0]), 8).tolist() == [[127, -127, 50, -50]]
    assert quantize_weight(weight, np.array([0.5]), 8).tolist() == [[18, -18, 1, -1]]


def test_weights_are_divided_in_float64() -> None:
    weight, scale = np.array([[1.05]], np.float32), 0.7
    assert weight[0, 0].astype(np.float64) / scale < 1.5 <= weight[0, 0] / np.float32(scale)
    assert quantize_weight(weight, np.array([scale]), 8).tolist() == [[1]]


def test_a_channel_of_zeros_is_zero_whatever_lay_in_memory() -> None:
    for _ in range(20):
        junk = [np.full((1, 8), 9.0) for _ in range(20)]
        del junk  # numpy hands such memory out again
        assert not quantize_weight(np.zeros((1, 8)), np.zeros(1), 8).any()
