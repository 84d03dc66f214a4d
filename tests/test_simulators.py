"""Simulated accelerators beside what HAQ's authors published, and the laws that any of them keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.core.errors import AllocationError
from hawq_tvm.frontend.capture import capture
from hawq_tvm.ilp.simulators import Accelerator, Workload, find_accelerator, workloads
from hawq_tvm.ilp.simulators.bit_serial import BitSerialArray
from hawq_tvm.ilp.simulators.pages import BISMO_CLOUD, BISMO_EDGE, BITFUSION
from hawq_tvm.sources.models import load_model

FACTS = Path(__file__).parent / "facts"
HAQ = json.loads((FACTS / "haq.json").read_text())
TABLE = json.loads((FACTS / "haq_bismo_cloud.json").read_text())


def of_row(row: Mapping[str, Any]) -> Workload:
    """The work of a layer of the published table."""
    kernel, stride, side = row["kernel"], row["stride"], row["output"]
    return Workload(
        row["in_channels"], row["out_channels"], (kernel, kernel), (side, side), (stride, stride), row["groups"]
    )


@pytest.fixture(scope="module")
def networks() -> dict[str, list[Workload]]:
    """MobileNet-V1 as captured, MobileNet-V2 as the table has it."""
    import torch

    graph = capture(load_model("mobilenet_v1", "random").module, torch.zeros(1, 3, 224, 224), name="mobilenet_v1")
    rows = [of_row(row) for row in TABLE["layers"]]
    return {"mobilenet_v1": list(workloads(graph).values()), "mobilenet_v2": [rows[i] for i in TABLE["network"]]}


def milliseconds(accelerator: Accelerator, layers: list[Workload], weight: int, activation: int) -> float:
    return sum(accelerator.simulate(layer, weight, activation).latency_us for layer in layers) / 1e3


def test_the_cloud_table_is_met_entry_by_entry() -> None:
    wrong = [
        (row["in_channels"], row["out_channels"], weight, activation)
        for row in TABLE["layers"]
        for weight in range(1, 9)
        for activation in range(1, 9)
        if BISMO_CLOUD.cycles(of_row(row), weight, activation) != row["cycles"][weight - 1][activation - 1]
    ]
    assert wrong == []
    assert len(TABLE["network"]) == 53


@pytest.mark.parametrize("network", ["mobilenet_v1", "mobilenet_v2"])
def test_the_clouds_uniform_rows_are_met_to_the_printed_digits(
    network: str, networks: dict[str, list[Workload]]
) -> None:
    """HAQ's table 3, all layers but the first and the last."""
    printed = HAQ["table3_latency_ms"]["bismo-cloud"][network]["uniform"]
    found = {
        bits: round(milliseconds(BISMO_CLOUD, networks[network][1:-1], int(bits[1]), int(bits[3])), 2)
        for bits in printed
    }
    assert found == printed


def test_the_edges_uniform_rows_are_met_within_a_thousandth(networks: dict[str, list[Workload]]) -> None:
    """Table 3; of MobileNet-V1 the rows of 4 to 6 bits hold the first layer at 8 bits, the others hold neither end."""
    table = HAQ["table3_latency_ms"]["bismo-edge"]
    for network, layers in networks.items():
        for bits, printed in table[network]["uniform"].items():
            found = milliseconds(BISMO_EDGE, layers[1:-1], int(bits[1]), int(bits[3]))
            if network == "mobilenet_v1" and bits != "w8a8":
                found += milliseconds(BISMO_EDGE, layers[:1], 8, 8)
            assert found == pytest.approx(printed, rel=1e-3), (network, bits)


