from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

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
        for field in ("name", "kind", "inputs", "shape", "window", "groups", "clip"):
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
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunError, match="cannot be read"):
        load_float_graph(path)
