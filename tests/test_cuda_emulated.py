"""Networks for a GPU, whole, where there is none: every value of every layer on the emulated GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hawq_tvm.backends.tvm import build
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.cuda import report
from hawq_tvm.backends.tvm.cuda.emulated import emulated_module
from hawq_tvm.backends.tvm.info import LibraryInfo
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.core import interpreter
from hawq_tvm.core.errors import RuntimeModuleError
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.emulator import NO_DEVICE, Conditions

from .builders import integer_samples, integers_of, same
from .emulated import needs_compiler
from .fake_cuda import fake_compiler

pytestmark = needs_compiler


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CUDA compiler is needed: the emulated GPU runs the text, and looks at no more than an image's hash."""
    monkeypatch.setattr(build, "find_cuda_compiler", fake_compiler)
    monkeypatch.setattr(report, "find_disassembler", lambda: None)


@pytest.mark.parametrize("pairs", [("w8a8",), ("w4a4",), ("w8a8", "w4a4")], ids=str)
def test_a_network_is_the_same_on_the_emulated_gpu(pairs: tuple[str, ...], fake: None, tmp_path: Path) -> None:
    graph = integers_of("Residual", pairs)
    library = tmp_path / "model.so"
    build_library(lower(graph, TARGETS["nvidia/t4"], batch=2), library)
    x = integer_samples(graph, 3)
    expected = interpreter.run(graph, x)
    with emulated_module(library) as module:
        assert same(expected, module.values(x)) == []
        assert np.array_equal(module.run(x), expected[graph.output])
        assert module.stored(x).keys() == set(module.info.calls)
        assert module.info == LibraryInfo.read(library)


def refusal(library: Path, conditions: Conditions | None = None) -> str:
    with pytest.raises(RuntimeModuleError) as caught, emulated_module(library, conditions):
        pass
    return str(caught.value)


def test_libraries_that_have_no_business_there(fake: None, tmp_path: Path) -> None:
    graph = integers_of("Residual")
    build_library(lower(graph, TARGETS["llvm"]), tmp_path / "cpu.so")
    assert "is for llvm, which runs here without an emulated GPU" in refusal(tmp_path / "cpu.so")
    library = tmp_path / "gpu.so"
    build_library(lower(graph, TARGETS["nvidia/t4"]), library)
    assert "needs an NVIDIA GPU, and the driver finds none" in refusal(library, Conditions(trouble=NO_DEVICE))
    text = LibraryInfo.text_beside(library)
    text.write_text(text.read_text() + "// changed\n")
    assert "gpu.cu is missing or is not the CUDA text of gpu.so" in refusal(library)
    text.unlink()
    assert "gpu.cu is missing" in refusal(library)
