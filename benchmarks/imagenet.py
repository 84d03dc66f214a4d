"""Real ImageNet networks on real images: accuracy of the integers beside fp32, at 8 bits, 4 bits and mixed.

    python -m benchmarks.imagenet DATA [--networks resnet50 mobilenet_v2 squeezenet1_1] [--rows INT8 "mixed 4/8" ...]

DATA is a folder that holds ``imagenet_sample.zip`` (images in one folder a class), ``networks.py`` (factories), and a
checkpoint ``NETWORK_imagenet.safetensors`` each; none of it comes with hawq_tvm. Calibration is on 100 of the images,
and every choice is made on them: ranges, roundings, bits. Accuracy is measured on the rest. Prints the table of all
rows and writes ``benchmarks/results/imagenet.json``, in which rows that were not asked for stay as they are.

The row "W4/A4, its own ranges" is a known answer: NVIDIA's INT4 ResNet-50 with the ranges that it was trained with,
``resnet50_imagenet_ranges.json``, on all images, beside the same network in fake quantisation
(`benchmarks.fake_quant`).
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.fake_quant import known_answer
from benchmarks.runs import ACCURACY_COLUMNS, accuracy_row, hawq_tvm, kept, markdown, read_results, write_results

NORMAL = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
NETWORKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "resnet50": ("resnet50", NORMAL),
    "mobilenet_v2": ("networks.py:mobilenet_v2", ("--mean", "0.5", "--std", "0.5")),
    "squeezenet1_1": ("networks.py:squeezenet1_1", NORMAL),
}
"""How each network is named and what its images are normalised with."""

ROWS: dict[str, tuple[str, ...]] = {
    "INT8": ("--bits", "8"),
    "mixed 4/8": ("--bits", "w4a4,w4a8,w8a8", "--budget-size", "50%", "--metric", "kl"),
    "W4/A8": ("--bits", "w4a8"),
    "W4/A4": ("--bits", "w4a4"),
}
"""What each row asks for; mixed is half of the way in bytes from all layers at 4 bits to all at 8."""

PACKED: dict[str, tuple[str, ...]] = {
    "W4/A4, layer1 stored at 4": ("--bits", "w4a4", "--stored-bits", "layer1.*=4"),
    "W4/A4, sums at 4": ("--bits", "w4a4", "--residual-bits", "4"),
}
"""Rows of ResNet-50 alone: sums that a library keeps at 4 bits too, see `docs/t4.md`."""

KNOWN = "W4/A4, its own ranges"


def evaluate(name: str, row: str, data: Path, runs: Path) -> dict[str, Any]:
    """One run of the command line."""
    model, preprocessing = NETWORKS[name]
    summary: dict[str, Any] = hawq_tvm(
        "run",
        f"{data}/{model}" if ".py:" in model else model,
        *("--weights", data / f"{name}_imagenet.safetensors"),
        *("--data", f"imagefolder:{data / 'imagenet_sample.zip'}"),
        *("--calibration-samples", 100),
        *preprocessing,
        *{**ROWS, **PACKED}[row],
        *("--verify-samples", 32, "--bench-seconds", 0.1),
        *("--output", runs / name),
    )
    return kept(summary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    every = [*ROWS, *PACKED, KNOWN]
    parser.add_argument("--rows", nargs="+", choices=every, default=every)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        for name in arguments.networks:
            for row in arguments.rows:
                if row not in ROWS and name != "resnet50":
                    continue
                if row == KNOWN:
                    found = known_answer(arguments.data)
                else:
                    found = evaluate(name, row, arguments.data, Path(runs))
                dated = {"network": name, "row": row, "date": datetime.now(UTC).date().isoformat(), **found}
                write_results("imagenet", {**read_results("imagenet"), f"{name} {row}": dated})
    results = read_results("imagenet")
    order = [f"{name} {row}" for name in NETWORKS for row in every]
    rows = [accuracy_row(results[key]["network"], results[key]["row"], results[key]) for key in order if key in results]
    print(markdown(ACCURACY_COLUMNS, rows))
    if f"resnet50 {KNOWN}" in results:
        same = results[f"resnet50 {KNOWN}"]["fake_quant"]
        print(f"\n{KNOWN}: fake quantisation reads {same['top1']:.1%}, the same answers on {same['agreement']:.1%}")


if __name__ == "__main__":
    main()
