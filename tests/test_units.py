"""The instructions that each unit promises are in the machine code, on machines that cannot run it, too."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
import tvm

from hawq_tvm.core.ir import IntType, TensorType, Window
from hawq_tvm.kernels import Request
from hawq_tvm.kernels.x86.units import pairs_fit

from .cpus import machine_of
from .dot_kernels import UNIT, kernel_of, offer_of
from .test_dot_conv2d import conv, request_for
from .test_dot_linear import linear_request


def assembly(request: Request, unit: str, *, depthwise: bool = False) -> str:
    """Of a unit's kernel, for a CPU that has it."""
    kernel = offer_of(kernel_of(request, UNIT[unit], depthwise=depthwise), request).build()
    module = tvm.IRModule({"kernel": kernel.function.with_attr("global_symbol", "kernel")})
    return str(tvm.compile(module, target=machine_of(unit).tvm_target).mod.inspect_source("asm"))


def mnemonics(text: str) -> set[str]:
    """With the first operand's kind of register: ``vpdpbusd ymm``."""
    lines = re.findall(r"^\s+(?:\{vex\}\s+)?([a-z]\w*)\s+(.*)$", text, re.MULTILINE)
    registers = re.compile(r"%([xyz]mm)\d+\s*$|^v\d+\.(\w+)")
    found = set()
    for name, operands in lines:
        match = registers.search(operands.split("#")[0].strip())
        found.add(f"{name} {next(filter(None, match.groups()))}" if match else name)
    return found


CONVOLUTIONS: Sequence[tuple[str, int, str, set[str]]] = [
    ("avx512vnni", 8, "u8", {"vpdpbusd zmm"}),
    ("avx512vnni", 4, "u8", {"vpdpbusd zmm", "vgf2p8affineqb zmm"}),
    ("avx512bw", 8, "u8", {"vpmaddwd zmm"}),
    ("avx512bw", 4, "u8", {"vpmaddubsw zmm", "vpmaddwd zmm"}),
    ("avxvnni", 8, "u8", {"vpdpbusd ymm"}),
    ("avxvnni", 4, "u8", {"vpdpbusd ymm", "vgf2p8affineqb ymm"}),
    ("avx2", 8, "u8", {"vpmaddwd ymm"}),
    ("avx2", 4, "u8", {"vpmaddubsw ymm", "vpmaddwd ymm"}),
    ("avx2", 8, "u7", {"vpmaddubsw ymm", "vpmaddwd ymm"}),
    ("sdot", 8, "u8", {"sdot 4s"}),
    ("sdot", 8, "s8", {"sdot 4s"}),
    ("usdot", 8, "u8", {"usdot 4s"}),
    ("usdot", 8, "s8", {"sdot 4s"}),
    ("i8mm", 8, "u8", {"usmmla 4s"}),
    ("i8mm", 8, "s8", {"smmla 4s"}),
    ("i8mm", 4, "u8", {"usmmla 4s"}),
]


@pytest.mark.parametrize(("unit", "bits", "x", "promised"), CONVOLUTIONS)
def test_convolutions_are_made_of_the_promised_instructions(unit: str, bits: int, x: str, promised: set[str]) -> None:
    op = conv(16, 48, Window((3, 3), pads=(1, 1, 1, 1)), bits=bits)
    request = request_for(op, TensorType(IntType.parse(x), (16, 5, 9), 1.0), "u8", unit=UNIT[unit])
    found = mnemonics(assembly(request, unit))
    assert promised <= found, sorted(found)
    if bits == 8 and x == "u8":
        assert not any(name.startswith("vpmaddubsw") for name in found), "it saturates"


@pytest.mark.parametrize("unit", [name for name, unit in UNIT.items() if unit.step == 4])
def test_depthwise_convolutions_and_linear_layers_are_too(unit: str) -> None:
    instruction = {"avx512bw": "vpmaddwd", "avx2": "vpmaddwd", "sdot": "sdot", "usdot": "usdot"}.get(unit, "vpdpbusd")
    op = conv(32, 32, Window((3, 3), pads=(1, 1, 1, 1)), groups=32)
    request = request_for(op, TensorType(IntType.parse("u8"), (32, 5, 9), 1.0), "u8", unit=UNIT[unit])
    linear = linear_request(70, 64, 8, ("u8", "u8", "u8"), 40, unit=UNIT[unit])
    for text in (assembly(request, unit, depthwise=True), assembly(linear, unit)):
        assert any(name.startswith(f"{instruction} ") for name in mnemonics(text))


def test_avx_vnni_is_encoded_as_avx() -> None:
    """Alder Lake has no EVEX: LLVM writes ``{vex}`` before an instruction that has both encodings."""
    op = conv(16, 48, Window((3, 3)))
    request = request_for(op, TensorType(IntType.parse("u8"), (16, 5, 9), 1.0), "u8", unit=UNIT["avxvnni"])
    text = assembly(request, "avxvnni")
    assert re.findall(r"vpdpbusd", text)
    assert len(re.findall(r"\{vex\}\s+vpdpbusd", text)) == len(re.findall("vpdpbusd", text))
    assert "zmm" not in text


def test_pairs_fit_to_the_last_one() -> None:
    assert pairs_fit(np.full((2, 4), -8, np.int8), 255)
    assert pairs_fit(np.full((2, 4), 64, np.int8), 255)
    assert not pairs_fit(np.full((2, 4), 65, np.int8), 255)
    assert pairs_fit(np.full((2, 4), -128, np.int8), 127)
