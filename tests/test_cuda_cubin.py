"""A cubin's section table says what a kernel takes: the same as ptxas says, whatever wrote it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.backends.tvm.cuda.compiler import CudaCompiler
from hawq_tvm.backends.tvm.cuda.cubin import Cubin, KernelUse, read_cubin

from .cubins import make_cubin

TEXT = """
extern "C" __global__ void plain(int* y) { y[threadIdx.x] = 1; }
extern "C" __global__ void __launch_bounds__(128) shared(int* y, const int* x) {
  __shared__ int tile[999];
  for (int i = threadIdx.x; i < 999; i += 128) tile[i] = x[i];
  __syncthreads();
  for (int i = threadIdx.x; i < 999; i += 128) y[i] = tile[998 - i];
}
extern "C" __global__ void __launch_bounds__(128) dynamic(int* y, const int* x) {
  extern __shared__ int asked[];
  asked[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = asked[127 - threadIdx.x];
}
extern "C" __global__ void indexed(int* y, const int* x) {
  int local[64];
  for (int i = 0; i < 64; ++i) local[i] = x[i];
  for (int i = 0; i < 99; ++i) y[i] = local[x[i] & 63];
}
"""

uses = st.builds(KernelUse, st.integers(1, 255), st.integers(0, 9999), st.integers(0, 9999))
names = st.from_regex(r"[a-z_]\w{0,9}", fullmatch=True)
tables = st.dictionaries(names, uses, max_size=4)


@given(st.integers(75, 121), tables, st.sampled_from([7, 8]))
def test_what_was_written_is_read(architecture: int, kernels: dict[str, KernelUse], abi: int) -> None:
    assert read_cubin(make_cubin(architecture, kernels, abi)) == Cubin(architecture, kernels)


@given(tables, st.data())
def test_a_cubin_that_is_cut_off_is_an_error(kernels: dict[str, KernelUse], data: st.DataObject) -> None:
    whole = make_cubin(75, kernels)
    with pytest.raises(ValueError, match="cubin"):
        read_cubin(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_what_a_section_table_does_not_say_is_nothing() -> None:
    """Of a kernel without attributes and without shared memory, as a later compiler might write it."""
    whole = make_cubin(75, {"f": KernelUse(40, 0, 8)})
    assert read_cubin(whole.replace(b".nv.info", b".nv.else")).kernels == {"f": KernelUse(0, 0, 0)}
    assert read_cubin(whole.replace(b".nv.shared.", b".nv.shaded.")).kernels == {"f": KernelUse(40, 0, 8)}


@given(st.binary(max_size=400))
def test_what_is_no_cubin_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="cubin"):
        read_cubin(data)


@pytest.mark.parametrize("architecture", [75, 80, 86, 89, 90, 120])
def test_the_compiler_says_the_same(architecture: int, cuda_compiler: CudaCompiler, tmp_path: Path) -> None:
    source = tmp_path / "kernels.cu"
    source.write_text(TEXT)
    result = subprocess.run(cuda_compiler.command(source, architecture), capture_output=True, text=True, check=True)
    said = result.stdout + result.stderr
    cubin = read_cubin(source.with_suffix(".cubin").read_bytes())
    assert cubin.architecture == architecture
    assert set(cubin.kernels) == {"plain", "shared", "dynamic", "indexed"}
    assert 4 * 999 <= cubin.kernels["shared"].shared_bytes <= 4 * 1000, "filled up to what dynamic memory aligns to"
    assert cubin.kernels["indexed"].stack_bytes == 4 * 64
    blocks = re.split(r"Compiling entry function '(\w+)'", said)
    for name, text in zip(blocks[1::2], blocks[2::2], strict=True):
        use = cubin.kernels[name]
        assert f"Used {use.registers} registers" in text
        assert f"{use.stack_bytes} bytes stack frame" in text
        shared = re.search(r"(\d+) bytes smem", text)
        assert use.shared_bytes == (int(shared[1]) if shared else 0)
