"""A GPU's libraries on the GPU: every value against the interpreter, then latency beside PyTorch and the vendor's INT8.

    python -m benchmarks.gpu prepare FOLDER [--networks resnet18=random ...] [--targets nvidia/t4 ...] [--batches 1 8]
    python -m benchmarks.gpu measure FOLDER [--seconds 20] [--emulate]

`prepare` runs where PyTorch is, and needs no GPU. `measure` runs where the GPU is, from the prepared folder and TVM's
runtime alone; PyTorch with CUDA is measured too where it is at hand, and left out, and said to be, where it is not. It
writes ``FOLDER/gpu.json`` with the device's name, and ends with status 1 where a single integer differs.

A library for the T4 holds machine code for it and PTX: on a younger card the driver compiles that PTX, so the T4's own
instructions run there. `--emulate` runs all of it on an emulated GPU, that of the first library's target, which proves
the way through and times nothing; the JSON says so. What that GPU cannot run is left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.runs import markdown

RESULT = "gpu.json"
NETWORKS = (
    "resnet18=random",
    "resnet50=random",
    "tests/networks.py:mobile=tests/networks.py:samples",
    "tests/networks.py:concat=tests/networks.py:samples",
)
"""Networks with their samples: two to be timed, two for the kernels that those lack."""


def main(words: Sequence[str] | None = None) -> int:
    """Prepare or measure; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    prepare = verbs.add_parser("prepare", help="build libraries and what they must compute into a folder")
    prepare.add_argument("folder", type=Path)
    prepare.add_argument("--networks", nargs="+", default=NETWORKS, metavar="MODEL=DATA")
    prepare.add_argument("--targets", nargs="+", default=["nvidia/t4"])
    prepare.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    measure = verbs.add_parser("measure", help="check and time what a folder holds, on this machine's GPU")
    measure.add_argument("folder", type=Path)
    measure.add_argument("--seconds", type=float, default=20.0, help="of timing a network at one batch")
    measure.add_argument("--emulate", action="store_true", help="on an emulated GPU")
    arguments = parser.parse_args(words)
    if arguments.verb == "prepare":
        from benchmarks.gpu_prepare import prepare_folder

        prepare_folder(arguments.folder, arguments.networks, arguments.targets, arguments.batches)
        print(f"wrote {arguments.folder}; where the GPU is: python -m benchmarks.gpu measure {arguments.folder}")
        return 0
    if arguments.emulate:
        return measure_emulated(arguments.folder, arguments.seconds)
    os.environ["TVM_USE_RUNTIME_LIB"] = "1"  # before TVM is loaded: its compiler is not needed
    from benchmarks.gpu_measure import measure_folder

    result = measure_folder(arguments.folder, arguments.seconds)
    path = arguments.folder / RESULT
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(f"\nwrote {path}")
    return 0 if result["ok"] else 1


def measure_emulated(folder: Path, seconds: float) -> int:
    """The same command in a process that sees an emulated GPU, that of the first library's target."""
    from benchmarks.gpu_contents import read_contents
    from hawq_tvm.backends.tvm.cuda.emulated import emulated_program

    libraries = [folder / item["library"] for item in read_contents(folder)["libraries"]]
    with emulated_program(*libraries) as environment:
        command = [sys.executable, "-m", "benchmarks.gpu", "measure", str(folder), "--seconds", str(seconds)]
        return subprocess.run(command, env=environment, check=False).returncode


def table(result: dict[str, Any]) -> str:
    """What was found, to be read."""
    device = result["device"]
    lines = [f"{device['name']} (sm_{device['capability'].replace('.', '')})", ""]
    if device["emulated"]:
        lines[:0] = ["EMULATED: the integers are proved, the times are those of a CPU that plays the GPU", ""]
    checked = [
        [row["library"], row["code"], f"{len(row['mismatches'])} of {row['values']}", f"{row['integers']:,}"]
        for row in result["correctness"]
    ]
    lines += [markdown(("library", "runs as", "values that differ", "integers compared"), checked), ""]
    timed = [
        [row["network"], str(row["batch"]), item["name"], f"{item['median_us'] / 1e3:.3f}", item["note"] or ""]
        for row in result["latency"]
        for item in row["contenders"]
    ]
    lines += [markdown(("network", "batch", "contender", "ms a call", "note"), timed)]
    return "\n".join([*lines, *(f"\nleft out: {reason}" for reason in result["left_out"])])


if __name__ == "__main__":
    sys.exit(main())
