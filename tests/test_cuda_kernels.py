"""GPU kernels against the interpreter, on the emulated GPU: every byte that they write, in several thread orders."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hawq_tvm.backends.tvm.cuda.compiler import CudaCompiler
from hawq_tvm.core.ir import IntType, Operator, Rescale, TensorType, Window
from hawq_tvm.core.ops import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    PadChannels,
    Requantize,
)
from hawq_tvm.core.storage import Storage, pack
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.kernels import CONVERTERS, ConvertRequest, Offer, Request
from hawq_tvm.kernels.cuda import gemm_layers
from hawq_tvm.kernels.cuda.gemm import Gemm, Tile
from hawq_tvm.kernels.cuda.gemm_tiles import TILES
from hawq_tvm.kernels.cuda.gemm_weights import channel_of_row
from hawq_tvm.kernels.cuda.storages import channels_last

from .builders import random_integers
from .emulated import needs_compiler
from .gpu_kernels import (
    compiled_image,
    computed_wrongly,
    emulated,
    gpu_request,
    held_before,
    image,
)
from .kernel_requests import offers_of

GPUS = sorted(name for name, target in TARGETS.items() if target.gpu is not None)
NARROW = ("s2", "u3", "s4", "u4", "s6", "s8", "u8")
CHANNELS = (1, 3, 4, 5, 8, 9, 16, 17, 24, 32, 40, 48, 64, 96, 130)
sweep = settings(max_examples=20)


def halves(count: int, dtype: IntType, shift: int = 34) -> Rescale:
    """Multipliers near 2^31, each another one, and the clip of a type."""
    return Rescale([2**31 - 1 - 10**6 * i for i in range(count)], shift, dtype.lo, dtype.hi)


def random_conv(
    channels: int, out: int, window: Window, bits: int, output: IntType, *,
    groups: int = 1, residual: str | None = None, seed: int = 0,
) -> Conv2d:  # fmt: skip
    """Weights over their whole range, and a shift that leaves results on both sides of the clip."""
    rng, limit = np.random.default_rng(seed), 1 << (bits - 1)
    weight = rng.integers(-limit, limit, (out, channels // groups, *window.kernel))
    spread = np.sqrt(prod(weight.shape[1:])) * limit * 64 / (output.hi + 1)
    shift = 31 + int(np.ceil(np.log2(max(spread, 2))))
    factors = None if residual is None else rng.integers(0, 2**31, out if residual == "each" else 1)
    rescale = Rescale(rng.integers(0, 2**31, out), shift, output.lo, output.hi, factors)
    return Conv2d(weight, bits, rng.integers(-3000, 3000, out), rescale, window, groups)


S4, U4, S8, U8 = (IntType.parse(text) for text in ("s4", "u4", "s8", "u8"))
SIMPLE: dict[str, tuple[Operator, list[TensorType], IntType]] = {
    "requantize, narrower": (Requantize(halves(1, S4)), [image("s8", 5, 3, 7)], S4),
    "requantize, wider": (Requantize(halves(1, S8, 29)), [image("s4", 40, 3, 5)], S8),
    "requantize a vector": (Requantize(halves(1, S8, 31)), [image("s8", 9)], S8),
    "add of two widths": (Add(halves(2, U8, 32)), [image("u8", 20, 3, 5), image("s4", 20, 3, 5)], U8),
    "add of few channels": (Add(halves(2, U4, 35)), [image("u8", 3, 3, 5), image("s4", 3, 3, 5)], U4),
    "concat of whole words": (Concat(halves(2, S8, 31)), [image("s8", 16, 3, 5), image("s8", 8, 3, 5)], S8),
    "concat of odd channels": (Concat(halves(3, S8, 31)), [image(t, c, 3, 5) for t, c in (("s8", 3), ("s4", 16),
                                                                                      ("s8", 7))], S8),
    "pad channels": (PadChannels(3, 6), [image("s4", 5, 3, 5)], S4),
    "pad whole words": (PadChannels(8, 16), [image("u4", 8, 3, 5)], U4),
    "max pool": (MaxPool2d(Window((3, 2), (2, 2), (1, 0, 1, 1))), [image("s8", 3, 9, 8)], S8),
    "max pool, packed, dilated": (
        MaxPool2d(Window((3, 2), (2, 2), (1, 0, 1, 1), (2, 1))), [image("u4", 23, 9, 8)], U4,
    ),
    "average pool": (AvgPool2d(Window((2, 2), (2, 2)), Rescale([[2**29]], 31, 0, 15)), [image("u4", 40, 6, 6)], U4),
    "average pool, counted": (
        AvgPool2d(Window((3, 3), (2, 2), (1, 1, 1, 1)), Rescale(np.arange(20).reshape(5, 4) * 10**8, 33, 0, 255)),
        [image("u8", 23, 9, 8)], U8,
    ),
    "global pool": (GlobalAvgPool2d(Rescale([2**30], 35, -128, 127)), [image("s8", 40, 7, 7)], S8),
    "global pool, packed": (GlobalAvgPool2d(Rescale([2**30], 35, -8, 7)), [image("s4", 5, 7, 7)], S4),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("case", SIMPLE)
def test_operators_without_weights(case: str) -> None:
    op, inputs, output = SIMPLE[case]
    request = gpu_request(op, inputs, output, batch=2)
    offers = offers_of(request)
    assert len(offers) >= (1 if len(inputs[0].shape) == 1 else 2), "canonical, and channels last where there are images"
    assert computed_wrongly(request, offers, order=2) == []


FAMILIES = {"mma": gemm_layers.MMA, "wmma": gemm_layers.WMMA}
CUTS = [(name, tile) for name, family in FAMILIES.items() for tile in family.tiles]
WINDOWS = st.builds(
    Window,
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
)


def on_tile(request: Request, family: str, tile: Tile) -> dict[str, Offer]:
    """The offer of a family's kernel, cut into these tiles."""
    ((name, offer),) = ((name, offer) for name, offer in offers_of(request).items() if f"_{family}_" in name)
    build = partial(gemm_layers.build, request, offer.reads, offer.writes, FAMILIES[family], tile)
    return {name: replace(offer, build=build)}


