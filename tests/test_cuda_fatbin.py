"""The container of a kernel's code: what is written is read, and is what NVIDIA's own tool writes."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.backends.tvm.cuda.compiler import CudaCompiler
from hawq_tvm.backends.tvm.cuda.fatbin import ELF, PTX, Entry, find_fatbins, read_fatbin, write_fatbin

from .cubins import make_cubin, make_ptx

architectures = st.integers(75, 121)
cubins = architectures.map(lambda number: Entry(ELF, number, make_cubin(number, {})))
texts = architectures.map(lambda number: Entry(PTX, number, make_ptx(number, "f" * (number % 9))))
containers = st.lists(cubins | texts, min_size=1, max_size=4).map(write_fatbin)


@given(st.lists(cubins | texts, max_size=4))
def test_what_was_written_is_read(entries: list[Entry]) -> None:
    found = read_fatbin(write_fatbin(entries))
    assert [(entry.kind, entry.architecture) for entry in found] == [(e.kind, e.architecture) for e in entries]
    for got, put in zip(found, entries, strict=True):
        assert got.code[: len(put.code)] == put.code and not any(got.code[len(put.code) :])
        assert len(got.code) % 8 == 0 and len(got.code) - len(put.code) <= 8
        assert got.kind == ELF or got.code.endswith(b"\0"), "a driver reads PTX to a zero"


def test_entries_are_named_as_compilers_name_them() -> None:
    assert [Entry(ELF, 75, b"").name, Entry(PTX, 80, b"").name] == ["sm_75", "compute_80"]


@given(containers, st.data())
def test_a_container_that_is_cut_off_is_an_error(whole: bytes, data: st.DataObject) -> None:
    with pytest.raises(ValueError, match="fatbin"):
        read_fatbin(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(containers, st.data())
def test_a_container_whose_sizes_lie_is_an_error(whole: bytes, data: st.DataObject) -> None:
    """Sizes of the whole, of the first entry's header or of its code that reach past what there is, or nowhere."""
    place, form = data.draw(st.sampled_from([(8, "<Q"), (16 + 4, "<I"), (16 + 8, "<Q")]))
    beyond = st.integers(len(whole), 2 ** (8 * struct.calcsize(form)) - 1)
    lie = data.draw(beyond if place != 16 + 4 else st.just(0) | beyond)
    changed = bytearray(whole)
    struct.pack_into(form, changed, place, lie)
    with pytest.raises(ValueError, match=r"^a truncated fatbin$"):
        read_fatbin(bytes(changed))


def test_a_container_that_ends_within_an_entrys_header_is_an_error() -> None:
    whole = write_fatbin([Entry(ELF, 75, make_cubin(75, {}))])
    short = bytearray(whole[: 16 + 63])
    struct.pack_into("<Q", short, 8, 63)
    with pytest.raises(ValueError, match=r"^a truncated fatbin$"):
        read_fatbin(bytes(short))


@given(st.binary(min_size=16, max_size=100))
def test_what_is_no_container_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^not a fatbin$"):
        read_fatbin(data)


def test_an_empty_container_has_no_entry() -> None:
    assert read_fatbin(write_fatbin([])) == []
    assert list(find_fatbins(b"x" + write_fatbin([]) + b"y")) == [write_fatbin([])]


def test_ptx_without_a_version_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^PTX without a version$"):
        write_fatbin([Entry(PTX, 75, b".target sm_75\n")])


def test_the_versions_are_those_of_the_code() -> None:
    """Of PTX as its text says; of a cubin that of its binary interface, which CUDA 13 counts as 8."""
    for abi in (7, 8):
        whole = write_fatbin([Entry(ELF, 75, make_cubin(75, {}, abi))])
        assert struct.unpack_from("<HH", whole, 16 + 24) == (abi, 1)
    text = make_ptx(75).replace(b".version 9.0", b".version 8.4")
    assert struct.unpack_from("<HH", write_fatbin([Entry(PTX, 75, text)]), 16 + 24) == (4, 8)


def test_a_compressed_container_is_an_error() -> None:
    whole = bytearray(write_fatbin([Entry(ELF, 75, make_cubin(75, {}))]))
    struct.pack_into("<I", whole, 16 + 16, 99)
    with pytest.raises(ValueError, match="compressed"):
        read_fatbin(bytes(whole))


@given(st.lists(containers, max_size=3), st.binary(max_size=9))
def test_every_container_of_a_file_is_found(written: list[bytes], between: bytes) -> None:
    file = between.join([b"", *written, b""])
    assert list(find_fatbins(file)) == written


def test_a_container_is_not_looked_for_in_another() -> None:
    """PTX may hold any bytes in a comment; and the file may end where one begins."""
    inner = write_fatbin([])
    outer = write_fatbin([Entry(PTX, 75, b"//" + inner + make_ptx(75))])
    assert list(find_fatbins(outer + inner)) == [outer, inner]
    assert list(find_fatbins(inner[:8])) == [b""]
    assert list(find_fatbins(inner + inner[:15])) == [inner, b""]


def test_nvidias_own_tool_writes_the_same(cuda_compiler: CudaCompiler, tmp_path: Path) -> None:
    fatbinary = shutil.which("fatbinary")
    if fatbinary is None:
        pytest.skip("needs NVIDIA's fatbinary, of the CUDA toolkit")
    source = tmp_path / "kernel.cu"
    source.write_text('extern "C" __global__ void f(int* y) { y[threadIdx.x] = 1; }\n')
    entries, images = [], []
    for number in (75, 80, 90):
        subprocess.run(cuda_compiler.command(source, number), capture_output=True, check=True)
        cubin = source.with_suffix(".cubin").rename(tmp_path / f"{number}.cubin")
        entries.append(Entry(ELF, number, cubin.read_bytes()))
        images.append(f"--image3=kind=elf,sm={number},file={cubin}")
    subprocess.run(cuda_compiler.command(source, 75), capture_output=True, check=True)
    ptx = source.with_suffix(".ptx")

    def theirs(*given: str) -> bytes:
        made = tmp_path / "theirs.fatbin"
        subprocess.run([fatbinary, f"--create={made}", "--64", "--compress=false", *given], check=True)
        return made.read_bytes()

    assert write_fatbin(entries) == theirs(*images)
    # Of PTX it takes the comments out; all that stands before the text is the same but for the text's length.
    text = Entry(PTX, 75, ptx.read_bytes())
    ours, same = write_fatbin([text]), theirs(f"--image3=kind=ptx,sm=75,file={ptx}")
    size = slice(16 + 8, 16 + 16)
    assert ours[16:96][:8] == same[16:96][:8] and ours[32:96] == same[32:96]
    (theirs_size,) = struct.unpack("<Q", same[size])
    assert theirs_size == len(same) - 96
