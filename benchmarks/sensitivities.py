"""Which sensitivity orders layers as the loss does: every metric beside what each layer alone really loses.

    python -m benchmarks.sensitivities DATA [--networks "resnet20 digits" resnet20 ...] [--metrics omega ...] [--runs R]

DATA is a folder that holds ``cifar10.zip`` and ``resnet20_cifar10.safetensors``, and for the ImageNet networks
``imagenet_sample.zip``, ``networks.py`` and a checkpoint ``NETWORK_imagenet.safetensors`` each; none of it comes with
hawq_tvm. Metrics look at calibration images alone; what layers lose is measured on images held out. With ``--runs`` the
run directories stay there, and what is done is not done again.

Prints for each network HAWQ's eigenvalue order and HAWQ-V2's and V3's trace orders beside the order of the true loss,
layer by layer, then the rank correlation of every metric with it. Writes ``benchmarks/results/sensitivities.json``, in
which networks that were not asked for stay as they are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.imagenet import NORMAL
from benchmarks.runs import hawq_tvm, markdown, read_results, write_results
from hawq_tvm.settings import METRICS


@dataclass(frozen=True)
class Network:
    """How a network is run.

    Attributes:
        model: its name, ``{data}`` for the folder of data.
        options: of the samples and weights, the same.
        samples: held out, that the true loss is measured on.
    """

    model: str
    options: tuple[str, ...]
    samples: int


_IMAGES = ("--data", "imagefolder:{data}/imagenet_sample.zip", "--calibration-samples", "100")

NETWORKS: Mapping[str, Network] = {
    "resnet20 digits": Network("resnet20", ("--data", "digits"), 540),
    "resnet20": Network(
        "resnet20_cifar",
        ("--weights", "{data}/resnet20_cifar10.safetensors", "--data", "cifar10:{data}/cifar10.zip"),
        2048,
    ),
    "mobilenet_v2": Network(
        "{data}/networks.py:mobilenet_v2",
        ("--weights", "{data}/mobilenet_v2_imagenet.safetensors", *_IMAGES, "--mean", "0.5", "--std", "0.5"),
        128,
    ),
    "squeezenet1_1": Network(
        "{data}/networks.py:squeezenet1_1",
        ("--weights", "{data}/squeezenet1_1_imagenet.safetensors", *_IMAGES, *NORMAL),
        128,
    ),
}

OPTIONS = ("--bits", "w4a4,w4a8,w8a8", "--loss-samples", 64)
"""Of every profile: 4 bits are the fewest, of weights and of activations."""

ORDERS: Mapping[str, tuple[str, str]] = {
    "HAWQ S": ("eigenvalue", "order"),
    "HAWQ Omega": ("eigenvalue", "weights"),
    "V2 trace": ("omega", "order"),
    "V2/V3 Omega": ("omega", "weights"),
}
"""The papers' orders: the metric, and what of a layer ranks it."""


def measure(name: str, data: Path, runs: Path, metrics: Sequence[str]) -> dict[str, Any]:
    """Profile one network by every metric and hold them to the truth."""
    network, path = NETWORKS[name], runs / name.replace(" ", "_")
    model, *options = (text.format(data=data) for text in (network.model, *network.options))
    hawq_tvm("profile", model, *options, *OPTIONS, "--metric", ",".join(metrics), "--output", path)
    found: dict[str, Any] = hawq_tvm("compare", path, "--samples", network.samples, "--trust-code")
    found["data"] = found["data"].replace(f"{data}/", "")  # results name the file, not where this machine keeps it
    tables = {metric: json.loads((path / f"sensitivity.{metric}.json").read_text()) for metric in metrics}
    return {"comparison": found, "orders": orders(tables, found["losses"])}


def orders(
    tables: Mapping[str, Mapping[str, Any]], losses: Mapping[str, Mapping[str, Sequence[float]]]
) -> dict[str, dict[str, float]]:
    """What ranks each layer under each paper, and what it really loses by its weights at 4 bits, by layer."""
    found: dict[str, dict[str, float]] = {}
    for title, (metric, key) in ORDERS.items():
        for layer, row in tables[metric]["layers"].items() if metric in tables else ():
            found.setdefault(layer, {})[title] = row[key]["4"] if key == "weights" else row[key]
    for truth in ("loss", "kl"):
        for layer, (mean, _) in losses.get(f"weights {truth}", {}).items():
            found.setdefault(layer, {})[truth] = mean
    return found


def order_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Each layer's place in every order, 1 the most sensitive, beside the value that it is placed by."""
    titles = list(next(iter(rows.values())))
    places = {
        title: {layer: place for place, layer in enumerate(sorted(rows, key=lambda name: -rows[name][title]), 1)}
        for title in titles
    }
    return markdown(
        ("layer", *titles),
        [(layer, *(f"{places[title][layer]} ({row[title]:.2e})" for title in titles)) for layer, row in rows.items()],
    )


def correlation_table(found: Mapping[str, Any]) -> str:
    """Every metric beside every truth."""

    def cell(metric: str, part: str, truth: str) -> str:
        for row in found["rows"]:
            if (row["metric"], row["part"], row["truth"]) == (metric, part, truth):
                low, high = row["spearman_interval"]
                return f"{row['spearman']:.2f} ({low:.2f} to {high:.2f}), {row['kendall']:.2f}"
        return ""

    metrics = list(dict.fromkeys(row["metric"] for row in found["rows"]))
    columns = [(part, truth) for truth in ("loss", "kl") for part in ("weights", "inputs")]
    rows = [(metric, *(cell(metric, part, truth) for part, truth in columns)) for metric in sorted(metrics)]
    halves = ("halves of the samples", *(f"{found['itself'].get(f'{part} {truth}', 0):.2f}" for part, truth in columns))
    return markdown(("metric", *(f"{part}, {truth}" for part, truth in columns)), [*rows, halves])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet20 digits", "resnet20"])
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--runs", type=Path, help="keep the run directories here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.networks:
            found = measure(name, arguments.data, arguments.runs or Path(scratch), arguments.metrics)
            dated = {"date": datetime.now(UTC).date().isoformat(), **found}
            path = write_results("sensitivities", {**read_results("sensitivities"), name: dated})
            comparison = found["comparison"]
            print(f"\n## {name}: {comparison['layers']} layers, {comparison['samples']} images held out\n")
            print("Weights at 4 bits: place, and what it goes by\n")
            print(order_table(found["orders"]))
            print("\nSpearman (95 %), Kendall, at 4 bits\n")
            print(correlation_table(comparison))
            print("", *comparison["advice"], sep="\n")
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
