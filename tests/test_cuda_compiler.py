"""Finding a CUDA compiler, whatever is installed; and the two kinds come to the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hawq_tvm.backends.tvm.cuda import compiler, disassembly
from hawq_tvm.backends.tvm.cuda.compiler import CHOICE, find_cuda_compiler
from hawq_tvm.backends.tvm.cuda.cubin import read_cubin
from hawq_tvm.backends.tvm.cuda.disassembly import find_disassembler, tensor_core_instructions
from hawq_tvm.backends.tvm.cuda.packages import package_roots
from hawq_tvm.core.errors import CompileError

VERSION = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.9, V12.9.86\n"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any CUDA compiler; the folder is in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv(CHOICE, raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(compiler, "TOOLKIT", str(tmp_path / "nothing"))
    monkeypatch.setattr(disassembly, "TOOLKIT", str(tmp_path / "nothing"))
    monkeypatch.setattr(compiler, "package_roots", lambda: ())
    monkeypatch.setattr(disassembly, "package_roots", lambda: ())
    compiler._find.cache_clear()
    find_disassembler.cache_clear()
    monkeypatch.setattr(compiler, "_find", compiler._find.__wrapped__)
    monkeypatch.setattr(disassembly, "find_disassembler", find_disassembler.__wrapped__)
    return folder


def script(folder: Path, name: str, body: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}")
    path.chmod(0o755)
    return path


def nvcc(folder: Path, *codes: str, version: str = VERSION) -> Path:
    listed = "\n".join(codes)
    return script(folder, "nvcc", f"print({listed!r} if '--list-gpu-code' in sys.argv else {version!r})\n")


def test_no_compiler_at_all(bare: Path) -> None:
    with pytest.raises(CompileError) as caught:
        find_cuda_compiler()
    assert str(caught.value) == (
        "no CUDA compiler found, neither nvcc nor NVRTC, and GPU targets need one; "
        "pip install 'hawq-tvm[cuda]' brings one, or install the CUDA toolkit"
    )


def test_nvcc_tells_its_version_and_architectures(bare: Path) -> None:
    path = nvcc(bare, "sm_90", "sm_75", "sm_80", "sm_90a")
    found = find_cuda_compiler()
    assert found.name == f"nvcc 12.9.86 ({path})"
    assert found.architectures == (75, 80, 90)
    command = found.command(Path("/x/3.cu"), 80)
    assert command[:3] == [str(path), "-cubin", "-arch=sm_80"] and command[-3:] == ["-o", "/x/3.cubin", "/x/3.cu"]
    assert "-fmad=false" in command and command[command.index("--keep-dir") + 1] == "/x"


def test_cuda_home_comes_first(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc(bare, "sm_75")
    home = nvcc(bare.parent / "home" / "bin", "sm_80")
    monkeypatch.setenv("CUDA_HOME", str(bare.parent / "home"))
    assert find_cuda_compiler().name.endswith(f"({home})")


def test_one_that_is_named_is_taken(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc(bare, "sm_75")
    other = nvcc(bare.parent / "other", "sm_80")
    monkeypatch.setenv(CHOICE, str(other))
    assert find_cuda_compiler().architectures == (80,)
    monkeypatch.setenv(CHOICE, "nvrtc")
    with pytest.raises(CompileError, match=f"^{CHOICE} is 'nvrtc', and no such CUDA compiler works here; pip install"):
        find_cuda_compiler()
    monkeypatch.setenv(CHOICE, str(bare / "none"))
    with pytest.raises(CompileError, match=rf"^{CHOICE} is '.*/none', and .* works here: .*No such file"):
        find_cuda_compiler()


def test_one_that_fails_is_passed_over_and_told(bare: Path) -> None:
    path = script(bare, "nvcc", "print('driver version mismatch', file=sys.stderr); sys.exit(3)\n")
    with pytest.raises(CompileError, match=rf"found, but failing: {path} fails: driver version mismatch\)"):
        find_cuda_compiler()
    script(bare, "nvcc", "")
    with pytest.raises(CompileError, match=r"found, but failing: .*/nvcc tells no version\)"):
        find_cuda_compiler()


def test_nvrtc_without_its_builtins(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "nvidia" / "cu13"
    (root / "lib").mkdir(parents=True)
    (root / "lib" / "libnvrtc.so.13").write_bytes(b"no library")
    monkeypatch.setattr(compiler, "package_roots", lambda: (root,))
    with pytest.raises(CompileError, match=r"failing: .*libnvrtc.so.13 lacks libnvrtc-builtins.so\)"):
        find_cuda_compiler()
    (root / "lib" / "libnvrtc-builtins.so.13.0").write_bytes(b"no library")
    with pytest.raises(CompileError, match=r"found, but failing: "):
        find_cuda_compiler()


def test_packages_are_found_where_python_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia" / "cu13" / "bin").mkdir(parents=True)
    (tmp_path / "nvidia" / "cublas").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    package_roots.cache_clear()
    try:
        assert tmp_path / "nvidia" / "cu13" in package_roots()
        assert all(root.name.startswith("cu1") for root in package_roots())
    finally:
        package_roots.cache_clear()


TEXT = """
#include <cuda_fp16.h>
#include <mma.h>
#ifdef __CUDACC_RTC__
  #include <cuda/std/cstdint>
  #include <cuda/std/type_traits>
