from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.core.errors import RunError
from hawq_tvm.runs.float_io import load_float_graph, save_float_graph

from . import networks
from .builders import captured, samples


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_a_float_graph_comes_back_whole(name: str, tmp_path: Path) -> None:
    graph = captured(name)
    save_float_graph(graph, tmp_path / "graph.safetensors")
    back = load_float_graph(tmp_path / "graph.safetensors")
    for before, after in zip(graph, back, strict=True):
        for field in ("name", "kind", "inputs", "shape", "window", "groups", "clip", "channel_pads"):
            assert getattr(before, field) == getattr(after, field)
        for part in ("weight", "bias", "counts"):
            assert np.array_equal(getattr(before, part), getattr(after, part))
    with torch.no_grad():
        assert torch.equal(FloatModule(graph)(samples()), FloatModule(back)(samples()))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.safetensors"
    with pytest.raises(RunError, match="cannot be read"):
        load_float_graph(path)
    save_float_graph(captured("Residual"), path)
    data = path.read_bytes()
    for bad in (
        data[:200],
        data[:-1],
        data[:7],
        b"",
        data + b"\0",
        b"\xff" * 8 + data[8:],
        b"\x02" + b"\0" * 7 + b"{}",
    ):
        path.write_bytes(bad)
        with pytest.raises(RunError, match="cannot be read"):
            load_float_graph(path)


def rewritten(path: Path, change: Callable[[dict[str, Any]], object], **arrays: np.ndarray[Any, Any]) -> None:
    """Write the file anew, its structure changed, some arrays in place of its own."""
    with safe_open(path, framework="numpy") as file:
        structure = json.loads(file.metadata()["hawq_tvm_float_graph"])
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(structure)
    path.write_bytes(save({**kept, **arrays}, metadata={"hawq_tvm_float_graph": json.dumps(structure)}))


def with_window(data: dict[str, Any], window: Any) -> None:
    data["nodes"][0]["window"] = window


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an unknown kind": (lambda data: data["nodes"][0].update(kind="conv3d"), "it is of no known kind"),
    "two of one name": (lambda data: data["nodes"][1].update(name=data["nodes"][0]["name"]), "two values are named"),
    "a node that reads itself": (
        lambda data: data["nodes"][0].update(inputs=[data["nodes"][0]["name"]]), "which no earlier node makes",
    ),
    "a circle": (lambda data: data["nodes"][0].update(inputs=[data["output"]]), "which no earlier node makes"),
    "an output that nobody makes": (lambda data: data.update(output="nothing"), "the output 'nothing' is made by no"),
    "a huge input": (lambda data: data.update(input_shape=[3, 10**9, 10**9]), "expected 1 to 2,147,483,648 elements"),
    "an empty input": (lambda data: data.update(input_shape=[3, 0, 4]), "expected 1 to"),
    "another shape": (lambda data: data["nodes"][0].update(shape=[9, 9, 9]), "is said to make (9, 9, 9)"),
    "too few inputs": (lambda data: data["nodes"][0].update(inputs=[]), "it reads 0 values"),
    "no window": (lambda data: with_window(data, None), "does not fit its window None"),
    "a window of nothing": (lambda data: with_window(data, [[0, 0], [1, 1], [0] * 4, [1, 1]]), "a window needs"),
    "a window of three": (lambda data: with_window(data, [[1, 1, 1], [1, 1], [0] * 4, [1, 1]]), "a list of 2"),
    "groups of none": (lambda data: data["nodes"][0].update(groups=0), "in 0 groups does not fit"),
    "a clip of text": (lambda data: data["nodes"][0].update(clip=["a", 0]), "nodes[0].clip[0] is 'a'"),
    "no nodes": (lambda data: data.pop("nodes"), "nodes is missing"),
    "one node too few": (lambda data: data["nodes"].pop(), "is made by no node"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_structure_that_does_not_hold_together_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.safetensors"
    save_float_graph(captured("Residual"), path)
    rewritten(path, lambda data: data)
    load_float_graph(path)
    rewritten(path, LIES[name][0])
    with pytest.raises(RunError, match=re.escape(LIES[name][1])) as raised:
        load_float_graph(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((8, 3, 3, 3), np.nan, np.float32), "its weight holds NaN or infinity"),
        (np.zeros((8, 3, 3, 3), np.float64), "its weight is float64 (8, 3, 3, 3), expected float32"),
        (np.zeros((8, 3, 3), np.float32), "does not fit its window"),
        (np.zeros((8, 4, 3, 3), np.float32), "in 1 groups does not fit 3 channels"),
        (np.zeros((9, 3, 3, 3), np.float32), "its bias is float32 (8,), expected float32 (9,)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(array: np.ndarray[Any, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.safetensors"
    save_float_graph(captured("Residual"), path)
    rewritten(path, lambda data: data, **{"0.weight": array})
    with pytest.raises(RunError, match=re.escape(message)):
        load_float_graph(path)
    rewritten(path, lambda data: data, **{"0.weight": np.zeros((8, 3, 3, 3), np.float32), "99.weight": np.zeros(1)})
    with pytest.raises(RunError, match="no node has the array '99.weight'"):
        load_float_graph(path)


def test_a_key_that_stands_twice_in_the_header_is_refused(tmp_path: Path) -> None:
    """Safetensors takes the last, so that two readers may see two networks."""
    path = tmp_path / "graph.safetensors"
    save_float_graph(captured("Residual"), path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    twice = data[8 : 8 + size].rstrip()[:-1] + b',"0.bias":' + json.dumps(header["0.bias"]).encode() + b"}"
    path.write_bytes(len(twice).to_bytes(8, "little") + twice + data[8 + size :])
    with pytest.raises(RunError, match=r"the key '0\.bias' stands twice"):
        load_float_graph(path)
