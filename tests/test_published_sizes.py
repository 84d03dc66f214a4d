"""Sizes and bit operations that HAWQ-V3 and HAQ print, from our own networks."""

from __future__ import annotations

import pytest

from benchmarks.published_sizes import Counted, all_layers, counted, haq_table6, hawq_v3, kmeans_mib


@pytest.fixture(scope="module")
def networks() -> dict[str, Counted]:
    found = {name: counted(name) for name in ("resnet18", "resnet50_v1", "resnet50", "mobilenet_v1")}
    # MobileNet-V2 is torchvision's, which may not be there: 53 layers of 3,469,760 weights.
    return {**found, "mobilenet_v2": Counted(3_504_872, (864, 3_469_760 - 864), (0, 0))}


def test_hawq_v3s_uniform_rows(networks: dict[str, Counted]) -> None:
    rows = hawq_v3({name: networks[name] for name in ("resnet18", "resnet50_v1", "resnet50")})
    papers = [row for row in rows if row["network"] != "resnet50"]
    assert {(row["network"], row["size_printed"]) for row in papers if not row["size_rules"]} == {("resnet50_v1", 97.8)}
    missed = {(row["network"], row["table"], row["bops_printed"]) for row in papers if not row["bops_met"]}
    assert missed == {("resnet18", "1", 34), ("resnet18", "2", 114), ("resnet18", "2", 28)}
    assert len(papers) == 12


def test_the_two_resnet50s(networks: dict[str, Counted]) -> None:
    ours, papers = networks["resnet50"], networks["resnet50_v1"]
    assert ours.weights == papers.weights and ours.parameters == papers.parameters
    assert (sum(ours.macs), sum(papers.macs)) == (4_089_184_256, 3_857_973_248)
    assert round(all_layers(papers, 8, 8)) == 247 and round(all_layers(ours, 8, 8)) == 262


def test_haqs_kmeans_sizes_are_met_to_the_printed_digits(networks: dict[str, Counted]) -> None:
    rows = haq_table6(networks)
    assert len(rows) == 12
    assert [row for row in rows if not row["met"]] == []


def test_codebooks_and_the_first_layer_would_show(networks: dict[str, Counted]) -> None:
    v2 = kmeans_mib(networks["mobilenet_v2"], 2)
    assert f"{v2:.2f}" == "0.96" and f"{v2 + 53 * 4 * 4 / 2**20:.2f}" == "0.97"
    indexed = kmeans_mib(networks["resnet50"], 2) - networks["resnet50"].weights[0] * (4 - 2 / 8) / 2**20
    assert f"{indexed:.2f}" == "6.29"
