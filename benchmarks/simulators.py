"""The simulated accelerators beside what HAQ published, row by row.

    python -m benchmarks.simulators

Tables 3, 4 and 5 and the published table of cycles, each entry with its error; the policies that HAQ's authors
published, priced on every accelerator beside uniform bits. Networks are our own, with random weights: no number depends
on them. Prints tables, writes ``benchmarks/results/simulators.json`` and the tables of ``docs/simulators.md``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.pages import fill
from benchmarks.runs import markdown, write_results
from hawq_tvm.frontend.capture import capture
from hawq_tvm.ilp.simulators import ACCELERATORS, Workload, workloads
from hawq_tvm.ilp.simulators.pages import BISMO_CLOUD, BISMO_EDGE, BITFUSION
from hawq_tvm.sources.models import load_model

ROOT = Path(__file__).parents[1]
FACTS = ROOT / "tests" / "facts"
HAQ = json.loads((FACTS / "haq.json").read_text())
TABLE = json.loads((FACTS / "haq_bismo_cloud.json").read_text())
NETWORKS = {"mobilenet_v1": "mobilenet_v1", "mobilenet_v2": "torchvision:mobilenet_v2", "resnet50": "resnet50"}
POLICY = "mobilenet_v2_linear_0.6"

Layers = list[Workload]
Pair = tuple[int, int]


def layers_of(spec: str) -> Layers:
    """The work of every layer of a network at 224x224, in the order of its modules, which is that of the policies."""
    module = load_model(spec, "random").module
    works = workloads(capture(module, torch.zeros(1, 3, 224, 224)))
    return [works[name] for name, _ in module.named_modules() if name in works]


def parsed(bits: str) -> Pair:
    """``w4a8`` as numbers."""
    return int(bits[1]), int(bits[3])


def milliseconds(name: str, layers: Layers, pairs: list[Pair]) -> float:
    """Of a batch of the accelerator's own size."""
    found = (ACCELERATORS[name].simulate(layer, *pair) for layer, pair in zip(layers, pairs, strict=True))
    return sum(layer.latency_us for layer in found) / 1e3


def millijoules(name: str, layers: Layers, pairs: list[Pair]) -> float | None:
    """Of a sample; None where no energy is known."""
    found = [ACCELERATORS[name].simulate(layer, *pair).energy_uj for layer, pair in zip(layers, pairs, strict=True)]
    known = [energy for energy in found if energy is not None]
    return sum(known) / 1e3 if len(known) == len(found) else None


def row(printed: float, found: float, counted: str) -> dict[str, Any]:
    """A published number beside ours."""
    return {"printed": printed, "ours": found, "error": found / printed - 1, "counted": counted}


def table3(networks: dict[str, Layers]) -> dict[str, Any]:
    """BISMO at uniform bits, milliseconds of a batch of 1 (edge) and 16 (cloud)."""
    rows: dict[str, Any] = {}
    for name, printed in HAQ["table3_latency_ms"].items():
        for network, numbers in printed.items():
            first, *inner, _ = networks[network]
            for bits, latency in numbers["uniform"].items():
                found, counted = milliseconds(name, inner, [parsed(bits)] * len(inner)), "all but the ends"
                if name == "bismo-edge" and network == "mobilenet_v1" and bits != "w8a8":
                    found, counted = found + milliseconds(name, [first], [(8, 8)]), "all but the last, first at w8a8"
                rows[f"{name} {network} {bits}"] = row(latency, found, counted)
    return rows


def tables45(layers: Layers) -> dict[str, Any]:
    """BitFusion on MobileNet-V1 at uniform bits, the first layer at 8: milliseconds and millijoules."""
    rows: dict[str, Any] = {}
    latency = HAQ["table4_bitfusion_mobilenet_v1_latency_ms"]["uniform"]
    energy = HAQ["table5_bitfusion_mobilenet_v1_energy_mj"]["uniform"]
    for bits in latency:
        pairs = [(8, 8), *[parsed(bits)] * (len(layers) - 1)]
        counted = "all, first at w8a8"
        rows[f"latency {bits}"] = row(latency[bits], milliseconds("bitfusion", layers, pairs), counted)
        found = millijoules("bitfusion", layers, pairs)
        assert found is not None
        held = "fitted: memory" if bits == "w8a8" else "constant not fitted to it"
        rows[f"energy {bits}"] = row(energy[bits], found, f"{counted}; {held}")
    return rows


def cloud_table() -> list[dict[str, Any]]:
    """The published table of cycles: each distinct layer's 64 entries, and how many of them are met to the cycle."""
    found = []
    for index, layer in enumerate(TABLE["layers"]):
        kernel, stride, side = layer["kernel"], layer["stride"], layer["output"]
        work = Workload(
            layer["in_channels"],
            layer["out_channels"],
            (kernel, kernel),
            (side, side),
            (stride, stride),
            layer["groups"],
        )
        errors = [
            BISMO_CLOUD.cycles(work, weight, activation) / layer["cycles"][weight - 1][activation - 1] - 1
            for weight in range(1, 9)
            for activation in range(1, 9)
        ]
        found.append(
            {
                "layer": str(work),
                "output": side,
                "layers_alike": TABLE["network"].count(index),
                "entries": len(errors),
                "exact": errors.count(0.0),
                "largest_error": max(map(abs, errors)),
            }
        )
    return found


