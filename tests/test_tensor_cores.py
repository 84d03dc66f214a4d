"""The shapes that tensor cores multiply, as the facts of each architecture say: one machine instruction each."""

from __future__ import annotations

import pytest

from hawq_tvm.backends.tvm.cuda.compiler import CudaCompiler
from hawq_tvm.backends.tvm.cuda.disassembly import find_disassembler, tensor_core_instructions
from hawq_tvm.backends.tvm.cuda.fatbin import ELF, read_fatbin
from hawq_tvm.backends.tvm.cuda.images import compile_kernels
from hawq_tvm.core.gpu import ARCHITECTURES, SM_80, SM_90, Architecture, MmaShape

OPERANDS = {
    4: [("s4", "s4"), ("u4", "s4"), ("u4", "u4")],
    8: [("s8", "s8"), ("u8", "s8"), ("s8", "u8")],
    16: [("f16", "f16")],
}

pytestmark = pytest.mark.skipif(
    find_disassembler() is None, reason="needs nvdisasm, of the CUDA toolkit or of nvidia-cuda-nvdisasm"
)


def kernel(shape: MmaShape, bits: int, a: str, b: str) -> str:
    """One ``mma`` of PTX; each lane's registers hold its part of the operands."""
    registers = [(shape.m * shape.k, bits), (shape.k * shape.n, bits), (shape.m * shape.n, 32)]
    a_count, b_count, c_count = (elements * width // 32 // 32 for elements, width in registers)
    sum_type, letter, c_type = ("f32", "f", "float") if bits == 16 else ("s32", "r", "int")
    names = [f"%{i}" for i in range(2 * c_count + a_count + b_count)]
    d, rest = names[:c_count], names[c_count:]
    lists = [d, rest[:a_count], rest[a_count : a_count + b_count], rest[a_count + b_count :]]
    operands = ", ".join(f"{{{', '.join(part)}}}" for part in lists)
    outs = ", ".join(f'"={letter}"(y[{i}])' for i in range(c_count))
    ins = ", ".join(
        [f'"r"(x[{i}])' for i in range(a_count + b_count)] + [f'"{letter}"(c[{i}])' for i in range(c_count)]
    )
    return (
        f'extern "C" __global__ void f({c_type}* y, const int* x, const {c_type}* c) {{\n'
        f'  asm volatile("mma.sync.aligned.{shape.ptx}.row.col.{sum_type}.{a}.{b}.{sum_type} {operands};"'
        f" : {outs} : {ins});\n}}\n"
    )


def instructions(text: str, architecture: Architecture, compiler: CudaCompiler) -> tuple[str, ...]:
    image = compile_kernels([("f", text)], (architecture.number,), compiler)["f"]
    (code,) = (entry.code for entry in read_fatbin(image.data) if entry.kind == ELF)
    found = tensor_core_instructions(code)
    assert found is not None
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda architecture: architecture.sm)
def test_every_shape_is_one_instruction(architecture: Architecture, cuda_compiler: CudaCompiler) -> None:
    for bits, shapes in architecture.mma.items():
        for shape in shapes:
            for a, b in OPERANDS[bits]:
                (found,) = instructions(kernel(shape, bits, a, b), architecture, cuda_compiler)
                assert found.startswith(f"{shape.sass}."), (shape, a, b)
                assert bits == 16 or found == f"{shape.sass}.{a}.{b}".upper()


def test_4_bits_are_emulated_in_8_on_hopper(cuda_compiler: CudaCompiler) -> None:
    shape = SM_80.mma[4][0]
    assert 4 not in SM_90.mma
    assert instructions(kernel(shape, 4, "s4", "s4"), SM_90, cuda_compiler) == ("IMMA.16832.S8.S8",)
