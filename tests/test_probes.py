"""Estimates that were cut off go on from where they were, to the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hawq_tvm.runs.probes import Probes
from hawq_tvm.runs.rundir import edit_run
from hawq_tvm.stages import profile

from .conftest import NETWORKS, Run

IDENTITY = {"model": "net", "weights": "random", "data": "digits"}


def test_tensors_come_back_to_the_same_question_alone(tmp_path: Path) -> None:
    with edit_run(tmp_path / "run", identity=IDENTITY) as run:
        probes = Probes(run, "omega", {"seed": 1})
        assert probes.found is None
        probes.keep({"probed": torch.ones(2, 3).double()})
        probes.keep({"probed": torch.tensor([[1.0, torch.nan]])})
        found = Probes(run, "omega", {"seed": 1}).found
        assert found is not None and found["probed"].isnan().tolist() == [[False, True]]
        assert Probes(run, "omega", {"seed": 2}).found is None
        assert Probes(run, "eigenvalue", {"seed": 1}).found is None
        (run.path / "probes.omega").write_bytes(b"cut off")
        assert probes.found is None
        probes.clear()
        probes.clear()
        assert not list(run.path.glob("probes.*"))


class Killed(BaseException):
    """As a signal is."""


@pytest.mark.parametrize("metric", ["omega", "eigenvalue"])
def test_a_run_that_was_cut_off_while_it_probed_goes_on(
    metric: str, tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        "profile", f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", "--bits", "4,8", "--metric", metric,
        "--hessian-samples", 6, "--hessian-probes", 40, "--hessian-error", 0.001, "--power-iterations", 12,
    )  # fmt: skip
    assert cli(*options, "-o", tmp_path / "whole")[0] == 0

    class CutOff(Probes):
        """Keeps twice, then the process is gone."""

        kept = 0

        def keep(self, tensors: Any) -> None:
            super().keep(tensors)
            CutOff.kept += 1
            if CutOff.kept == 2:
                raise Killed

    monkeypatch.setattr(profile, "Probes", CutOff)
    with pytest.raises(Killed):
        cli(*options, "-o", tmp_path / "cut")
    found: list[Any] = []

    class Looked(Probes):
        """Tells what was there."""

        @property
        def found(self) -> dict[str, torch.Tensor] | None:
            found.append(super().found)
            return super().found

    monkeypatch.setattr(profile, "Probes", Looked)
    assert cli(*options, "-o", tmp_path / "cut")[0] == 0
    assert found and found[0] is not None
    name = f"sensitivity.{metric}.json"
    assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert not list((tmp_path / "cut").glob("probes.*"))