@needs_compiler
@sweep
@given(
    channels=st.sampled_from(CHANNELS),
    out=st.sampled_from(CHANNELS),
    size=st.tuples(st.integers(5, 12), st.integers(5, 17)),
    window=WINDOWS,
    types=st.tuples(st.sampled_from(NARROW), st.sampled_from(NARROW), st.sampled_from(NARROW)),
    bits=st.integers(2, 8),
    residual=st.sampled_from([None, "one", "each"]),
    cut=st.sampled_from(CUTS),
    target=st.sampled_from(GPUS),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_convolutions_on_tensor_cores(
    channels: int, out: int, size: tuple[int, int], window: Window, types: tuple[str, str, str], bits: int,
    residual: str | None, cut: tuple[str, Tile], target: str, batch: int, seed: int,
) -> None:  # fmt: skip
    """Any window, channel count and width, in either family on every tile and with every GPU's instructions."""
    output = IntType.parse(types[1])
    op = random_conv(channels, out, window, bits, output, residual=residual, seed=seed)
    inputs = [image(types[0], channels, *size)]
    if residual is not None:
        inputs.append(image(types[2], out, *window.output_size(*size)))
    request = gpu_request(op, inputs, output, batch=batch, target=target)
    assert computed_wrongly(request, on_tile(request, *cut), order=seed % 4, seed=seed) == []


@needs_compiler
@settings(max_examples=10)
@given(
    groups=st.integers(2, 9),
    per_group=st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3, 4, 8])),
    window=WINDOWS,
    types=st.tuples(st.sampled_from(NARROW), st.sampled_from(NARROW)),
    residual=st.sampled_from([None, "each"]),
    seed=st.integers(0, 99),
)
def test_grouped_and_depthwise_convolutions(
    groups: int, per_group: tuple[int, int], window: Window, types: tuple[str, str], residual: str | None, seed: int
) -> None:
    output, channels, out = IntType.parse(types[1]), groups * per_group[0], groups * per_group[1]
    op = random_conv(channels, out, window, 8, output, groups=groups, residual=residual, seed=seed)
    inputs = [image(types[0], channels, 6, 9)]
    if residual is not None:
        inputs.append(image("s4", out, *window.output_size(6, 9)))
    request = gpu_request(op, inputs, output, batch=2)
    assert computed_wrongly(request, offers_of(request), order=seed % 4, seed=seed) == []


