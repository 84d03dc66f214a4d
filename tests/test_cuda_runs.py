"""A GPU's library run whole on an emulated GPU: every value exact, as a graph and call by call, in Python's process.

The images in it are those of a compiler that compiles nothing: the emulated driver runs the text of each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.cuda import device
from hawq_tvm.backends.tvm.cuda.emulated import emulated_module, why_not_here
from hawq_tvm.backends.tvm.cuda.texts import parse_texts
from hawq_tvm.backends.tvm.info import LibraryInfo
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.core import interpreter
from hawq_tvm.core.errors import EmulatorError, RuntimeModuleError
from hawq_tvm.core.gpu import T4
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.emulator import DRIVER_TOO_OLD, NO_DEVICE, Conditions, Image, emulated_session

from .builders import integer_samples, integers_of, same
from .emulated import needs_compiler
from .fake_cuda import use_fake_compiler
from .gpu_threads import FromThreads

pytestmark = needs_compiler

MIXED = ("w8a8", "w4a4", "w2a5", "w5a3")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_compiler(monkeypatch)


def built(graph: Graph, folder: Path, *, target: str = "nvidia/t4", batch: int = 1, storages: str = "all") -> Path:
    library = folder / TARGETS[target].library_name
    build_library(lower(graph, TARGETS[target], batch=batch, storages=storages), library)
    return library


@pytest.mark.parametrize(
    ("name", "pairs", "storages", "kernel"),
    [
        ("Residual", ("w8a8",), "all", "conv2d_x8w8s32_cuda"),
        ("Residual", ("w8a8",), "channels_last", "conv2d_x8w8s32_mma_nhwc"),
        ("Residual", ("w4a4",), "channels_last", "conv2d_x4w4s32_mma_nhwc"),
        ("Mobile", MIXED, "all", "conv2d_x8w8s32_cuda"),
        ("Mobile", MIXED, "channels_last", "conv2d_depthwise_x8w8s32_dp4a_nhwc"),
    ],
)
def test_every_value_is_exact(name: str, pairs: tuple[str, ...], storages: str, kernel: str, tmp_path: Path) -> None:
    """Batches of two over five samples: the last one is filled up, and the graph that the first recorded runs twice."""
    graph = integers_of(name, pairs)
    x = integer_samples(graph, 5)
    expected = interpreter.run(graph, x)
    library = built(graph, tmp_path, batch=2, storages=storages)
    assert kernel in LibraryInfo.read(library).kernels.values(), "the case is about this kernel"
    with emulated_module(library) as module:
        assert np.array_equal(module.run(x), expected[graph.output])
        assert same(expected, module.values(x)) == []
        assert np.array_equal(module.run(x[::-1]), expected[graph.output][::-1])


def test_threads_take_turns(tmp_path: Path) -> None:
    """The first call of a machine records a graph, while CUDA refuses what another thread might ask for."""
    graph = integers_of("Residual")
    library = built(graph, tmp_path)
    x = integer_samples(graph, 6)
    expected = interpreter.run(graph, x)[graph.output]
    texts = parse_texts(LibraryInfo.text_beside(library).read_text())
    with emulated_session(T4, [Image(kernel.image, kernel.text) for kernel in texts]) as session:
        module = session.create(FromThreads, library)
        assert np.array_equal(np.concatenate(module.call("run", x, 3)), expected)
        times = module.call("times", x)
        assert list(times) == list(LibraryInfo.read(library).calls)
        assert all(seconds > 0 for seconds in times.values())


def test_a_newer_gpu_runs_the_ptx(tmp_path: Path) -> None:
    """The emulated driver takes PTX of sm_75 on an H100; what it runs is the text."""
    graph = integers_of("Residual")
    library = built(graph, tmp_path)
    x = integer_samples(graph, 1)
    info = LibraryInfo.read(library)
    assert info.gpu is not None
    (tmp_path / "model.nvidia-t4.json").write_text(
        (tmp_path / "model.nvidia-t4.json").read_text().replace('"target": "nvidia/t4"', '"target": "nvidia/h100"')
    )
    with emulated_module(library) as module:
        assert np.array_equal(module.run(x), interpreter.run(graph, x)[graph.output])


def test_kernels_are_launched_as_one_graph(tmp_path: Path) -> None:
    lowered = lower(integers_of("Residual"), TARGETS["nvidia/t4"])
    script = lowered.module.script()
    main, tapped = (lowered.module[name].script() for name in ("main", "tapped"))
    assert "cuda_graph.run_or_capture" in main and "cuda_graph.get_cached_alloc" in main
    assert "cuda_graph" not in tapped
    outside = [name for name in lowered.functions.values() if f"{name}(" in main]
    called = [name for name in lowered.functions.values() if f"{name}(" in tapped]
    assert len(called) == len(lowered.functions), "every kernel is tapped"
    assert 1 <= len(outside) <= 3, "the first reads the input, the last writes the output"
    assert script.count("def main_cuda_graph_capture") == 1
    cpu = lower(integers_of("Residual"), TARGETS["llvm"]).module
    assert "cuda_graph" not in cpu.script() and "tapped" not in {variable.name_hint for variable in cpu.functions}


@pytest.mark.parametrize(
    ("trouble", "told"),
    [(NO_DEVICE, "needs an NVIDIA GPU, and the driver finds none"), (DRIVER_TOO_OLD, "release 580 or newer")],
)
def test_what_the_driver_says_is_told(trouble: int, told: str, tmp_path: Path) -> None:
    library = built(integers_of("Residual"), tmp_path)
    with pytest.raises(RuntimeModuleError, match=told), emulated_module(library, Conditions(trouble=trouble)):
        pass


def test_machine_code_of_a_newer_gpu_is_refused_by_the_device(tmp_path: Path) -> None:
    library = built(integers_of("Residual"), tmp_path, target="nvidia/a100")
    path = LibraryInfo.path_beside(library)
    path.write_text(path.read_text().replace('"target": "nvidia/a100"', '"target": "nvidia/t4"'))
    told = r"for sm_80 and PTX for compute_80, which this GPU \(sm_75\) cannot run"
    with pytest.raises(RuntimeModuleError, match=told), emulated_module(library):
        pass


def test_the_text_must_be_that_of_the_library(tmp_path: Path) -> None:
    library = built(integers_of("Residual"), tmp_path)
    text = LibraryInfo.text_beside(library)
    text.write_text(text.read_text().replace("+ 1", "+ 2", 1) + "\n")
    with (
        pytest.raises(RuntimeModuleError, match=r"\.cu is not the text that the library was made of; compile the lib"),
        emulated_module(library),
    ):
        pass
    text.unlink()
    with (
        pytest.raises(RuntimeModuleError, match=r"\.cu cannot be read \(No such file or directory\), and an emulated"),
        emulated_module(library),
    ):
        pass


def test_a_library_of_a_cpu_needs_no_emulation(tmp_path: Path) -> None:
    library = tmp_path / "model.so"
    build_library(lower(integers_of("Residual"), TARGETS["llvm"]), library)
    with (
        pytest.raises(RuntimeModuleError, match=r"model.so is not for a GPU; it runs here as it is$"),
        emulated_module(library),
    ):
        pass


def test_a_truncated_library_is_refused_there_too(tmp_path: Path) -> None:
    library = built(integers_of("Residual"), tmp_path)
    library.write_bytes(library.read_bytes()[:-4096])
    with (
        pytest.raises((RuntimeModuleError, EmulatorError), match="is corrupted or truncated: its sha256"),
        emulated_module(library),
    ):
        pass


def test_why_a_library_does_not_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = built(integers_of("Residual"), tmp_path)
    info = LibraryInfo.read(library)
    assert info.gpu is not None
    monkeypatch.setattr(device, "DRIVER", "libcuda-of-nowhere.so.1")
    why = why_not_here(library, info.gpu)
    assert why is not None and "there is no driver here" in why
    monkeypatch.setattr("hawq_tvm.backends.tvm.cuda.emulated.check_device", lambda library, gpu: None)
    assert why_not_here(library, info.gpu) is None
