"""Convolutions by a quarter of the multiplications: the arithmetic alone, and kernels against the interpreter."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.core.float32_residual import residual_multipliers
from hawq_tvm.core.ir import Array, IntType, Rescale, TensorType, Window
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.kernels import Offer, collect_offers
from hawq_tvm.kernels.dot.minimal_filtering import (
    BIAS_POINT,
    BOUND,
    FACTOR,
    FACTOR_SHIFT,
    INPUT,
    INVERSE_OF_NINE,
    OUTPUT,
    OUTPUTS,
    PAIRS,
    POINTS,
    TAPS,
    WEIGHTS,
    transform_input,
    transform_output,
    transform_weights,
)
from hawq_tvm.kernels.dot.winograd import choose, layout_of
from hawq_tvm.kernels.dot.winograd_loops import Tiling

from .dot_kernels import UNIT, VNNI, Frame, decline_of, offer_of, some_variants, writes_what_the_interpreter_says
from .test_dot_conv2d import conv, request_for

KERNEL = "conv2d_winograd_u8s8s32_avx512vnni"
SAME = Window((3, 3), pads=(1, 1, 1, 1))


def image(channels: int, height: int, width: int, dtype: str = "u8") -> TensorType:
    return TensorType(IntType.parse(dtype), (channels, height, width), 1.0)


# The arithmetic


def test_the_matrices_make_24_times_the_convolution() -> None:
    """As integers, hence modulo any number."""
    for output, tap, place in product(range(OUTPUTS), range(TAPS), range(POINTS)):
        terms = (OUTPUT[output][point] * WEIGHTS[point][tap] * INPUT[point][place] for point in range(POINTS))
        assert sum(terms) == (24 if place == output + tap else 0)


def test_the_transforms_are_their_matrices() -> None:
    six, three = list(np.eye(POINTS, dtype=np.int64)), list(np.eye(TAPS, dtype=np.int64))
    assert np.array_equal(transform_input(six), INPUT)
    assert np.array_equal(transform_output(six), OUTPUT)
    assert np.array_equal([row for pair in range(PAIRS) for row in transform_weights(pair, three)], WEIGHTS)


def test_16_bits_hold_what_is_multiplied() -> None:
    most_input, most_weight = (max(sum(map(abs, row)) for row in matrix) for matrix in (INPUT, WEIGHTS))
    assert most_input**2 * 255 <= 25_500 < 2**15
    assert most_weight**2 * 128 <= 18_432 < 2**15


def in_two_dimensions(pixels: Array, weights: Array, bias: int) -> Array:
    """One tile as the kernel computes it: 16 bits before products, 32 behind, both wrapping around.

    Args:
        pixels: uint8 [channels, 6, 6].
        weights: int8 [channels, 3, 3].
        bias: as int32.

    Returns:
        int32 [4, 4].
    """
    d, g = pixels.astype(np.int16), weights.astype(np.int16)
    columns = np.stack(transform_input(list(d.transpose(1, 0, 2))))
    inputs = np.stack(transform_input(list(columns.transpose(2, 0, 1))), axis=1)
    columns = np.stack([row for pair in range(PAIRS) for row in transform_weights(pair, list(g.transpose(1, 0, 2)))])
    taps = list(columns.transpose(2, 0, 1))
    at_points = np.stack([row for pair in range(PAIRS) for row in transform_weights(pair, taps)], axis=1)
    sums = (inputs.astype(np.int64) * at_points).sum(axis=2).astype(np.uint32)
    sums.flat[BIAS_POINT : BIAS_POINT + 1] += np.uint32(FACTOR * bias % 2**32)
    rows = transform_output(list(sums))
    results = np.stack(transform_output(list(np.stack(rows).T)), axis=1)
    assert results.dtype == np.uint32
    return (results * np.uint32(INVERSE_OF_NINE)).view(np.int32) >> FACTOR_SHIFT


@settings(max_examples=60)
@given(
    channels=st.integers(1, 240),
    pixels=st.sampled_from(["any", "most", "alternating"]),
    weights=st.sampled_from(["any", "least", "most", "alternating"]),
    bias=st.integers(-(2**23), 2**23),
    seed=st.integers(0, 999),
)
def test_a_tile_is_exact_modulo_twice_the_bound(channels: int, pixels: str, weights: str, bias: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    odd = np.indices((POINTS, POINTS)).sum(axis=0) % 2
    x = {"any": rng.integers(0, 256, (channels, POINTS, POINTS)), "most": np.full((channels, POINTS, POINTS), 255),
         "alternating": np.tile(odd * 255, (channels, 1, 1))}[pixels].astype(np.uint8)  # fmt: skip
    shape = channels, TAPS, TAPS
    w = {"any": rng.integers(-128, 128, shape), "least": np.full(shape, -128), "most": np.full(shape, 127),
         "alternating": np.tile(odd[:3, :3] * 255 - 128, (channels, 1, 1))}[weights].astype(np.int8)  # fmt: skip
    wide = [[x[:, i : i + TAPS, j : j + TAPS].astype(np.int64) * w for j in range(OUTPUTS)] for i in range(OUTPUTS)]
    expected = np.array(wide).sum(axis=(2, 3, 4)) + bias
    assert np.array_equal(in_two_dimensions(x, w, bias), (expected + BOUND) % (2 * BOUND) - BOUND)


@given(st.integers(1 - BOUND, BOUND - 1) | st.sampled_from([1 - BOUND, -1, 0, 1, BOUND - 1]))
def test_the_division_is_exact_up_to_the_bound(y: int) -> None:
    times = np.array([FACTOR * y % 2**32], np.uint32)
    assert ((times * np.uint32(INVERSE_OF_NINE)).view(np.int32) >> FACTOR_SHIFT).tolist() == [y]


# The kernel


@settings(max_examples=20)
@given(
    channels=st.sampled_from([32, 33, 48, 70]),
    out=st.sampled_from([9, 16, 32, 48, 65]),
    size=st.tuples(st.integers(4, 13), st.integers(4, 13)),
    pads=st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 1)]),
    extra=st.sampled_from([(0, 0, 0, 0), (1, 0, 2, 3)]),
    bits=st.sampled_from([5, 8]),
    types=st.tuples(*[st.sampled_from(["u8", "s8", "u4", "s5", "u2"])] * 3),
    shift=st.sampled_from([17, 33, 40]),
    residual=st.sampled_from(["", "one", "each"]),
    batch=st.integers(1, 3),
    odd=st.booleans(),
    seed=st.integers(0, 99),
)
def test_convolutions(
    channels: int, out: int, size: tuple[int, int], pads: Frame, extra: Frame, bits: int, types: tuple[str, str, str],
    shift: int, residual: str, batch: int, odd: bool, seed: int,
) -> None:  # fmt: skip
    window = Window((3, 3), pads=pads)
    size = size if min(window.output_size(*size)) >= OUTPUTS else (6, 7)
    factors = {"": 0, "one": 1, "each": out}[residual]
    op = conv(channels, out, window, bits=bits, output=types[1], shift=shift, residual=factors, odd=odd, seed=seed)
    x = image(channels, *size, types[0])
    request = request_for(op, x, types[1], residual=types[2], extra=extra, batch=batch)
    writes_what_the_interpreter_says(KERNEL, request)


@pytest.mark.parametrize("dtype", ["u8", "s8"])
@pytest.mark.parametrize("weight", [-128, 127])
def test_extreme_values(dtype: str, weight: int) -> None:
    """Everything at its limit, and neighbours at opposite ones."""
    op = conv(32, 32, SAME, output="s8", shift=40, odd=True)
    signs = np.indices(op.weight.shape).sum(axis=0) % 3 == 0
    op = replace(op, weight=np.where(signs, weight, -weight - 1).astype(np.int8))
    x = image(32, 9, 10, dtype)
    lo, hi = x.dtype.lo, x.dtype.hi
    odd = np.indices(x.shape).sum(axis=0) % 2 == 1
    values = np.stack([np.full(x.shape, hi), np.full(x.shape, lo), np.where(odd, lo, hi)]).astype(x.dtype.carrier)
    writes_what_the_interpreter_says(KERNEL, request_for(op, x, "s8", batch=3), [values])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("over", [0, 1])
def test_accumulators_at_their_bound(sign: int, over: int) -> None:
    """At 2^25 - 1 the kernel is exact, at 2^25 it declines."""
    channels = 64
    weight = np.full((16, channels, 3, 3), 100 * sign, np.int8)
    bias = np.full(16, sign * (BOUND - 1 - 100 * 255 * 9 * channels + over))
    rescale = Rescale(np.full(16, 2**30 + 1), 52, -128, 127)
    op, x = Conv2d(weight, 8, bias, rescale, SAME), image(channels, 5, 6)
    assert op.bounds([x]).accumulator == BOUND - 1 + over
    request = request_for(op, x, "s8")
    if over:
        expected = "accumulators can reach 33554432, and must stay under 2^25 to be divided exactly"
        assert decline_of(KERNEL, request) == expected
    else:
        writes_what_the_interpreter_says(KERNEL, request, [np.full((1, *x.shape), 255, np.uint8)])
        writes_what_the_interpreter_says(KERNEL, request, [np.zeros((1, *x.shape), np.uint8)])


def test_residuals_that_are_rounded_down_in_float32() -> None:
    multipliers, factors = residual_multipliers(np.arange(2**20, 2**20 + 48), [2**30], 31)
    op = replace(conv(40, 48, SAME), rescale=Rescale(multipliers, 31, 0, 255, factors))
    for dtype in ("u8", "s8"):
        request = request_for(op, image(40, 8, 7), "u8", residual=dtype, batch=2)
        assert "vfmadd" in offer_of(KERNEL, request).build().function.script()
        writes_what_the_interpreter_says(KERNEL, request)


@pytest.mark.parametrize(
    ("channels", "size", "batch", "tiling"),
    [
        (64, 56, 1, Tiling(rows=1, once=True, threads=True, own=True)),
        (128, 28, 1, Tiling(rows=7, once=False, threads=True, own=True)),
        (128, 28, 3, Tiling(rows=7, once=False, threads=True, own=True)),
        (128, 28, 4, Tiling(rows=4, once=True, threads=True, own=False)),
        (96, 35, 1, Tiling(rows=3, once=False, threads=True, own=True)),
        (64, 6, 1, Tiling(rows=2, once=True, threads=False, own=True)),
        (256, 14, 1, Tiling(rows=4, once=False, threads=True, own=True)),
    ],
)
def test_what_the_caches_hold_decides(channels: int, size: int, batch: int, tiling: Tiling) -> None:
    request = request_for(conv(channels, channels, SAME, bits=6), image(channels, size, size), "u8", batch=batch)
    assert choose(request, layout_of(request, VNNI)) == tiling
    if channels * size < 128 * 56:
        writes_what_the_interpreter_says(KERNEL, request)


def test_every_choice_of_parameters_gives_the_same() -> None:
    op = conv(48, 80, SAME, residual=80)
    request = request_for(op, image(48, 10, 14), "u8", extra=(1, 1, 1, 1), batch=2)
    offer = offer_of(KERNEL, request)
    assert offer.variants()[0].parameters == offer.parameters
    variants = some_variants(KERNEL, request, 15)
    for free in ("once", "threads", "own"):
        assert {variant.parameters[free] for variant in variants} == {0, 1}
    for variant in variants:
        writes_what_the_interpreter_says(KERNEL, request, variant=variant)


@pytest.mark.parametrize(("channels", "size", "groups"), [(128, (28, 28), 7), (384, (4, 8), 1)])
def test_threads_share_what_there_is(channels: int, size: tuple[int, int], groups: int) -> None:
    """One block of output channels, as a DenseNet-121's layers at 28x28 have: groups of rows; of one, nothing."""
    request = request_for(conv(channels, 32, SAME), image(channels, *size), "u8")
    layout = layout_of(request, VNNI)
    assert layout.panels.blocks == 1
    assert layout.all_rows // choose(request, layout).rows == groups
    for variant in offer_of(KERNEL, request).variants():
        writes_what_the_interpreter_says(KERNEL, request, variant=variant)


