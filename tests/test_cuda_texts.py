"""The CUDA text beside a library, and what TVM's code generator leaves out of it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.backends.tvm.cuda.byte_vectors import with_byte_vectors
from hawq_tvm.backends.tvm.cuda.compiler import CudaCompiler
from hawq_tvm.backends.tvm.cuda.texts import KernelText, format_texts, parse_texts
from hawq_tvm.emulator.toolchain import find_compiler

from .emulated import needs_compiler

sizes = st.integers(1, 2**31 - 1)
kernels = st.builds(
    KernelText,
    name=st.from_regex(r"[a-z_]\w{0,20}", fullmatch=True),
    image=st.binary(max_size=5).map(lambda data: hashlib.sha256(data).hexdigest()),
    grid=st.tuples(sizes, sizes, sizes),
    block=st.tuples(sizes, sizes, sizes),
    dynamic_shared_bytes=st.integers(0, 2**20),
    text=st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=60),
)


@given(st.lists(kernels, max_size=4))
def test_texts_are_read_as_they_were_written(written: list[KernelText]) -> None:
    assert parse_texts(format_texts(written)) == written


def test_a_text_knows_its_hash() -> None:
    kernel = KernelText("f", "0" * 64, (1, 1, 1), (32, 1, 1), 0, "void f();\n")
    assert kernel.sha256 == hashlib.sha256(b"void f();\n").hexdigest()


def test_only_texts_that_make_vectors_of_bytes_get_overloads() -> None:
    plain = "int4 v = make_int4(1, 2, 3, 4); int4 w = make_int4((int)x, 0, 0, 0);"
    assert with_byte_vectors(plain) == plain
    for kind in ("signed char", "uchar", "unsigned char"):
        text = f"int4 v = make_int4(({kind})0, ({kind})0);"
        assert with_byte_vectors(text).endswith(text) and with_byte_vectors(text) != text


AS_CPP = """
#include <cstdio>
#define __device__
#define __forceinline__ inline
#define uchar unsigned char
struct int2 { int x, y; };
struct int4 { int x, y, z, w; };
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
static int2 make_int2(int x, int y) { return {x, y}; }
static int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
#include "text.h"
"""

TEXT = """
int main() {
  signed char none = 0, all = -1;
  int4 a = make_int4((signed char)1, (signed char)-2, (signed char)3, (signed char)-4, none, none, none,
                     (signed char)127, (signed char)-128, none, none, none, all, all, all, all);
  int2 b = make_int2(none, none, all, none, (signed char)5, none, none, none);
  uint2 c = make_uint2((uchar)1, (uchar)2, (uchar)3, (uchar)255, (uchar)0, (uchar)0, (uchar)128, (uchar)0);
  int4 four = make_int4(1, 2, 3, 4);
  printf("%d %d %d %d %d %d %u %u %d", a.x, a.y, a.z, a.w, b.x, b.y, c.x, c.y, four.z);
}
"""


@needs_compiler
def test_bytes_are_packed_the_first_in_the_lowest(tmp_path: Path) -> None:
    (tmp_path / "text.h").write_text(with_byte_vectors(TEXT))
    (tmp_path / "check.cpp").write_text(AS_CPP)
    command = [find_compiler() or "", "-o", tmp_path / "check", tmp_path / "check.cpp", "-lstdc++"]
    subprocess.run(command, check=True)
    said = subprocess.run([tmp_path / "check"], capture_output=True, text=True, check=True).stdout

    def word(*values: int, signed: bool = True) -> int:
        return int.from_bytes(bytes(value & 255 for value in values), "little", signed=signed)

    words = [word(1, -2, 3, -4), word(0, 0, 0, 127), word(-128, 0, 0, 0), -1, word(0, 0, -1, 0), 5]
    unsigned = [word(1, 2, 3, 255, signed=False), word(0, 0, 128, 0, signed=False)]
    assert list(map(int, said.split())) == [*words, *unsigned, 3]


def test_the_overloads_are_cuda(cuda_compiler: CudaCompiler, tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    vector = ", ".join(["(signed char)7"] * 16)
    source.write_text(
        with_byte_vectors(f'extern "C" __global__ void f(int4* y) {{ y[threadIdx.x] = make_int4({vector}); }}\n')
    )
    result = subprocess.run(cuda_compiler.command(source, 75), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
