"""Whether another checkout of hawq_tvm makes the same integers: fingerprints of whole networks, side by side.

    python -m benchmarks.fingerprints OTHER_CHECKOUT DATA [--networks resnet18 resnet50 mobilenet_v2 squeezenet1_1]

Both checkouts compile the same networks from the same samples on the same machine, at INT8, INT4 and mixed 4/8, and the
fingerprints of their integer graphs (every node, weight, multiplier and shift) are compared. DATA is as for
``benchmarks.imagenet``; ResNet-18 has random weights and samples. Prints a table and writes
``benchmarks/results/fingerprints.json``; ends with status 1 where one differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.imagenet import NETWORKS
from benchmarks.runs import markdown, write_results

CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "INT8": ("--bits", "8"),
    "INT4": ("--bits", "4"),
    "mixed 4/8": ("--bits", "4,8", "--budget-size", "50%", "--hessian-samples", "8", "--hessian-probes", "4"),
}
HERE = Path(__file__).parent.parent


def fingerprint(checkout: Path, arguments: list[str], run: Path) -> str:
    """The fingerprint of the integer graph that a checkout makes."""
    command = [sys.executable, "-m", "hawq_tvm", "run", *arguments, "--output", str(run), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    print(checkout, *arguments, file=sys.stderr, flush=True)
    subprocess.run(command, env=environment, cwd=checkout, stdout=subprocess.DEVNULL, check=True)
    found: str = json.loads((run / "model.llvm.json").read_text())["fingerprint"]
    return found


def arguments_of(name: str, data: Path) -> list[str]:
    """How a network and its samples are named."""
    if name not in NETWORKS:
        return [name, "--data", "random", "--calibration-samples", "32"]
    model, preprocessing = NETWORKS[name]
    return [
        str(data / model) if ".py:" in model else model,
        *("--weights", str(data / f"{name}_imagenet.safetensors")),
        *("--data", f"imagefolder:{data / 'imagenet_sample.zip'}", "--calibration-samples", "100"),
        *preprocessing,
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", nargs="+", default=["resnet18", *NETWORKS])
    options = parser.parse_args()
    data, rows, results, same = options.data.resolve(), [], {}, True
    few = ["--evaluation-samples", "4", "--verify-samples", "2", "--bench-seconds", "0.2"]
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.networks:
            for label, configuration in CONFIGURATIONS.items():
                arguments = [*arguments_of(name, data), *configuration, *few]
                here, there = (
                    fingerprint(checkout, arguments, Path(scratch) / side / name)
                    for side, checkout in (("here", HERE), ("there", options.other))
                )
                same = same and here == there
                rows.append([name, label, here[:16], "the same" if here == there else f"differs: {there[:16]}"])
                results[f"{name} {label}"] = {"here": here, "there": there}
    print(markdown(["network", "bits", "fingerprint", "the other checkout's"], rows))
    print(f"\nwrote {write_results('fingerprints', results)}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
