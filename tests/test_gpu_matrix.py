"""`benchmarks.gpu_matrix` on one network: what it promises holds, and what breaks a promise is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_matrix, runs
from benchmarks.gpu_matrix import broken_promises, dense_layers, instructions, wanted_instruction
from benchmarks.random_networks import integers
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.cuda.compiler import CudaCompiler
from hawq_tvm.backends.tvm.cuda.disassembly import find_disassembler
from hawq_tvm.backends.tvm.info import GpuKernelInfo, LibraryInfo
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.core.ir import Graph

from .fake_cuda import use_fake_compiler

needs_disassembler = pytest.mark.skipif(
    find_disassembler() is None, reason="needs nvdisasm, of the CUDA toolkit or of nvidia-cuda-nvdisasm"
)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return integers("resnet18", gpu_matrix.CONFIGURATIONS["mixed"])


@pytest.fixture(scope="module")
def library(graph: Graph, cuda_compiler: CudaCompiler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-18 at 4 and 8 bits in turns, as the CUDA compiler of this machine compiles it."""
    path = tmp_path_factory.mktemp("matrix") / "model.so"
    build_library(lower(graph, gpu_matrix.TARGET), path)
    return path


def kernels_of(info: LibraryInfo) -> dict[str, GpuKernelInfo]:
    assert info.gpu is not None
    return dict(info.gpu.kernels)


def changed(info: LibraryInfo, kernel: str, **what: Any) -> LibraryInfo:
    """What a library would say of itself if one of its kernels were another."""
    kernels = kernels_of(info)
    assert info.gpu is not None
    return replace(info, gpu=replace(info.gpu, kernels={**kernels, kernel: replace(kernels[kernel], **what)}))


@needs_disassembler
def test_every_promise_holds(graph: Graph, library: Path) -> None:
    info = LibraryInfo.read(library)
    assert broken_promises(graph, info, library.read_bytes()) == []
    found = instructions(graph, info)
    assert sum(found.values()) == len(dense_layers(graph)) == 21
    assert found.keys() == {"IMMA.8816", "IMMA.8832"}


def test_machine_code_that_is_not_there_is_told(graph: Graph, library: Path) -> None:
    broken = broken_promises(graph, LibraryInfo.read(library), b"")
    for name in kernels_of(LibraryInfo.read(library)):
        assert f"kernel '{name}' has no machine code for sm_75" in broken


def test_a_kernel_that_spills_is_told(graph: Graph, library: Path) -> None:
    info, data = LibraryInfo.read(library), library.read_bytes()
    name = next(iter(kernels_of(info)))
    assert f"kernel '{name}' spills 8 bytes of registers" in broken_promises(
        graph, changed(info, name, spill_bytes=8), data
    )


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ((), "no tensor core instruction, not IMMA.8832"),
        (("IMMA.8816.U8.S8.SAT",), "IMMA.8816.U8.S8.SAT, not IMMA.8832"),
    ],
)
def test_a_layer_beside_tensor_cores_is_told(held: tuple[str, ...], told: str, graph: Graph, library: Path) -> None:
    info = LibraryInfo.read(library)
    assert info.gpu is not None
    layer = next(node for node in dense_layers(graph) if wanted_instruction(graph, node) == "IMMA.8832")
    (kernel,) = info.gpu.launched_by(layer.name)
    broken = broken_promises(graph, changed(info, kernel, tensor_core=held), library.read_bytes())
    assert f"layer '{layer.name}' has {told}" in broken


def test_a_broken_promise_is_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A compiler that compiles nothing leaves no tensor core instruction."""
    use_fake_compiler(monkeypatch)
    monkeypatch.setattr(gpu_matrix, "find_disassembler", lambda: "nvdisasm")
    monkeypatch.setattr(gpu_matrix, "NETWORKS", {"ResNet-20": "resnet20"})
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    assert gpu_matrix.main(["--configurations", "INT8", "--batches", "2"]) == 1
    printed = capsys.readouterr().out
    assert "\nResNet-20, INT8, batch 2: layer 'conv1' has no tensor core instruction, not IMMA.8816\n" in printed
    (row,) = json.loads((tmp_path / "gpu_matrix.json").read_text())["results"].values()
    assert (row["dense"], row["instructions"], len(row["broken"])) == (22, {"none": 22}, 22)


def test_machine_code_cannot_be_judged_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_matrix, "find_disassembler", lambda: None)
    with pytest.raises(SystemExit, match="no disassembler, and machine code must be read; pip install nvidia-cuda-nvd"):
        gpu_matrix.main([])
