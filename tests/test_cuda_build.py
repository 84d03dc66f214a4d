"""A GPU's library from a machine without one: what it holds is looked at, and whatever fails leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hawq_tvm.backends.tvm import build
from hawq_tvm.backends.tvm.build import build_library, compile_library
from hawq_tvm.backends.tvm.cuda import stubs
from hawq_tvm.backends.tvm.cuda.cubin import KernelUse, read_cubin
from hawq_tvm.backends.tvm.cuda.fatbin import ELF, find_fatbins, read_fatbin
from hawq_tvm.backends.tvm.cuda.images import KernelImage
from hawq_tvm.backends.tvm.cuda.lowering import DeviceKernel, Launch
from hawq_tvm.backends.tvm.cuda.report import check_kernels
from hawq_tvm.backends.tvm.cuda.stubs import make_stubs
from hawq_tvm.backends.tvm.cuda.texts import parse_texts
from hawq_tvm.backends.tvm.host import find_c_compiler
from hawq_tvm.backends.tvm.info import LibraryInfo
from hawq_tvm.backends.tvm.latency import measure_latency
from hawq_tvm.backends.tvm.lower import Lowered, lower
from hawq_tvm.core.errors import CompileError, RuntimeModuleError
from hawq_tvm.core.gpu import T4
from hawq_tvm.core.gpu_model import held_clock
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.specs import Bits
from hawq_tvm.core.targets import TARGETS, architectures_of

from .builders import candidates_of, captured, integers_of, ranges_of, uniform
from .fake_cuda import use_fake_compiler
from .gpu_functions import MACHINE, add_one, calling, reverse

T4_TARGET = TARGETS["nvidia/t4"]


@pytest.fixture
def lowered() -> Lowered:
    return lower(integers_of("Residual", ("w8a8", "w4a4")), T4_TARGET)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that compiles nothing, so that all else can be tested where there is none."""
    use_fake_compiler(monkeypatch)


def entry_names(library: Path) -> list[list[str]]:
    return [[entry.name for entry in read_fatbin(found)] for found in find_fatbins(library.read_bytes())]


def test_the_library_holds_machine_code_of_every_kernel(cuda_compiler: Any, lowered: Lowered, tmp_path: Path) -> None:
    info = build_library(lowered, tmp_path / "model.so")
    data = (tmp_path / "model.so").read_bytes()
    assert info == LibraryInfo.read(tmp_path / "model.so")
    assert info.gpu is not None and info.gpu.compiler == cuda_compiler.name
    assert (info.gpu.architectures, info.gpu.ptx) == (("sm_75",), "compute_75")
    images = {hashlib.sha256(found).hexdigest(): found for found in find_fatbins(data)}
    assert {kernel.image for kernel in info.gpu.kernels.values()} == set(images)
    for name, kernel in info.gpu.kernels.items():
        machine_code, ptx = read_fatbin(images[kernel.image])
        assert (machine_code.name, ptx.name) == ("sm_75", "compute_75")
        assert name in read_cubin(machine_code.code).kernels
        assert f".entry {name}(".encode() in ptx.code
    assert b"__global__" not in data
    assert (info.cpu, info.instruction_sets) == ("", ())


def test_kernels_are_described(cuda_compiler: Any, lowered: Lowered, tmp_path: Path) -> None:
    info = build_library(lowered, tmp_path / "model.so")
    assert info.gpu is not None
    assert list(info.gpu.functions) == list(info.calls)
    assert set(info.gpu.functions.values()) == {kernel.function for kernel in info.gpu.kernels.values()}
    for call in info.calls:
        (kernel,) = info.gpu.launched_by(call).values()
        threads = kernel.block[0] * kernel.block[1] * kernel.block[2]
        assert 0 < kernel.registers <= 255 and kernel.spill_bytes == 0
        taken = (threads, kernel.registers, kernel.shared_bytes)
        assert kernel.blocks_per_sm == T4.architecture.resident_blocks(*taken) > 0
        assert kernel.occupancy == pytest.approx(T4.architecture.occupancy(*taken), abs=1e-4)
    assert info.gpu.device_bytes == lowered.constant_bytes + info.planned_bytes + 3 * 12 * 12


