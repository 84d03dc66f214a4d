"""Golden tensors: one input and every layer's integers for it, for whoever proves another executor by them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from math import prod
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
    index = run.reader(GOLDEN_INDEX).take(run.json(GOLDEN_INDEX), Mapping[str, str])
    return {name: run.read(f"{GOLDEN}{file}", partial(_load, run)) for name, file in index.items()}


def check_golden(run: Run, graph: Graph) -> None:
    """Raise `RunError` where the golden tensors are damaged or not what the network computes."""
    golden = read_golden(run)
    if graph.input_name not in golden:
        raise RunError(f"{GOLDEN} holds no input '{graph.input_name}'; make it again with hawq-tvm compile")
    for name, value in interpreter.run(graph, golden[graph.input_name]).items():
        if name not in golden or not np.array_equal(value, golden[name]):
            raise RunError(f"{GOLDEN} does not hold what layer '{name}' computes; make it again with hawq-tvm compile")


_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(\|i1|\|u1|<i4)', 'fortran_order': False, "
    rb"'shape': \(((?:\d{1,9}, ?)*(?:\d{1,9})?)\), \} *\n",
    re.DOTALL,
)
"""How `_save` begins a file. Read by this pattern alone, a header is never evaluated and cannot declare what is not
there: numpy's own reader makes room for any shape that a header claims."""


def _save(value: Array, path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, value)


def _load(run: Run, path: Path) -> Array:
    """An array that `_save` wrote: int8, uint8 or int32."""
    data = path.read_bytes()
    header = _HEADER.match(data)
    if header is not None:
        dtype = np.dtype(header[1].decode())
        shape = tuple(int(size) for size in header[2].split(b",") if size.strip())
        if header.end() + prod(shape) * dtype.itemsize == len(data):
            return np.frombuffer(data, dtype, offset=header.end()).reshape(shape).copy()
    raise RunError(
        f"{run.name}/{GOLDEN}{path.name} is not an array of integers as hawq-tvm writes them; "
        "make it again with hawq-tvm compile"
    )
