"""A small library for a GPU, built and run by TVM in a process that sees an emulated one.

No CUDA compiler is at work: what stands for a kernel's machine code is a line of PTX that holds the hash of its text.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.backend.cuda.pipeline import dataflow_lower_passes, finalize_passes
from tvm.runtime.vm import VirtualMachine
from tvm.script import relax as R

from .cuda_products import BLOCK_COLUMNS, Product, product_kernel, target

PRODUCT = Product(rows=32, columns=BLOCK_COLUMNS, depth=128)
"""Its sums are as many words as its first operand, and serve as one again."""

TIMES = 4


def repeated_product(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the library must give for words [32, 32]."""
    b = PRODUCT.operands(seed=0)[1]
    for _ in range(TIMES):
        a = (a.view(np.int8).astype(np.int32) @ b.T.astype(np.int32)).astype(np.int32)
    return a


def image_of(text: str, architecture: int = 75) -> bytes:
    """What stands for the machine code of a text."""
    return f".version 8.0\n.target sm_{architecture}\n// {hashlib.sha256(text.encode()).hexdigest()}\n".encode()


class Builder:
    """Builds libraries that compute `repeated_product`."""

    def __init__(self, architecture: int = 75) -> None:
        self._texts: dict[str, str] = {}

        def compile_text(text: str) -> bytes:
            image = image_of(str(text), architecture)
            self._texts[hashlib.sha256(image).hexdigest()] = str(text)
            return image

        tvm.register_global_func("tvm_callback_cuda_compile", compile_text, override=True)

    def build(self, path: Path, graph: bool) -> tuple[dict[str, str], str]:
        """Write the library.

        Args:
            path: of the ``.so``.
            graph: whether the calls are captured in a CUDA graph.

        Returns:
            CUDA text by the SHA-256 of its image, and what the virtual machine will do.
        """
        builder = relax.BlockBuilder()
        a = relax.Var("a", R.Tensor((PRODUCT.rows, PRODUCT.row_words), "int32"))
        b = relax.const(PRODUCT.arguments(seed=0)[0]["b_"])
        kernel = product_kernel(PRODUCT, "product").with_attr("tirx.is_scheduled", True)
        called = builder.add_func(kernel, "product")
        shape = R.Tensor((PRODUCT.rows, PRODUCT.columns), "int32")
        with builder.function("main", [a]):
            with builder.dataflow():
                x: Any = a
                for _ in range(TIMES - 1):
                    x = builder.emit(relax.call_tir(called, [x, b], shape))
                last = builder.emit_output(relax.call_tir(called, [x, b], shape))
            builder.emit_func_output(last)
        return self._export(builder.get(), path, graph)

    def _export(self, module: Any, path: Path, graph: bool) -> tuple[dict[str, str], str]:
        where = target("sm_75")

        @tvm.transform.module_pass(opt_level=0)
        def passes(module: Any, _context: Any) -> Any:
            lowering = [*dataflow_lower_passes(where), *finalize_passes(where)]
            with where:
                return tvm.transform.Sequential(lowering)(module)

        with where, tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": graph}):
            executable = relax.build(module, target=where, relax_pipeline=passes, tir_pipeline="tirx")
        executable.export_library(str(path))
        return self._texts, str(executable.as_text())


class Library:
    """A library in TVM's virtual machine on the GPU."""

    def __init__(self, path: Path) -> None:
        self._device = tvm.cuda(0)
        self._machine = VirtualMachine(tvm.runtime.load_module(str(path)), self._device)

    def run(self, a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self._machine["main"](tvm.runtime.tensor(a, device=self._device)).numpy()
