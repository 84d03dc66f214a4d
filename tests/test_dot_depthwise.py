"""VNNI depthwise convolutions against the interpreter, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.core.ir import IntType, TensorType, Window
from hawq_tvm.kernels.dot.depthwise import MIN_OUTPUTS, quads_of
from hawq_tvm.kernels.dot.product import DOT_STEP

from .dot_kernels import UNIT, decline_of, kernel_of, offer_of, some_variants, writes_what_the_interpreter_says
from .test_dot_conv2d import conv, request_for

BYTES = "conv2d_depthwise_u8s8s32_avx512vnni"


@pytest.mark.parametrize("name", [name for name, unit in UNIT.items() if unit.step == DOT_STEP])
@settings(max_examples=15)
@given(
    channels=st.sampled_from([5, 16, 17, 32, 48, 70]),
    size=st.tuples(st.integers(3, 8), st.integers(1, 19)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 7)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    extra=st.sampled_from([(0, 0, 0, 0), (1, 0, 2, 3)]),
    bits=st.sampled_from([2, 4, 8]),
    types=st.tuples(*[st.sampled_from(["u8", "s8", "u4"])] * 3),
    shift=st.sampled_from([9, 33, 40]),
    residual=st.sampled_from(["", "one", "each"]),
    batch=st.integers(1, 2),
)
def test_depthwise_convolutions(
    name: str, channels: int, size: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int],
    dilations: tuple[int, int], pads: tuple[int, int, int, int], extra: tuple[int, int, int, int], bits: int,
    types: tuple[str, str, str], shift: int, residual: str, batch: int,
) -> None:  # fmt: skip
    window = Window(kernel, strides, pads, dilations)
    if size[0] + pads[0] + pads[2] < window.reach[0] or size[1] + pads[1] + pads[3] < window.reach[1]:
        size = (8, 19)
    factors = {"": 0, "one": 1, "each": channels}[residual]
    op = conv(channels, channels, window, bits=bits, groups=channels, output=types[1], shift=shift, residual=factors)
    x = TensorType(IntType.parse(types[0]), (channels, *size), 1.0)
    request = request_for(op, x, types[1], residual=types[2], extra=extra, batch=batch, unit=UNIT[name])
    writes_what_the_interpreter_says(kernel_of(request, UNIT[name], depthwise=True), request)


def test_work_large_enough_for_threads() -> None:
    op = conv(48, 48, Window((3, 3), pads=(1, 1, 1, 1)), groups=48)
    x = TensorType(IntType.parse("u8"), (48, 80, 80), 1.0)
    assert np.prod(x.shape) >= MIN_OUTPUTS
    request = request_for(op, x, "u8")
    assert "T.parallel" in offer_of(BYTES, request).build().function.script()
    writes_what_the_interpreter_says(BYTES, request)


@given(kernel=st.integers(1, 9), stride=st.integers(1, 4), dilation=st.integers(1, 3), width=st.integers(1, 9))
def test_quads_hold_every_tap_of_every_pixel_once(kernel: int, stride: int, dilation: int, width: int) -> None:
    quads = quads_of(kernel, stride, dilation, width)
    pixels = len(quads[0].taps)
    assert 1 <= pixels <= width
    last = (pixels - 1) * stride + (kernel - 1) * dilation
    for pixel in range(pixels):
        places = [
            (tap, column)
            for quad in quads
            for tap, column in zip(quad.taps[pixel], quad.columns, strict=True)
            if tap >= 0
        ]
        assert places == [(tap, pixel * stride + tap * dilation) for tap in range(kernel)]
    assert all(0 <= column <= last for quad in quads for column in quad.columns), "no column beyond those needed"


@pytest.mark.parametrize(("kernel", "stride", "pixels"), [(3, 1, 2), (3, 2, 1), (5, 1, 4), (5, 2, 2), (7, 1, 2)])
def test_a_set_has_as_many_pixels_as_its_columns_serve(kernel: int, stride: int, pixels: int) -> None:
    assert len(quads_of(kernel, stride, 1, 100)[0].taps) == pixels


def test_groups_of_more_channels_are_declined() -> None:
    op = conv(32, 32, Window((3, 3)), groups=16)
    request = request_for(op, TensorType(IntType.parse("u8"), (32, 5, 5), 1.0), "u8")
    assert decline_of(BYTES, request) == "takes one group a channel, got 16 groups of 32 channels"


@pytest.mark.parametrize("bits", [4, 8])
def test_every_choice_of_parameters_gives_the_same(bits: int) -> None:
    op = conv(48, 48, Window((3, 3), pads=(1, 1, 1, 1)), bits=bits, groups=48)
    request = request_for(op, TensorType(IntType.parse("u8"), (48, 5, 11), 1.0), "u8")
    name = f"conv2d_depthwise_u8s{bits}s32_avx512vnni"
    variants = some_variants(name, request, 20)
    assert len(variants) == 8, "whole sets of two pixels, with threads and without"
    for variant in variants:
        assert ("T.parallel" in variant.build().function.script()) == bool(variant.parameters["threads"])
        writes_what_the_interpreter_says(name, request, variant=variant)
