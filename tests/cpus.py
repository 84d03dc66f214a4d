"""CPUs to compile for in tests, by their instruction sets, and which of them this machine can be."""

from __future__ import annotations

import pytest

from hawq_tvm.backends.tvm.host import architecture
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.core.cpu import linux_names
from hawq_tvm.core.targets import TARGETS

CPUS = {target.cpu.llvm: target for target in TARGETS.values() if target.cpu is not None}
"""By LLVM's names."""

HOST = Machine.resolve(TARGETS["llvm"])

UNIT_CPUS = {
    "avx512vnni": "icelake-server",
    "avx512bw": "skylake-avx512",
    "avxvnni": "alderlake",
    "avx2": "haswell",
    "i8mm": "neoverse-v1",
    "usdot": "neoverse-v1",
    "sdot": "neoverse-n1",
}
"""For each unit of the dot product kernels a CPU that has it."""


def lacking(machine: Machine) -> list[str]:
    """What keeps this machine from running code for another one; nothing where it can."""
    if machine.architecture != architecture():
        return [machine.architecture]
    return sorted(set(linux_names(machine.features)) - set(linux_names(HOST.features)))


def resolved(cpu: str) -> Machine:
    """A CPU of `CPUS`; skips the test where this machine lacks an instruction set of it."""
    machine = Machine.resolve(CPUS[cpu])
    if lacking(machine):
        pytest.skip(f"this machine lacks {', '.join(lacking(machine))}")
    return machine


def machine_of(unit: str) -> Machine:
    """A CPU that has a unit, whether or not this machine can run its code."""
    return Machine.resolve(CPUS[UNIT_CPUS[unit]])