#else
  #include <cstdint>
  #include <type_traits>
#endif
extern "C" __global__ void __launch_bounds__(32) f(int* y, const signed char* x, const signed char* w) {
  using namespace nvcuda;
  wmma::fragment<wmma::matrix_a, 16, 16, 16, signed char, wmma::row_major> a;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, signed char, wmma::col_major> b;
  wmma::fragment<wmma::accumulator, 16, 16, 16, int> c;
  wmma::fill_fragment(c, 0);
  wmma::load_matrix_sync(a, x, 16);
  wmma::load_matrix_sync(b, w, 16);
  wmma::mma_sync(c, a, b, c);
  wmma::store_matrix_sync(y, c, 16, wmma::mem_row_major);
}
"""


def compilers() -> list[str]:
    """The kinds of compilers that this machine has."""
    kinds = ["nvcc"] if shutil.which("nvcc", path=f"{os.environ['PATH']}:/usr/local/cuda/bin") else []
    return kinds + (["nvrtc"] if any(list(root.glob("lib/libnvrtc.so.*")) for root in package_roots()) else [])


@pytest.mark.parametrize("kind", ["nvcc", "nvrtc"])
def test_tensor_core_code_of_each_kind(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind not in compilers():
        pytest.skip(f"needs {kind}, of the CUDA toolkit or of hawq-tvm[cuda]")
    monkeypatch.setenv(CHOICE, kind)
    found = find_cuda_compiler()
    source = tmp_path / "kernel.cu"
    source.write_text(TEXT)
    for number, instruction in ((75, "IMMA.8816.S8.S8"), (80, "IMMA.16816.S8.S8")):
        result = subprocess.run(found.command(source, number), capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert "0 bytes spill stores" in result.stdout + result.stderr
        code = source.with_suffix(".cubin").read_bytes()
        assert read_cubin(code).architecture == number and "f" in read_cubin(code).kernels
        assert f".target sm_{number}" in source.with_suffix(".ptx").read_text()
        if find_disassembler() is not None:
            assert tensor_core_instructions(code) == (instruction,)


@pytest.mark.parametrize("kind", ["nvcc", "nvrtc"])
def test_products_and_sums_stay_two_roundings(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind not in compilers():
        pytest.skip(f"needs {kind}, of the CUDA toolkit or of hawq-tvm[cuda]")
    monkeypatch.setenv(CHOICE, kind)
    source = tmp_path / "kernel.cu"
    source.write_text(
        'extern "C" __global__ void f(float* y) { y[0] = y[1] * y[2] + y[3]; y[4] = fmaf(y[5], y[6], y[7]); }'
    )
    subprocess.run(find_cuda_compiler().command(source, 75), capture_output=True, check=True)
    ptx = source.with_suffix(".ptx").read_text()
    assert ptx.count("mul.rn.f32") == 1 and ptx.count("add.rn.f32") == 1 and ptx.count("fma.rn.f32") == 1


def test_a_disassembler_that_is_not_there(bare: Path) -> None:
    assert tensor_core_instructions(b"") is None


def test_a_disassembler_that_does_not_know_the_code(bare: Path) -> None:
    path = script(bare, "nvdisasm", "sys.exit(255)\n")
    assert disassembly.find_disassembler() == str(path)
    assert tensor_core_instructions(b"") is None


def test_instructions_are_told_apart(bare: Path) -> None:
    listing = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 IMMA.8816.S8.S8 R4, R2.ROW, R3.COL, R4 ;
        /*0020*/                   IMMA.8832.S4.S4 R4, R2.ROW, R3.COL, R4 ;
        /*0030*/              @UP1 IMMA.8816.S8.S8 R4, R2.ROW, R3.COL, R4 ;
        /*0040*/                   IMAD.MOV.U32 R4, RZ, RZ, R2 ;
        /*0050*/                   HMMA.1688.F32 R4, R2, R3, R4 ;
    """
    script(bare, "nvdisasm", f"print({listing!r})\n")
    assert tensor_core_instructions(b"") == ("HMMA.1688.F32", "IMMA.8816.S8.S8", "IMMA.8832.S4.S4")
