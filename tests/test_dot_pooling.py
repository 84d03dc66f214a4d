"""Pools against the interpreter, byte for byte, over awkward shapes and extreme values."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hawq_tvm.core.float32_rescale import float32_is_exact, odd_multipliers
from hawq_tvm.core.ir import Array, IntType, Operator, Rescale, Shape, TensorType, Window
from hawq_tvm.core.ops import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels import Request
from hawq_tvm.kernels.dot.images import Vectors
from hawq_tvm.kernels.dot.pooling import MAX_COLUMNS, MOST_BYTES, Cut
from hawq_tvm.kernels.dot.unit import Unit

from .dot_kernels import UNIT, VNNI, X86, Frame, decline_of, dot_request, offer_of, writes_what_the_interpreter_says

MAX, AVERAGE, GLOBAL = "max_pool2d_avx512vnni", "avg_pool2d_avx512vnni", "global_avg_pool2d_avx512vnni"
CHANNELS = st.sampled_from([13, 16, 17, 31, 32, 40, 64, 70, 96, 130])
TYPES = st.sampled_from(["u8", "s8", "u4", "s5"])
PADS = st.tuples(*[st.integers(0, 2)] * 4)
sweep = settings(max_examples=12)


def multipliers(shape: Shape, shift: int, terms: int, *, odd: bool, seed: int = 0) -> Array:
    """As large as the proofs allow for sums of so many bytes with that shift, `odd` with 24 digits."""
    most = min(2**31 - 1, (1 << min(60, 29 + shift)) // (256 * terms))
    values = np.random.default_rng(seed).integers(0, most, shape, endpoint=True)
    return odd_multipliers(values, shift) if odd else values


def average(
    window: Window, shape: Shape, output: str, *, shift: int = 31, odd: bool = True, seed: int = 0
) -> AvgPool2d:
    dtype = IntType.parse(output)
    values = multipliers(shape, shift, prod(window.kernel), odd=odd, seed=seed)
    return AvgPool2d(window, Rescale(values, shift, dtype.lo, dtype.hi))


def pool_request(
    op: Operator,
    x: TensorType,
    output: str,
    pads: Frame = (0, 0, 0, 0),
    extra: Frame = (0, 0, 0, 0),
    batch: int = 1,
    unit: Unit = VNNI,
) -> Request:
    """With frames that hold the padding and `extra` more."""
    around = tuple(pad + more for pad, more in zip(pads, extra, strict=True))
    return dot_request(op, [x], IntType.parse(output), [around, extra[::-1]], batch=batch, unit=unit)  # type: ignore[list-item]


def extremes(x: TensorType, batch: int) -> Array:
    """Images of the least and the largest value alone, and of both in turn."""
    values = np.full((batch, *x.shape), x.dtype.hi)
    values[:, ::3] = x.dtype.lo
    values[:, 1::3, :, ::2] = x.dtype.lo
    return values.astype(x.dtype.carrier)


@pytest.mark.parametrize("name", X86)
@sweep
@given(
    channels=CHANNELS, size=st.tuples(st.integers(3, 9), st.integers(3, 21)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)), strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=PADS, dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)), dtype=TYPES,
    extra=st.sampled_from([(0, 0, 0, 0), (1, 0, 2, 3)]), batch=st.integers(1, 2),
)  # fmt: skip
def test_max_pools(
    name: str, channels: int, size: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int], pads: Frame,
    dilations: tuple[int, int], dtype: str, extra: Frame, batch: int,
) -> None:  # fmt: skip
    x = TensorType(IntType.parse(dtype), (channels, *size), 1.0)
    pads = tuple(min(pad, kernel[axis % 2] - 1) for axis, pad in enumerate(pads))  # type: ignore[assignment]
    window = Window(kernel, strides, pads, (1, 1) if x.dtype.signed else dilations)
    assume(size[0] + pads[0] + pads[2] >= window.reach[0] and size[1] + pads[1] + pads[3] >= window.reach[1])
    assume(window.sees_input(*size))
    frame = (0, 0, 0, 0) if x.dtype.signed else pads
    request = pool_request(MaxPool2d(window), x, dtype, frame, extra, batch, UNIT[name])
    writes_what_the_interpreter_says(f"max_pool2d_{name}", request)
    writes_what_the_interpreter_says(f"max_pool2d_{name}", request, [extremes(x, batch)])


@pytest.mark.parametrize("name", X86)
@sweep
@given(
    channels=CHANNELS, size=st.tuples(st.integers(3, 9), st.integers(3, 21)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=PADS, types=st.tuples(TYPES, TYPES), shift=st.sampled_from([1, 12, 31, 33, 40]), each=st.booleans(),
    odd=st.booleans(), extra=st.sampled_from([(0, 0, 0, 0), (1, 0, 2, 3)]), batch=st.integers(1, 2),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_average_pools(
    name: str, channels: int, size: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int], pads: Frame,
    types: tuple[str, str], shift: int, each: bool, odd: bool, extra: Frame, batch: int, seed: int,
) -> None:  # fmt: skip
    window = Window(kernel, strides, pads)
    assume(size[0] + pads[0] + pads[2] >= kernel[0] and size[1] + pads[1] + pads[3] >= kernel[1])
    x = TensorType(IntType.parse(types[0]), (channels, *size), 1.0)
    shape = window.output_size(*size) if each else (1, 1)
    op = average(window, shape, types[1], shift=shift, odd=odd, seed=seed)
    request = pool_request(op, x, types[1], pads, extra, batch, UNIT[name])
    writes_what_the_interpreter_says(f"avg_pool2d_{name}", request)
    writes_what_the_interpreter_says(f"avg_pool2d_{name}", request, [extremes(x, batch)])


@pytest.mark.parametrize("name", X86)
@sweep
@given(
    channels=CHANNELS.filter(lambda channels: channels >= 16), size=st.tuples(st.integers(1, 20), st.integers(2, 20)),
    types=st.tuples(TYPES, TYPES), shift=st.sampled_from([1, 12, 31, 33, 40]), odd=st.booleans(),
    extra=st.sampled_from([(0, 0, 0, 0), (1, 0, 2, 3)]), batch=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_global_average_pools(
    name: str, channels: int, size: tuple[int, int], types: tuple[str, str], shift: int, odd: bool, extra: Frame,
    batch: int, seed: int,
) -> None:  # fmt: skip
    x, dtype = TensorType(IntType.parse(types[0]), (channels, *size), 1.0), IntType.parse(types[1])
    values = multipliers((1,), shift, prod(size), odd=odd, seed=seed)
    op = GlobalAvgPool2d(Rescale(values, shift, dtype.lo, dtype.hi))
    request = pool_request(op, x, types[1], extra=extra, batch=batch, unit=UNIT[name])
    alternatives = {name: storage for name, storage in request.alternatives.items() if name != "y"}
    request = replace(request, alternatives=alternatives)
    writes_what_the_interpreter_says(f"global_avg_pool2d_{name}", request)
    writes_what_the_interpreter_says(f"global_avg_pool2d_{name}", request, [extremes(x, batch)])


@sweep
@given(
    channels=st.sampled_from([64, 96, 128]), size=st.tuples(st.integers(3, 6), st.integers(3, 12)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)), dtype=TYPES, batch=st.integers(1, 2),
)  # fmt: skip
def test_pools_in_planes(
    channels: int, size: tuple[int, int], strides: tuple[int, int], dtype: str, batch: int
) -> None:
    """A plane's rows share their zeros: what lies left of a row is the end of the one before."""
    x, pads = TensorType(IntType.parse(dtype), (channels, *size), 1.0), (1, 1, 1, 1)
    window, offset = Window((3, 3), strides, pads), 128 if x.dtype.signed else 0
    for kernel, op in ((MAX, MaxPool2d(window)), (AVERAGE, average(window, (1, 1), dtype))):
        planes = {
            name: Storage(block=64, multiple=64, frame=(2, 0, 3, right), offset=offset)
            for name, right in (("x0", 2), ("y", 1))
        }
        request = replace(pool_request(op, x, dtype, batch=batch), alternatives=planes)
        writes_what_the_interpreter_says(kernel, request, [extremes(x, batch)])
        writes_what_the_interpreter_says(kernel, request)
    op = GlobalAvgPool2d(Rescale(multipliers((1,), 31, prod(size), odd=True), 31, x.dtype.lo, x.dtype.hi))
    request = replace(pool_request(op, x, dtype, batch=batch), alternatives={"x0": planes["x0"]})
    writes_what_the_interpreter_says(GLOBAL, request)


