"""ResNets on CIFAR-10 and on the digits: accuracy of the integers beside fp32, uniform and mixed bits.

    python -m benchmarks.cifar DATA [--networks "resnet20 digits" resnet20 resnet56] [--evaluation-samples N]

DATA is a folder that holds ``cifar10.zip`` (images in ``train/CLASS`` and ``test/CLASS``) and checkpoints
``resnet20_cifar10.safetensors`` and ``resnet56_cifar10.safetensors`` (akamaster/pytorch_resnet_cifar10); neither comes
with hawq_tvm. Calibration is on 256 training images, evaluation on all 10,000 test images; of the digits, on the 540
that are held out. Prints a table and writes ``benchmarks/results/cifar.json``, but where only a part is evaluated.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.runs import ACCURACY_COLUMNS, accuracy_row, hawq_tvm, kept, markdown, write_results

NETWORKS: dict[str, tuple[str, str | None]] = {
    "resnet20 digits": ("resnet20", None),
    "resnet20": ("resnet20_cifar", "resnet20_cifar10.safetensors"),
    "resnet56": ("resnet56_cifar", "resnet56_cifar10.safetensors"),
}
"""The zoo's name of each network, and its checkpoint on CIFAR-10; without one it is the packaged one on the digits."""

CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "INT8": ("--bits", "w8a8"),
    "W4/A8": ("--bits", "w4a8"),
    "INT4": ("--bits", "w4a4"),
    "mixed 4/8, size 50%": ("--bits", "4,8", "--budget-size", "50%"),
}


def evaluate(name: str, configuration: str, data: Path, runs: Path, samples: int | None) -> dict[str, Any]:
    """One run of the command line."""
    model, checkpoint = NETWORKS[name]
    source: tuple[str, ...] = ("--data", "digits")
    if checkpoint is not None:
        source = ("--weights", f"{data / checkpoint}", "--data", f"cifar10:{data / 'cifar10.zip'}")
    summary: dict[str, Any] = hawq_tvm(
        "run",
        model,
        *source,
        *(() if samples is None else ("--evaluation-samples", samples)),
        *CONFIGURATIONS[configuration],
        *("--verify-samples", 64),
        *("--output", runs / name.replace(" ", "_")),
    )
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--evaluation-samples", type=int, help="at most so many; default all, and results are written")
    arguments = parser.parse_args()
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as runs:
        for name in arguments.networks:
            for configuration in CONFIGURATIONS:
                summary = evaluate(name, configuration, arguments.data, Path(runs), arguments.evaluation_samples)
                rows.append(accuracy_row(name, configuration, summary))
                results[f"{name} {configuration}"] = kept(summary)
    print(markdown(ACCURACY_COLUMNS, rows))
    if arguments.evaluation_samples is None:
        print(f"\nwrote {write_results('cifar', results)}")


if __name__ == "__main__":
    main()
