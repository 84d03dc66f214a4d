"""The cost model of GPUs: kernels by hand, power, and the column that it fills."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.backends.tvm.latency import predict_latency
from hawq_tvm.backends.tvm.storage import plan_storages
from hawq_tvm.core.errors import SettingsError
from hawq_tvm.core.gpu import A100, T4, GpuFacts
from hawq_tvm.core.gpu_model import (
    GRAPH_LAUNCH_US,
    HELD_POWER,
    KernelWork,
    Phase,
    Prediction,
    beyond_l2,
    board_watts,
    held_clock,
    predict,
    typical_clock,
)
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.specs import Bits
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.kernels import Offer
from hawq_tvm.settings import Settings

from .builders import candidates_of, captured, ranges_of, uniform

CLOCK = 1000.0

sweep = settings(max_examples=60)


def kernel(**changes: object) -> KernelWork:
    work = KernelWork(
        blocks=80, threads=128, registers=64, shared_bytes=16 * 1024, bits=8, phases=(Phase(1024.0 * 900, 6400, 400),),
        l2_bytes=0, start_cycles=100, code_instructions=0, alone_cycles=500, dram_bytes=0.0,
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


def test_code_is_fetched_once() -> None:
    """Whatever the rounds: 1,000 instructions, each 2.7 cycles later than from a cache."""
    work = kernel(blocks=2000)
    cold = predicted(replace(work, code_instructions=1000))
    assert cold.start_cycles == work.start_cycles + 2700
    assert cold.cycles == predicted(work).cycles


def test_phases_of_one_pipe_add_up() -> None:
    twice = predicted(kernel(phases=(Phase(macs=1024 * 900), Phase(macs=1024 * 500))))
    assert twice.cycles["tensor cores"] == pytest.approx(2 * (900 + 500) / 0.9)


def test_what_is_not_said_is_nothing() -> None:
    assert (Phase(), Phase(1.0)) == (Phase(0, 0, 0), Phase(1, 0, 0))
    assert Prediction(T4, 1.0, {}, 2.0) == Prediction(T4, 1.0, {}, 2.0, 0.0, None)


def test_memory_by_hand() -> None:
    """A T4 has 320 GB/s, of which 80% are to be had; what the L2 holds does not travel."""
    assert predicted(kernel(dram_bytes=256e6)).dram_us == pytest.approx(1000)
    assert beyond_l2(T4.l2_bytes, T4.l2_bytes) == beyond_l2(1, T4.l2_bytes) == 0
    assert beyond_l2(T4.l2_bytes + 7, T4.l2_bytes) == 7


def test_a_slower_kernel_is_slower_in_all_but_dram() -> None:
    found = predicted(kernel(dram_bytes=1e6))
    slow = found.slowed(3)
    assert slow.cycles == {name: 3 * cycles for name, cycles in found.cycles.items()}
    assert (slow.start_cycles, slow.dram_bytes) == (3 * found.start_cycles, found.dram_bytes)


def test_what_bounds_depends_on_the_clock() -> None:
    found = predicted(kernel(dram_bytes=256e3 * 1.8))  # 1.8 us; the tensor cores' 2,000 cycles are 2 us at 1 GHz
    assert found.bound(1000.0) == "tensor cores" and found.bound(1500.0) == "DRAM"
    assert found.bound() == found.bound(typical_clock(T4)) == "DRAM"


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


def test_a_cycle_costs_more_above_1100_mhz() -> None:
    """Its energy grows with the clock to the power of 1.4 from there."""
    energy = {clock: (board_watts(T4, clock, 0.5, 0.0) - 20) / clock for clock in (600.0, 1100.0, 1650.0)}
    assert energy[600.0] == pytest.approx(energy[1100.0])
    assert energy[1650.0] / energy[1100.0] == pytest.approx(1.5**1.4)


def test_what_traffic_draws_by_hand() -> None:
    """100 GB a second of 60 pJ a byte are 6 W."""
    idle, busy = (board_watts(T4, 900.0, 0.0, gb_s) for gb_s in (0.0, 100.0))
    assert busy - idle == pytest.approx(6.0)


@pytest.mark.parametrize("power_watts", [40, 70, 110])
def test_a_typical_clock_is_what_such_a_load_holds(power_watts: int) -> None:
    """On boards that must throttle far, somewhat, and not at all."""
    gpu = replace(T4, power_watts=power_watts)
    typical = Prediction(gpu, 0.0, {"tensor cores": 2e9}, 0.0, tensor_cycles=1e9)
    assert typical_clock(gpu) == pytest.approx(held_clock(gpu, [typical]), rel=1e-3)


@sweep
@given(parts=st.lists(st.tuples(st.floats(0.1, 1.0), st.floats(0.0, 100.0)), min_size=2, max_size=4))
def test_a_network_holds_the_clock_of_its_average(parts: list[tuple[float, float]]) -> None:
    """Kernels of equal length, none bound by DRAM: one that is as busy as all on average holds as much."""
    kernels = []
    for busy, gb_s in parts:
        made = Prediction(T4, 0.0, {"tensor cores": 1e9}, 0.0, tensor_cycles=busy * 1e9)
        kernels.append(replace(made, dram_bytes=gb_s * 1e3 * made.us(CLOCK)))
    average = replace(
        kernels[0],
        tensor_cycles=sum(made.tensor_cycles for made in kernels) / len(kernels),
        dram_bytes=sum(made.dram_bytes for made in kernels) / len(kernels),
    )
    assert held_clock(T4, kernels) == pytest.approx(held_clock(T4, [average]), rel=1e-6)


def test_clocks_are_known_or_those_of_the_data_sheet() -> None:
    assert T4.base_clock_mhz < typical_clock(T4) < T4.boost_clock_mhz
    assert typical_clock(A100) == A100.boost_clock_mhz and A100.held is None
    hot = Prediction(A100, 0.0, {"tensor cores": 1e9}, 0.0, tensor_cycles=1e9)
    assert held_clock(A100, [hot]) == A100.boost_clock_mhz
    idle = Prediction(T4, 0.0, {"L2": 1e6}, 0.0)
    assert held_clock(T4, [idle]) == held_clock(T4, []) == T4.boost_clock_mhz
    assert typical_clock(T4) == pytest.approx(
        held_clock(T4, [Prediction(T4, 0.0, {"tensor cores": 2e9}, 0.0, tensor_cycles=1e9)]), rel=1e-3
    )


# The allocation's column

PAIRS = {pair: uniform("Residual", pair) for pair in (Bits(4, 4), Bits(8, 8))}


def test_the_column_is_what_the_chosen_offers_cost() -> None:
    graph, ranges, target = captured("Residual"), ranges_of("Residual"), TARGETS["nvidia/t4"]
    table = predict_latency(candidates_of("Residual", *PAIRS, batch=8), target)
    assert list(table.latency_us) == [layer.name for layer in graph.layers]
    for pair, bits in PAIRS.items():
        plan = plan_storages(integerize(graph, ranges, bits), target, 128, batch=8)
        offers: dict[str, Offer] = {name: plan.offers[name] for name in table.latency_us}
        assert {name: row[pair] for name, row in table.latency_us.items()} == {n: o.cost for n, o in offers.items()}
    assert table.source == (
        f"predicted for Tesla T4 at {typical_clock(T4):.0f} MHz, launched by a CUDA graph "
        "(hawq_tvm/core/gpu_model.py), target nvidia/t4, batch 8; nothing was run"
    )
    sources = predict_latency(candidates_of("Residual", *PAIRS), TARGETS["llvm"]).source
    assert "fitted to one thread of another CPU" in sources and "target llvm, batch 1" in sources


def test_settings_say_where_latencies_come_from() -> None:
    assert not Settings().wants_latency
    assert Settings(latency_from="model").wants_latency
    assert Settings.from_json(Settings(latency_from="model").to_json()).latency_from == "model"
    with pytest.raises(SettingsError, match="^latencies are from timing, model, .* or bitfusion, got 'guess'"):
        Settings(latency_from="guess")
    with pytest.raises(SettingsError, match="--latency-table gives times and --latency-from model predicts them"):
        Settings(latency_from="model", latency_table=Path("table.json"))
