"""Searches from the command line: what they measure on, what is kept of one that was cut off, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hawq_tvm.cli.app import main
from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.specs import BitConfig
from hawq_tvm.runs.provenance import stored_data, stored_settings
from hawq_tvm.runs.rundir import edit_run, open_run
from hawq_tvm.search.simulated import SimulatedAccuracy
from hawq_tvm.settings import Settings
from hawq_tvm.stages.searching import search_resources
from hawq_tvm.stages.work import Work

from .conftest import Run


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's network at 2, 4 and 8 bits, quickly profiled on few samples."""
    path = tmp_path_factory.mktemp("runs") / "profiled"
    metrics = ("--metric", "omega,eigenvalue", "--power-iterations", "3")
    few = ("--calibration-samples", "48", "--hessian-samples", "8", "--hessian-probes", "4", "--rounding", "nearest")
    observer = ("--observer", "percentile:99.9")
    assert (
        main(["profile", "resnet20", "--data", "digits", "--bits", "2,4,8", *few, *metrics, *observer, "-o", str(path)])
        == 0
    )
    return path


def bits_of(path: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((path / "bits.json").read_text())["bits"]
    return found


@pytest.mark.parametrize("solver", ["hawq", "greedy", "greedy-accuracy", "random", "ddpg"])
def test_every_allocator_writes_bits_within_the_budget(profiled: Path, cli: Run, solver: str) -> None:
    arguments = ("allocate", profiled, "--budget-size", "40%", "--solver", solver, "--evaluations", 4, "--json")
    status, out, _ = cli(*arguments)
    result = json.loads(out)
    assert status == 0 and result["solver"] == solver
    assert result["costs"]["size_bytes"] <= result["limits"]["size_bytes"]
    assert bits_of(profiled) == result["bits"]
    assert result["bits"]["conv1"] == result["bits"]["fc"] == "w8a8", "first and last layer are pinned"


def test_a_search_that_is_cut_off_leaves_the_run_and_measures_nothing_twice(
    profiled: Path, cli: Run, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("allocate", profiled, "--budget-bops", "30%", "--solver", "ddpg", "--evaluations", 8)
    asked: list[str] = []
    measure = SimulatedAccuracy.__call__

    def counted(accuracy: SimulatedAccuracy, bits: BitConfig) -> float:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(str(bits.layers))
        return measure(accuracy, bits)

    before = (profiled / "manifest.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(SimulatedAccuracy, "__call__", counted)
        assert cli(*arguments)[0] == 130
    assert (profiled / "manifest.json").read_bytes() == before, "nothing is half-written"
    first = list(asked)

    def further(accuracy: SimulatedAccuracy, bits: BitConfig) -> float:
        asked.append(str(bits.layers))
        return measure(accuracy, bits)

    with monkeypatch.context() as patch:
        patch.setattr(SimulatedAccuracy, "__call__", further)
        assert cli(*arguments)[0] == 0
        taken_up = bits_of(profiled)
        assert len(asked) == len(set(asked)) and set(first) < set(asked)
        patch.setenv("XDG_CACHE_HOME", str(own_cache / "another"))
        assert cli(*arguments)[0] == 0
    assert bits_of(profiled) == taken_up, "as a search that was never cut off"


def test_a_budget_that_nothing_meets_is_refused_before_anything_is_measured(
    profiled: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimulatedAccuracy, "__call__", lambda accuracy, bits: pytest.fail("it measured"))
    before = (profiled / "manifest.json").read_bytes()
    status, _, err = cli("allocate", profiled, "--budget-size", "100", "--solver", "ddpg")
    assert status == 2 and "no bit configuration meets the budget of 100 bytes" in err
    assert (profiled / "manifest.json").read_bytes() == before


def test_contradicting_pins_are_one_sentence(profiled: Path, cli: Run) -> None:
    pins = ("--pin", "conv1=w8a8", "--pin", "nothing=w4a4")
    status, _, err = cli("allocate", profiled, "--solver", "ddpg", *pins)
    assert status == 2 and "pin for unknown layer 'nothing'" in err


def test_a_cost_table_alone_has_nothing_to_measure(profiled: Path, cli: Run) -> None:
    status, _, err = cli("allocate", profiled / "costs.json", "--budget-size", "50%", "--solver", "ddpg")
    assert status == 2 and "measures accuracy, and the network and its samples are not at hand" in err
    status, out, _ = cli("allocate", profiled / "costs.json", "--budget-size", "50%", "--solver", "hawq")
    assert status == 0 and "chosen by hawq" in out


def test_unknown_allocators_are_named(profiled: Path, cli: Run) -> None:
    status, _, err = cli("allocate", profiled, "--solver", "hawk")
    assert status == 2 and "unknown solver 'hawk'" in err and "did you mean hawq?" in err


def test_without_its_samples_a_run_cannot_be_measured(profiled: Path) -> None:
    run = open_run(profiled)
    settings = replace(stored_settings(run), solver="ddpg")
    with pytest.raises(AllocationError, match="on the samples that calibrated the run, and they are not at hand"):
        search_resources(Work(run, settings), lambda done, total: None)
    quiet = search_resources(Work(run, replace(settings, solver="greedy")), lambda done, total: None)
    assert quiet.evaluate is None


def test_what_is_measured_is_named_by_all_that_decides_it(profiled: Path) -> None:
    def question(**changes: object) -> str:
        with edit_run(profiled) as run:
            settings = replace(stored_settings(run), solver="ddpg", **changes)  # type: ignore[arg-type]
            return search_resources(Work(run, settings, data=stored_data(run)), lambda done, total: None).question

    first = question()
    assert first == question() == question(evaluations=7)
    assert first != question(seed=1)
    assert first != question(residual_bits=4)


def test_hawqs_order_is_of_eigenvalues_where_they_were_profiled(profiled: Path) -> None:
    run = open_run(profiled)
    found = search_resources(Work(run, replace(stored_settings(run), solver="hawq")), lambda done, total: None)
    layers = json.loads((profiled / "sensitivity.eigenvalue.json").read_text())["layers"]
    assert found.curvatures == pytest.approx({name: abs(row["eigenvalue"]) for name, row in layers.items()})
    other = search_resources(Work(run, replace(stored_settings(run), solver="greedy")), lambda done, total: None)
    assert not other.curvatures


def test_evaluations_are_counted_from_one() -> None:
    with pytest.raises(Exception, match="measured configurations: a whole number of at least 1, got 0"):
        Settings(evaluations=0)
