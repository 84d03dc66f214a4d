"""What verbs say at the end: the next step, which holds as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from hawq_tvm.backends.tvm.records import Tuning
from hawq_tvm.core.targets import TARGETS

from .conftest import Run


def test_compile_says_what_comes_next(scratch: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert cli("compile", scratch)[1].endswith(f"; hawq-tvm verify {scratch} proves it\n")
    portable = ("compile", scratch, "--target", "llvm/portable")
    assert cli(*portable)[1].endswith(f"; hawq-tvm verify {scratch} --target llvm/portable proves it\n")
    monkeypatch.setattr("hawq_tvm.cli.commands.why_not_run", lambda target, cpu, needed: "another CPU")
    assert cli(*portable)[1].endswith(f"; it is for {TARGETS['llvm/portable'].summary} and does not run here: see "
                                      "docs/deploy.md\n")  # fmt: skip


def test_where_tuning_finds_nothing_to_choose_it_says_so_and_compile_says_nothing(
    scratch: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hawq_tvm.stages.tune.tune_layers", lambda *given, **more: Tuning("this CPU", 1, 0, {}))
    status, out, _ = cli("tune", scratch)
    assert (status, out) == (0, "each layer has one way to be computed here; there is nothing to tune\n")
    status, _, err = cli("compile", scratch)
    assert (status, "tuned" in err) == (0, False), err


def test_allocate_and_inspect_write_what_a_network_costs_alike(scratch: Path, cli: Run) -> None:
    _, out, _ = cli("allocate", scratch, "--budget-size", "50%")
    costs = [line for line in out.splitlines() if line.startswith(("weights: ", "bit operations: "))]
    assert len(costs) == 2 and costs[0].endswith(": met")
    assert cli("compile", scratch)[0] == 0
    shown = cli("inspect", scratch)[1].splitlines()
    assert all(line in shown for line in costs)


@pytest.mark.parametrize("verb", ["verify", "bench"])
def test_a_library_of_another_cpu_is_refused_by_its_name_in_the_run(
    verb: str, scratch: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "'llvm' needs avx9, which this CPU lacks"
    monkeypatch.setattr("hawq_tvm.backends.tvm.host.why_not_run", lambda target, cpu, needed: why)
    status, _, err = cli(verb, scratch)
    assert status == 2
    assert f"error: {scratch}/model.llvm.so does not run here: {why}; see docs/deploy.md, or compile it" in err
