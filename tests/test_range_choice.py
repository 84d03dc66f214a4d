"""Observers compared on the network's output."""

from __future__ import annotations

import json

import pytest
import torch

import hawq_tvm
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.calibration import NetworkHistograms, make_observers
from hawq_tvm.calibration.observers import CANDIDATES
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.quantizer import Range, RangeTable, range_at
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.posttraining.divergence import output_divergence
from hawq_tvm.posttraining.range_choice import (
    Comparison,
    choose_ranges,
    samples_to_compare,
)
from hawq_tvm.posttraining.simulate import SimulatedNetwork
from hawq_tvm.runs.rundir import open_run
from hawq_tvm.settings import Settings
from hawq_tvm.stages.calibrate import compared_bits
from hawq_tvm.stages.work import Work

from . import networks
from .builders import captured, ranges_of, samples

TABLES: dict[str, RangeTable] = {
    "a": {"x": Range(0, 1), "y": Range(0, 9)},
    "b": {"x": Range(0, 2), "y": {bits: Range(0, bits) for bits in range(2, 9)}},
    "c": {"x": Range(0, 3), "y": Range(0, 9)},
}


def limits(table: RangeTable, bits: int) -> tuple[float, float]:
    return range_at(table, "x", bits).hi, range_at(table, "y", bits).hi


def test_each_width_takes_its_own_and_eight_bits_are_settled_first() -> None:
    asked: list[tuple[int, tuple[float, float], tuple[float, float]]] = []

    def measure(table: RangeTable, bits: int) -> float:
        asked.append((bits, limits(table, bits), limits(table, 8)))
        wanted = {8: 1.0, 4: 2.0, 3: 3.0}[bits]
        return abs(range_at(table, "x", bits).hi - wanted)

    table, choices = choose_ranges(TABLES, [4, 3], measure)
    assert [(bits, choice.observer) for bits, choice in choices.items()] == [(8, "a"), (4, "b"), (3, "c")]
    assert choices[4].divergence == {"a": 1.0, "b": 0.0, "c": 1.0}
    assert [limits(table, bits)[0] for bits in range(2, 9)] == [3, 3, 2, 1, 1, 1, 1], "others take the next wider one"
    assert limits(table, 4)[1] == 4, "at its own width"
    assert [row[0] for row in asked] == [8, 8, 8, 4, 4, 4, 3, 3, 3]
    assert {row[2] for row in asked[3:]} == {(1, 9)}, "what stands at 8 bits has its choice meanwhile"


def test_of_equals_the_first_is_taken_and_equal_ranges_are_run_once() -> None:
    runs: list[RangeTable] = []

    def measure(table: RangeTable, bits: int) -> float:
        runs.append(table)
        return 0.5

    tables = {"first": TABLES["a"], "same": dict(TABLES["a"]), "other": TABLES["c"]}
    table, choices = choose_ranges(tables, [8], measure)
    assert table == TABLES["a"], "one range a value where it is one at every width"
    assert choices[8].observer == "first"
    assert choices[8].divergence == {"first": 0.5, "same": 0.5, "other": 0.5}
    assert len(runs) == 2


def config(bits: int) -> BitConfig:
    return BitConfig.uniform(tuple(layer.name for layer in captured("Residual").layers), Bits(8, bits))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_comparison_is_the_mean_over_the_samples(threads: int) -> None:
    graph, pieces = captured("Residual"), samples(10).tensor_split((4, 8))
    run: list[int] = []
    comparison = Comparison(graph, pieces, threads=threads, progress=run.append)
    found = comparison.divergence(ranges_of("Residual"), config(4))
    network = SimulatedNetwork(graph, ActivationTypes(graph, ranges_of("Residual"), config(4)))
    with torch.no_grad():
        wanted = [output_divergence(FloatModule(graph)(x), network(x)) for x in pieces]
    assert found == pytest.approx(float(torch.cat(wanted).mean()), rel=1e-12)
    assert run == [10, 4, 4, 2]
    assert comparison.divergence(ranges_of("Residual"), config(8)) < found / 10


def test_threads_do_not_matter_to_the_last_bit() -> None:
    graph, pieces = captured("Concat"), samples(16).chunk(4)
    names = tuple(layer.name for layer in graph.layers)
    one, three = (
        Comparison(graph, pieces, threads=threads).divergence(ranges_of("Concat"), BitConfig.uniform(names, Bits(8, 3)))
        for threads in (1, 3)
    )
    assert one == three > 0


