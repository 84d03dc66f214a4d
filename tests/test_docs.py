"""The documents against what they speak of: files, verbs and options, scripts, and numbers that scripts wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import (
    allocator_tables,
    far_cores,
    haq_across,
    haq_codebooks,
    haq_published,
    haq_tables,
    published_sizes,
    simulators,
)
from benchmarks.imagenet import PACKED
from benchmarks.runs import accuracy_cells, read_results
from hawq_tvm.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = tuple(sorted((ROOT / "docs").glob("*.md")))
DOCUMENTS = (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *PAGES)
RESULTS = ROOT / "benchmarks" / "results"

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@each_document
def test_files_that_it_names_are_there(document: Path) -> None:
    folders = r"(?:hawq_tvm|kernels|ilp|calibration|benchmarks|tests|docs|examples)"
    paths = re.findall(rf"`({folders}/[\w./-]+)`", document.read_text())
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path


@each_document
def test_verbs_take_the_options_that_it_gives_them(document: Path) -> None:
    known = options_of_verbs()
    text = document.read_text().replace("\\\n", " ")
    calls = re.findall(r"hawq-tvm ([a-z]+)\b([^\n`;#|]*)", text)
    assert calls or document.name != "README.md", "it has some"
    for verb, words in calls:
        assert verb in known, verb
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", words):
            assert option in known[verb], f"hawq-tvm {verb}{words}"


def options_of_verbs() -> dict[str, set[str]]:
    verbs: Any = typer.main.get_command(app)
    return {
        verb: {"--help", *(flag for option in command.params for flag in (*option.opts, *option.secondary_opts))}
        for verb, command in verbs.commands.items()
    }


@each_document
def test_scripts_that_it_names_take_the_options_that_it_gives_them(document: Path) -> None:
    text = " ".join(document.read_text().replace("\\\n", " ").split())
    scripts = re.findall(r"python -m (benchmarks\.\w+)([^`#;|]*)", text)
    assert scripts or document.name != "README.md", "it has some"
    for script, words in scripts:
        path = ROOT / f"{script.replace('.', '/')}.py"
        assert path.exists(), script
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", words.partition(" python ")[0]):
            assert f'"{option}"' in path.read_text(), f"{script}{words}"


def test_the_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    for page in PAGES:
        assert f"`docs/{page.name}`" in text


@cache
def tables() -> dict[tuple[str, str], str]:
    """Every table that a script fills into a page, as the results that are kept make it, by page and place."""
    haq = list(read_results("haq").values())
    goals = {goal: sorted((row for row in haq if row["goal"] == goal), key=haq_tables.place) for goal in goals_of(haq)}
    found: dict[str, Mapping[str, str]] = {
        "allocators": {
            name: allocator_tables.network_table(list(read_results(f"allocators_{name}").values()))
            for name in allocator_tables.TITLES
        },
        "haq": {
            "accuracy": haq_tables.accuracies(goals),
            "bits": haq_tables.mean_bits(goals),
            "elsewhere": haq_tables.elsewhere(goals),
            "one accuracy": haq_across.table(read_results("haq_across")),
            "published": haq_published.table(read_results("haq_published")),
            "codebooks": haq_codebooks.table_of(read_results("haq_codebooks")),
        },
        "latency": {"far cores": far_cores.table(read_results("far_cores"))},
        "published": published_sizes.documents(read_results("published_sizes")),
        "simulators": simulators.documents(read_results("simulators")),
    }
    return {(page, place): table for page, parts in found.items() for place, table in parts.items()}


def goals_of(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["goal"] for row in rows))


@pytest.mark.parametrize(("page", "place"), tables())
def test_a_page_has_the_table_that_its_results_make(page: str, place: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    (found,) = re.findall(rf"<!-- {re.escape(place)} -->\n(.*?)<!-- end of {re.escape(place)} -->", text, re.DOTALL)
    assert found.strip() == tables()[page, place].strip()


NAMES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNet-V2",
    "inception_v3": "Inception-V3",
}


def test_the_readme_has_the_peers_that_were_measured() -> None:
    text = (ROOT / "README.md").read_text()
    for case in json.loads((RESULTS / "cpu_peers.json").read_text())["cases"]:
        rows = {row["engine"]: row for row in case["rows"]}
        ours = rows["hawq_tvm"]
        peers = (rows[name] for name in ("OpenVINO INT8", "ONNX Runtime INT8", "ONNX Runtime fp32"))
        cells = (
            *(NAMES[case["network"]], str(case["batch"]), str(case["threads"])),
            *(f"{ours['median_ms']:.2f}", f"{ours['share_of_peak']:.0%}"),
            *(f"{row['median_ms']:.2f} ({row['ratio']:.2f})" for row in peers),
        )
        assert f"| {' | '.join(cells)} |" in text


def test_the_readme_has_the_accuracies_that_were_measured() -> None:
    text = (ROOT / "README.md").read_text()
    names = {"resnet50": "ResNet-50", "mobilenet_v2": "MobileNet-V2", "squeezenet1_1": "SqueezeNet 1.1"}
    rows = [row for row in read_results("imagenet").values() if row["row"] not in PACKED]
    assert len(rows) == 13
    for row in rows:
        size, right = row["totals"]["size_bytes"], row["accuracy"]
        before, after = (100 * right[f"{network}_top1"] for network in ("float", "integer"))
        difference = f"{100 * right['difference']:+.2f} ± {100 * right['standard_error']:.2f}"
        start = f"| {names[row['network']]} | {row['row']} | {size / 1e6:.2f} | {before:.1f} | {after:.1f} |"
        assert f"{start} {difference} | 0 |" in text
        assert not any(report["mismatches"] for report in row["verification"].values())


def test_the_readme_has_what_cifar_and_the_digits_gave() -> None:
    text = (ROOT / "README.md").read_text()
    names = {
        "resnet20": "ResNet-20, CIFAR-10",
        "resnet56": "ResNet-56, CIFAR-10",
        "resnet20 digits": "ResNet-20, digits",
    }
    titles = {"INT8": "INT8", "W4/A8": "W4/A8", "INT4": "INT4", "mixed 4/8, size 50%": "mixed, size 50 %"}
    for key, name in names.items():
        for bits, title in titles.items():
            row = read_results("cifar")[f"{key} {bits}"]
            cells = (name, title, f"{row['totals']['size_bytes'] / 1e3:.0f}", *accuracy_cells(row["accuracy"]))
            assert f"| {' | '.join(cells)} |" in text