@needs_compiler
@sweep
@given(
    groups=st.integers(2, 12),
    per_group=st.tuples(st.sampled_from([1, 2, 4, 5, 8, 16, 24, 40]), st.sampled_from([1, 3, 4, 8, 20, 32])),
    window=WINDOWS,
    types=st.tuples(st.sampled_from(NARROW), st.sampled_from(NARROW)),
    bits=st.integers(2, 8),
    cut=st.sampled_from(CUTS),
    target=st.sampled_from(GPUS),
    seed=st.integers(0, 99),
)
def test_grouped_convolutions_on_tensor_cores(
    groups: int, per_group: tuple[int, int], window: Window, types: tuple[str, str], bits: int,
    cut: tuple[str, Tile], target: str, seed: int,
) -> None:  # fmt: skip
    """Groups that lie within a chunk, fill it, or lie across two; tiles of many groups, and of a part of one."""
    assume(groups * per_group[0] > 8)  # smaller pixels are a word
    output, channels, out = IntType.parse(types[1]), groups * per_group[0], groups * per_group[1]
    op = random_conv(channels, out, window, bits, output, groups=groups, seed=seed)
    assume(not op.depthwise)
    request = gpu_request(op, [image(types[0], channels, 6, 9)], output, batch=2, target=target)
    assert computed_wrongly(request, on_tile(request, *cut), order=seed % 4, seed=seed) == []


