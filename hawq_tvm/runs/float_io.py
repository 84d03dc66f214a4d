"""The float graph in one safetensors file: tensors as they are, structure as JSON in the header.

A clip without a bound on one side has null there, since JSON has no infinities.
"""

from __future__ import annotations

import json
from math import inf, isinf
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hawq_tvm.core.errors import GraphError, RunError, first_line
from hawq_tvm.core.float_ir import Clip, FloatGraph, FloatNode
from hawq_tvm.core.ir import Window
from hawq_tvm.core.strict_json import MOST_BYTES, JsonReader

_KEY = "hawq_tvm_float_graph"
_ARRAYS = ("weight", "bias", "counts")


def save_float_graph(graph: FloatGraph, path: Path) -> None:
    """Write a graph; `load_float_graph` reads it."""
    arrays = {
        f"{index}.{part}": np.ascontiguousarray(getattr(node, part))
        for index, node in enumerate(graph)
        for part in _ARRAYS
        if getattr(node, part) is not None
    }
    structure = {
        "name": graph.name,
        "input_name": graph.input_name,
        "input_shape": graph.input_shape,
        "output": graph.output,
        "nodes": [_node_to_json(node) for node in graph],
    }
    path.write_bytes(save(arrays, metadata={_KEY: json.dumps(structure)}))


def load_float_graph(path: Path) -> FloatGraph:
    """Read what `save_float_graph` wrote.

    Returns:
        The graph, checked.

    Raises:
        RunError: missing, truncated or not ours.
    """
    reader = JsonReader(f"{path} cannot be read", RunError, "start the run again")
    try:
        header = reader.parse(safetensors_header(path))  # safetensors takes one of two equal keys in silence
        structure = reader.take(reader.parse(header["__metadata__"][_KEY].encode()), _GraphFile, signed=("clip",))
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        graph = FloatGraph(
            structure["name"],
            structure["input_name"],
            structure["input_shape"],
            tuple(_node_from_json(data, index, arrays) for index, data in enumerate(structure["nodes"])),
            structure["output"],
        )
        graph.check()
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, GraphError) as error:
        raise reader.fault(first_line(error)) from error
    if arrays:
        raise reader.fault(f"no node has the array {next(iter(arrays))!r}")
    return graph


def safetensors_header(path: Path) -> bytes:
    """The JSON that a safetensors file begins with, behind 8 bytes that say how long it is."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        return stream.read(min(size, MOST_BYTES + 1))


class _NodeFile(TypedDict):
    """The JSON of a node."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    window: tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int], tuple[int, int]] | None
    groups: int
    clip: tuple[float | None, float | None] | None
    channel_pads: NotRequired[tuple[int, int]]


class _GraphFile(TypedDict):
    """The JSON of a graph; its arrays are named by node number and part."""

    name: str
    input_name: str
    input_shape: tuple[int, ...]
    output: str
    nodes: tuple[_NodeFile, ...]


def _node_to_json(node: FloatNode) -> dict[str, Any]:
    window, clip = node.window, node.clip
    return {
        "name": node.name,
        "kind": node.kind,
        "inputs": node.inputs,
        "shape": node.shape,
        "window": None if window is None else [window.kernel, window.strides, window.pads, window.dilations],
        "groups": node.groups,
        "clip": None if clip is None else [None if isinf(bound) else bound for bound in (clip.lo, clip.hi)],
        **({} if node.channel_pads is None else {"channel_pads": node.channel_pads}),
    }


def _node_from_json(data: _NodeFile, index: int, arrays: dict[str, Any]) -> FloatNode:
    """A node; takes its arrays out of `arrays`."""
    clip = data["clip"]
    return FloatNode(
        data["name"],
        data["kind"],
        data["inputs"],
        data["shape"],
        window=None if data["window"] is None else Window(*data["window"]),
        groups=data["groups"],
        clip=None if clip is None else Clip(-inf if clip[0] is None else clip[0], inf if clip[1] is None else clip[1]),
        channel_pads=data.get("channel_pads"),
        **{part: arrays.pop(f"{index}.{part}", None) for part in _ARRAYS},
    )
