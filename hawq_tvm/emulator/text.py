"""The CUDA C++ that TVM generates, taken apart into kernels and made fit for a C++ compiler.

A text is a prologue (includes, macros, functions) and kernels, each ``extern "C" __global__ void``. What C++ does not
have is written anew: inline PTX (`hawq_tvm.emulator.ptx`), ``__shared__`` arrays, which lie in the memory of the
running block, and the launch, which is given the addresses of the arguments. All else is in ``cpp/device.h``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hawq_tvm.core.errors import EmulatorError
from hawq_tvm.emulator.ptx import closing, split_at, translate_assembly


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter.

    Attributes:
        name: as the text has it, such as ``data_ptr``.
        type: its C type, such as ``signed char* __restrict__``.
    """

    name: str
    type: str

    @property
    def is_pointer(self) -> bool:
        """Whether it takes a buffer, and not a number."""
        return "*" in self.type


@dataclass(frozen=True)
class Kernel:
    """One kernel of a text.

    Attributes:
        name: of the function.
        parameters: in order.
        source: C++ that defines the function and what `emulator_launch` in ``cpp/api.h`` needs of it.
        prologue: C++ that the text has before and between kernels.
    """

    name: str
    parameters: tuple[Parameter, ...]
    source: str
    prologue: str

    def unit(self) -> str:
        """The C++ file to compile."""
        return f'#include "device.h"\n{self.prologue}\n{self.source}'


_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\((?P<threads>\d+)[^)]*\)\s*)?(?P<name>\w+)\s*\('
)
_SHARED = re.compile(
    r"(?P<extern>extern\s+)?__shared__\s+(?:(?:__align__|alignas)\((?P<align>\d+)\)\s+)?"
    r"(?P<type>[\w:]+(?:\s+[\w:]+)*?)\s+(?P<name>\w+)\s*\[(?P<length>\d*)\]\s*;"
)
_VECTOR = re.compile(r"\*\((\w+)\*\)\(")  # how the text reads and writes a vector: *(int4*)(pointer + index)
_ALIGNED = r"*emulator::aligned<\1, __LINE__>("
_INDICES = {
    "threadIdx": "thread_index",
    "blockIdx": "block_index",
    "blockDim": "block_size",
    "gridDim": "grid_size",
}
_LEAST_ALIGNMENT = 16
_GAP = 256
"""Bytes between two shared arrays that belong to none, so that an index beyond one does not land in the next."""


@dataclass(frozen=True)
class _Definition:
    """A kernel as the text has it: its head, what stands in its parentheses and braces, and the body's first line."""

    head: re.Match[str]
    parameters: str
    body: str
    line: int


def split_kernels(text: str) -> dict[str, Kernel]:
    """The kernels of a text by name.

    Raises:
        EmulatorError: no kernel, PTX that the emulator does not know, or a text that is cut off.
    """
    prologue: list[str] = []
    definitions: list[_Definition] = []
    end = 0
    for head in _KERNEL.finditer(text):
        parameters_end = closing(text, head.end() - 1)
        after = re.compile(r"\s*([;{])").match(text, parameters_end + 1)
        if not after:
            raise EmulatorError(f"the CUDA text ends within kernel '{head['name']}'")
        prologue.append(text[end : head.start()])
        end = after.end() if after[1] == ";" else closing(text, after.end() - 1) + 1
        prologue.append("\n" * text.count("\n", head.start(), end))  # so that lines keep their numbers
        if after[1] == "{":
            line = text.count("\n", 0, after.end()) + 1
            parameters = text[head.end() : parameters_end]
            definitions.append(_Definition(head, parameters, text[after.end() : end - 1], line))
    prologue.append(text[end:])
    if not definitions:
        raise EmulatorError("the CUDA text has no kernel")
    common = '#line 1 "kernel.cu"\n' + translate_assembly("".join(prologue))
    return {definition.head["name"]: _kernel(definition, common) for definition in definitions}


def _kernel(definition: _Definition, prologue: str) -> Kernel:
    name, symbol = definition.head["name"], kernel_symbol(definition.head["name"])
    parameters = tuple(_parameter(part) for part in split_at(definition.parameters, ",") if part.strip())
    layout, arrays, body = _place_shared_arrays(name, definition.body)
    names = ", ".join(f'"{parameter.name}"' for parameter in parameters)
    indices = ", ".join(f"{cuda} = emulator::{ours}()" for cuda, ours in _INDICES.items())
    source = f"""{layout}
static __global__ void {name}({definition.parameters}) {{
  const emulator::Index {indices};
#line {definition.line} "kernel.cu"
{_VECTOR.sub(_ALIGNED, translate_assembly(body))}
}}
static void {name}__call(void* const* arguments) {{ emulator::call({name}, arguments); }}
static const auto {name}__parameters = emulator::parameters({name}, {{{{{names}}}}});
static const std::array<emulator::SharedArray, {len(arrays)}> {name}__shared = {{{{{", ".join(arrays)}}}}};
extern "C" const emulator::Kernel {symbol};
const emulator::Kernel {symbol} = {{
    "{name}", {name}__call, {name}__parameters.data(), {len(parameters)}, {name}__shared.data(), {len(arrays)},
    emulator::total_bytes({name}__shared), {name}__dynamic, {definition.head["threads"] or 0}, EMULATOR_CHECKED}};
"""
    return Kernel(name, parameters, source, prologue)


def kernel_symbol(name: str) -> str:
    """What a compiled kernel's `emulator::Kernel` is called."""
    return f"{name}__emulated"


def _parameter(text: str) -> Parameter:
    match = re.fullmatch(r"\s*(?P<type>.*?[\s*&])(?P<name>\w+)\s*", text, re.DOTALL)
    if not match:
        raise EmulatorError(f"the CUDA text has a parameter that is not understood: '{text.strip()}'")
    return Parameter(match["name"], match["type"].strip())


def _place_shared_arrays(kernel: str, body: str) -> tuple[str, list[str], str]:
    """Constants that say where the arrays lie, an `emulator::SharedArray` for each of known length, and the body."""
    layout, arrays, end = [], [], "0"

    def place(match: re.Match[str]) -> str:
        nonlocal end
        name, c_type, length = match["name"], match["type"], match["length"]
        if match["extern"]:
            return (
                f"{c_type}* const {name} = reinterpret_cast<{c_type}*>(emulator::shared_memory() + {kernel}__dynamic);"
            )
        begin, stop = f"{kernel}__begin_{name}", f"{kernel}__end_{name}"
        align = max(int(match["align"] or 0), _LEAST_ALIGNMENT)
        layout.append(f"constexpr unsigned {begin} = ({end} + {align - 1}) / {align} * {align};")
        layout.append(f"constexpr unsigned {stop} = {begin} + sizeof({c_type}[{length}]);")
        arrays.append(f'{{"{name}", {begin}, sizeof({c_type}[{length}]), sizeof({c_type})}}')
        end = f"({stop} + {_GAP})"
        place_of = f"*reinterpret_cast<{c_type} (*)[{length}]>(emulator::shared_memory() + {begin})"
        return f"{c_type} (&{name})[{length}] = {place_of};"

    body = _SHARED.sub(place, body)
    if "__shared__" in body:
        raise EmulatorError(f"kernel '{kernel}' declares shared memory in a way that is not understood")
    layout.append(f"constexpr unsigned {kernel}__dynamic = ({end} + 1023) / 1024 * 1024;")
    return "\n".join(layout), arrays, body