def policies(networks: dict[str, Layers]) -> dict[str, Any]:
    """The published policy for the cloud, found at 0.6 of the table's cycles, on every accelerator."""
    layers = networks["mobilenet_v2"]
    policy: list[list[int]] = HAQ["policies"][POLICY]
    pairs = [(weight, activation if activation > 0 else 8) for weight, activation in policy]
    # Their environment looks activation bits -1 up as index -2 of 8: what it counts for the first layer is 7 bits.
    theirs = [(weight, activation if activation > 0 else 7) for weight, activation in policy]
    result: dict[str, Any] = {
        "counted_by_haq": cycles(layers, theirs) / cycles(layers, [(8, 8)] * len(layers)),
        "accelerators": {},
    }
    for name in ACCELERATORS:
        eight = milliseconds(name, layers, [(8, 8)] * len(layers))
        shares = {}
        for bits in (4, 5, 6, 7):
            uniform = [(8, 8), *[(bits, bits)] * (len(layers) - 2), (8, 8)]
            shares[f"w{bits}a{bits}"] = milliseconds(name, layers, uniform) / eight
        result["accelerators"][name] = {
            "policy_ms": milliseconds(name, layers, pairs),
            "w8a8_ms": eight,
            "policy_mj": millijoules(name, layers, pairs),
            "w8a8_mj": millijoules(name, layers, [(8, 8)] * len(layers)),
            "uniform_shares": shares,
        }
    weights = [layer.weights for layer in networks["resnet50"]]
    kmeans: list[int] = HAQ["policies"]["resnet50_kmeans_0.1"]
    bits_in_all = sum(bits * count for bits, count in zip(kmeans, weights, strict=True))
    result["resnet50_kmeans_0.1"] = {
        "index_bytes": bits_in_all / 8,
        "share_of_32_bits": bits_in_all / (32 * sum(weights)),
        "codebook_bytes_fp32": sum(4 * 2**bits for bits in kmeans),
    }
    return result


def cycles(layers: Layers, pairs: list[Pair]) -> int:
    """On the cloud accelerator."""
    return sum(BISMO_CLOUD.cycles(layer, *pair) for layer, pair in zip(layers, pairs, strict=True))


def percent(value: float) -> str:
    """An error with its sign."""
    return f"{100 * value:+.2f}%"


def beside(rows: dict[str, Any], unit: str) -> str:
    """Rows of published numbers as Markdown."""
    cells = [
        [key, f"{found['printed']:.2f}", f"{found['ours']:.3f}", percent(found["error"]), found["counted"]]
        for key, found in rows.items()
    ]
    return markdown(["row", f"HAQ, {unit}", "ours", "error", "layers counted"], cells)


def documents(results: dict[str, Any]) -> dict[str, str]:
    """The tables of the document, by their place in it."""
    latencies = {key: found for key, found in results["tables45"].items() if key.startswith("latency")}
    energies = {key: found for key, found in results["tables45"].items() if key.startswith("energy")}
    cloud = [
        [
            f"{found['layer']}, {found['output']}x{found['output']}",
            str(found["layers_alike"]),
            f"{found['exact']} of {found['entries']}",
            percent(found["largest_error"]),
        ]
        for found in results["cloud_table"]
    ]
    priced = [
        [
            ACCELERATORS[name].name,
            f"{found['policy_ms']:.2f}",
            f"{found['w8a8_ms']:.2f}",
            f"{found['policy_ms'] / found['w8a8_ms']:.3f}",
            *(f"{share:.3f}" for share in found["uniform_shares"].values()),
            "" if found["policy_mj"] is None else f"{found['policy_mj'] / found['w8a8_mj']:.3f}",
        ]
        for name, found in results["policies"]["accelerators"].items()
    ]
    head = ["accelerator", "policy, ms", "w8a8, ms", "share", "w4a4", "w5a5", "w6a6", "w7a7", "energy share"]
    return {
        "table 3": beside(results["table3"], "ms"),
        "table 4": beside(latencies, "ms"),
        "table 5": beside(energies, "mJ"),
        "cloud table": markdown(["layer", "layers alike", "entries met to the cycle", "largest error"], cloud),
        "policies": markdown(head, priced),
    }


def main() -> None:
    networks = {name: layers_of(spec) for name, spec in NETWORKS.items()}
    results = {
        "table3": table3(networks),
        "tables45": tables45(networks["mobilenet_v1"]),
        "cloud_table": cloud_table(),
        "policies": policies(networks),
        "pages": {
            "bismo_edge": vars(BISMO_EDGE),
            "bismo_cloud": vars(BISMO_CLOUD),
            "bitfusion": vars(BITFUSION),
        },
    }
    tables = documents(results)
    for name, table in tables.items():
        print(f"\n## {name}\n\n{table}")
    print(json.dumps(results["policies"], indent=1))
    fill(ROOT / "docs" / "simulators.md", tables)
    print(f"\nwrote {write_results('simulators', results)}")


if __name__ == "__main__":
    main()
