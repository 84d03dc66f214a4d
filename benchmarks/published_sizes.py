"""Sizes and bit operations that HAWQ-V3 and HAQ print for uniform bits, from our own networks.

    python -m benchmarks.published_sizes

HAWQ-V3, tables 1 and 2: ResNet-18, and ResNet-50 with the stride in the 1x1 convolution (v1, the paper's) and in the
3x3 (v1.5, torchvision's). HAQ, table 6: K-means sizes. Each figure stands beside ours, with the rule by which it comes
out; no one rule gives all of HAWQ-V3's, and what no rule gives is said. Prints tables, writes
``benchmarks/results/published_sizes.json`` and the tables of ``docs/published.md``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import torch

from benchmarks.pages import fill
from benchmarks.runs import markdown, write_results
from hawq_tvm.frontend.capture import capture
from hawq_tvm.ilp.simulators import workloads
from hawq_tvm.sources.models import load_model

ROOT = Path(__file__).parents[1]
FACTS = ROOT / "tests" / "facts"
MIB = 2**20
END_BITS = 8
"""Bits of the first and the last layer, weights and inputs, where the others have fewer."""


@dataclass(frozen=True)
class Counted:
    """What a network is counted by.

    Attributes:
        parameters: all of them, batch norms and biases too.
        weights: of each layer, in order.
        macs: multiply-accumulates of each layer, a sample.
    """

    parameters: int
    weights: tuple[int, ...]
    macs: tuple[int, ...]

    @property
    def rest(self) -> int:
        """Parameters that are no layer's weights: of batch norms, and biases."""
        return self.parameters - sum(self.weights)


def counted(spec: str) -> Counted:
    """A network at 224x224; layers in the order of its modules."""
    module = load_model(spec, "random").module
    works = workloads(capture(module, torch.zeros(1, 3, 224, 224)))
    layers = [works[name] for name, _ in module.named_modules() if name in works]
    return Counted(
        sum(parameter.numel() for parameter in module.parameters()),
        tuple(layer.weights for layer in layers),
        tuple(layer.macs for layer in layers),
    )


def all_parameters(network: Counted, bits: int) -> float:
    """All parameters at the weights' bits, weights of the first and the last layer at 8 at least."""
    return (_weight_bits(network, bits) + network.rest * bits) / 8 / MIB


def weights_and_rest(network: Counted, bits: int) -> float:
    """All weights at their bits, batch norms and biases in fp32."""
    return (sum(network.weights) * bits / 8 + 4 * network.rest) / MIB


def weights_alone(network: Counted, bits: int) -> float:
    """Weights at their bits, those of the first and the last layer at 8 at least; nothing else."""
    return _weight_bits(network, bits) / 8 / MIB


def _weight_bits(network: Counted, bits: int) -> int:
    ends = network.weights[0] + network.weights[-1]
    return (sum(network.weights) - ends) * bits + ends * max(bits, END_BITS)


SIZE_RULES = {"A": all_parameters, "B": weights_and_rest, "C": weights_alone}
"""MB of HAWQ-V3 are MiB."""


def all_layers(network: Counted, weight_bits: int, activation_bits: int) -> float:
    """Multiply-accumulates x weight bits x activation bits; both 8 in the ends where weights have fewer."""
    ends = network.macs[0] + network.macs[-1]
    of_ends = END_BITS * END_BITS if weight_bits < END_BITS else weight_bits * activation_bits
    return ((sum(network.macs) - ends) * weight_bits * activation_bits + ends * of_ends) / 1e9


def kmeans_mib(network: Counted, bits: int) -> float:
    """Indexes of `bits` for all weights but the first layer's; that, batch norms and biases in fp32.

    Codebooks (2^bits numbers a layer, 0.9 to 3.5 kB in all) are not counted: with them MobileNet-V2 at 2 bits would be
    0.97.
    """
    first = network.weights[0]
    indexes = (sum(network.weights) - first) * bits / 8
    return (indexes + 4 * (first + network.rest)) / MIB


def rounded(value: float, like: float | str) -> str:
    """A number to as many digits as another one is printed with."""
    digits = len(str(like).partition(".")[2])
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def precision(text: str) -> tuple[int, int] | None:
    """Bits of ``W4A8``; None for mixed ones."""
    found = re.fullmatch(r"W(\d+)A(\d+)", text)
    return None if found is None else (int(found[1]), int(found[2]))


