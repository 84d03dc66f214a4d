"""What GPU kernels are counted to ask for: laws, sums by hand, and what the compiler takes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hawq_tvm.backends.tvm.cuda.compiler import CudaCompiler
from hawq_tvm.backends.tvm.cuda.fatbin import ELF, read_fatbin
from hawq_tvm.core.gpu import A10, A100, H100, L4, STATIC_SHARED_BYTES, T4, GpuFacts
from hawq_tvm.core.ir import IntType, TensorType, Window
from hawq_tvm.core.storage import Storage
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.kernels.cuda import gemm_layers
from hawq_tvm.kernels.cuda.costs import facts, moved_bytes, moving, simple_cost, stored_bytes
from hawq_tvm.kernels.cuda.gemm import Gemm, Tile
from hawq_tvm.kernels.cuda.gemm_costs import Ends, fastest, gemm_work, predict_tiles
from hawq_tvm.kernels.cuda.gemm_kernel import resident_steps
from hawq_tvm.kernels.cuda.gemm_layers import MMA, WMMA, Family, layer_tiles
from hawq_tvm.kernels.cuda.gemm_shared import Swizzled
from hawq_tvm.kernels.cuda.gemm_tiles import TILES
from hawq_tvm.kernels.cuda.storages import channels_last

from .cubins import code_bytes
from .gpu_kernels import compiled_image, cuda_kernel, gpu_request
from .kernel_requests import offers_of
from .test_cuda_kernels import random_conv

GPUS = (T4, A100, A10, L4, H100)
CLOCK = 1000.0


def conv_gemm(
    gpu: GpuFacts, bits: int, batch: int, channels: int, out: int, kernel: int, size: int, stride: int
) -> Gemm:
    """A convolution whose input and weights have so many bits, stored as the GPU's kernels store it."""
    storage = channels_last(TensorType(IntType(bits, signed=False), (channels, size, size), 1.0))
    assert storage is not None
    window = Window((kernel, kernel), (stride, stride), (kernel // 2,) * 4)
    multiplied = bits if gpu.architecture.native(bits) else 8
    return Gemm(
        batch, (size, size), (-(-size // stride),) * 2, window,
        storage.channels(TensorType(IntType(bits, signed=False), (channels, size, size), 1.0)), bits, multiplied, False,
        out, gpu.architecture.mma[multiplied][0], gpu.architecture.async_copy, False,
    )  # fmt: skip


def least_us(gemm: Gemm, gpu: GpuFacts, ends: Ends, dram_bytes: float = 0.0) -> float:
    return min(prediction.us(CLOCK) for prediction in predict_tiles(gemm, ends, gpu, dram_bytes).values())


layers = st.fixed_dictionaries(
    {
        "channels": st.integers(1, 600),
        "out": st.integers(1, 600),
        "kernel": st.sampled_from((1, 3, 7)),
        "size": st.integers(1, 60),
        "stride": st.sampled_from((1, 2)),
    }
)
gpus = st.sampled_from(GPUS)
sweep = settings(max_examples=60)


@sweep
@given(layer=layers, gpu=gpus, bits=st.sampled_from((4, 8)), batch=st.integers(1, 40), more=st.integers(1, 40))
def test_more_samples_never_take_less_time(
    layer: dict[str, int], gpu: GpuFacts, bits: int, batch: int, more: int
) -> None:
    few, many = (conv_gemm(gpu, bits, count, **layer) for count in (batch, batch + more))
    assert least_us(few, gpu, Ends(bits)) <= least_us(many, gpu, Ends(bits))


@sweep
@given(layer=layers, gpu=gpus, bits=st.sampled_from((4, 8)), batch=st.integers(1, 40), more=st.integers(1, 100))
def test_more_multiprocessors_are_never_slower(
    layer: dict[str, int], gpu: GpuFacts, bits: int, batch: int, more: int
) -> None:
    gemm = conv_gemm(gpu, bits, batch, **layer)
    larger = replace(gpu, sms=gpu.sms + more, published_tops={})
    assert least_us(gemm, larger, Ends(bits)) <= least_us(gemm, gpu, Ends(bits))


@sweep
@given(layer=layers, gpu=st.sampled_from([gpu for gpu in GPUS if gpu.architecture.native(4)]), batch=st.integers(1, 40),
       residual=st.booleans())  # fmt: skip
def test_4_bits_are_never_slower_than_8_where_they_are_native(
    layer: dict[str, int], gpu: GpuFacts, batch: int, residual: bool
) -> None:
    """But for 5 to 8 channels: their 4-bit pixels are a word, loaded tap by tap, and their 8-bit ones a whole load."""
    assume(not 5 <= layer["channels"] <= 8)
    narrow, wide = (
        least_us(conv_gemm(gpu, bits, batch, **layer), gpu, Ends(bits, bits if residual else 0), 1e4 * bits)
        for bits in (4, 8)
    )
    assert narrow <= wide


@sweep
@given(layer=layers, gpu=gpus, batch=st.integers(1, 40), factor=st.floats(1.0, 10.0), dram=st.floats(0, 1e9))
def test_more_bandwidth_clock_and_fewer_bytes_are_never_slower(
    layer: dict[str, int], gpu: GpuFacts, batch: int, factor: float, dram: float
) -> None:
    gemm = conv_gemm(gpu, 8, batch, **layer)
    (prediction, *_) = predict_tiles(gemm, Ends(8), gpu, dram).values()
    faster = replace(prediction, gpu=replace(gpu, bandwidth_gb_s=gpu.bandwidth_gb_s * factor))
    assert faster.us(CLOCK) <= prediction.us(CLOCK)
    assert prediction.us(CLOCK * factor) <= prediction.us(CLOCK)
    assert replace(prediction, dram_bytes=dram / factor).us(CLOCK) <= prediction.us(CLOCK)


# What is counted of our kernels

U8 = IntType.parse("u8")


def test_the_work_of_a_tile_by_hand() -> None:
    """64 channels, 3x3: 576 values are 36 chunks, 9 steps of 4; a tile of 64 x 64 by four warps of 32 x 32."""
    layout = Swizzled(Tile(64, 64, 4, 2, 2))
    work = gemm_work(conv_gemm(T4, 8, 8, 64, 64, 3, 56, 1), layout, Ends(8), T4)
    loop, ending = work.phases
    assert work.blocks == 8 * 56 * 56 // 64 and work.threads == 128
    assert work.shared_bytes == 2 * (64 + 64) * 64
    assert loop.macs == 64 * 64 * 576
    copied = 9 * (64 + 64) * 64
    fragments = 9 * 4 * (32 + 32) * 64
    assert loop.data_bytes == 2 * copied + fragments, "to registers, to shared memory, and read by every warp"
    assert work.l2_bytes == copied + 64 * 64
    copies = 2 * 64 * 4 // 32  # instructions for the chunks of a step, of both operands
    assert loop.instructions == 9 * (copies / 2 * (17 + 6) + 4 * 25 + 32 + 64 * 64 * 64 // 1024)
    assert work.start_cycles == 150 * 4 + 436
    assert ending.data_bytes == 64 * 64 and ending.instructions == 64 * 64 / 32 * 5
    more = gemm_work(conv_gemm(T4, 8, 8, 64, 64, 3, 56, 1), layout, Ends(8, 8), T4)
    assert more.phases[1].data_bytes == 2 * 64 * 64 and more.phases[1].instructions > 2 * ending.instructions


def test_a_residual_is_what_a_second_input_is_stored_in() -> None:
    u8, u4 = (channels_last(TensorType(IntType(bits, signed=False), (64, 5, 5), 1.0)) for bits in (8, 4))
    assert u8 is not None and u4 is not None
    assert (Ends.of((u8,), u4), Ends.of((u8, u4), u8)) == (Ends(4, 0), Ends(8, 4))
    layout, gemm = Swizzled(Tile(64, 64, 4, 2, 2)), conv_gemm(T4, 8, 8, 64, 64, 3, 56, 1)
    more = gemm_work(gemm, layout, Ends(8, 4), T4).l2_bytes - gemm_work(gemm, layout, Ends(8), T4).l2_bytes
    assert more == 64 * 64 / 2
    one_bit = gemm_work(gemm, layout, Ends(8, 1), T4).phases[1].instructions
    assert one_bit == 64 * 64 / 32 * 11.5


@pytest.mark.parametrize(
    ("changes", "for_pixels"),
    [
        ({}, 1 + 15 + 1),
        ({"window": Window((1, 1))}, 1 + 6 + 1),
        ({"window": Window((1, 2))}, 1 + 15 + 1),
        ({"stored_bits": 4}, 1 + 15 + 1 + 8),
        ({"channels": 4}, 4 * (1 + 15) + 1),
    ],
    ids=["a window", "no window", "two taps", "widened", "four taps a chunk"],
)
def test_what_copying_takes_by_hand(changes: dict[str, Any], for_pixels: int) -> None:
    """Of 8 instructions that each move 32 chunks of pixels, in a step; the first of its step is code once."""
    gemm = replace(conv_gemm(T4, 8, 8, 64, 64, 3, 56, 1), **changes)
    layout = Swizzled(Tile(64, 64, 4, 2, 2))
    work = gemm_work(gemm, layout, Ends(8), T4)
    copying = 8 * for_pixels + 8 * 6 + 4 * 25
    assert work.phases[0].instructions == gemm.steps(layout.tile) * (copying + 32 + 256)
    assert work.code_instructions == 150 + (copying + 2 * (32 + 256) + 640) / 4


def test_registers_by_hand() -> None:
    """A warp of 32 x 64: 64 sums a lane; a word for 8 rows of an operand and chunk that an instruction takes.

    On a T4 also the 32 chunks of 16 bytes that 4 warps copy, 12 words a thread.
    """
    layout = Swizzled(Tile(64, 128, 2, 2, 2))
    t4, a100 = (gemm_work(conv_gemm(gpu, 8, 8, 64, 64, 3, 56, 1), layout, Ends(8), gpu) for gpu in (T4, A100))
    assert t4.registers == 50 + 64 + (4 + 8) + 12
    assert a100.registers == 50 + 64 + (4 + 8) * 2


def test_slices_pass_their_sums_through_shared_memory() -> None:
    """Two slices of 64 x 64 sums, 4 bytes each, written and read."""
    gemm = conv_gemm(T4, 8, 8, 64, 64, 3, 56, 1)
    ending = gemm_work(gemm, Swizzled(Tile(64, 64, 8, 2, 2, 2)), Ends(8), T4).phases[1]
    assert ending.data_bytes == 2 * 2 * 64 * 64 * 4 + 64 * 64
    assert ending.instructions == 64 * 64 / 32 * 5 + 2 * 2 * 64 * 64 / 32


def test_a_lone_block_waits_for_every_step_by_hand() -> None:
    """9 steps of 8 KiB. 8 of them arrive while their predecessors are multiplied, each is stored, then read.

    64 bytes pass in a cycle: 128 cycles for what arrives, as many to store it; the multiplications are 256 cycles of
    reading, less than the latency. The results are 640 instructions, two cycles each, of four warps at once.
    """
    layout = Swizzled(Tile(64, 64, 4, 2, 2))
    work = gemm_work(conv_gemm(T4, 8, 8, 64, 64, 3, 56, 1), layout, Ends(8), T4)
    assert work.alone_cycles == 8 * (436 + 128) + 256 + 9 * (128 + 90) + 640 / 4 * 2
    copied = gemm_work(conv_gemm(A100, 8, 8, 64, 64, 3, 56, 1), layout, Ends(8), A100)
    assert copied.alone_cycles == 7 * 436 / 2 + 2 * 158 + 9 * 90 + 640 / 4 * 2, "two steps ahead, past the registers"


def test_a_lone_warp_uses_one_scheduler_by_hand() -> None:
    """32 x 32: 64 cycles of all tensor cores are 256 of a quarter of them."""
    work = gemm_work(conv_gemm(T4, 8, 8, 64, 64, 3, 56, 1), Swizzled(Tile(32, 32, 4, 1, 1)), Ends(8), T4)
    assert work.alone_cycles == 8 * (436 + 64) + 256 + 9 * (64 + 90) + 160 * 2
    narrow = gemm_work(conv_gemm(T4, 4, 8, 128, 64, 3, 56, 1), Swizzled(Tile(32, 32, 4, 1, 1)), Ends(4), T4)
    assert narrow.alone_cycles == work.alone_cycles, "twice the channels at twice the rate"


def test_a_single_step_waits_for_nothing_later_by_hand() -> None:
    work = gemm_work(conv_gemm(T4, 8, 8, 64, 64, 1, 56, 1), Swizzled(Tile(64, 64, 4, 2, 2)), Ends(8), T4)
    assert work.alone_cycles == 256 + 128 + 90 + 640 / 4 * 2


def test_asynchronous_copies_pass_once() -> None:
    layout = Swizzled(Tile(64, 64, 4, 2, 2))
    (loaded, _), (copied, _) = (gemm_work(conv_gemm(gpu, 8, 8, 64, 64, 3, 56, 1), layout, Ends(8), gpu).phases
                                for gpu in (T4, A100))  # fmt: skip
    assert loaded.data_bytes - copied.data_bytes == 9 * (64 + 64) * 64


COMPILED = (TILES[0], Tile(64, 64, 4, 2, 2), Tile(64, 64, 8, 2, 2, 2), Tile(32, 64, 16, 1, 1, 4))


@pytest.mark.parametrize("tile", COMPILED, ids=str)
def test_registers_and_code_are_those_of_the_compiler(tile: Tile, cuda_compiler: CudaCompiler) -> None:
    op = random_conv(64, 64, Window((3, 3), (1, 1), (1, 1, 1, 1)), 8, U8)
    request = gpu_request(op, [TensorType(U8, (64, 14, 14), 1.0)], U8)
    reads, writes = (request.alternatives["x0"],), request.alternatives["y"]
    built = gemm_layers.build(request, reads, writes, tile=tile)
    image = compiled_image(built, request.target, cuda_compiler)
    counted = gemm_work(Gemm.of(request, reads[0]), Swizzled(tile), Ends.of(reads, writes), T4)
    taken = image.uses[75].registers
    assert counted.registers == pytest.approx(taken, rel=0.15)
    assert T4.architecture.resident_blocks(tile.threads, counted.registers, 0) == T4.architecture.resident_blocks(
        tile.threads, taken, 0
    )
    (cubin,) = (entry.code for entry in read_fatbin(image.data) if entry.kind == ELF)
    assert counted.code_instructions == pytest.approx(code_bytes(cubin) / 16, rel=0.1), "16 bytes each on sm_75"


@pytest.mark.parametrize("gpu", GPUS, ids=str)
def test_two_steps_of_every_tile_fit_into_what_a_kernel_may_declare(gpu: GpuFacts) -> None:
    for tile in TILES:
        gemm = conv_gemm(gpu, 8, 8, 256, 64, 3, 56, 1)
        wanted = 3 if gpu.architecture.async_copy and (tile.m + tile.n) * tile.k <= 1024 else 2
        assert resident_steps(gemm, Swizzled(tile)) == wanted
        assert gemm_work(gemm, Swizzled(tile), Ends(8), gpu).shared_bytes <= STATIC_SHARED_BYTES
    assert resident_steps(conv_gemm(gpu, 8, 1, 16, 64, 1, 7, 1), Swizzled(TILES[0])) == 1, "there is but one"


@pytest.mark.parametrize("target", ["nvidia/t4", "nvidia/a100"])
@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("family", [MMA, WMMA], ids=["mma", "wmma"])
def test_shared_memory_is_what_the_kernel_declares(family: Family, channels: int, target: str) -> None:
    """Of few steps too, whose stages are as many, and which what the sums pass through outgrows."""
    op = random_conv(channels, 64, Window((1, 1)), 8, U8)
    request = gpu_request(op, [TensorType(U8, (channels, 14, 14), 1.0)], U8, target=target)
    reads, writes, gpu = (request.alternatives["x0"],), request.alternatives["y"], request.target.gpu
    assert gpu is not None
    gemm, ends = Gemm.of(request, reads[0], signed_alone=family.signed_alone), Ends.of(reads, writes)
    for tile in family.tiles:
        text = cuda_kernel(gemm_layers.build(request, reads, writes, family, tile), request.target).text
        (words,) = re.findall(r"__shared__ .*\[(\d+)\];", text)
        assert gemm_work(gemm, family.layout(tile), ends, gpu).shared_bytes == 4 * int(words), tile


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if target.gpu is not None])
def test_offers_cost_what_the_fastest_tile_takes(target: str) -> None:
    op = random_conv(64, 96, Window((3, 3), (1, 1), (1, 1, 1, 1)), 8, U8)
    request = gpu_request(op, [TensorType(U8, (64, 14, 14), 1.0)], U8, batch=4, target=target)
    offer = offers_of(request)["conv2d_x8w8s32_mma_nhwc"]
    tiles = layer_tiles(request, offer.reads, offer.writes)
    assert set(tiles) == set(TILES), "all fit"
    assert offer.prediction is not None and offer.cost == offer.prediction.us() == min(t.us() for t in tiles.values())
    assert tiles[fastest(tiles)] == offer.prediction
    wmma = layer_tiles(request, offer.reads, offer.writes, WMMA)
    assert set(wmma) == set(WMMA.tiles) and min(t.us() for t in wmma.values()) > offer.cost
    assert all(found.prediction is not None and found.cost > 0 for found in offers_of(request).values())


def test_few_pixels_take_small_tiles_and_many_large_ones() -> None:
    small, large = (
        fastest(predict_tiles(conv_gemm(T4, 8, batch, 512, 512, 3, 7, 1), Ends(8), T4)) for batch in (1, 256)
    )
    assert small.m * small.n < large.m * large.n == 128 * 128


def test_what_a_layer_moves_by_hand() -> None:
    """64 x 36 chunks of weights, and what the L2 does not hold of 64 x 224 x 224 bytes that are read and written."""
    op, type = random_conv(64, 64, Window((3, 3), (1, 1), (1, 1, 1, 1)), 8, U8), TensorType(U8, (64, 224, 224), 1.0)
    request = gpu_request(op, [type], U8)
    reads, writes = request.alternatives["x0"], request.alternatives["y"]
    for prediction in layer_tiles(request, (reads,), writes).values():
        assert prediction.dram_bytes == 64 * 36 * 16 + 2 * 64 * 224 * 224 - T4.l2_bytes
    gemm = Gemm.of(request, reads)
    assert all(found.dram_bytes == 0 for found in predict_tiles(gemm, Ends(8), T4).values()), "unless it is said"
    assert gemm_work(gemm, Swizzled(TILES[0]), Ends(8), T4).dram_bytes == 0


# The simple kernels


def test_a_simple_kernel_by_hand() -> None:
    """Two values of 16 x 100 bytes and 500 of weights: 20 bytes pass in a cycle, 15% of 64 lanes compute."""
    image = TensorType(U8, (16, 10, 10), 1.0)
    request = gpu_request(random_conv(16, 16, Window((1, 1)), 8, U8), [image], U8, batch=2)
    reads, writes = request.channels_last()
    found = simple_cost(request, reads, writes, steps=3, constant_bytes=500, code_instructions=1000)
    assert found.cycles["L2"] == pytest.approx((2 * 2 * 1600 + 500) / (40 * 20))
    assert found.cycles["issue"] == pytest.approx(2 * 1600 * 3 / (40 * 64 * 0.15))
    assert found.cycles["waiting"] == 3 * 30
    assert found.start_cycles == 436 + 2700 and found.dram_bytes == 500
    default = simple_cost(request, reads, writes, steps=3)
    assert default.start_cycles == 436 + 270 and default.dram_bytes == 0
    canonical = simple_cost(request, *request.canonical(), steps=3)
    assert canonical.cycles["L2"] == 4 * default.cycles["L2"], "single bytes"


def test_only_single_bytes_are_dear() -> None:
    wide, packed = TensorType(IntType.parse("s32"), (16, 10, 10), 1.0), TensorType(IntType(4, False), (32, 5, 5), 1.0)
    storage = channels_last(packed)
    assert storage is not None and moved_bytes([(packed, storage)], 1) == 32 * 25 / 2
    assert moved_bytes([(wide, Storage.canonical(wide))], 2) == stored_bytes([(wide, Storage.canonical(wide))], 2)


def test_values_beyond_the_l2_travel() -> None:
    image = TensorType(U8, (64, 224, 224), 1.0)
    storage = channels_last(image)
    assert storage is not None
    found = moving(T4, [(image, storage)] * 2, batch=1)
    assert found.dram_bytes == 2 * 64 * 224 * 224 - T4.l2_bytes
    assert found.cycles == {"L2": 2 * 64 * 224 * 224 / (40 * 20), "issue": 0, "waiting": 0}
    assert facts(replace(TARGETS["nvidia/t4"], gpu=None)) == T4
    assert facts(TARGETS["nvidia/a10"]) == A10
