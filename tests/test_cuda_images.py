"""Texts become images: compiled side by side, once, looked at, and found again in the library."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.backends.tvm.cache import cache_folder, cache_key, read_entry, write_entry
from hawq_tvm.backends.tvm.cuda.compiler import CudaCompiler
from hawq_tvm.backends.tvm.cuda.cubin import KernelUse
from hawq_tvm.backends.tvm.cuda.fatbin import read_fatbin
from hawq_tvm.backends.tvm.cuda.images import KernelImage, check_embedded, compile_kernels
from hawq_tvm.core.errors import CompileError

from .fake_cuda import fake_compiler

FAKE = fake_compiler()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_CUDA_LOG", str(tmp_path / "log"))


def runs(folder: Path) -> list[int]:
    """The architectures that the fake compiler was run for, ascending."""
    log = folder / "log"
    return sorted(map(int, log.read_text().split())) if log.exists() else []


def kernel(name: str, *says: str) -> str:
    notes = "".join(f"// {note}\n" for note in says)
    return f'{notes}extern "C" __global__ void {name}(int* y) {{ y[threadIdx.x] = 1; }}\n'


def entry_names(image: KernelImage) -> list[str]:
    return [entry.name for entry in read_fatbin(image.data)]


def test_an_image_has_every_architecture_and_ptx_of_the_lowest(tmp_path: Path) -> None:
    texts = {"f": kernel("f", "registers 40", "shared 96", "stack 8"), "g": kernel("g", "spills 12")}
    images = compile_kernels(texts.items(), (86, 75), FAKE)
    assert {name: entry_names(image) for name, image in images.items()} == {
        "f": ["sm_75", "sm_86", "compute_75"],
        "g": ["sm_75", "sm_86", "compute_75"],
    }
    assert images["f"].uses == {75: KernelUse(40, 96, 8), 86: KernelUse(40, 96, 8)}
    assert (images["f"].spill_bytes, images["g"].spill_bytes) == ({75: 0, 86: 0}, {75: 12, 86: 12})
    assert runs(tmp_path) == [75, 75, 86, 86]


def test_what_was_compiled_once_is_not_compiled_again(tmp_path: Path) -> None:
    texts = {"f": kernel("f", "spills 4")}
    first = compile_kernels(texts.items(), (75,), FAKE)
    assert compile_kernels(texts.items(), (75, 80), FAKE)["f"].uses[75] == first["f"].uses[75]
    assert runs(tmp_path) == [75, 80], "one more architecture is one more compilation"
    assert compile_kernels(texts.items(), (75,), FAKE) == first
    assert runs(tmp_path) == [75, 80]
    compile_kernels({"f": kernel("f", "spills 5")}.items(), (75,), FAKE)
    compile_kernels(texts.items(), (75,), fake_compiler(identity="fake 2.0"))
    assert runs(tmp_path) == [75, 75, 75, 80], "another text, or another compiler"


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b"cut"])
def test_a_damaged_entry_counts_as_absent(damage: bytes, tmp_path: Path) -> None:
    texts = {"f": kernel("f")}
    first = compile_kernels(texts.items(), (75,), FAKE)
    (entry,) = (path for path in cache_folder("cuda").rglob("*") if path.is_file())
    entry.write_bytes(entry.read_bytes()[:-3] if damage == b"cut" else damage)
    assert compile_kernels(texts.items(), (75,), FAKE) == first
    assert runs(tmp_path) == [75, 75]
    assert compile_kernels(texts.items(), (75,), FAKE) == first
    assert runs(tmp_path) == [75, 75], "it was written anew"


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    texts = {"f": kernel("f")}
    assert compile_kernels(texts.items(), (75,), FAKE) == compile_kernels(texts.items(), (75,), FAKE)
    assert runs(tmp_path) == [75, 75]


@given(st.lists(st.binary(max_size=50), max_size=4))
def test_what_is_kept_is_read(parts: list[bytes]) -> None:
    key = cache_key("kept", str(parts))
    assert read_entry("cuda", key) in (None, parts)
    write_entry("cuda", key, *parts)
    assert read_entry("cuda", key) == parts
    assert [path.name for path in cache_folder("cuda").rglob("*") if path.name.startswith("tmp")] == []


def test_keys_tell_texts_apart_however_they_are_split() -> None:
    assert len({cache_key("ab", "c"), cache_key("a", "bc"), cache_key("abc"), cache_key("ab", "c", "")}) == 4


def test_a_compiler_without_the_architecture(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        compile_kernels({"f": kernel("f")}.items(), (75, 80), fake_compiler(80, 90))
    assert str(caught.value).startswith(
        "fake 1.0 (/bin/fake) does not compile for sm_75, only for sm_80, sm_90; CUDA 13.0 does: pip install"
    )
    assert runs(tmp_path) == []


def test_what_the_compiler_says_is_told(tmp_path: Path) -> None:
    texts = {"f": kernel("f"), "bad": kernel("bad", "fails identifier x is undefined")}
    with pytest.raises(CompileError) as caught:
        compile_kernels(texts.items(), (75,), FAKE)
    assert str(caught.value) == (
        "kernel 'bad' does not compile for sm_75 with fake 1.0 (/bin/fake): "
        "kernel.cu(1): error: identifier x is undefined"
    )
    with pytest.raises(CompileError):
        compile_kernels(texts.items(), (75,), FAKE)
    assert runs(tmp_path).count(75) in (3, 4), "what failed is not kept"


def test_code_of_another_architecture_is_refused() -> None:
    with pytest.raises(CompileError, match="^kernel 'f' was compiled for sm_75, and sm_80 of f came$"):
        compile_kernels({"f": kernel("f", "architecture 80")}.items(), (75,), FAKE)


def test_code_without_the_kernel_is_refused() -> None:
    with pytest.raises(CompileError, match="^kernel 'f' was compiled for sm_75, and sm_75 of g came$"):
        compile_kernels({"f": kernel("g")}.items(), (75,), FAKE)


def test_what_is_no_machine_code_is_refused(tmp_path: Path) -> None:
    script = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); [p.with_suffix(s).write_text('no') for s in S]"

    def command(source: Path, architecture: int) -> list[str]:
        import sys

        return [sys.executable, "-c", script.replace("S]", "('.cubin', '.ptx')]"), str(source)]

    with pytest.raises(CompileError, match="^kernel 'f': what was compiled for sm_75 is a truncated cubin$"):
        compile_kernels({"f": kernel("f")}.items(), (75,), CudaCompiler("odd", "odd", (75,), command))


def test_the_library_holds_what_was_compiled() -> None:
    images = compile_kernels({"f": kernel("f"), "g": kernel("g", "registers 9")}.items(), (75, 80), FAKE)
    f, g = images["f"].data, images["g"].data
    check_embedded(b"code" + g + b"more" + f + b"end", images, (75, 80))
    with pytest.raises(CompileError, match="^the library does not hold the machine code of kernel 'g'$"):
        check_embedded(b"code" + f + g[:-1], images, (75, 80))
    with pytest.raises(CompileError, match="^kernel 'f' is there for sm_75, sm_80, compute_75, not for sm_75, comp"):
        check_embedded(f + g, images, (75,))
    with pytest.raises(CompileError, match="^the library holds CUDA text in place of machine code$"):
        check_embedded(f + g + kernel("f").encode(), images, (75, 80))


SPILLS = 'extern "C" __global__ void __launch_bounds__(1024) f(int* y, const int* x) {\n' + "".join(
    ["  int v[200];\n  _Pragma(\"unroll\") for (int i = 0; i < 200; ++i) v[i] = x[i * 1024 + threadIdx.x];\n",
     "  __syncthreads();\n  _Pragma(\"unroll\") for (int i = 0; i < 200; ++i) y[i * 1024 + threadIdx.x] = v[i];\n}\n"]
)  # fmt: skip


def test_spills_are_seen(cuda_compiler: CudaCompiler) -> None:
    """1,024 threads have 64 registers each, and 200 values must live across a barrier."""
    image = compile_kernels({"f": SPILLS}.items(), (75,), cuda_compiler)["f"]
    assert image.uses[75].registers <= 64
    assert image.spill_bytes[75] > 4 * 100
    assert image.uses[75].stack_bytes > 0


def test_what_a_compiler_refuses_names_the_line(cuda_compiler: CudaCompiler) -> None:
    with pytest.raises(CompileError, match=r"^kernel 'f' does not compile for sm_75 with .*error.*undefined"):
        compile_kernels({"f": 'extern "C" __global__ void f(int* y) { y[0] = nothing; }'}.items(), (75,), cuda_compiler)


def test_too_much_static_shared_memory_is_the_compilers_error(cuda_compiler: CudaCompiler) -> None:
    text = 'extern "C" __global__ void f(int* y) { __shared__ int t[13000]; t[threadIdx.x] = y[0]; __syncthreads(); '
    text += "y[threadIdx.x] = t[5 - threadIdx.x]; }"
    with pytest.raises(CompileError, match=r"^kernel 'f' does not compile .*error.*too much shared data"):
        compile_kernels({"f": text}.items(), (75,), cuda_compiler)


def test_processes_share_the_cache(tmp_path: Path) -> None:
    assert cache_folder("cuda") == Path(os.environ["XDG_CACHE_HOME"]) / "hawq_tvm" / "cuda"