def test_calls_are_predicted_at_the_clock_of_the_whole(fake: None, lowered: Lowered, tmp_path: Path) -> None:
    """The model's own numbers of the offers that were taken, conversions among them."""
    info = build_library(lowered, tmp_path / "model.so")
    assert info.gpu is not None
    offers = {name: lowered.plan.offers[name] for name in lowered.plan.kernels}
    for item, (_, offer) in zip(lowered.plan.conversions, lowered.plan.converters, strict=True):
        offers[f"{item.value} as {item.to}"] = offer
    works = {call: offer.prediction for call, offer in offers.items() if offer.prediction is not None}
    assert works.keys() == set(info.calls)
    clock = held_clock(T4, list(works.values()))
    assert info.gpu.predicted.clock_mhz == pytest.approx(clock, abs=0.05)
    for call, work in works.items():
        predicted = info.gpu.predicted.calls[call]
        assert (predicted.us, predicted.bound) == (pytest.approx(work.us(clock), abs=1e-3), work.bound(clock))
    assert info.gpu.predicted.us == pytest.approx(sum(work.us(clock) for work in works.values()), rel=1e-3)


def test_the_library_says_that_narrow_values_lie_packed(fake: None, tmp_path: Path) -> None:
    """Two values a byte from one 4-bit layer to the next, sums among them, and nothing between that unpacks them."""
    bits = replace(uniform("Residual", Bits(4, 4)), residual=4)
    graph = integerize(captured("Residual"), ranges_of("Residual"), bits)
    build_library(lower(graph, T4_TARGET, storages="channels_last"), tmp_path / "model.so")
    info = LibraryInfo.read(tmp_path / "model.so")
    sizes = {
        "stem": 12 * 12 * 8 // 2,
        "pool": 6 * 6 * 8 // 2,
        **dict.fromkeys(("conv1", "conv2", "project"), 9 * 32 // 2),
    }
    stored = {name: info.values[name] for name in sizes}
    assert {name: value.storage.size_bytes(value.type, 1) for name, value in stored.items()} == sizes
    assert not {item.value for item in info.conversions.values()} & set(sizes)
    assert not [kernel for kernel in info.kernels.values() if "requantize" in kernel]


def test_the_text_lies_beside_the_library(fake: None, lowered: Lowered, tmp_path: Path) -> None:
    info = build_library(lowered, tmp_path / "model.nvidia-t4.so")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.nvidia-t4.cu",
        "model.nvidia-t4.json",
        "model.nvidia-t4.so",
    ]
    text = LibraryInfo.text_beside(tmp_path / "model.nvidia-t4.so").read_text()
    assert info.gpu is not None and hashlib.sha256(text.encode()).hexdigest() == info.gpu.text_sha256
    kernels = parse_texts(text)
    assert [kernel.name for kernel in kernels] == list(info.gpu.kernels)
    for kernel in kernels:
        described = info.gpu.kernels[kernel.name]
        assert (kernel.image, kernel.grid, kernel.block) == (described.image, described.grid, described.block)
        assert f"{kernel.name}(" in kernel.text


