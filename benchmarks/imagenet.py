"""Real ImageNet networks on real images: accuracy of the integers beside fp32, at INT8 and at mixed 4/8 bits.

    python -m benchmarks.imagenet DATA [--networks resnet50 mobilenet_v2 squeezenet1_1]

DATA is a folder that holds ``imagenet_sample.zip`` (images in one folder a class), ``networks.py`` (factories), and a
checkpoint ``NETWORK_imagenet.safetensors`` each; none of it comes with hawq_tvm. Calibration is on 100 of the images,
evaluation on the rest. Prints a table and writes ``benchmarks/results/imagenet.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.runs import accuracy_cells, bits_cell, hawq_tvm, markdown, verification_cell, write_results

NORMAL = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
NETWORKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "resnet50": ("resnet50", NORMAL),
    "mobilenet_v2": ("networks.py:mobilenet_v2", ("--mean", "0.5", "--std", "0.5")),
    "squeezenet1_1": ("networks.py:squeezenet1_1", NORMAL),
}
"""How each network is named and what its images are normalised with."""

CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "INT8": ("--bits", "8"),
    "mixed 4/8, size 50%": ("--bits", "4,8", "--budget-size", "50%"),
}


def evaluate(name: str, configuration: str, data: Path, runs: Path) -> dict[str, Any]:
    """One run of the command line."""
    model, preprocessing = NETWORKS[name]
    summary: dict[str, Any] = hawq_tvm(
        "run",
        f"{data}/{model}" if ".py:" in model else model,
        *("--weights", data / f"{name}_imagenet.safetensors"),
        *("--data", f"imagefolder:{data / 'imagenet_sample.zip'}"),
        *("--calibration-samples", 100),
        *preprocessing,
        *CONFIGURATIONS[configuration],
        *("--verify-samples", 64),
        *("--output", runs / name),
    )
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    arguments = parser.parse_args()
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as runs:
        for name in arguments.networks:
            for configuration in CONFIGURATIONS:
                summary = evaluate(name, configuration, arguments.data, Path(runs))
                totals = summary["totals"]
                rows.append(
                    [
                        name,
                        configuration,
                        bits_cell(summary),
                        f"{totals['size_bytes'] / 1e6:.2f}",
                        f"{totals['bops'] / 1e9:.1f}",
                        *accuracy_cells(summary["accuracy"]),
                        verification_cell(summary),
                    ]
                )
                results[f"{name} {configuration}"] = {
                    key: summary[key] for key in ("accuracy", "totals", "verification", "benchmark", "sources")
                }
    names = ["network", "bits", "layers", "MB", "GBOPS", "fp32", "integer", "difference", "mismatches"]
    print(markdown(names, rows))
    print(f"\nwrote {write_results('imagenet', results)}")


if __name__ == "__main__":
    main()
