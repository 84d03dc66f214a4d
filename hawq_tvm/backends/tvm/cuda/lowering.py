"""PrimFuncs for a GPU become the host's functions, each of which launches kernels, and the kernels as CUDA text.

A kernel is a module of its own: kernels are compiled side by side, and one that does not change is not compiled again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import tvm
from tvm import tirx
from tvm_ffi.structural import structural_visit

from hawq_tvm.backends.tvm.cuda.byte_vectors import with_byte_vectors
from hawq_tvm.core.errors import CompileError

_CONFIG = {
    # StorageRewrite lets int8 and int32 share memory and then refuses accesses of either type.
    "tirx.disable_storage_rewrite": True,
}


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched.

    Attributes:
        grid: blocks in x, y and z.
        block: threads of a block in x, y and z.
        dynamic_shared_bytes: shared memory of a block beyond what the kernel declares.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared_bytes: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return prod(self.block)


@dataclass(frozen=True, eq=False)
class DeviceKernel:
    """One kernel.

    Attributes:
        name: its symbol.
        function: the PrimFunc that launches it.
        frame: TVM's module of this kernel alone, without a body: its signature, and how it is launched.
        generated: CUDA C++ as TVM writes it.
        launch: how it is launched.
    """

    name: str
    function: str
    frame: Any
    generated: str
    launch: Launch

    @property
    def text(self) -> str:
        """CUDA C++ as it is compiled."""
        return with_byte_vectors(self.generated)


def lower_for_gpu(functions: Any, target: Any) -> tuple[Any, list[DeviceKernel]]:
    """TVM's own passes up to its code generators.

    Args:
        functions: an IRModule of scheduled PrimFuncs.
        target: TVM's, of the GPU, with its host.

    Returns:
        The host's functions as LLVM takes them, and every kernel that they launch.

    Raises:
        CompileError: a grid, block or amount of shared memory that is no constant.
    """
    passes, finalize_host, finalize_device = tirx.get_default_tir_pipeline(target)
    with tvm.transform.PassContext(config=_CONFIG):
        lowered = passes(tirx.transform.BindTarget(target)(functions))
        host = tirx.transform.Filter(lambda function: not _is_kernel(function))(lowered)
        devices = finalize_device()(tirx.transform.Filter(_is_kernel)(lowered))
        launches = dict(_launches(host))
        host = finalize_host()(host)
    kernels = []
    for variable, kernel in devices.functions.items():
        name = str(variable.name_hint)
        function, launch = launches[name]
        frame = tvm.IRModule({variable: kernel.with_body(tirx.Evaluate(0))})
        text = _cuda_text(tvm.IRModule({variable: kernel}), target)
        kernels.append(DeviceKernel(name, function, frame, text, launch))
    return host, kernels


def _is_kernel(function: Any) -> bool:
    return str(function.attrs["target"].kind) != "llvm"


def _launches(module: Any) -> Iterator[tuple[str, tuple[str, Launch]]]:
    """Every launch of a kernel in the host's functions: the kernel, the function, how."""
    for variable, function in module.functions.items():
        found: list[Any] = []

        def visit(node: Any, visitor: Any, found: list[Any] = found) -> Any:
            if getattr(getattr(node, "op", None), "name", "") == "tirx.call_ffi_kernel":
                found.append(node)
            return visitor.default_visit(node)

        structural_visit(function, visit)
        for call in found:
            kernel = str(call.args[0].value)
            tags = [str(tag) for tag in call.attrs.launch_params]
            values = list(call.args)[len(call.args) - len(tags) :] if tags else []
            yield kernel, (str(variable.name_hint), _launch(kernel, dict(zip(tags, values, strict=True))))


def _launch(kernel: str, values: Mapping[str, Any]) -> Launch:
    def constant(tag: str, absent: int) -> int:
        value = values.get(tag)
        if value is None:
            return absent
        if not isinstance(value, tirx.IntImm):
            raise CompileError(f"kernel '{kernel}': its {tag} is {value}, which is no constant")
        return int(value.value)

    grid = (constant("blockIdx.x", 1), constant("blockIdx.y", 1), constant("blockIdx.z", 1))
    block = (constant("threadIdx.x", 1), constant("threadIdx.y", 1), constant("threadIdx.z", 1))
    return Launch(grid, block, constant("tirx.use_dyn_shared_memory", 0))


def _cuda_text(module: Any, target: Any) -> str:
    """What TVM's code generator writes, without a compiler behind it, whether or not there is a driver."""
    with _environment("TVM_COMPILE_FORCE_FALLBACK", "1"):
        generated = tvm.get_global_func("target.build.cuda")(module, target)
    return str(generated.inspect_source("cuda"))


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
