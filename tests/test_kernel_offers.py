"""What kernels offer: what they decline and why, how channels last is cut, and costs counted by hand."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np
import pytest

from hawq_tvm.core.ir import Rescale, Window
from hawq_tvm.core.ops import AvgPool2d, MaxPool2d
from hawq_tvm.core.targets import Target
from hawq_tvm.kernels import CONVERTERS, ConvertRequest, Offer
from hawq_tvm.kernels.generic.costs import CALL_US, RATES, Rates, Work, empty_lanes
from hawq_tvm.kernels.generic.nhwc_conv2d import _pixels, _Shape

from .kernel_requests import offers_of
from .test_kernels_alone import CASES, LAST, LLVM, PLAIN, S8, SAME, conv, declines_of, image, request_of


@pytest.mark.parametrize("bits", [128, 256, 512])
@pytest.mark.parametrize("halves", [1, 2, 3])
def test_tiles_of_channels_last_leave_registers_and_repeat_least(halves: int, bits: int) -> None:
    most = (28 if bits == 512 else 12) // halves
    for width in range(1, 61):
        work = {tile: ceil(width / tile) * (tile + 1) for tile in range(1, min(most, width) + 1)}
        assert _pixels(width, halves, bits) == max(tile for tile in work if work[tile] == min(work.values()))


@pytest.mark.parametrize(
    ("channels", "out", "groups", "weight_bits", "vector_bits", "expected"),
    [
        (3, 64, 1, 8, 512, (2, 16, 2, False)),
        (3, 48, 1, 8, 512, (3, 16, 1, False)),
        (3, 48, 1, 4, 512, (1, 16, 3, False)),
        (3, 16, 1, 8, 512, (1, 16, 1, False)),
        (3, 33, 1, 8, 512, (3, 16, 1, False)),
        (3, 80, 1, 8, 256, (2, 8, 5, False)),
        (3, 8, 1, 8, 128, (2, 4, 1, False)),
        (3, 5, 1, 8, 64, (2, 4, 1, False)),
        (8, 48, 2, 8, 512, (3, 8, 1, False)),
        (32, 32, 32, 8, 512, (2, 16, 1, True)),
        (2, 2, 2, 8, 512, (1, 4, 1, True)),
        (32, 64, 32, 8, 512, (1, 2, 1, False)),
    ],
)
def test_blocks_of_channels_last_divide_the_stored_channels(
    channels: int, out: int, groups: int, weight_bits: int, vector_bits: int, expected: tuple[int, int, int, bool]
) -> None:
    op = conv(channels, out, SAME, weight_bits, groups=groups)
    shape = _Shape.of(request_of(op, [image(channels, 6, 6)], S8, vector_bits=vector_bits))
    assert (shape.blocking.halves, shape.blocking.lanes, shape.blocks, shape.depthwise) == expected
    assert shape.groups == (1 if shape.depthwise else groups)
    assert shape.blocking.tile == _pixels(6, shape.blocking.halves, vector_bits)


@pytest.mark.parametrize(
    ("lo", "hi", "taken"), [(0, 9, True), (-9, 0, True), (0, 0, True), (1, 9, False), (-9, -1, False)]
)
def test_channels_that_fill_up_hold_zero_so_clips_must(lo: int, hi: int, taken: bool) -> None:
    """Where nothing fills up, any clip will do."""
    for channels in (5, 8):
        rescale = Rescale(np.ones(channels), 9, lo, hi)
        layer = replace(conv(3, channels, SAME, 8), rescale=rescale)
        pool = AvgPool2d(Window((2, 2)), replace(rescale, multiplier=[[1]]))
        for op, inputs in ((layer, image(3, 5, 5)), (pool, image(channels, 5, 5))):
            orders = [offer.reads[0].order for offer in offers_of(request_of(op, [inputs], S8)).values()]
            assert orders == (["NCHW", "NHWC"] if taken or channels == 8 else ["NCHW"])


@pytest.mark.parametrize(
    ("channels", "out", "groups", "taken"), [(8, 48, 2, True), (6, 24, 3, False), (8, 24, 2, False), (4, 32, 2, True)]
)
def test_groups_fill_half_a_vector_each_and_leave_nothing_to_fill(
    channels: int, out: int, groups: int, taken: bool
) -> None:
    """Of 24, 8, 12 and 16 channels a group, in vectors of 16: 8 leaves 8 of 32 unfilled, 12 fills a quarter."""
    op = conv(channels, out, SAME, 8, groups=groups)
    orders = [offer.reads[0].order for offer in offers_of(request_of(op, [image(channels, 5, 5)], S8)).values()]
    assert orders == (["NCHW", "NHWC"] if taken else ["NCHW"])


def test_channels_last_is_declined_with_a_sentence() -> None:
    op, inputs, output, _ = CASES["with a residual"]
    request = request_of(op, inputs, output)
    name = "conv2d_x8w8s32_generic_nhwc"
    for missing in ("x0", "x1", "y"):
        found = {value: storage for value, storage in request.alternatives.items() if value != missing}
        answer = declines_of(replace(request, alternatives=found), name)
        assert answer == [f"computes on channels last, in which '{missing}' is not in play"]
    moon = replace(request, target=Target("moon", "hexagon", ""))
    assert declines_of(moon, name, "add_generic") == ["written for CPUs through LLVM, not for 'hexagon'"] * 2
    assert declines_of(request, "add_generic_nhwc", "linear_x8w8s32_generic") == [
        "computes linear, not conv2d", "computes add, not conv2d",
    ]  # fmt: skip
    assert declines_of(request, "conv2d_x8w4s32_generic_nhwc") == ["stores weights in 4 bits, these have 8"]
    op, inputs, output, _ = CASES["convolution of 4 bits"]
    packed = "stores weights in 8 bits, these have 4 and stay packed"
    assert declines_of(request_of(op, inputs, output), name) == [packed]
    op, inputs, output, _ = CASES["global average pool"]
    request = request_of(op, inputs, output)
    pool = "global_avg_pool2d_generic_nhwc"
    alone = {"x0": request.alternatives["x0"]}
    assert isinstance(declines_of(replace(request, alternatives=alone), pool)[0], Offer), (
        "one pixel is NCHW in any case"
    )
    refused = declines_of(replace(request, alternatives={}), pool)
    assert refused == ["computes on channels last, in which 'x0' is not in play"]


@pytest.mark.parametrize(
    ("case", "kernel", "message"),
    [
        ("a clip without zero", "conv2d_x8w8s32_generic_nhwc", "its clip 7..110 leaves out"),
        ("average pool, unpadded", "avg_pool2d_generic_nhwc", "its clip 3..99 leaves out"),
        ("max pool of signed", "max_pool2d_generic_nhwc", "not the least values of s8"),
        ("grouped of 4 bits", "conv2d_x8w4s32_generic_nhwc", "groups of 6 channels of 18 do not fill"),
        ("groups of one", "conv2d_x8w8s32_generic_nhwc", "groups of 2 channels of 12 do not fill"),
    ],
)
def test_what_channels_last_cannot_hold_is_said(case: str, kernel: str, message: str) -> None:
    op, inputs, output, how = CASES[case]
    (answer,) = declines_of(request_of(op, inputs, output, **how), kernel)
    assert isinstance(answer, str)
    assert message in answer


def test_what_int32_cannot_index_is_declined() -> None:
    """A value, a value with what fills it up, and its copy with its padding."""
    nchw, nhwc, pool = "conv2d_x8w8s32_generic", "conv2d_x8w8s32_generic_nhwc", "max_pool2d_generic"
    layer, x = conv(4, 16, SAME, 8), image(4, 6, 6)
    told = "addresses elements by 32 bits, 4000000 samples of s8[16,6,6] are more; compile a smaller batch"
    assert declines_of(request_of(layer, [x], S8, batch=4_000_000), nchw, nhwc) == [told, told]
    layer, x, samples = conv(1, 1, SAME, 8), image(1, 2, 2), 30_000_000
    filled = f"addresses elements by 32 bits, {samples} samples of u8[1,2,2] in NHWC/4 frame 2,3,2,3 are more"
    taken, declined = declines_of(request_of(layer, [x], S8, batch=samples), nchw, nhwc)
    assert isinstance(taken, Offer) and declined == filled
    samples *= 10
    padded = f"addresses elements by 32 bits, {samples} samples of u8[1,2,2] are more when padded"
    assert declines_of(request_of(layer, [x], S8, batch=samples), nchw) == [padded]
    assert declines_of(request_of(MaxPool2d(SAME), [x], x.dtype, batch=samples), pool) == [padded]


def test_requests_are_equal_to_themselves_alone() -> None:
    """They hold weights, whose equality is an array."""
    op, inputs, output, _ = CASES["linear"]
    requests = [request_of(op, inputs, output), ConvertRequest(image(7, 5, 6), PLAIN, LAST, 1, LLVM, 512)]
    assert len({*requests, *(replace(request) for request in requests)}) == 4


WORK: list[tuple[str, str, tuple[int, int, int]]] = [
    ("convolution", "NCHW", (2 * 32 * 5 * 6 * 5 * 6, 33 * 5 * 6, 5 * 12 * 20)),
    ("convolution", "NHWC", (48 * 5 * 6 * 5 * 6, 6 * 8 * 48, 0)),
    ("convolution without padding", "NCHW", (64 * 5 * 15 * 4 * 6, 64 * 5 * 15, 0)),
    ("two tiles a row", "NHWC", (32 * 2 * 16 * 4 * 9, 3 * 17 * 32, 0)),
    ("a narrow one", "NCHW", (4 * 6 * 7 * 3 * 9, 3 * 6 * 7, 3 * 8 * 9)),
    ("with a residual", "NCHW", (2 * 32 * 6 * 6 * 4 * 9, 2 * 20 * 6 * 6, 2 * 4 * 8 * 8)),
    ("with a residual", "NHWC", (2 * 32 * 6 * 6 * 4 * 9, 2 * 6 * 6 * 32, 0)),
    ("grouped", "NCHW", (48 * 5 * 6 * 4 * 9, 48 * 5 * 6, 8 * 7 * 8)),
    ("grouped", "NHWC", (48 * 5 * 6 * 4 * 9, 6 * 8 * 48, 0)),
    ("groups of one", "NCHW", (12 * 5 * 32 * 9, 12 * 5 * 21, 6 * 7 * 23)),
    ("depthwise", "NHWC", (32 * 5 * 6 * 6, 6 * 8 * 32, 0)),
    ("linear", "NCHW", (2 * 7 * 10, 2 * 10, 0)),
    ("sum", "NCHW", (2 * 5 * 4 * 6, 5 * 4 * 6, 0)),
    ("sum", "NHWC", (2 * 5 * 4 * 6, 5 * 4 * 6, 0)),
    ("requantize", "NHWC", (2 * 5 * 3 * 7, 2 * 5 * 3 * 7, 0)),
    ("concatenation", "NHWC", (11 * 4 * 5, 11 * 4 * 5, 0)),
    ("concatenation", "NCHW", (11 * 4 * 5, 11 * 4 * 5, 0)),
    ("channels of zeros", "NCHW", (0, 2 * 10 * 4 * 6, 0)),
    ("channels of zeros", "NHWC", (0, 2 * 12 * 4 * 6, 0)),
    ("channels of zeros behind", "NHWC", (0, 4 * 7 * 32, 0)),
    ("max pool", "NCHW", (5 * 5 * 4 * 6, 5 * 5 * 4, 5 * 11 * 9)),
    ("max pool", "NHWC", (8 * 5 * 4 * 6, 6 * 6 * 8, 0)),
    ("average pool by position", "NCHW", (2 * 4 * 4 * 3 * 4, 2 * 4 * 4 * 3, 2 * 4 * 8 * 7)),
    ("average pool by position", "NHWC", (2 * 4 * 4 * 3 * 4, 2 * 4 * 4 * 3, 0)),
    ("global average pool", "NCHW", (2 * 19 * 7 * 5, 2 * 19, 0)),
    ("global average pool", "NHWC", (2 * 32 * 11 * 11, 2 * 19, 0)),
]


@pytest.mark.parametrize(("case", "order", "expected"), WORK)
def test_costs_count_the_work_with_what_fills_up(
    case: str, order: str, expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    op, inputs, output, how = CASES[case]
    request = request_of(op, inputs, output, **how)
    macs_ns = 1000 * request.vector_bits / 512
    counts = []
    for rates in (Rates(macs_ns, 0), Rates(0, 1000), Rates(0, 0, 1000)):
        for name in RATES:
            monkeypatch.setitem(RATES, name, rates)
        (cost,) = (offer.cost for offer in offers_of(request).values() if offer.reads[0].order == order)
        counts.append(round(cost - CALL_US, 6))
    assert tuple(counts) == expected


@pytest.mark.parametrize(
    ("lanes", "bits", "expected"), [(16, 512, 1), (8, 512, 2), (4, 512, 4), (16, 128, 1), (2, 128, 2), (3, 256, 2)]
)
def test_lanes_that_stay_empty_cost_as_full_ones(lanes: int, bits: int, expected: int) -> None:
    op, inputs, output, _ = CASES["convolution"]
    assert empty_lanes(lanes, request_of(op, inputs, output, vector_bits=bits)) == expected


@pytest.mark.parametrize(
    ("case", "order", "rates"),
    [
        ("convolution", "NCHW", "conv2d nchw"), ("groups of one", "NCHW", "conv2d nchw pixels"),
        ("convolution", "NHWC", "conv2d nhwc"), ("depthwise", "NHWC", "conv2d nhwc depthwise"),
        ("linear", "NCHW", "linear"), ("max pool", "NCHW", "pool nchw"), ("max pool", "NHWC", "max pool nhwc"),
        ("average pool", "NHWC", "avg pool nhwc"), ("global average pool", "NCHW", "global pool nchw"),
        ("global average pool", "NHWC", "global pool nhwc"), ("sum", "NCHW", "elementwise nchw"),
        ("sum", "NHWC", "elementwise nhwc"), ("concatenation", "NCHW", "concat nchw"),
        ("concatenation", "NHWC", "concat nhwc"), ("channels of zeros", "NCHW", "pad channels nchw"),
        ("channels of zeros", "NHWC", "pad channels nhwc"),
    ],
)  # fmt: skip
def test_kernels_have_rates_of_their_own(case: str, order: str, rates: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RATES:
        monkeypatch.setitem(RATES, name, Rates(0, 1000 if name == rates else 0))
    op, inputs, output, how = CASES[case]
    offers = offers_of(request_of(op, inputs, output, **how)).values()
    assert [offer.cost > CALL_US for offer in offers if offer.reads[0].order == order] == [True]


def test_a_conversion_costs_what_the_larger_side_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of channels last, 2 x 8 x 7 x 8 in their frame, either way; by rates of its own."""
    for name in RATES:
        way = {"convert to nhwc": 1000, "convert to nchw": 2000}.get(name, 10**6)
        monkeypatch.setitem(RATES, name, Rates(10**6, way))
    converter = next(c for c in CONVERTERS if c.name == "convert_generic")
    for ways, factor in (((LAST, PLAIN), 2), ((PLAIN, LAST), 1)):
        offer = converter.offer(ConvertRequest(image(7, 5, 6), *ways, 2, LLVM, 512))
        assert isinstance(offer, Offer)
        assert offer.cost - CALL_US == pytest.approx(factor * 2 * (5 + 1 + 2) * 7 * 8)


def test_costs_add_up_and_wider_vectors_are_faster() -> None:
    work, rates = Work(10, 100, 1000), Rates(2.0, 3.0, 5.0)
    assert rates.microseconds(work, 512) == pytest.approx(0.02 + 0.3 + 5.0 + CALL_US)
    assert rates.microseconds(work, 1024) == rates.microseconds(work, 512)
    assert rates.microseconds(work, 128) == pytest.approx(0.08 + 0.3 + 5.0 + CALL_US)
    assert (Work(1, 2).copied, Rates(1.0, 2.0).copied_ns) == (0, 0)
    assert CALL_US > 0, "a conversion is never free"
