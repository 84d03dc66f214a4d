"""CPUs to compile for in tests, by their instruction sets, and which of them this machine can be."""

from __future__ import annotations

import platform

import pytest

from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.core.targets import TARGETS, Target

NAMES = ("haswell", "skylake-avx512", "cascadelake", "icelake-server", "alderlake")
"""AVX2; AVX-512; with VNNI; with GFNI and VBMI; AVX2 with VNNI. LLVM's names."""

CPUS = {cpu: Target(f"llvm/{cpu}", "llvm", "for tests", attributes={"mcpu": cpu}) for cpu in NAMES}
HOST = Machine.resolve(TARGETS["llvm"])

UNIT_CPUS = {"avx512vnni": "icelake-server", "avx512bw": "skylake-avx512", "avxvnni": "alderlake", "avx2": "haswell"}
"""For each unit of the dot product kernels a CPU whose best it is."""

_SETS = ("avx", "gfni", "fma", "bmi", "sse", "amx")


def instruction_sets(machine: Machine) -> frozenset[str]:
    """Without the features that only tune."""
    return frozenset(name for name in machine.features if name.startswith(_SETS))


def lacking(machine: Machine) -> list[str]:
    """What keeps this machine from running code for another one; nothing where it can."""
    if HOST.features and platform.machine() != "x86_64":
        return [f"{machine.cpu}'s architecture"]
    return sorted(instruction_sets(machine) - instruction_sets(HOST))


def resolved(cpu: str) -> Machine:
    """A CPU of `CPUS`; skips the test where this machine lacks an instruction set of it."""
    machine = Machine.resolve(CPUS[cpu])
    if lacking(machine):
        pytest.skip(f"this machine lacks {', '.join(lacking(machine))}")
    return machine


def machine_of(unit: str) -> Machine:
    """A CPU whose best unit of that name is, whether or not this machine can run its code."""
    return Machine.resolve(CPUS[UNIT_CPUS[unit]])
