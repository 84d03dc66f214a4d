"""Golden tensors: one input and every layer's integers for it, for whoever proves another executor by them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from hawq_tvm.core import interpreter
from hawq_tvm.core.errors import RunError
from hawq_tvm.core.ir import Array, Graph
from hawq_tvm.runs.rundir import Run

GOLDEN = "golden/"
GOLDEN_INDEX = "golden/index.json"


def write_golden(run: Run, graph: Graph, x: Array) -> None:
    """Write what every layer computes for an input, one numpy file each, and an index of them by layer.

    Args:
        run: open for writing.
        graph: the network.
        x: integers [1, ...] in the carrier dtype of the graph's input.
    """
    index = {}
    for number, (name, value) in enumerate(interpreter.run(graph, x).items()):
        index[name] = f"{number:03d}.npy"
        run.write(f"{GOLDEN}{index[name]}", partial(_save, value))
    run.write_json(GOLDEN_INDEX, index)


def read_golden(run: Run) -> dict[str, Array]:
    """The input and every layer's integers, by name.

    Raises:
        RunError: a file is missing or damaged.
    """
    return {name: np.load(run.file(f"{GOLDEN}{file}")) for name, file in run.json(GOLDEN_INDEX).items()}


def check_golden(run: Run, graph: Graph) -> None:
    """Raise `RunError` where the golden tensors are damaged or not what the network computes."""
    golden = read_golden(run)
    if graph.input_name not in golden:
        raise RunError(f"{GOLDEN} holds no input '{graph.input_name}'; make it again with hawq-tvm compile")
    for name, value in interpreter.run(graph, golden[graph.input_name]).items():
        if name not in golden or not np.array_equal(value, golden[name]):
            raise RunError(f"{GOLDEN} does not hold what layer '{name}' computes; make it again with hawq-tvm compile")


def _save(value: Array, path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, value)