def test_bitfusions_rows_are_met_as_far_as_they_are(networks: dict[str, list[Workload]]) -> None:
    """Tables 4 and 5, the first layer at 8 bits; one energy of the four was fitted."""
    first, *rest = networks["mobilenet_v1"]
    worst = {"latency": 0.0, "energy": 0.0}
    latency = HAQ["table4_bitfusion_mobilenet_v1_latency_ms"]["uniform"]
    energy = HAQ["table5_bitfusion_mobilenet_v1_energy_mj"]["uniform"]
    for bits in latency:
        found = [BITFUSION.simulate(first, 8, 8)]
        found += [BITFUSION.simulate(layer, int(bits[1]), int(bits[3])) for layer in rest]
        us, uj = sum(layer.latency_us for layer in found), sum(layer.energy_uj or 0.0 for layer in found)
        worst["latency"] = max(worst["latency"], abs(us / 1e3 / latency[bits] - 1))
        worst["energy"] = max(worst["energy"], abs(uj / 1e3 / energy[bits] - 1))
    assert 0.05 < worst["latency"] < 0.055
    assert 0.06 < worst["energy"] < 0.07


def by_hand(array: BitSerialArray, pixels: int, window: int, channels: int, weight: int, activation: int) -> int:
    """The four rules, operation by operation, for a product whose operands fit their buffers."""
    words = [min(array.word_bits, window - start) for start in range(0, window, array.word_bits)]

    def arrivals(vectors: int, bits: int) -> dict[tuple[int, int, int], int]:
        clock, found = 0, {}
        for tile, start in enumerate(range(0, vectors, array.side)):
            for word, held in enumerate(words):
                for bit in range(bits):
                    clock += min(array.side, vectors - start) * -(-held // array.port_bits)
                    found[tile, word, bit] = clock
        return found

    def makespan(outer: int, outer_bits: int, inner: int, inner_bits: int) -> int:
        outer_at, inner_at = arrivals(outer, outer_bits), arrivals(inner, inner_bits)
        clock = 0
        for o in range(-(-outer // array.side)):
            for i in range(-(-inner // array.side)):
                for word in range(len(words)):
                    for inner_bit in range(inner_bits):
                        for outer_bit in range(outer_bits):
                            arrived = max(outer_at[o, word, outer_bit], inner_at[i, word, inner_bit])
                            clock = max(clock + 1, arrived)
        return clock

    return min(makespan(pixels, activation, channels, weight), makespan(channels, weight, pixels, activation))


SMALL = BitSerialArray(
    "small", "made up", side=4, word_bits=16, port_bits=6, buffer_words=1024, depthwise_channels=2, clock_mhz=1.0,
    batch=1, watts=2.0,
)  # fmt: skip
BITS = st.integers(1, 4)


@settings(max_examples=150)
@given(st.integers(1, 25), st.integers(1, 60), st.integers(1, 25), BITS, BITS)
def test_the_closed_form_is_the_rules_operation_by_operation(
    pixels: int, window: int, channels: int, weight: int, activation: int
) -> None:
    found = SMALL.product_cycles(pixels, window, channels, weight, activation)
    assert found == by_hand(SMALL, pixels, window, channels, weight, activation)


def test_an_operand_that_does_not_fit_comes_in_chunks_of_one_size() -> None:
    tight = replace(SMALL, buffer_words=8)
    # 20 pixels are 5 tiles of 2 planes each, of which a buffer holds 4: chunks of 3 tiles and of 2.
    parts = [by_hand(tight, pixels, 16, 4, 2, 2) for pixels in (12, 8)]
    assert tight.product_cycles(20, 16, 4, 2, 2) == sum(parts)
    # A window of 5 words of 2 bits is more than a buffer holds for even one tile: 4 words, then 1.
    assert tight.product_cycles(4, 80, 4, 2, 2) == by_hand(tight, 4, 64, 4, 2, 2) + by_hand(tight, 4, 16, 4, 2, 2)


def test_a_batch_reloads_weights_but_for_a_fully_connected_layer() -> None:
    many = replace(SMALL, batch=3)
    conv, linear = Workload(8, 8, output=(2, 2)), Workload(8, 8)
    assert many.cycles(conv, 2, 2) == 3 * SMALL.cycles(conv, 2, 2)
    assert many.cycles(linear, 2, 2) == SMALL.product_cycles(3, 8, 8, 2, 2)
    assert many.simulate(linear, 2, 2).energy_uj == pytest.approx(2.0 * many.cycles(linear, 2, 2) / 3)


def test_groups_are_products_of_their_own_and_depthwise_ones_share_one() -> None:
    grouped = Workload(8, 12, (3, 3), (4, 4), groups=2)
    assert SMALL.cycles(grouped, 2, 2) == 2 * SMALL.product_cycles(16, 36, 6, 2, 2)
    depthwise = Workload(5, 5, (3, 3), (4, 4), groups=5)
    assert SMALL.cycles(depthwise, 2, 2) == 3 * SMALL.product_cycles(16, 18, 2, 2, 2)
    one = Workload(64, 64, output=(4, 4))
    assert BITFUSION.cycles(replace(one, in_channels=128, out_channels=128, groups=2), 4, 4) == 2 * BITFUSION.cycles(
        one, 4, 4
    )


LAYERS = st.builds(
    lambda inputs, outputs, kernel, output, stride, depthwise: Workload(
        inputs,
        inputs if depthwise else outputs,
        (kernel, kernel),
        (output, output),
        (stride, stride),
        inputs if depthwise else 1,
    ),
    st.integers(1, 96), st.integers(1, 96), st.sampled_from([1, 3]), st.integers(1, 20), st.integers(1, 2),
    st.booleans(),
)  # fmt: skip


@settings(max_examples=50)
@given(layer=LAYERS, weight=st.integers(1, 7), activation=st.integers(1, 7))
def test_more_bits_take_no_less_bit_by_bit(layer: Workload, weight: int, activation: int) -> None:
    """But for the few cycles that chunks of other sizes may win."""
    cycles = BISMO_EDGE.cycles(layer, weight, activation)
    for more in ((weight + 1, activation), (weight, activation + 1)):
        assert BISMO_EDGE.cycles(layer, *more) >= 0.97 * cycles - 20


def test_more_bits_take_no_less_of_bitfusion(networks: dict[str, list[Workload]]) -> None:
    """On MobileNet-V1, but for the few cycles that other tiles may win; more energy always."""
    for layer in set(networks["mobilenet_v1"]):
        for bits in range(2, 8):
            least = BITFUSION.simulate(layer, bits, bits)
            for more in ((bits + 1, bits), (bits, bits + 1)):
                found = BITFUSION.simulate(layer, *more)
                assert found.cycles >= 0.99 * least.cycles, (layer, bits, more)
                assert (found.energy_uj or 0) > (least.energy_uj or 0), (layer, bits, more)


@settings(max_examples=50)
@given(LAYERS, st.integers(2, 8), st.integers(2, 8))
def test_no_accelerator_beats_its_array(layer: Workload, weight: int, activation: int) -> None:
    for array in (BISMO_EDGE, BISMO_CLOUD):
        binary = layer.macs * weight * activation * array.batch
        assert array.cycles(layer, weight, activation) * array.side**2 * array.word_bits >= binary
    pairs = BITFUSION.fused(weight, activation) * BITFUSION.rows * BITFUSION.columns
    assert BITFUSION.cycles(layer, weight, activation) * pairs >= layer.macs


def test_bits_fuse_as_bricks_of_two() -> None:
    assert [BITFUSION.fused(bits, bits) for bits in range(1, 9)] == [16, 16, 4, 4, 1, 1, 1, 1]
    assert BITFUSION.fused(6, 4) == 2 and BITFUSION.fused(8, 2) == 4


def test_a_layer_that_no_buffer_takes_is_refused() -> None:
    tiny = replace(BITFUSION, buffer_bytes={"weights": 8, "activations": 8, "sums": 8})
    with pytest.raises(AllocationError, match=r"BitFusion: no tile of a 3x3 convolution of 64 to 64 channels fits"):
        tiny.cycles(Workload(64, 64, (3, 3), (7, 7)), 8, 8)


def test_energy_is_unknown_where_nothing_is_published() -> None:
    assert BISMO_CLOUD.simulate(Workload(8, 8), 4, 4).energy_uj is None


def test_accelerators_are_found_by_name() -> None:
    assert find_accelerator("bitfusion") is BITFUSION
    with pytest.raises(AllocationError, match="unknown accelerator 'eyeriss'; known: bismo-edge, bismo-cloud, bitf"):
        find_accelerator("eyeriss")
