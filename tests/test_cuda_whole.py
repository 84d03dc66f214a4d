"""Whole networks for the T4, as exported, under TVM's virtual machine and an emulated driver: every layer exact.

The rules of the GPU are checked at every access (`docs/emulator.md`). The images in the libraries are those of a
compiler that compiles nothing: the emulated driver runs the text of each kernel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.random_networks import integers
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.cuda.emulated import emulated_module
from hawq_tvm.backends.tvm.host import find_c_compiler
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.core import interpreter
from hawq_tvm.core.ir import Array, Graph
from hawq_tvm.core.targets import TARGETS

from .builders import same
from .fake_cuda import use_fake_compiler

T4 = TARGETS["nvidia/t4"]

pytestmark = pytest.mark.skipif(find_c_compiler() is None, reason="the emulated GPU needs a C++ compiler")


def noise(graph: Graph, count: int) -> Array:
    """Normal noise as integers of the graph's input."""
    x = torch.randn(count, *graph.input_type.shape, generator=torch.Generator().manual_seed(1))
    return interpreter.quantize_input(x.numpy(), graph.input_type)


@pytest.mark.parametrize(
    ("network", "pairs", "batch"),
    [
        ("resnet20", ("w8a8",), 2),
        ("resnet20", ("w4a4",), 2),
        ("resnet20", ("w4a4", "w8a8", "w4a8"), 2),
        ("resnet18", ("w8a8",), 1),
        ("resnet18", ("w4a4",), 1),
    ],
    ids=["resnet20-int8", "resnet20-int4", "resnet20-mixed", "resnet18-int8", "resnet18-int4"],
)
def test_every_layer_is_exact(
    network: str, pairs: tuple[str, ...], batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernel by kernel, and as the one CUDA graph that a deployment launches."""
    use_fake_compiler(monkeypatch)
    graph = integers(network, pairs)
    library = tmp_path / T4.library_name
    build_library(lower(graph, T4, batch=batch), library)
    x = noise(graph, batch)
    expected = interpreter.run(graph, x)
    with emulated_module(library) as module:
        assert same(expected, module.values(x)) == []
        assert np.array_equal(module.run(x), expected[graph.output])
