"""`hawq-tvm allocate --pareto`, and answers that are near enough."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import Run


def test_a_front_is_kept_and_shown(scratch: Path, cli: Run) -> None:
    bits = (scratch / "bits.json").read_bytes()
    status, out, _ = cli("allocate", scratch, "--pareto", "size,sensitivity", "--points", "3")
    assert status == 0 and "each proved optimal by highs" in out
    front = json.loads((scratch / "front.json").read_text())
    assert front["axes"] == ["size_bytes", "sensitivity"] and 2 <= len(front["points"]) <= 3
    assert len((scratch / "front.csv").read_text().splitlines()) == len(front["points"]) + 1
    assert "<h2>Front</h2><svg" in (scratch / "report.html").read_text()
    assert json.loads(cli("inspect", scratch, "--json")[1])["front"]["points"] == front["points"]
    assert (scratch / "bits.json").read_bytes() == bits, "a front decides nothing"
    assert json.loads(cli("allocate", scratch, "--pareto", "size,bops", "--json")[1])["axes"] == ["size_bytes", "bops"]
    for arguments, message in (
        (("--pareto", "size,speed"), "a front is over two of size, bops, latency, energy, sensitivity"),
        (("--points", "3"), "say over what with --pareto"),
        (("--pareto", "size,energy"), "a budget on energy_uj or a front over it needs it for every layer"),
        (("--pareto", "size,bops", "--budget-size", "1"), "no bit configuration meets the budget of 1 bytes"),
        (("--pareto", "size,bops", "--points", "1"), "at least its two ends"),
    ):
        status, _, err = cli("allocate", scratch, *arguments)
        assert (status, message in err) == (2, True), err
    status, _, err = cli("allocate", scratch / "costs.json", "--pareto", "size,bops")
    assert (status, "give the run directory" in err) == (2, True)


def test_how_far_from_the_optimum_is_said(scratch: Path, cli: Run) -> None:
    assert ", optimal)" in cli("allocate", scratch, "--budget-size", "40%")[1]
    status, out, _ = cli("allocate", scratch, "--budget-size", "40%", "--gap", "50%", "--time-limit", "60")
    assert status == 0 and "optimal" in out
    status, _, err = cli("allocate", scratch, "--gap", "little")
    assert (status, "a gap is written 0.01% or 0.0001, got 'little'" in err) == (2, True)