def test_float32_is_used_where_it_is_proved() -> None:
    x = TensorType(IntType.parse("u8"), (64, 6, 6), 1.0)
    for odd in (True, False):
        op = average(Window((3, 3)), (1, 1), "u8", odd=odd, seed=1)
        assert float32_is_exact(op.rescale, op.bounds([x])) == odd
        kernel = offer_of(AVERAGE, pool_request(op, x, "u8")).build()
        assert str(kernel.constants[0].dtype) == ("float32" if odd else "int32")


@given(kernel=st.integers(1, 30), stride=st.integers(1, 9), dilation=st.integers(1, 3), width=st.integers(1, 40))
def test_a_tile_reads_the_columns_of_its_windows(kernel: int, stride: int, dilation: int, width: int) -> None:
    cut = Cut.of(Window((1, kernel), (1, stride), dilations=(1, dilation)), width)
    read = {pixel * stride + tap * dilation for pixel in range(cut.tile) for tap in range(kernel)}
    assert set(cut.columns) == read and 1 <= cut.tile <= width
    assert cut.tile == 1 or len(cut.columns) <= MAX_COLUMNS


@given(channels=st.integers(16, 300), widest=st.sampled_from([16, 32, 64]))
def test_vectors_hold_every_channel(channels: int, widest: int) -> None:
    vectors = Vectors.of(channels, widest, 16)
    firsts = [min(number * vectors.lanes, channels - vectors.lanes) for number in range(vectors.count)]
    held = {first + lane for first in firsts for lane in range(vectors.lanes)}
    assert held == set(range(channels)) and vectors.lanes <= widest