@pytest.mark.parametrize(
    ("channels", "size", "batch", "bits", "taken"),
    [
        (64, 56, 1, 8, True),
        (128, 28, 8, 8, True),
        (96, 35, 1, 8, True),
        (256, 14, 1, 8, True),
        (256, 7, 1, 8, False),
        (512, 7, 8, 6, False),
        (64, 56, 1, 4, False),
    ],
)
def test_it_is_taken_where_it_was_measured_to_win(channels: int, size: int, batch: int, bits: int, taken: bool) -> None:
    request = request_for(
        conv(channels, channels, SAME, bits=bits), image(channels, size, size, "u7"), "u8", batch=batch
    )
    offers = {name: answer for name, answer in collect_offers(request).items() if isinstance(answer, Offer)}
    assert (min(offers, key=lambda name: offers[name].cost) == KERNEL) == taken


def test_declines_are_sentences() -> None:
    x = image(32, 8, 8)

    def decline(window: Window = SAME, x: TensorType = x, *, bits: int = 8, groups: int = 1) -> str:
        return decline_of(KERNEL, request_for(conv(x.shape[0], 32, window, bits=bits, groups=groups), x, "u8"))

    assert decline(Window((1, 1))) == "computes 3x3 windows, stride 1, dilation 1, in one group, not 1x1 in 1"
    assert decline(Window((3, 3), (2, 2))) == (
        "computes 3x3 windows, stride 1, dilation 1, in one group, not 3x3 stride 2,2 in 1"
    )
    assert decline(Window((3, 3), dilations=(1, 2))).startswith("computes 3x3 windows")
    assert decline(groups=4).endswith("not 3x3 pads 1,1,1,1 in 4")
    assert decline(bits=4) == "stores weights in 8 bits, these have 4 and stay packed"
    assert decline(x=image(32, 3, 8)) == "computes 4x4 pixels at once, not u8[32,3,8]"
    assert decline(x=image(400, 8, 8)).endswith("up to 384 input channels in the second cache, not of 400")
    assert decline(x=image(16, 8, 8)) == "transforms 32 channels at once, there are 16"
    request = request_for(conv(32, 32, SAME), x, "u8", unit=UNIT["avxvnni"])
    assert decline_of(KERNEL, request).startswith("needs avx512")
