"""The arena's tables, and their places in the documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import allocator_tables
from benchmarks.allocator_tables import TITLES, metrics_table, network_table, rule_table, write_tables
from benchmarks.deciding import Cell, decide


def row(allocator: str, difference: float, **fields: object) -> dict[str, object]:
    found = {"difference": difference, "standard_error": 0.01}
    return {"limit": "bytes", "allocator": allocator, "metric": "", "seed": 0, "reported": found, **fields}


def cells(*, omega: int, kl: int, network: str = "resnet20") -> list[Cell]:
    """One budget of 100 images, of which so many are lost."""
    lost = {name: np.array([1.0] * count + [0.0] * (100 - count)) for name, count in (("omega", omega), ("kl", kl))}
    return [Cell(network, "bytes", lost)]


def test_a_table_has_the_seeds_of_a_search_together_and_sensitivities_that_did_the_same() -> None:
    rows = [row("random", -0.01 * (1 + seed), seed=seed) for seed in (0, 2)]
    rows.append(row("random", -0.1, limit="BOPS"))
    rows += [row("highs", -0.01, metric=metric) for metric in ("loss", "kl")]
    assert network_table(rows).splitlines()[2:] == [
        "| highs | kl, loss | -1.0 ± 1.0 | not run |",
        "| random |  | -2.0 ± 1.0 (-3.0 to -1.0) | -10.0 ± 1.0 |",
    ]


def test_the_rule_shows_both_sets_of_images_and_the_best_first() -> None:
    lines = rule_table(decide(cells(omega=30, kl=10)), decide(cells(omega=20, kl=40))).splitlines()
    best, other = ([part.strip() for part in line.split("|")[1:-1]] for line in lines[2:])
    assert best[:3] == ["`kl`", "10.0", "1.0"] and best[3].startswith("-20.0 (")
    assert best[4] == "40.0" and best[5].startswith("+20.0 (")
    assert other[0] == "`omega`" and other[3] == other[5] == "+0.0 (+0.0 to +0.0)"


def test_metrics_by_network() -> None:
    found = {name: (cells(omega=3, kl=2, network=name), cells(omega=5, kl=4, network=name)) for name in ("resnet20",)}
    assert metrics_table(found).splitlines() == [
        "| metric | ResNet-20 |",
        "| --- | --- |",
        "| `omega` | 3.0 / 5.0 |",
        "| `kl` | 2.0 / 4.0 |",
    ]


def test_the_documents_are_written_with_all_of_their_networks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocator_tables, "DOCS", tmp_path)
    allocators, sensitivity = tmp_path / "allocators.md", tmp_path / "sensitivity.md"
    empty = "\n".join(f"<!-- {name} -->\n<!-- end of {name} -->" for name in TITLES)
    allocators.write_text(empty)
    sensitivity.write_text("".join(f"<!-- {p} -->\n<!-- end of {p} -->\n" for p in ("rule", "metrics by network")))
    rows = {name: [row("uniform", -0.1)] for name in TITLES}
    scored = {name: (cells(omega=3, kl=2, network=name), cells(omega=5, kl=4, network=name)) for name in TITLES}
    write_tables({"resnet20": rows["resnet20"]}, {"resnet20": scored["resnet20"]})
    assert allocators.read_text() == empty
    write_tables(rows, scored)
    assert allocators.read_text().count("| uniform |  | -10.0 ± 1.0 |") == len(TITLES)
    assert "| `kl` | 2.0 / 4.0 | 2.0 / 4.0 | 2.0 / 4.0 |" in sensitivity.read_text()