@pytest.mark.parametrize("name", [MAX, AVERAGE, GLOBAL])
def test_work_large_enough_for_threads(name: str) -> None:
    x, window = TensorType(IntType.parse("u8"), (64, 40, 40), 1.0), Window((3, 3), pads=(1, 1, 1, 1))
    operators: dict[str, Operator] = {
        MAX: MaxPool2d(window),
        AVERAGE: average(window, (1, 1), "u8"),
        GLOBAL: GlobalAvgPool2d(Rescale(np.array([3001]), 22, 0, 255)),
    }
    request = pool_request(operators[name], x, "u8", (0, 0, 0, 0) if name == GLOBAL else window.pads)
    assert "T.parallel" in offer_of(name, request).build().function.script()
    writes_what_the_interpreter_says(name, request)


def test_declines_are_sentences() -> None:
    u8, s8 = (TensorType(IntType.parse(dtype), (32, 20, 20), 1.0) for dtype in ("u8", "s8"))
    padded = Window((2, 2), pads=(1, 1, 1, 1))
    dilated = replace(padded, dilations=(2, 2))
    few = TensorType(u8.dtype, (3, 20, 20), 1.0)
    large = average(Window((16, 17)), (1, 1), "u8")
    assert prod(large.window.kernel) > MOST_BYTES
    cases = {
        "pads signed values by a window's own, which taps that lie (2, 2) apart may skip": (
            MAX, pool_request(MaxPool2d(dilated), s8, "s8")
        ),
        "takes whole vectors of 16 channels, not NHWC/4": (MAX, pool_request(MaxPool2d(padded), few, "u8")),
        "sums in 16 bits, which 272 bytes of a window may leave": (AVERAGE, pool_request(large, u8, "u8")),
    }  # fmt: skip
    for sentence, (name, request) in cases.items():
        assert decline_of(name, request) == sentence
    without = pool_request(MaxPool2d(padded), u8, "u8")
    without = replace(without, features=without.features - {"avx512bw"})
    assert decline_of(MAX, without) == "needs avx512bw, which the CPU compiled for does not have"
    op = average(Window((3, 3)), (1, 1), "u8")
    clipped = replace(op, rescale=replace(op.rescale, lo=3))
    odd = TensorType(u8.dtype, (30, 20, 20), 1.0)
    assert decline_of(AVERAGE, pool_request(clipped, odd, "u8")).startswith("channels that fill up hold zero")
