"""Networks compiled for CPUs that this machine need not be: run where it can, refused in a sentence where it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from hawq_tvm.backends.tvm import build, host, runtime
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.host import architecture, find_c_compiler, why_not_run
from hawq_tvm.backends.tvm.latency import measure_latency
from hawq_tvm.backends.tvm.lower import Machine, lower
from hawq_tvm.backends.tvm.runtime import CompiledModule
from hawq_tvm.core import interpreter
from hawq_tvm.core.errors import CompileError, RuntimeModuleError
from hawq_tvm.core.specs import Bits
from hawq_tvm.stages.verify import verify_where_it_runs

from .builders import candidates_of, integer_samples, integers_of, same
from .cpus import CPUS, UNIT_CPUS, lacking, machine_of
from .test_cpu import UNITS

ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
"""Of the ELF header's field ``e_machine`` (System V ABI, and its supplements)."""


@pytest.mark.parametrize(
    ("cpu", "network"),
    [*((cpu, "Residual") for cpu in CPUS), ("haswell", "Mobile"), ("alderlake", "Mobile"), ("neoverse-v1", "Mobile")],
)
def test_a_library_for_any_cpu(cpu: str, network: str, tmp_path: Path) -> None:
    """Its layers are the unit's; it is exact where this machine runs it, and refused where not."""
    target = CPUS[cpu]
    machine = Machine.resolve(target)
    if find_c_compiler(machine.architecture) is None:
        pytest.skip(f"no C compiler for {machine.architecture}")
    graph = integers_of(network)
    library = tmp_path / target.library_name
    info = build_library(lower(graph, target, storages="channels_last"), library)
    assert int.from_bytes(library.read_bytes()[18:20], "little") == ELF_MACHINES[machine.architecture]
    assert (info.architecture, info.cpu) == (machine.architecture, cpu)
    if cpu != "sapphirerapids":
        assert any(kernel.endswith(f"_{UNITS[cpu]}") for kernel in info.kernels.values()), info.kernels
    if not lacking(machine):
        x = integer_samples(graph)
        assert same(interpreter.run(graph, x), CompiledModule(library).values(x)) == []
        return
    other = f"was compiled for {machine.architecture} .*, and this machine is {architecture()}; compile it here"
    wrong_sets = rf"was compiled for a CPU \({cpu}\) with .*, which this one lacks; compile it here"
    with pytest.raises(RuntimeModuleError, match=other if machine.architecture != architecture() else wrong_sets):
        CompiledModule(library)


@pytest.mark.parametrize("hidden", ["avx2", "avx512_vnni"])
def test_a_cpu_with_fewer_instruction_sets_refuses_before_the_first_call(
    hidden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never SIGILL."""
    target = CPUS["icelake-server"]
    if architecture() != "x86_64":
        pytest.skip("speaks of x86")
    build_library(lower(integers_of("Residual"), target), tmp_path / "model.so")
    left = sorted(set(host.instruction_sets()) - {hidden})
    monkeypatch.setattr(runtime, "instruction_sets", lambda: left)
    with pytest.raises(RuntimeModuleError, match=rf"icelake-server\) with .*{hidden}.*, which this one lacks"):
        CompiledModule(tmp_path / "model.so")


def test_without_a_cross_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "aarch64" if architecture() == "x86_64" else "x86_64"
    monkeypatch.setattr(shutil, "which", lambda name: None if other in name else f"/usr/bin/{name}")
    monkeypatch.delenv("TARGET_CXX", raising=False)
    target = CPUS["neoverse-n1" if other == "aarch64" else "haswell"]
    with pytest.raises(CompileError, match=f"no C compiler for {other} found .*-linux-gnu-gcc.*variable TARGET_CXX"):
        build_library(lower(integers_of("Residual"), target), tmp_path / "model.so")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("TARGET_CXX", "my-gcc")
    assert build.find_c_compiler(other) == "my-gcc"


@pytest.mark.parametrize("unit", UNIT_CPUS)
def test_every_unit_has_a_cpu(unit: str) -> None:
    assert unit in UNITS.values() or unit == "usdot"
    assert machine_of(unit).features


# Beyond the library


def other_cpu() -> str:
    """Of the architecture that this machine is not."""
    return "neoverse-n1" if architecture() == "x86_64" else "haswell"


def test_why_a_machine_does_not_run_code() -> None:
    assert why_not_run("here", architecture(), ()) is None
    assert why_not_run("here", architecture(), host.instruction_sets()) is None
    assert why_not_run("moon/1", architecture(), ["avx1024"]) == "'moon/1' needs avx1024, which this CPU lacks"
    assert why_not_run("moon/2", "vax", ()) == f"'moon/2' is for vax, and this machine is {architecture()}"


def test_kernels_of_another_cpu_are_not_timed_here() -> None:
    target = CPUS[other_cpu()]
    with pytest.raises(CompileError, match="so that its kernels cannot be timed here; --latency-from model predicts"):
        measure_latency(candidates_of("Residual", Bits(8, 8)), target)


def test_a_run_for_another_cpu_says_that_nothing_verifies_it() -> None:
    notes: list[str] = []
    work = SimpleNamespace(
        target=CPUS[other_cpu()], why_not_here="it is elsewhere", reporter=SimpleNamespace(note=notes.append)
    )
    assert verify_where_it_runs(work) is None  # type: ignore[arg-type]
    assert notes == ["it is elsewhere; the library was not run, and nothing verifies it"]
