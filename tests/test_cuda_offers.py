"""What GPU kernels offer and decline, which tiles are chosen, and what costs less than what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.ir import IntType, Operator, Rescale, TensorType, Window
from hawq_tvm.core.ops import Conv2d, Linear, MaxPool2d
from hawq_tvm.core.storage import Storage
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.kernels import CONVERTERS, KERNELS, ConvertRequest, Request, collect_offers
from hawq_tvm.kernels.cuda.gemm import Tile
from hawq_tvm.kernels.cuda.gemm_costs import fastest
from hawq_tvm.kernels.cuda.gemm_layers import layer_tiles
from hawq_tvm.kernels.cuda.storages import channels_last

from .gpu_kernels import gpu_request, image
from .kernel_requests import offers_of

S4, S8, U8, S32 = (IntType.parse(text) for text in ("s4", "s8", "u8", "s32"))
SAME = Window((3, 3), pads=(1, 1, 1, 1))


def conv(channels: int, out: int, window: Window = SAME, *, bits: int = 8, groups: int = 1, lo: int = 0) -> Conv2d:
    weight = np.ones((out, channels // groups, *window.kernel))
    return Conv2d(weight, bits, np.zeros(out), Rescale([2**20] * out, 40, lo, 127), window, groups)


def linear(features: int, outputs: int) -> Linear:
    return Linear(np.ones((outputs, features)), 8, np.zeros(outputs), Rescale([1] * outputs, 1, 0, 127))


def declines(request: Request) -> dict[str, str]:
    answers = {kernel.name: kernel.offer(request) for kernel in KERNELS}
    return {name: answer for name, answer in answers.items() if isinstance(answer, str)}


@pytest.mark.parametrize(
    ("kernel", "request_", "reason"),
    [
        ("conv2d_x8w8s32_mma_nhwc", gpu_request(conv(8, 8, groups=8), [image("u8", 8, 5, 5)], U8), "stay apart"),
        ("conv2d_x8w8s32_mma_nhwc", gpu_request(conv(4, 4, groups=2), [image("u8", 4, 5, 5)], U8), "has 4 channels"),
        ("conv2d_x8w8s32_mma_nhwc", gpu_request(conv(8, 5, lo=1), [image("u8", 8, 5, 5)], U8), "clip 1..127 leaves"),
        ("conv2d_x8w8s32_mma_nhwc", gpu_request(linear(32, 8), [image("u8", 32)], U8), "computes conv2d, not linear"),
        (
            "conv2d_x4w4s32_mma_nhwc", gpu_request(conv(8, 8), [image("u4", 8, 5, 5)], U8),
            "weights of 8 bits with an input stored in 4 are multiplied as 8 bits on Tesla T4",
        ),
        (
            "conv2d_x4w4s32_mma_nhwc", gpu_request(conv(8, 8, bits=4), [image("u4", 8, 5, 5)], U8,
                                                   target="nvidia/h100"),
            "4-bit values, which H100-SXM5-80GB does not do natively",
        ),
        ("linear_x8w8s32_mma", gpu_request(linear(37, 8), [image("u8", 37)], U8), "of which 37 are no multiple"),
        ("linear_x8w8s32_mma", gpu_request(linear(32, 7), [image("u8", 32)], U8), "of which 7 are no multiple"),
        ("conv2d_x8w8s32_generic", gpu_request(conv(8, 8), [image("u8", 8, 5, 5)], U8), "CPUs through LLVM, not for"),
    ],
    ids=["depthwise", "small groups", "clip", "operator", "wider weights", "not native", "features", "outputs", "cpu"],
)  # fmt: skip
def test_declines_say_why(kernel: str, request_: Request, reason: str) -> None:
    assert reason in declines(request_)[kernel]


@pytest.mark.parametrize(
    ("groups", "window", "reason"),
    [(1, SAME, "each channel has one of its own"), (8, Window((8, 8), pads=(4, 4, 4, 4)), "this window has 64")],
)
def test_what_is_not_depthwise_or_too_wide_is_declined(groups: int, window: Window, reason: str) -> None:
    request = gpu_request(conv(8, 8, window, groups=groups), [image("u8", 8, 9, 9)], U8)
    assert reason in declines(request)["conv2d_depthwise_x8w8s32_dp4a_nhwc"]


def test_depthwise_layers_take_dot_products() -> None:
    offers = offers_of(gpu_request(conv(96, 96, groups=96), [image("u8", 96, 56, 56)], U8))
    assert min(offers, key=lambda name: offers[name].cost) == "conv2d_depthwise_x8w8s32_dp4a_nhwc"


@pytest.mark.parametrize(
    ("channels", "groups", "size", "window"),
    [(128, 32, 56, SAME), (1024, 32, 7, SAME), (160, 10, 14, SAME), (240, 3, 28, Window((1, 1)))],
    ids=["ResNeXt, first", "ResNeXt, last", "RegNet", "ShuffleNet"],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_grouped_layers_take_tensor_cores(channels: int, groups: int, size: int, window: Window, bits: int) -> None:
    op = conv(channels, channels, window, groups=groups, bits=bits)
    offers = offers_of(gpu_request(op, [image(f"u{bits}", channels, size, size)], U8))
    best = min(offers, key=lambda name: offers[name].cost)
    assert best == f"conv2d_x{bits}w{bits}s32_mma_nhwc"
    assert offers["conv2d_x8w8s32_cuda_nhwc"].cost > 2 * offers[best].cost


def test_gpu_kernels_decline_what_is_for_a_cpu() -> None:
    request = replace(gpu_request(conv(8, 8), [image("u8", 8, 5, 5)], U8), target=TARGETS["llvm"])
    found = {name: reason for name, reason in declines(request).items() if "NVIDIA" in reason}
    assert set(found) >= {"conv2d_x8w8s32_mma_nhwc", "conv2d_x8w8s32_cuda", "max_pool2d_cuda"}


def test_a_gpu_of_which_nothing_is_known_gets_the_simple_kernels() -> None:
    request = gpu_request(conv(16, 16), [image("u8", 16, 5, 5)], U8)
    unknown = replace(request, target=replace(request.target, name="nvidia/new", gpu=None))
    assert set(offers_of(unknown)) == {"conv2d_x8w8s32_cuda", "conv2d_x8w8s32_cuda_nhwc"}
    assert "nothing is known of 'nvidia/new'" in declines(unknown)["conv2d_x8w8s32_mma_nhwc"]


def test_a_batch_beyond_32_bit_indices_is_refused() -> None:
    x = image("u8", 64, 112, 112)
    request = gpu_request(MaxPool2d(Window((2, 2), (2, 2))), [x], U8, batch=2**31 // (64 * 112 * 112) + 1)
    with pytest.raises(CompileError, match="counts elements in 32 bits.*take a smaller batch"):
        collect_offers(request)
    canonical, last = Storage.canonical(x), channels_last(x)
    assert last is not None
    (answer,) = (
        converter.offer(ConvertRequest(x, canonical, last, request.batch, request.target, 128))
        for converter in CONVERTERS
        if converter.name == "convert_cuda"
    )
    assert "counts elements in 32 bits" in str(answer)


def test_conversions_of_other_storages_are_declined() -> None:
    x = image("u8", 16, 5, 5)
    framed = Storage("NHWC", multiple=16, frame=(1, 1, 1, 1))
    request = ConvertRequest(x, Storage.canonical(x), framed, 1, TARGETS["nvidia/t4"], 128)
    (answer,) = (converter.offer(request) for converter in CONVERTERS if converter.name == "convert_cuda")
    assert "between NCHW and the channels last of a GPU" in str(answer)


@pytest.mark.parametrize(
    ("type", "storage"),
    [
        (image("u8", 3, 8, 8), "NHWC/4"),
        (image("u8", 4, 8, 8), "NHWC/4"),
        (image("s8", 5, 8, 8), "NHWC/16"),
        (image("u5", 17, 1, 1), "NHWC/16"),
        (image("u4", 8, 8, 8), "NHWC/8 4 bits"),
        (image("s2", 9, 8, 8), "NHWC/32 4 bits"),
    ],
)
def test_channels_are_filled_up_to_a_word_or_to_16_bytes(type: TensorType, storage: str) -> None:
    found = channels_last(type)
    assert found is not None
    assert str(found) == storage
    found.check(type)
    pixel_bits = found.channels(type) * found.bits
    assert pixel_bits in (32, *range(128, 4096, 128)), "a pixel is one word, or whole loads of 128 bits"


@pytest.mark.parametrize("type", [image("u8", 9), image("s32", 3, 5, 5)])
def test_vectors_and_wide_values_are_canonical(type: TensorType) -> None:
    assert channels_last(type) is None


def chosen_tile(op: Operator, x: TensorType, batch: int) -> Tile:
    request = gpu_request(op, [x], U8, batch=batch)
    return fastest(layer_tiles(request, (request.alternatives["x0"],), request.alternatives["y"]))


def test_few_pixels_take_small_tiles_with_many_warps() -> None:
    """ResNet-18's last stage, one image: 49 pixels of 512 channels must not run on a warp a multiprocessor."""
    tile = chosen_tile(conv(512, 512), image("u8", 512, 7, 7), 1)
    assert tile.slices > 1
    assert tile.threads == 256


