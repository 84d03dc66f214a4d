"""CPUs to compile for in tests, by their instruction sets: older than this machine's, so that it can run them."""

from __future__ import annotations

import pytest

from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.core.targets import TARGETS, Target

NAMES = ("haswell", "skylake-avx512", "cascadelake", "icelake-server")
"""AVX2; AVX-512; with VNNI; with GFNI and VBMI. LLVM's names."""

CPUS = {cpu: Target(f"llvm/{cpu}", "llvm", "for tests", attributes={"mcpu": cpu}) for cpu in NAMES}
HOST = Machine.resolve(TARGETS["llvm"])

_SETS = ("avx", "gfni", "fma", "bmi", "sse", "amx")


def instruction_sets(machine: Machine) -> frozenset[str]:
    """Without the features that only tune."""
    return frozenset(name for name in machine.features if name.startswith(_SETS))


def resolved(cpu: str) -> Machine:
    """A CPU of `CPUS`; skips the test where this machine lacks an instruction set of it."""
    machine = Machine.resolve(CPUS[cpu])
    lacking = instruction_sets(machine) - instruction_sets(HOST)
    if lacking:
        pytest.skip(f"this machine lacks {', '.join(sorted(lacking))}")
    return machine