def hawq_v3(networks: dict[str, Counted]) -> list[dict[str, Any]]:
    """Every uniform row of tables 1 and 2, rows of equal numbers once; ResNet-50 in both forms."""
    facts = json.loads((FACTS / "hawqv3_uniform.json").read_text())
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, table in facts["table1"].items():
        printed = [(row["precision"], row["size_MB"], row["bops_G"], "1") for row in table]
        for key, row in facts["table2_uniform"][name].items():
            printed.append((f"W{key[3]}A{key[3]}", row["size_MB"], row["bops_G"], "2"))
        for text, size, bops, number in printed:
            bits = precision(text)
            if bits is None:
                continue
            for form in [name] if name == "resnet18" else ["resnet50_v1", "resnet50"]:
                network = networks[form]
                sizes = {rule: count(network, bits[0]) for rule, count in SIZE_RULES.items()}
                operations = all_layers(network, *bits)
                rows.setdefault(
                    (form, text, size, bops),
                    {
                        "network": form,
                        "table": number,
                        "precision": text,
                        "size_printed": size,
                        "sizes": sizes,
                        "size_rules": [rule for rule, ours in sizes.items() if float(rounded(ours, "0.1")) == size],
                        "bops_printed": bops,
                        "bops": operations,
                        "bops_met": float(rounded(operations, "1")) == bops,
                    },
                )
    return list(rows.values())


def haq_table6(networks: dict[str, Counted]) -> list[dict[str, Any]]:
    """Every uniform row of HAQ's table 6, with the arithmetic."""
    rows = []
    for name, table in json.loads((FACTS / "haq.json").read_text())["table6_size_mb"].items():
        network = networks[name]
        for text, printed in table["uniform"].items():
            bits = int(text)
            size = 4 * network.parameters / MIB if bits == 32 else kmeans_mib(network, bits)
            rows.append(
                {
                    "network": name,
                    "bits": bits,
                    "printed": printed,
                    "size": size,
                    "met": float(rounded(size, "0.01")) == printed,
                    "weights": sum(network.weights),
                    "first_layer": network.weights[0],
                    "rest": network.rest,
                }
            )
    return rows


def mark(met: bool) -> str:
    """For a table's reader."""
    return "" if met else " **no**"


def documents(results: dict[str, Any]) -> dict[str, str]:
    """The tables of the document, by their place in it."""
    hawq = [
        [
            row["network"],
            row["table"],
            row["precision"],
            str(row["size_printed"]),
            ", ".join(f"{size:.2f}" for size in row["sizes"].values()),
            " ".join(row["size_rules"]) or "**none**",
            str(row["bops_printed"]),
            f"{row['bops']:.2f}{mark(row['bops_met'])}",
        ]
        for row in results["hawq_v3"]
    ]
    haq = [
        [
            row["network"],
            str(row["bits"]),
            f"{row['printed']:.2f}",
            f"{row['size']:.4f}{mark(row['met'])}",
            f"4 x {row['weights'] + row['rest']:,}"
            if row["bits"] == 32
            else f"{row['weights'] - row['first_layer']:,} x {row['bits']} / 8 + 4 x "
            f"({row['first_layer']:,} + {row['rest']:,})",
        ]
        for row in results["haq_table6"]
    ]
    head = ["network", "table", "bits", "MB, printed", "by rules A, B, C", "met by", "GBOPS, printed", "ours"]
    return {
        "hawq-v3": markdown(head, hawq),
        "haq table 6": markdown(["network", "bits", "MB, printed", "MB, ours", "bytes"], haq),
    }


def main() -> None:
    specs = {
        "resnet18": "resnet18",
        "resnet50": "resnet50",
        "resnet50_v1": "resnet50_v1",
        "mobilenet_v1": "mobilenet_v1",
        "mobilenet_v2": "torchvision:mobilenet_v2",
    }
    networks = {name: counted(spec) for name, spec in specs.items()}
    results = {
        "networks": {name: vars(network) for name, network in networks.items()},
        "hawq_v3": hawq_v3(networks),
        "haq_table6": haq_table6(networks),
    }
    tables = documents(results)
    for name, table in tables.items():
        print(f"\n## {name}\n\n{table}")
    fill(ROOT / "docs" / "published.md", tables)
    print(f"\nwrote {write_results('published_sizes', results)}")


if __name__ == "__main__":
    main()
