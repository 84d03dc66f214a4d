"""Latencies and energies of simulated accelerators in a cost table, and through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hawq_tvm.core.errors import SettingsError
from hawq_tvm.core.specs import Bits
from hawq_tvm.ilp.simulators import ACCELERATORS, workload_of
from hawq_tvm.measure.costing import cost_table
from hawq_tvm.measure.simulated import on_accelerator
from hawq_tvm.settings import SIMULATED, Settings

from .builders import captured
from .conftest import NETWORKS, QUICK, Run

PAIRS = (Bits(2, 8), Bits(4, 4), Bits(3, 8, codebook=True), Bits(8, 8))


def test_settings_name_the_accelerators_that_there_are() -> None:
    assert set(SIMULATED) == set(ACCELERATORS)


@pytest.mark.parametrize("name", SIMULATED)
def test_each_layer_gets_what_its_accelerator_takes(name: str) -> None:
    graph = captured("Residual")
    plain = cost_table(graph, PAIRS, sensitivity=None, latency=None)
    costs = on_accelerator(plain, graph, name)
    accelerator = ACCELERATORS[name]
    for node, row, before in zip(graph.layers, costs.layers, plain.layers, strict=True):
        assert row.name == node.name
        for bits, cost in row.choices.items():
            multiplied = 8 if bits.codebook else bits.weight
            expected = accelerator.simulate(workload_of(node), multiplied, bits.activation)
            assert (cost.latency_us, cost.energy_uj) == (expected.latency_us, expected.energy_uj)
            assert (cost.size_bytes, cost.bops) == (before.choices[bits].size_bytes, before.choices[bits].bops)
    assert f"simulated for {accelerator.name}, from " in costs.sources["latency_us"]
    assert costs.sources["latency_us"].startswith("of a batch of 16" if name == "bismo-cloud" else "of a sample")
    assert costs.sources["energy_uj"].startswith("not known" if name == "bismo-cloud" else "of a sample")
    assert costs.ties == plain.ties


def test_one_source_of_times_is_enough() -> None:
    with pytest.raises(SettingsError, match="--latency-table gives times and --latency-from bitfusion predicts them"):
        Settings(latency_from="bitfusion", latency_table=Path("table.json"))
    assert Settings(latency_from="bitfusion").wants_latency


def test_bits_are_chosen_within_an_energy_on_an_accelerator(tmp_path: Path, cli: Run) -> None:
    arguments = (
        "--data", "random", "--input-shape", "3x12x12", "--bits", "w2a2,w4a4,w4a8,w8a8", "--rounding", "nearest",
        *QUICK[:4], "-o", tmp_path / "run",
    )  # fmt: skip
    status, _, err = cli("profile", f"{NETWORKS}:residual", *arguments, "--latency-from", "bitfusion")
    assert status == 0, err
    costs = json.loads((tmp_path / "run" / "costs.json").read_text())
    assert costs["sources"]["energy_uj"].startswith("of a sample, simulated for BitFusion, from its authors' simulator")
    for budget, cost in (("--budget-energy", "energy_uj"), ("--budget-latency", "latency_us")):
        status, out, err = cli("allocate", tmp_path / "run", budget, "50%", "--json")
        assert status == 0, err
        found = json.loads(out)
        assert found["costs"][cost] <= found["limits"][cost]
    status, _, err = cli("profile", f"{NETWORKS}:residual", *arguments, "--latency-from", "bismo-cloud")
    assert status == 0, err
    status, _, err = cli("allocate", tmp_path / "run", "--budget-energy", "50%")
    assert status != 0
    assert "a budget on energy_uj or a front over it needs it for every layer" in err
    assert len(err.strip().splitlines()) == 1