def test_many_pixels_take_large_tiles() -> None:
    tile = chosen_tile(conv(256, 256), image("u8", 256, 14, 14), 128)
    assert (tile.m, tile.n, tile.slices) == (128, 128, 1)


def test_few_channels_take_narrow_tiles() -> None:
    tile = chosen_tile(conv(64, 32), image("u8", 64, 56, 56), 32)
    assert tile.n == 32


@settings(max_examples=40)
@given(
    channels=st.sampled_from([64, 100, 256]),
    out=st.sampled_from([64, 100, 512]),
    bits=st.sampled_from([4, 8]),
    size=st.sampled_from([7, 14, 56]),
    kernel=st.sampled_from([1, 3]),
    batch=st.sampled_from([1, 8, 128]),
)
def test_tensor_cores_cost_less_than_the_simple_kernels(
    channels: int, out: int, bits: int, size: int, kernel: int, batch: int
) -> None:
    assume(batch * size**2 > 49)  # so few sums are as fast one by one
    op = conv(channels, out, Window((kernel, kernel), pads=(kernel // 2,) * 4), bits=bits)
    offers = offers_of(gpu_request(op, [image(f"u{bits}", channels, size, size)], U8, batch=batch))
    assert offers[f"conv2d_x{bits}w{bits}s32_mma_nhwc"].cost < min(
        offers[name].cost for name in ("conv2d_x8w8s32_cuda", "conv2d_x8w8s32_cuda_nhwc")
    )


def test_a_stem_takes_tensor_cores() -> None:
    op = conv(3, 64, Window((7, 7), (2, 2), (3, 3, 3, 3)))
    offers = offers_of(gpu_request(op, [image("u8", 3, 224, 224)], U8))
    assert min(offers, key=lambda name: offers[name].cost) == "conv2d_x8w8s32_mma_nhwc"


def test_linear_layers_take_tensor_cores() -> None:
    offers = offers_of(gpu_request(linear(512, 1000), [image("u8", 512)], U8))
    assert min(offers, key=lambda name: offers[name].cost) == "linear_x8w8s32_mma"
