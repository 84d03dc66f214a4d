"""The float graph in one safetensors file: tensors as they are, structure as JSON in the header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hawq_tvm.core.errors import GraphError, RunError
from hawq_tvm.core.float_ir import Clip, FloatGraph, FloatNode
from hawq_tvm.core.ir import Window

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

    Raises:
        RunError: missing, truncated or not ours.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            structure = json.loads(file.metadata()[_KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        nodes = tuple(_node_from_json(data, index, arrays) for index, data in enumerate(structure["nodes"]))
        shape = tuple(structure["input_shape"])
        return FloatGraph(structure["name"], structure["input_name"], shape, nodes, structure["output"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, GraphError) as error:
        raise RunError(f"{path} cannot be read ({error}); start the run again") from error


def _node_to_json(node: FloatNode) -> dict[str, Any]:
    window, clip = node.window, node.clip
    return {
        "name": node.name,
        "kind": node.kind,
        "inputs": node.inputs,
        "shape": node.shape,
        "window": None if window is None else [window.kernel, window.strides, window.pads, window.dilations],
        "groups": node.groups,
        "clip": None if clip is None else [clip.lo, clip.hi],
    }


def _node_from_json(data: dict[str, Any], index: int, arrays: dict[str, Any]) -> FloatNode:
    window, clip = data["window"], data["clip"]
    return FloatNode(
        data["name"],
        data["kind"],
        tuple(data["inputs"]),
        tuple(data["shape"]),
        window=None if window is None else Window(*(tuple(part) for part in window)),
        groups=data["groups"],
        clip=None if clip is None else Clip(*clip),
        **{part: arrays.get(f"{index}.{part}") for part in _ARRAYS},
    )
