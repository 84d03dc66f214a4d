"""How the channels-last convolution cuts its work, and what kernels say they cost, counted by hand."""

from __future__ import annotations

from math import ceil

import pytest

from hawq_tvm.kernels import CONVERTERS, ConvertRequest, Offer
from hawq_tvm.kernels.generic.costs import CALL_US, RATES, Rates, Work, empty_lanes
from hawq_tvm.kernels.generic.nhwc_conv2d import _pixels, _Shape

from .test_kernels_alone import CASES, LAST, LLVM, PLAIN, S8, SAME, conv, image, offers_of, request_of


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


WORK: list[tuple[str, str, tuple[int, int, int]]] = [
    ("convolution", "NCHW", (2 * 32 * 5 * 6 * 5 * 6, 33 * 5 * 6, 5 * 12 * 20)),
    ("convolution", "NHWC", (48 * 5 * 6 * 5 * 6, 6 * 8 * 48, 0)),
    ("convolution without padding", "NCHW", (64 * 5 * 15 * 4 * 6, 64 * 5 * 15, 0)),
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


def test_a_conversion_costs_what_the_larger_side_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of channels last, 2 x 8 x 7 x 8 in their frame, either way; by rates of its own."""
    for name in RATES:
        way = {"convert to nhwc": 1000, "convert to nchw": 2000}.get(name, 10**6)
        monkeypatch.setitem(RATES, name, Rates(10**6, way))
    (converter,) = CONVERTERS
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
