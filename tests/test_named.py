"""Allocations by name: side by side in one run, compared, explained, and taken up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hawq_tvm.cli.app import main
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.rundir import read_run

from .conftest import Run


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's network, quickly profiled, with two allocations by name beside its own."""
    path = tmp_path_factory.mktemp("runs") / "profiled"
    few = ("--calibration-samples", "32", "--hessian-samples", "8", "--hessian-probes", "4", "--rounding", "nearest")
    options = ("--bits", "w4a8,w8a8", "--observer", "max", *few)
    assert main(["profile", "resnet20", "--data", "digits", *options, "-o", str(path)]) == 0
    assert main(["allocate", str(path), "--budget-size", "80%"]) == 0
    assert main(["allocate", str(path), "--budget-size", "20%", "--name", "small"]) == 0
    assert main(["allocate", str(path), "--budget-bops", "60%", "--name", "fast.1"]) == 0
    return path


def own_bits(path: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((path / "bits.json").read_text())["bits"]
    return found


def test_named_allocations_leave_the_runs_own_alone(profiled: Path) -> None:
    small = json.loads((profiled / "allocations" / "small.json").read_text())
    assert small["allocation"]["costs"]["size_bytes"] <= small["allocation"]["limits"]["size_bytes"]
    assert small["bits"]["bits"] != own_bits(profiled)
    assert sorted(path.name for path in (profiled / "allocations").iterdir()) == ["fast.1.json", "small.json"]


def test_diff_says_which_layers_differ_and_what_it_saves(profiled: Path, cli: Run) -> None:
    status, out, _ = cli("diff", profiled, "small", "--json")
    found, own = json.loads(out), own_bits(profiled)
    small = json.loads((profiled / "allocations" / "small.json").read_text())
    assert status == 0
    changed = {name: [bits, own[name]] for name, bits in small["bits"]["bits"].items() if bits != own[name]}
    assert {row["layer"]: row["bits"] for row in found["layers"]} == changed
    first, second = found["totals"]["size_bytes"]
    assert first == small["allocation"]["costs"]["size_bytes"] < second
    assert sum(row["changes"]["size_bytes"] for row in found["layers"]) == pytest.approx(second - first)
    status, out, _ = cli("diff", profiled, "small", "fast.1")
    assert status == 0 and out.startswith("what changes from small to fast.1:\n") and "\nsize: " in out
    status, out, _ = cli("diff", profiled, profiled)
    assert status == 0 and "have the same bits" in out.replace("\n", " ")


def test_explain_answers_from_the_run(profiled: Path, cli: Run) -> None:
    own = own_bits(profiled)
    layer = next(name for name, bits in own.items() if bits == "w4a8")
    status, out, _ = cli("explain", profiled, layer, "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["bits"], found["optimal"], found["pinned"]) == ("w4a8", "w4a8", False)
    regrets = {row["bits"]: row["regret"] for row in found["alternatives"]}
    assert regrets["w4a8"] == 0.0
    assert [reading["cost"] for reading in found["budgets"]] == ["size_bytes"]
    status, out, _ = cli("explain", profiled, "conv1")
    assert status == 0 and "conv1 has w8a8, at which it is pinned" in out
    assert "no layer 'conv7'" in cli("explain", profiled, "conv7")[2]


def test_explain_without_a_layer_keeps_all(profiled: Path, cli: Run) -> None:
    """Every number of the kept file is what asking of the layer alone says."""
    status, out, _ = cli("explain", profiled, "--json")
    found = json.loads(out)
    assert status == 0 and found == json.loads((profiled / "explanations.json").read_text())["layers"]
    assert {name for row in found for name in row["tied"]} == set(own_bits(profiled))
    assert found[1] == json.loads(cli("explain", profiled, found[1]["layer"], "--json")[1])
    kept = read_run(profiled, lambda run: Artifacts(run).explanations)
    assert [row.to_json() for row in kept] == found
    status, out, _ = cli("explain", profiled)
    assert status == 0 and "regret: by how much" in out and "explanations.json" in out


def test_an_allocation_is_taken_up_and_explained(profiled: Path, cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    shutil.copytree(profiled, path)
    small = json.loads((path / "allocations" / "small.json").read_text())
    status, out, _ = cli("use", path, "small")
    assert status == 0 and "is the allocation 'small' now" in out
    assert own_bits(path) == small["bits"]["bits"]
    status, out, _ = cli("use", path, "small", "--json")
    assert status == 0 and json.loads(out)["bits"] == small["bits"]["bits"]
    status, out, _ = cli("explain", path, list(own_bits(path))[3], "--json")
    assert status == 0 and json.loads(out)["budgets"][0]["limit"] == small["allocation"]["limits"]["size_bytes"]


def test_bad_names_and_unknown_ones_are_one_sentence(profiled: Path, cli: Run, tmp_path: Path) -> None:
    status, _, err = cli("allocate", profiled, "--name", "../out", "--budget-size", "50%")
    assert status == 2 and "an allocation is named by letters" in err
    status, _, err = cli("use", profiled, "large")
    assert status == 2 and "has no allocation 'large', it has fast.1, small" in err
    status, _, err = cli("diff", profiled, "large")
    assert status == 2 and "no run directory of that name" in err
    status, _, err = cli("allocate", profiled / "costs.json", "--name", "x", "--budget-size", "50%")
    assert status == 2 and "is a cost table" in err


def test_an_allocation_of_other_costs_is_not_taken_up(profiled: Path, cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    shutil.copytree(profiled, path)
    table = json.loads((path / "costs.json").read_text())
    next(iter(table["layers"][2]["choices"].values()))["sensitivity"] += 1.0
    (path / "costs.json").write_text(json.dumps(table))
    status, _, err = cli("use", path, "small")
    assert status == 2 and "was made from another costs.json" in err
