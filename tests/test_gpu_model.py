"""The cost model of GPUs: laws that hold whatever its constants, what it was told, and the column that it fills."""

from __future__ import annotations

import re
from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hawq_tvm.backends.tvm.cuda.compiler import CudaCompiler
from hawq_tvm.backends.tvm.latency import predict_latency
from hawq_tvm.backends.tvm.storage import plan_storages
from hawq_tvm.core.errors import SettingsError
from hawq_tvm.core.gpu import A10, A100, H100, L4, T4, GpuFacts
from hawq_tvm.core.gpu_model import (
    GRAPH_LAUNCH_US,
    HELD_POWER,
    KernelWork,
    Phase,
    Prediction,
    board_watts,
    held_clock,
    predict,
    typical_clock,
)
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import IntType, TensorType, Window
from hawq_tvm.core.specs import Bits
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.kernels import Offer
from hawq_tvm.kernels.cuda import gemm_layers
from hawq_tvm.kernels.cuda.gemm import Gemm, Tile
from hawq_tvm.kernels.cuda.gemm_costs import Ends, fastest, gemm_work, predict_tiles
from hawq_tvm.kernels.cuda.gemm_layers import MMA, WMMA, Family, layer_tiles
from hawq_tvm.kernels.cuda.gemm_shared import Swizzled
from hawq_tvm.kernels.cuda.gemm_tiles import TILES
from hawq_tvm.kernels.cuda.storages import channels_last
from hawq_tvm.settings import Settings

from .builders import captured, ranges_of, uniform
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
sweep = settings(max_examples=60, deadline=None)


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


def kernel(**changes: object) -> KernelWork:
    work = KernelWork(
        blocks=80, threads=128, registers=64, shared_bytes=16 * 1024, bits=8, phases=(Phase(1024.0 * 900, 6400, 400),),
        l2_bytes=0, start_cycles=100, alone_cycles=500, dram_bytes=0.0,
    )  # fmt: skip
    return replace(work, **changes)  # type: ignore[arg-type]


def predicted(work: KernelWork, gpu: GpuFacts = T4) -> Prediction:
    found = predict(work, gpu)
    assert found is not None
    return found


def test_a_kernel_by_hand() -> None:
    """80 blocks on 40 multiprocessors are 2 each; each multiplies for 900 cycles, of which 90% are to be had."""
    found = predicted(kernel())
    assert found.cycles["tensor cores"] == pytest.approx(2 * 900 / 0.9)
    assert found.cycles["data path"] == pytest.approx(2 * 6400 / 64 / 0.9)
    assert found.cycles["issue"] == pytest.approx(2 * 400 / 4 / 0.9)
    assert found.cycles["waiting"] == 500, "both are resident at once"
    assert found.tensor_cycles == 80 * 900 / 40
    assert found.us(CLOCK) == pytest.approx(GRAPH_LAUNCH_US + 0.1 + 2.0)
    assert found.bound(CLOCK) == "tensor cores"


def test_the_tail_is_whole_blocks() -> None:
    times = [predicted(kernel(blocks=blocks)).us(CLOCK) for blocks in (1, 40, 41, 80, 81)]
    assert times[0] == times[1] < times[2] == times[3] < times[4]


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("data path", {"phases": (Phase(1024, 64 * 900, 4),)}),
        ("issue", {"phases": (Phase(1024, 64, 4 * 900),)}),
        ("waiting", {"alone_cycles": 5000}),
        ("L2", {"l2_bytes": 10**6}),
        ("DRAM", {"dram_bytes": 10**7}),
        ("launch", {"start_cycles": 10**5}),
    ],
)
def test_what_takes_longest_bounds(part: str, changes: dict[str, object]) -> None:
    found = predicted(kernel(**changes))
    assert found.bound(CLOCK) == part
    assert found.us(CLOCK) > predicted(kernel(phases=(Phase(1024, 64, 4),))).us(CLOCK)


def test_phases_of_different_pipes_overlap_by_half() -> None:
    apart = predicted(kernel(phases=(Phase(macs=1024 * 900), Phase(instructions=4 * 900))))
    assert apart.cycles["tensor cores"] == pytest.approx(2 * (900 + 450) / 0.9)


@pytest.mark.parametrize(
    ("changes", "resident"),
    [
        ({}, 4),  # shared memory: 64 KiB by 16
        ({"shared_bytes": 8 * 1024}, 8),  # registers: 64 x 32 is 2,048 a warp, 8 warps a scheduler, 4 warps a block
        ({"shared_bytes": 8 * 1024, "registers": 128}, 4),
        ({"shared_bytes": 0, "registers": 32}, 8),  # warps: 32
        ({"shared_bytes": 40 * 1024}, 1),
    ],
)
def test_waves_are_what_nvidias_calculator_says_is_resident(changes: dict[str, object], resident: int) -> None:
    for blocks in (1, resident * 40, resident * 40 + 1, 3 * resident * 40):
        found = predicted(kernel(blocks=blocks, **changes))
        rounds = ceil(ceil(blocks / 40) / resident)
        assert found.cycles["waiting"] == rounds * 500 + (rounds - 1) * 100
        assert found.occupancy == resident * 4 / 32


def test_a_block_that_does_not_fit_is_no_kernel() -> None:
    assert predict(kernel(shared_bytes=65 * 1024), T4) is None
    assert predict(kernel(threads=1024, registers=65), T4) is None


# Power


