"""CPUs to compile for: what is stated of them beside what LLVM knows, and what a library of theirs needs."""

from __future__ import annotations

import pytest

from hawq_tvm.backends.tvm import lower
from hawq_tvm.backends.tvm.host import architecture, instruction_sets
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.core.cpu import AMX, LINUX_NAMES, CpuFacts, linux_names
from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.targets import TARGETS, Target
from hawq_tvm.kernels import unit_of

from .cpus import CPUS

UNITS = {
    "haswell": "avx2",
    "alderlake": "avxvnni",
    "skylake-avx512": "avx512bw",
    "cascadelake": "avx512vnni",
    "icelake-server": "avx512vnni",
    "znver4": "avx512vnni",
    "sapphirerapids": "avx512vnni",
    "cortex-a76": "sdot",
    "neoverse-n1": "sdot",
    "neoverse-v1": "i8mm",
    "neoverse-v2": "i8mm",
}


@pytest.mark.parametrize("cpu", CPUS)
def test_llvm_knows_the_cpu_and_what_is_said_of_it(cpu: str) -> None:
    target = CPUS[cpu]
    assert target.cpu is not None
    machine = Machine.resolve(target)
    assert set(target.cpu.sets) <= machine.features
    assert (machine.cpu, machine.architecture) == (cpu, target.cpu.architecture)
    assert machine.vector_bits == (512 if "avx512f" in machine.features else 256 if "avx2" in machine.features else 128)
    unit = unit_of(machine.features)
    assert unit is not None
    assert unit.name == UNITS[cpu]


def test_instruction_sets_by_llvms_names_are_called_otherwise_by_linux() -> None:
    assert linux_names(["avxvnni", "avx512vnni", "dotprod", "bmi"]) == ("asimddp", "avx512_vnni", "avx_vnni", "bmi1")
    assert linux_names(AMX) == (), "kernels ask for tiles in every call"
    assert len(set(LINUX_NAMES.values())) == len(LINUX_NAMES)


def test_a_cpu_of_unknown_sets_or_architecture_is_refused() -> None:
    with pytest.raises(CompileError, match="no CPU of x86_64 with avx1024 is known"):
        CpuFacts("one", "x86_64", "a CPU", ("avx2", "avx1024"))
    with pytest.raises(CompileError, match="no CPU of vax"):
        CpuFacts("one", "vax", "a CPU", ("avx2",))


@pytest.mark.skipif(architecture() != "x86_64", reason="speaks of x86")
@pytest.mark.parametrize("hidden", ["avx512_vnni", "gfni", "fma"])
def test_what_a_virtual_machine_hides_is_not_compiled_for(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM goes by the CPU's name alone."""
    (name,) = (llvm for llvm, linux in LINUX_NAMES.items() if linux == hidden)
    if hidden not in instruction_sets():
        pytest.skip(f"this machine lacks {hidden}")
    monkeypatch.setattr(lower, "instruction_sets", lambda: sorted(set(instruction_sets()) - {hidden}))
    machine = Machine.resolve(TARGETS["llvm"])
    assert name not in machine.features
    assert f"-{name}" in str(machine.tvm_target)


def test_a_system_that_does_not_say_what_it_has_is_taken_by_its_cpus_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "instruction_sets", list)
    assert Machine.resolve(TARGETS["llvm"]).features >= {"sse4.2"} or architecture() != "x86_64"


def test_tiles_can_be_left_alone() -> None:
    target = Target("test", "llvm", "a CPU with tiles", attributes={"mcpu": "sapphirerapids"}, without=AMX)
    machine = Machine.resolve(target)
    assert not machine.features & AMX
    assert "avx512vnni" in machine.features
    assert "-amx-int8" in str(machine.tvm_target)
    assert not Machine.resolve(TARGETS["llvm/no-amx"]).features & AMX
