"""The part of `benchmarks.gpu` that needs PyTorch and the compiler: libraries, and what they must compute."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_contents import CONTENTS
from benchmarks.runs import hawq_tvm
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.core import interpreter
from hawq_tvm.core.ir import Array, Graph
from hawq_tvm.core.ops import Conv2d, Linear
from hawq_tvm.core.targets import find_target
from hawq_tvm.runs.artifacts import FLOAT_GRAPH, Artifacts
from hawq_tvm.runs.float_io import save_float_graph
from hawq_tvm.runs.golden import read_golden
from hawq_tvm.runs.rundir import Run, read_run

BITS = {"INT8": ("--bits", "8"), "INT4": ("--bits", "4"), "mixed": ("--budget-size", "50%")}
"""The configurations of every network, and how a run is asked for them."""


def prepare_folder(folder: Path, networks: Sequence[str], targets: Sequence[str], batches: Sequence[int]) -> None:
    """Quantise and compile.

    Args:
        folder: made where it is not there.
        networks: each ``MODEL=DATA``, as ``hawq-tvm run MODEL --data DATA`` takes them.
        targets: GPUs.
        batches: samples a call.
    """
    contents = Contents(folder)
    with tempfile.TemporaryDirectory() as runs:
        for network in networks:
            model, _, data = network.partition("=")
            for bits, options in BITS.items():
                run = Path(runs) / f"{slug(model)}-{bits}"
                quick = ("--calibration-samples", 16, "--verify-samples", 1, "--bench-seconds", 0.5)
                hawq_tvm("run", model, "--data", data, *options, *quick, "--output", run)
                contents.add_run(run, model, bits, targets, batches)
    contents.write()


class Contents:
    """A prepared folder in the making; ``contents.json`` says what is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.libraries: list[dict[str, Any]] = []
        self.networks: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def add_run(self, path: Path, name: str, bits: str, targets: Iterable[str], batches: Iterable[int]) -> None:
        """Compile a finished run.

        Args:
            path: of the run.
            name: of its network.
            bits: what its configuration is called.
            targets: GPUs.
            batches: samples a call.
        """
        graph = read_run(path, lambda run: Artifacts(run).graph)
        stem = f"{slug(name)}.{bits}"
        expected = f"{stem}.npz"
        names = write_expected(self.folder / expected, graph, read_run(path, _golden_input))
        if name not in self.networks:
            peer = f"{slug(name)}.{FLOAT_GRAPH}"
            save_float_graph(read_run(path, lambda run: Artifacts(run).float_graph), self.folder / peer)
            self.networks[name] = {"float": peer, "products": products(graph)}
        for target in map(find_target, targets):
            for batch in batches:
                library = f"{stem}.{slug(target.name)}.batch{batch}.so"
                build_library(lower(graph, target, batch=batch), self.folder / library)
                self.libraries.append(
                    {
                        "library": library,
                        "network": name,
                        "bits": bits,
                        "target": target.name,
                        "batch": batch,
                        "expected": expected,
                        "values": names,
                    }
                )

    def write(self) -> None:
        """Write the contents, last of all."""
        data = {"libraries": self.libraries, "networks": self.networks}
        (self.folder / CONTENTS).write_text(json.dumps(data, indent=1) + "\n")


def _golden_input(run: Run) -> Array:
    return read_golden(run)[Artifacts(run).graph.input_name]


def write_expected(path: Path, graph: Graph, golden: Array) -> list[str]:
    """Write what the interpreter computes for two samples: a run's golden input, and integers over the whole range.

    Args:
        path: of the ``.npz``.
        graph: the network.
        golden: integers [1, ...].

    Returns:
        The names of the values, in the order in which the file holds them as ``0``, ``1`` and so on; the input's first.
    """
    dtype = graph.input_type.dtype
    noise = np.random.default_rng(0).integers(dtype.lo, dtype.hi + 1, golden.shape).astype(golden.dtype)
    values = interpreter.run(graph, np.concatenate([golden, noise]))
    np.savez_compressed(path, **{str(number): value for number, value in enumerate(values.values())})  # type: ignore[arg-type]
    return list(values)


def products(graph: Graph) -> dict[str, tuple[int, int, int]]:
    """The product of matrices that each dense layer of one sample is: rows, columns, and what is summed over."""
    found = {}
    for node in graph:
        if isinstance(node.op, Linear) or (isinstance(node.op, Conv2d) and node.op.groups == 1):
            outputs, *summed = node.op.weight.shape
            found[node.name] = int(np.prod(node.type.shape[1:])), int(outputs), int(np.prod(summed))
    return found


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^0-9A-Za-z]+", "-", name).strip("-")