def test_a_t4_holds_what_it_was_seen_to_hold() -> None:
    """750 MHz at 67.5 W with tensor cores 89% busy."""
    assert T4.held is not None
    assert board_watts(T4, T4.held.clock_mhz, T4.held.busy, 0.0) == pytest.approx(T4.held.watts)
    assert T4.power_watts * HELD_POWER == pytest.approx(T4.held.watts, rel=0.01)
    busy = Prediction(T4, 0.0, {"tensor cores": 1e9 / T4.held.busy}, 0.0, tensor_cycles=1e9)
    assert held_clock(T4, [busy]) == pytest.approx(T4.held.clock_mhz, rel=0.01)


@sweep
@given(busy=st.floats(0.01, 1.0), gb_s=st.floats(0.0, 250.0))
def test_the_held_clock_is_the_highest_within_power(busy: float, gb_s: float) -> None:
    work = Prediction(T4, 0.0, {"tensor cores": 1e9 / busy}, 0.0, tensor_cycles=1e9)
    work = replace(work, dram_bytes=gb_s * 1e3 * work.us(CLOCK))
    clock = held_clock(T4, [work])

    def watts(clock: float) -> float:
        us = work.us(clock)
        return board_watts(T4, clock, work.tensor_cycles / clock / us, work.dram_bytes / us / 1e3)

    limit = T4.power_watts * HELD_POWER
    assert clock <= T4.boost_clock_mhz and watts(clock) <= limit * 1.001
    assert clock == T4.boost_clock_mhz or watts(clock * 1.01) > limit
    assert held_clock(replace(T4, power_watts=90), [work]) >= clock


def test_clocks_are_known_or_those_of_the_data_sheet() -> None:
    assert T4.base_clock_mhz < typical_clock(T4) < T4.boost_clock_mhz
    assert typical_clock(A100) == A100.boost_clock_mhz and A100.held is None
    idle = Prediction(T4, 0.0, {"L2": 1e6}, 0.0)
    assert held_clock(T4, [idle]) == T4.boost_clock_mhz
    assert typical_clock(T4) == pytest.approx(
        held_clock(T4, [Prediction(T4, 0.0, {"tensor cores": 2e9}, 0.0, tensor_cycles=1e9)]), rel=1e-3
    )


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
    assert ending.data_bytes == 64 * 64 and ending.instructions == 64 * 64 / 32 * 5
    more = gemm_work(conv_gemm(T4, 8, 8, 64, 64, 3, 56, 1), layout, Ends(8, 8), T4)
    assert more.phases[1].data_bytes == 2 * 64 * 64 and more.phases[1].instructions > 2 * ending.instructions


def test_asynchronous_copies_pass_once() -> None:
    layout = Swizzled(Tile(64, 64, 4, 2, 2))
    (loaded, _), (copied, _) = (gemm_work(conv_gemm(gpu, 8, 8, 64, 64, 3, 56, 1), layout, Ends(8), gpu).phases
                                for gpu in (T4, A100))  # fmt: skip
    assert loaded.data_bytes - copied.data_bytes == 9 * (64 + 64) * 64


@pytest.mark.parametrize("tile", [TILES[0], TILES[5], TILES[8]], ids=str)
def test_registers_are_those_that_the_compiler_takes(tile: Tile, cuda_compiler: CudaCompiler) -> None:
    op = random_conv(64, 64, Window((3, 3), (1, 1), (1, 1, 1, 1)), 8, U8)
    request = gpu_request(op, [TensorType(U8, (64, 14, 14), 1.0)], U8)
    reads, writes = (request.alternatives["x0"],), request.alternatives["y"]
    built = gemm_layers.build(request, reads, writes, tile=tile)
    taken = compiled_image(built, request.target, cuda_compiler).uses[75].registers
    counted = gemm_work(Gemm.of(request, reads[0]), Swizzled(tile), Ends.of(reads, writes), T4).registers
    assert counted == pytest.approx(taken, rel=0.15)
    assert T4.architecture.resident_blocks(tile.threads, counted, 0) == T4.architecture.resident_blocks(
        tile.threads, taken, 0
    )


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


# The allocation's column

PAIRS = {pair: uniform("Residual", pair) for pair in (Bits(4, 4), Bits(8, 8))}


def test_the_column_is_what_the_chosen_offers_cost() -> None:
    graph, ranges, target = captured("Residual"), ranges_of("Residual"), TARGETS["nvidia/t4"]
    table = predict_latency(graph, ranges, PAIRS, target, batch=8)
    assert list(table.latency_us) == [layer.name for layer in graph.layers]
    for pair, bits in PAIRS.items():
        plan = plan_storages(integerize(graph, ranges, bits), target, 128, batch=8)
        offers: dict[str, Offer] = {name: plan.offers[name] for name in table.latency_us}
        assert {name: row[pair] for name, row in table.latency_us.items()} == {n: o.cost for n, o in offers.items()}
    assert table.source == (
        f"predicted for Tesla T4 at {typical_clock(T4):.0f} MHz, launched by a CUDA graph "
        "(hawq_tvm/core/gpu_model.py), target nvidia/t4, batch 8; nothing was run"
    )
    sources = predict_latency(graph, ranges, PAIRS, TARGETS["llvm"]).source
    assert "fitted to one thread of another CPU" in sources and "target llvm, batch 1" in sources


def test_settings_say_where_latencies_come_from() -> None:
    assert not Settings().wants_latency
    assert Settings(latency_from="model").wants_latency
    assert Settings.from_json(Settings(latency_from="model").to_json()).latency_from == "model"
    with pytest.raises(SettingsError, match="^latencies are from timing or model, got 'guess'"):
        Settings(latency_from="guess")
    with pytest.raises(SettingsError, match="--latency-table gives times and --latency-from model predicts them"):
        Settings(latency_from="model", latency_table=Path("table.json"))
