"""`hawq-tvm allocate --pareto`, and answers that are near enough."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path

import pytest

import hawq_tvm

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
    rows = list(csv.DictReader((scratch / "front.csv").open()))
    prices = [(row["price"] and float(row["price"])) for row in rows]
    assert prices == ["", *(step["price"] for step in front["steps"])]
    assert "bought a kB" in out and f"{front['steps'][0]['price'] * 1e3:.3g}" in out
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


def test_what_more_of_a_budget_buys_is_said_and_kept(scratch: Path, cli: Run) -> None:
    """By `allocate`, in its JSON, in the run, and in the report of the network that is made of it."""
    out = cli("allocate", scratch, "--budget-size", "40%")[1]
    (line,) = (line for line in out.splitlines() if line.startswith("size binds: "))
    assert re.fullmatch(
        r"size binds: [\d.]+ kB more buys [\d.e-]+ less sensitivity \([\d.]+% of it\): .* w\da\d.*", line
    )
    prices = json.loads((scratch / "allocation.json").read_text())["prices"]
    assert [price["cost"] for price in prices] == ["size_bytes"]
    assert json.loads(cli("allocate", scratch, "--budget-size", "40%", "--json")[1])["prices"] == prices
    assert json.loads(cli("allocate", scratch / "costs.json", "--budget-size", "40%", "--json")[1])["prices"]
    more = prices[0]["limit"] + prices[0]["more"]
    raised = json.loads(cli("allocate", scratch, "--budget-size", str(more), "--name", "more", "--json")[1])
    assert prices[0]["less"] == pytest.approx(prices[0]["sensitivity"] - raised["sensitivity"])
    now = json.loads((scratch / "bits.json").read_text())["bits"]
    assert prices[0]["changes"] == {n: [now[n], bits] for n, bits in raised["bits"].items() if bits != now[n]}
    assert cli("compile", scratch)[0] == 0
    assert f"<p>S{html.escape(line[1:])}.</p>" in (scratch / "report.html").read_text()
    assert json.loads(cli("inspect", scratch, "--json")[1])["prices"] == [line]
    assert [price.to_json() for price in hawq_tvm.load(scratch).shadow_prices] == prices
    free = cli("allocate", scratch, "--budget-size", "100%")[1]
    assert "binds" not in free
    greedy = cli("allocate", scratch, "--budget-size", "40%", "--solver", "greedy")
    assert greedy[0] == 0 and "binds" not in greedy[1], "only the exact program has prices"