@given(
    groups=st.integers(2, 40),
    per_group=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    x=st.sampled_from(["u8", "u4"]),
    bits=st.sampled_from([4, 8]),
    tile=st.sampled_from(TILES),
)
def test_a_tile_sums_over_what_its_groups_read(
    groups: int, per_group: tuple[int, int], x: str, bits: int, tile: Tile
) -> None:
    """And over no channel outside the pixel, nor over more of them than groups of one tile can touch."""
    (inputs, outputs), channels = per_group, groups * per_group[0]
    assume(channels > 8)
    op = random_conv(channels, groups * outputs, Window((1, 1)), bits, U8, groups=groups)
    request = gpu_request(op, [image(x, channels, 3, 3)], U8)
    reads = request.alternatives["x0"]
    gemm = Gemm.of(request, reads)
    for column in range(gemm.tiles(tile)[1]):
        first = gemm.first_chunk(tile, column) * gemm.chunk_elements
        end = first + gemm.tap_channels(tile)
        assert first >= 0 and end <= reads.channels(request.inputs[0])
        made = range(column * tile.n, min((column + 1) * tile.n, groups * outputs))
        read = {channel // outputs * inputs + i for channel in made for i in range(inputs)}
        assert read <= set(range(first, end))
    touched = (tile.n - 2) // outputs + 2
    assert gemm.tap_channels(tile) <= touched * inputs + 2 * (gemm.chunk_elements - 1)


@needs_compiler
@pytest.mark.parametrize("x", ["u8", "s8", "u4", "s4"])
@pytest.mark.parametrize(
    ("channels", "y", "window"),
    [
        (20, "u8", Window((3, 3), pads=(1, 1, 1, 1))),
        (40, "s4", Window((3, 3), (2, 2), (1, 1, 1, 1))),
        (3, "s8", Window((2, 3), dilations=(2, 2))),
        (8, "s4", Window((5, 5), (2, 2), (2, 2, 2, 2))),
        (17, "u8", Window((1, 1))),
    ],
    ids=str,
)
def test_depthwise_convolutions_by_dot_products(channels: int, y: str, window: Window, x: str) -> None:
    """All four ways from words of channels to words of taps: either side of 8 bits, or packed."""
    output = IntType.parse(y)
    op = random_conv(channels, channels, window, 8, output, groups=channels, residual="each")
    inputs = [image(x, channels, 7, 9), image("s4", channels, *window.output_size(7, 9))]
    request = gpu_request(op, inputs, output, batch=2)
    name = "conv2d_depthwise_x8w8s32_dp4a_nhwc"
    assert computed_wrongly(request, {name: offers_of(request)[name]}) == []


def test_the_largest_depthwise_window_spills_nothing(cuda_compiler: CudaCompiler) -> None:
    op = random_conv(64, 64, Window((7, 7), pads=(3, 3, 3, 3)), 8, S4, groups=64)
    request = gpu_request(op, [image("s4", 64, 14, 14)], S4)
    built = offers_of(request)["conv2d_depthwise_x8w8s32_dp4a_nhwc"].build()
    assert compiled_image(built, request.target, cuda_compiler).spill_bytes == {75: 0}


@needs_compiler
@pytest.mark.parametrize("target", GPUS)
@pytest.mark.parametrize(
    ("features", "outputs", "bits", "result"),
    [(16, 1, 8, "s32"), (48, 10, 4, "s32"), (512, 72, 3, "u8"), (37, 7, 8, "s32"), (64, 7, 8, "s8")],
)
def test_linear(features: int, outputs: int, bits: int, result: str, target: str) -> None:
    rng, limit, output = np.random.default_rng(features), 1 << (bits - 1), IntType.parse(result)
    weight, bias = rng.integers(-limit, limit, (outputs, features)), rng.integers(-999, 999, outputs)
    rescale = Rescale(rng.integers(0, 2**31, outputs), 31 if result == "s32" else 40, output.lo, output.hi)
    request = gpu_request(Linear(weight, bits, bias, rescale), [image("u8", features)], output, batch=3, target=target)
    offers = offers_of(request)
    fits = features % 16 == 0 and (output.bits == 32 or outputs % 4 == 0)
    assert ("linear_x8w8s32_mma" in offers) == fits
    assert computed_wrongly(request, offers) == []


@needs_compiler
def test_sums_wrap_around_where_signed_values_are_widened() -> None:
    """A bias near its bound, and 8 times the weights' sum off it: what leaves 32 bits on the way comes back."""
    weight = np.full((8, 32, 1, 1), -128)
    op = Conv2d(weight, 8, np.full(8, 2**31 - 40_000), Rescale([2**20] * 8, 43, -128, 127), Window((1, 1)))
    request = gpu_request(op, [image("s4", 32, 5, 5)], S8)
    offers = {name: offer for name, offer in offers_of(request).items() if "mma" in name}
    assert len(offers) == 2, "both families"
    assert computed_wrongly(request, offers) == []


@needs_compiler
@pytest.mark.parametrize("dtype", ["u8", "s8", "s4", "u4", "s2"])
@pytest.mark.parametrize("channels", [3, 5, 16, 40])
def test_conversions(dtype: str, channels: int) -> None:
    type = image(dtype, channels, 3, 5)
    last = channels_last(type)
    assert last is not None
    x = random_integers(type, 2)
    for source, to in ((Storage.canonical(type), last), (last, Storage.canonical(type))):
        request = ConvertRequest(type, source, to, 2, TARGETS["nvidia/t4"], 128)
        (offer,) = (o for o in (c.offer(request) for c in CONVERTERS) if isinstance(o, Offer))
        got = emulated(offer.build(), [pack(x, type, source)], held_before(type, to, 2), request.target)
        assert np.array_equal(got, pack(x, type, to))


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_lanes_hold_neighbouring_channels(tile: Tile) -> None:
    """The columns that one lane has of its warp's 8x8 products are `lane_channels` channels in a row."""
    channels = channel_of_row(tile)
    assert sorted(channels) == list(range(tile.n))
    for warp in range(tile.warps_n):
        for lane in range(4):
            columns = [
                warp * tile.warp_n + block * 8 + lane * 2 + e for block in range(tile.warp_n // 8) for e in (0, 1)
            ]
            first = warp * tile.warp_n + lane * tile.lane_channels
            assert channels[columns].tolist() == list(range(first, first + tile.lane_channels))


@pytest.mark.parametrize(("family", "tile"), CUTS, ids=str)
def test_eight_rows_of_one_chunk_lie_in_different_banks(family: str, tile: Tile) -> None:
    layout = FAMILIES[family].layout(tile)
    for rows in (tile.m, tile.n):
        for first in range(0, rows, 8):
            for chunk in range(tile.k):
                places = [layout.place(rows, row, chunk) for row in range(first, first + 8)]
                assert len({place // 4 % 8 for place in places}) == 8, "eight chunks are all 32 banks"


@pytest.mark.parametrize(("family", "tile"), CUTS, ids=str)
def test_a_step_has_a_place_for_every_chunk(family: str, tile: Tile) -> None:
    layout = FAMILIES[family].layout(tile)
    a = [layout.place(tile.m, row, chunk) for row in range(tile.m) for chunk in range(tile.k)]
    b = [layout.a_words + layout.place(tile.n, row, chunk) for row in range(tile.n) for chunk in range(tile.k)]
    assert len({*a, *b}) == len(a) + len(b)
    assert max(a) + 4 <= layout.a_words
    assert max(b) + 4 <= layout.stage_words
    assert all(place % 4 == 0 for place in (*a, *b)), "chunks are aligned"
    copied = [layout.a_words + layout.copied_place(number) for number in range(tile.n * tile.k)]
    assert sorted(copied) == sorted(b), "the copy of the right operand fills its places"


@pytest.mark.parametrize(("family", "tile"), CUTS, ids=str)
@pytest.mark.parametrize("types", ["u8 w8 u8", "u4 w4 u4", "s4 w8 s8"])
def test_convolutions_for_the_t4_spill_nothing(
    family: str, tile: Tile, types: str, cuda_compiler: CudaCompiler
) -> None:
    x, w, y = types.split()
    window, output = Window((3, 3), pads=(1, 1, 1, 1)), IntType.parse(y)
    op = random_conv(256, 256, window, int(w[1]), output, residual="each")
    request = gpu_request(op, [image(x, 256, 14, 14), image("s8", 256, 14, 14)], output, batch=8)
    reads = tuple(request.alternatives[name] for name in request.node.inputs)
    built = gemm_layers.build(request, reads, request.alternatives["y"], FAMILIES[family], tile)
    made = compiled_image(built, request.target, cuda_compiler)
    assert made.spill_bytes == {75: 0}
    use = made.uses[75]
    assert use.registers <= 168 or use.shared_bytes > 32 * 1024, "three blocks of four warps, if memory holds two"


@pytest.mark.parametrize(
    ("target", "x", "bits", "multiplied"),
    [("nvidia/t4", "s4", 4, 4), ("nvidia/t4", "s4", 5, 8), ("nvidia/t4", "u5", 4, 8), ("nvidia/h100", "s4", 4, 8)],
)
def test_what_is_multiplied_follows_the_layer_and_the_gpu(target: str, x: str, bits: int, multiplied: int) -> None:
    op = random_conv(32, 32, Window((1, 1)), bits, S4)
    request = gpu_request(op, [image(x, 32, 5, 5)], S4, target=target)
    gemm = Gemm.of(request, request.alternatives["x0"])
    assert gemm.bits == multiplied
    taken = [name for name in offers_of(request) if "_mma_" in name]
    assert taken == [f"conv2d_x{multiplied}w{multiplied}s32_mma_nhwc"]