def test_every_candidate_is_tried_and_the_best_is_no_worse_than_any() -> None:
    graph, network = captured("Mobile"), FloatModule(captured("Mobile"))
    histograms = NetworkHistograms()
    histograms.observe(lambda x, tap: network(x, tap=tap), samples(32))
    tables = {observer.name: histograms.ranges(observer, graph.nonnegative()) for observer in make_observers("auto")}
    assert tuple(tables) == CANDIDATES
    names = tuple(layer.name for layer in graph.layers)
    comparison = Comparison(graph, samples(32).chunk(4))
    ranges, choices = choose_ranges(
        tables, [3], lambda table, bits: comparison.divergence(table, BitConfig.uniform(names, Bits(8, bits)))
    )
    for choice in choices.values():
        assert choice.divergence[choice.observer] == min(choice.divergence.values())
        assert set(choice.divergence) == set(CANDIDATES)
    assert choices[3].divergence["max"] > 1.2 * min(choices[3].divergence.values()), "few bits want narrower ranges"
    again = comparison.divergence(ranges, BitConfig.uniform(names, Bits(8, 3)))
    assert again == choices[3].divergence[choices[3].observer]


def test_smaller_networks_are_compared_on_more_samples() -> None:
    assert samples_to_compare(captured("Residual")) > 10_000


# the stage


def test_ranges_say_what_was_compared_and_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().observer == "auto"
    files = []
    for threads in (1, 3):
        monkeypatch.setattr("hawq_tvm.stages.work.default_threads", lambda threads=threads: threads)
        made = hawq_tvm.quantize(networks.make("Residual"), samples(24), bits=["w4a4"])
        files.append((made.path / "ranges.json").read_bytes())
    table = json.loads(files[0])
    assert table["origin"].startswith("auto over 12 samples of ") and " at 8 bits, " in table["origin"]
    assert set(table["compared"]) == {"measure", "8", "4"}
    assert set(table["compared"]["4"]) == set(CANDIDATES)
    assert files[0] == files[1]


def test_bits_may_be_edited_to_any_width() -> None:
    made = hawq_tvm.quantize(networks.make("Residual"), samples(24), bits=["w3a3"], observer="mse")
    table = json.loads((made.path / "ranges.json").read_text())
    assert set(table) == {"origin", "ranges"}, "one observer is compared with none"
    assert set(table["ranges"]["stem"]) == set("2345678")


def test_pins_and_given_bits_are_kept_while_observers_are_compared() -> None:
    made = hawq_tvm.quantize(networks.make("Residual"), samples(24), bits=["w4a4"], pins={"conv2": "w8a6"})
    assert list(json.loads((made.path / "ranges.json").read_text())["compared"]) == ["measure", "8", "6", "4"]


def test_layers_that_are_given_more_bits_keep_them_while_fewer_are_compared() -> None:
    made = hawq_tvm.quantize(networks.make("Residual"), samples(8), bits=["w8a8"], observer="max")
    names = tuple(made.bits.layers)
    given = BitConfig({name: Bits(4, bits) for name, bits in zip(names, (8, 4, 4, 2, 8), strict=True)}, residual=6)
    found = compared_bits(Work(open_run(made.path), Settings(), given=given), 4)
    assert [bits.activation for bits in found.layers.values()] == [8, 4, 4, 4, 8]
    assert found.residual == 6
    pinned = Settings(pins={names[2]: Bits(2, 7)})
    found = compared_bits(Work(open_run(made.path), pinned), 4)
    assert [bits.activation for bits in found.layers.values()] == [8, 4, 7, 4, 8]


def test_given_ranges_stand_while_observers_are_compared() -> None:
    made = hawq_tvm.quantize(networks.make("Residual"), samples(24), bits=["w4a4"], ranges={"conv1": 0.001})
    table = json.loads((made.path / "ranges.json").read_text())
    assert table["ranges"]["conv1"] == [0, 0.001], "a range that clips nearly everything is what was asked for"
    free = hawq_tvm.quantize(networks.make("Residual"), samples(24), bits=["w4a4"])
    least = json.loads((free.path / "ranges.json").read_text())["compared"]["8"]
    assert min(table["compared"]["8"].values()) > 3 * min(least.values()), "and it is seen in the comparison"
