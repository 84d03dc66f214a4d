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


CHECK = """
#define uchar unsigned char
extern "C" __global__ void f(int* y) {
  signed char one = 1, none = 0;
  int4 a = make_int4((signed char)1, (signed char)-2, (signed char)3, (signed char)-4, none, none, none,
                     (signed char)127, (signed char)-128, none, none, none, (signed char)-1, (signed char)-one,
                     (signed char)-one, (signed char)-one);
  uint2 b = make_uint2((uchar)1, (uchar)2, (uchar)3, (uchar)255, (uchar)0, (uchar)0, (uchar)128, (uchar)0);
  y[0] = a.x; y[1] = a.y; y[2] = a.z; y[3] = a.w; y[4] = b.x; y[5] = b.y;
}
"""


def test_bytes_are_packed_the_first_in_the_lowest(cuda_compiler: CudaCompiler, tmp_path: Path) -> None:
    """The compiler folds them to constants, which stand in the PTX."""
    source = tmp_path / "check.cu"
    source.write_text(with_byte_vectors(CHECK))
    subprocess.run(cuda_compiler.command(source, 75), capture_output=True, check=True)
    ptx = source.with_suffix(".ptx").read_text()

    def word(*values: int) -> int:
        return int.from_bytes(bytes(value & 255 for value in values), "little", signed=True)

    for value in (word(1, -2, 3, -4), word(0, 0, 0, 127), word(-128, 0, 0, 0), -1, word(1, 2, 3, 255), 128 << 16):
        assert f", {value};" in ptx
