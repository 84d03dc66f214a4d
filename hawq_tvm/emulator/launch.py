"""Kernels alone: CUDA text, arrays, a grid; the arrays come back as the kernel left them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from hawq_tvm.core.errors import EmulatorError
from hawq_tvm.core.machine import usable_cores
from hawq_tvm.emulator.text import Kernel, Parameter, kernel_symbol, split_kernels
from hawq_tvm.emulator.toolchain import compile_kernels, machine_library

MESSAGE_BYTES: Final = 2048


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel that is ready to run.

    Attributes:
        kernel: its name and parameters.
        library: what holds it, loaded.
    """

    kernel: Kernel
    library: ctypes.CDLL

    def run(
        self,
        arrays: Mapping[str, Any] | Sequence[Any],
        grid: Sequence[int],
        block: Sequence[int],
        *,
        shared_bytes: int = 0,
        order: int = 0,
        workers: int | None = None,
    ) -> None:
        """Run a grid to its end; see `run`."""
        parameters = self.kernel.parameters
        values = _in_order(self.kernel, arrays)
        machine = _machine()
        buffers: list[tuple[int, np.ndarray[Any, Any]]] = []
        try:
            arguments = (ctypes.c_void_p * max(len(values), 1))()
            kept = []
            for i, (parameter, value) in enumerate(zip(parameters, values, strict=True)):
                if parameter.is_pointer:
                    buffers.append((_copy_in(machine, parameter, value), value))
                    argument: Any = ctypes.c_void_p(buffers[-1][0])
                else:
                    argument = _scalar(parameter, value)
                kept.append(argument)
                arguments[i] = ctypes.cast(ctypes.pointer(argument), ctypes.c_void_p)
            message = ctypes.create_string_buffer(MESSAGE_BYTES)
            failure = machine.emulator_launch(
                ctypes.byref(ctypes.c_char.in_dll(self.library, kernel_symbol(self.kernel.name))),
                _three(grid),
                _three(block),
                ctypes.c_size_t(shared_bytes),
                arguments,
                ctypes.c_uint(order),
                ctypes.c_uint(workers or usable_cores()),
                message,
                ctypes.c_size_t(MESSAGE_BYTES),
            )
            if failure:
                raise EmulatorError(message.value.decode(errors="replace"))
            for address, array in buffers:
                ctypes.memmove(array.ctypes.data, address, array.nbytes)
        finally:
            for address, _ in buffers:
                machine.emulator_free(ctypes.c_void_p(address))


def load_kernel(text: str, name: str, *, checked: bool = True) -> CompiledKernel:
    """Compile one kernel of a text, or take it from the cache.

    Raises:
        EmulatorError: see `run`.
    """
    kernels = split_kernels(text)
    if name not in kernels:
        raise EmulatorError(f"the CUDA text has no kernel '{name}'; it has {', '.join(kernels)}")
    (library,) = compile_kernels([kernels[name]], checked=checked)
    return CompiledKernel(kernels[name], _load(library))


def run(
    text: str,
    name: str,
    arrays: Mapping[str, Any] | Sequence[Any],
    grid: Sequence[int],
    block: Sequence[int],
    *,
    shared_bytes: int = 0,
    checked: bool = True,
    order: int = 0,
    workers: int | None = None,
) -> None:
    """Run one kernel of a CUDA text on arrays, which are changed in place.

    Args:
        text: CUDA C++ as TVM generates it, such as ``module.imports[0].inspect_source()``.
        name: the kernel.
        arrays: the arguments by name (``data`` for a parameter ``data_ptr``) or in the kernel's order: C-contiguous
            numpy arrays for pointers, numbers otherwise. Each array becomes a buffer of exactly its bytes.
        grid: blocks in x, y and z; what is left out is 1.
        block: threads in x, y and z; likewise.
        shared_bytes: of dynamic shared memory.
        checked: whether every access is checked for bounds and races. Without, a kernel is faster, by how much tells
            `docs/emulator.md`, and what leaves its buffer is noticed only where it runs into a guarded page or changes
            bytes beside it.
        order: in which order threads get their turn: 0 as numbered, 1 backwards, from 2 on shuffled. Checks find races
            in any order; without checks, several orders show some of them.
        workers: blocks that run side by side; all usable cores if None.

    Raises:
        EmulatorError: the kernel broke a rule: out of bounds, misaligned, a race, threads that diverge at a barrier or
            within a warp. The message names kernel, block, thread, buffer and index. Or the text has PTX that the
            emulator does not know; or there is no C++ compiler; or arguments do not fit the parameters.
    """
    load_kernel(text, name, checked=checked).run(
        arrays, grid, block, shared_bytes=shared_bytes, order=order, workers=workers
    )


def _in_order(kernel: Kernel, arrays: Mapping[str, Any] | Sequence[Any]) -> list[Any]:
    names = [parameter.name for parameter in kernel.parameters]
    if not isinstance(arrays, Mapping):
        if len(arrays) != len(names):
            raise EmulatorError(
                f"kernel '{kernel.name}' takes {len(names)} arguments ({', '.join(names)}), got {len(arrays)}"
            )
        return list(arrays)
    short = {name.removesuffix("_ptr"): name for name in names}
    given = {short.get(name, name): value for name, value in arrays.items()}
    if set(given) != set(names):
        raise EmulatorError(f"kernel '{kernel.name}' takes {', '.join(names)}, got {', '.join(arrays)}")
    return [given[name] for name in names]


def _copy_in(machine: ctypes.CDLL, parameter: Parameter, array: Any) -> int:
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous or not array.flags.writeable:
        raise EmulatorError(f"parameter '{parameter.name}' is a pointer and takes a writable C-contiguous numpy array")
    address = machine.emulator_malloc(ctypes.c_size_t(array.nbytes))
    if not address:
        raise EmulatorError(
            f"no room for the {array.nbytes} bytes of parameter '{parameter.name}' on the emulated device"
        )
    ctypes.memmove(address, array.ctypes.data, array.nbytes)
    return int(address)


_SCALARS = {
    "int": ctypes.c_int32, "int32_t": ctypes.c_int32, "uint": ctypes.c_uint32, "unsigned int": ctypes.c_uint32,
    "uint32_t": ctypes.c_uint32, "int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64, "float": ctypes.c_float,
}  # fmt: skip


def _scalar(parameter: Parameter, value: Any) -> Any:
    c_type = parameter.type.replace("const", "").strip()
    if c_type not in _SCALARS:
        raise EmulatorError(f"parameter '{parameter.name}' has type '{c_type}', which the emulator cannot pass")
    return _SCALARS[c_type](value)


def _three(counts: Sequence[int]) -> Any:
    if not 1 <= len(counts) <= 3:
        raise EmulatorError(f"a grid or block has one to three dimensions, got {list(counts)}")
    return (ctypes.c_uint * 3)(*(*counts, 1, 1)[:3])


@cache
def _machine() -> ctypes.CDLL:
    library = _load(machine_library())
    library.emulator_malloc.restype = ctypes.c_void_p
    return library


@cache
def _load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))