def test_the_same_network_comes_to_the_same_bytes(fake: None, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build_library(lower(integers_of("Residual"), T4_TARGET), tmp_path / name / "model.so")
    for file in ("model.so", "model.cu", "model.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_further_gpus_share_the_library(fake: None, lowered: Lowered, tmp_path: Path) -> None:
    also = (TARGETS["nvidia/l4"], TARGETS["nvidia/a10"])
    info = build_library(lowered, tmp_path / "model.so", also=also)
    assert info.gpu is not None and info.gpu.architectures == ("sm_75", "sm_86", "sm_89")
    assert set(map(tuple, entry_names(tmp_path / "model.so"))) == {("sm_75", "sm_86", "sm_89", "compute_75")}


def test_gpus_that_cannot_share_it_are_refused() -> None:
    assert architectures_of(TARGETS["llvm"]) == ()
    assert architectures_of(TARGETS["nvidia/t4"], (TARGETS["nvidia/t4"], TARGETS["nvidia/h100"])) == (75, 90)
    with pytest.raises(CompileError) as caught:
        architectures_of(TARGETS["nvidia/a100"], (TARGETS["nvidia/t4"],))
    assert str(caught.value) == (
        "kernels for 'nvidia/a100' (sm_80) do not run on 'nvidia/t4' (sm_75), which is older; "
        "compile for --target nvidia/t4 --also nvidia/a100"
    )
    for pair in (("llvm", "nvidia/t4"), ("nvidia/t4", "llvm")):
        with pytest.raises(CompileError, match=f"^a library for '{pair[0]}' cannot hold machine code for '{pair[1]}'"):
            architectures_of(TARGETS[pair[0]], (TARGETS[pair[1]],))


def test_functions_without_a_graph_are_packed_too(fake: None, tmp_path: Path) -> None:
    kernels = compile_library(
        calling(add_one, (1000,), "int8"), MACHINE.tvm_target, tmp_path / "a.so", failure="", architectures=(75,)
    )
    assert [kernel.name for kernel, _ in kernels] == ["called_kernel"]
    assert entry_names(tmp_path / "a.so") == [["sm_75", "compute_75"]]


def test_no_cuda_compiler(lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> None:
        raise CompileError("no CUDA compiler found, neither nvcc nor NVRTC")

    monkeypatch.setattr(build, "find_cuda_compiler", find)
    with pytest.raises(CompileError, match="^no CUDA compiler found, neither nvcc nor NVRTC$"):
        build_library(lowered, tmp_path / "model.so")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("note", "told"),
    [
        ("fails out of memory", r"^kernel '\w+' does not compile for sm_75 with fake .*: kernel.cu\(1\): error: out "),
        ("spills 96", r"^kernel '\w+' on sm_75 spills 96 bytes of registers a thread to memory at 32 registers and"),
        ("shared 65537", r"^kernel '\w+' on sm_75 wants 65,537 bytes of shared memory a block, and there are 65,536; "),
        ("architecture 80", r"^kernel '\w+' was compiled for sm_75, and sm_80 of \w+ came$"),
    ],
)  # fmt: skip
def test_a_kernel_that_will_not_do(
    note: str, told: str, fake: None, lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceKernel, "text", property(lambda kernel: f"// {note}\n{kernel.generated}"))
    with pytest.raises(CompileError, match=told):
        build_library(lowered, tmp_path / "model.so")
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_for_which_no_multiprocessor_has_the_registers() -> None:
    kernel = DeviceKernel("f", "f", None, "", Launch((1, 1, 1), (1024, 1, 1), 0))
    check_kernels([(kernel, KernelImage(b"", {75: KernelUse(64, 0, 0)}, {75: 0}))])
    with pytest.raises(
        CompileError, match=r"^kernel 'f' on sm_75 wants 1024 threads of 65 registers, and a multip.* 65,5"
    ):
        check_kernels([(kernel, KernelImage(b"", {75: KernelUse(65, 0, 0)}, {75: 0}))])


def test_dynamic_shared_memory_counts(fake: None) -> None:
    kernel = DeviceKernel("f", "f", None, "", Launch((1, 1, 1), (128, 1, 1), 60000))
    check_kernels([(kernel, KernelImage(b"", {75: KernelUse(32, 5536, 0)}, {75: 0}))])
    with pytest.raises(CompileError, match=r"wants 65,537 bytes of shared memory a block"):
        check_kernels([(kernel, KernelImage(b"", {75: KernelUse(32, 5537, 0)}, {75: 0}))])


def test_a_kernel_is_held_to_every_architecture() -> None:
    """99 KiB a block fit on sm_80 and not on sm_75."""
    kernel = DeviceKernel("f", "f", None, "", Launch((1, 1, 1), (128, 1, 1), 90000))
    image = KernelImage(b"", {75: KernelUse(32, 0, 0), 80: KernelUse(32, 0, 0)}, {75: 0, 80: 0})
    with pytest.raises(CompileError, match="^kernel 'f' on sm_75 wants 90,000 bytes"):
        check_kernels([(kernel, image)])


def test_machine_code_that_does_not_arrive_is_missed(
    fake: None, lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The linker is given other object files than those with the machine code."""

    def without_code(path: str, objects: list[str], cc: str) -> None:
        subprocess.run([cc, "-shared", "-o", path, objects[0]], check=True)

    monkeypatch.setattr(build, "create_shared", without_code)
    with pytest.raises(CompileError, match=r"^the library does not hold the machine code of kernel '\w+'$"):
        build_library(lowered, tmp_path / "model.so")
    assert list(tmp_path.iterdir()) == []


def test_text_in_place_of_machine_code_is_refused(
    fake: None, lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What TVM does by itself where it finds no driver: its module holds the CUDA text."""
    link = build.create_shared

    def with_text(path: str, objects: list[str], cc: str) -> None:
        source = Path(path).with_suffix(".c")
        source.write_text('const char text[] = "extern \\"C\\" __global__ void f() {}";\n')
        link(path, [*objects, str(source)], cc=cc)

    monkeypatch.setattr(build, "create_shared", with_text)
    with pytest.raises(CompileError, match="^the library holds CUDA text in place of machine code$"):
        build_library(lowered, tmp_path / "model.so")


def test_a_batch_that_does_not_fit_the_device(lowered: Lowered, tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        build_library(replace(lowered, planned_bytes=17 * 10**9, batch=4096), tmp_path / "model.so")
    assert str(caught.value) == (
        "a batch of 4096 needs 17.0 GB of device memory, and 'nvidia/t4' has 16 GB; compile for a smaller --batch"
    )


def test_a_driver_is_neither_needed_nor_asked(fake: None, lowered: Lowered, tmp_path: Path) -> None:
    """Where the loader is told to look for every function at once, which the stand-ins do not have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_BIND_NOW", "1")
        build_library(lowered, tmp_path / "model.so")


def test_stand_ins_that_cannot_be_linked(
    fake: None, lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stubs, "LIBRARIES", {"libcuda.so.1": "a version } that is none {"})
    with pytest.raises(CompileError, match=r"^compiling model.so failed: .*(error|syntax)"):
        build_library(lowered, tmp_path / "model.so")


def test_stand_ins_are_empty(tmp_path: Path) -> None:
    made = make_stubs(find_c_compiler() or "", tmp_path)
    assert [path.name for path in made] == ["libcuda.so.1", "libcudart.so.13"]
    for path in made:
        assert path.name.encode() in path.read_bytes() and b"cuLaunch" not in path.read_bytes()


def test_latency_of_a_gpu_is_not_measured_here() -> None:
    with pytest.raises(
        CompileError, match="^kernels for 'nvidia/t4' are timed on a GPU: --device cuda:0 or rpc:HOST:PORT/KEY says"
    ):
        measure_latency(candidates_of("Residual", Bits(8, 8)), T4_TARGET)


def test_kernels_that_share_memory_say_so(cuda_compiler: Any, tmp_path: Path) -> None:
    ((kernel, image),) = compile_library(
        calling(reverse, (2, 3, 128), "int32"),
        MACHINE.tvm_target,
        tmp_path / "a.so",
        failure="",
        architectures=(75, 90),
    )
    assert {number: use.shared_bytes for number, use in image.uses.items()} == {75: 512, 90: 512}
    assert kernel.launch == Launch((3, 2, 1), (128, 1, 1), 0)
    code = next(entry for entry in read_fatbin(image.data) if entry.kind == ELF)
    assert read_cubin(code.code).kernels["called_kernel"] == image.uses[75]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda gpu: gpu.pop("functions"), "gpu.functions is missing"),
        (lambda gpu: gpu["functions"].popitem(), "gpu.functions does not name"),
        (lambda gpu: gpu["predicted"]["calls"].popitem(), "gpu.predicted.calls does not name"),
        (lambda gpu: next(iter(gpu["kernels"].values())).update(grid=[1, 2]), "grid is a list of 2, expected a list"),
    ],
)  # fmt: skip
def test_a_description_that_is_damaged(change: Any, told: str, fake: None, lowered: Lowered, tmp_path: Path) -> None:
    build_library(lowered, tmp_path / "model.so")
    path = tmp_path / "model.json"
    table = json.loads(path.read_text())
    change(table["gpu"])
    path.write_text(json.dumps(table))
    with pytest.raises(RuntimeModuleError, match=f"model.json is corrupted: .*{told}"):
        LibraryInfo.read(tmp_path / "model.so")
