"""This machine: its CPU's name, instruction sets and usable cores, its C compiler. Standard library alone."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from hawq_tvm.core.cpu import AARCH64, LINUX_NAMES, X86_64
from hawq_tvm.core.machine import usable_cores as usable_cores

C_COMPILERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")
"""What can link a compiled library; the first that is there is taken, unless the environment names one."""

_ARCHITECTURES = {"AMD64": X86_64, "arm64": AARCH64}
"""What other systems call those that Linux and LLVM name so."""


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    entries: dict[str, str] = {}
    for line in text.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        entries[key.strip()] = value.strip()
    return entries


def cpu_name() -> str:
    """The CPU as its maker calls it, as far as the system tells."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """The vector and integer instruction sets that compiled code may rely on, sorted; empty where not known."""
    flags = _cpuinfo().get("flags") or _cpuinfo().get("Features") or ""
    return sorted(set(flags.split()) & set(LINUX_NAMES.values()))


def architecture() -> str:
    """This machine's, as Linux and LLVM call it."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def why_not_run(target: str, cpu: str, needed: Iterable[str]) -> str | None:
    """Why this machine does not run code of a CPU; None where it does, as far as the system tells.

    Args:
        target: the code's name, for the sentence.
        cpu: the architecture.
        needed: its instruction sets, by Linux's names.
    """
    if cpu != architecture():
        return f"'{target}' is for {cpu}, and this machine is {architecture()}"
    lacking = sorted(set(needed) - set(instruction_sets()))
    return f"'{target}' needs {', '.join(lacking)}, which this CPU lacks" if lacking else None


def tiles_granted() -> bool | None:
    """Whether Linux grants this process AMX's tiles; None where the CPU has none.

    Asking is granting: a process that asks gets the state that tiles are (Linux, Documentation/arch/x86/xstate.rst).
    """
    if not {"amx_tile", "amx_int8"} <= set(instruction_sets()):
        return None
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    answer = ctypes.CDLL(None).syscall(*map(ctypes.c_long, (arch_prctl, request_permission, tile_data)))
    return int(answer) == 0


def default_threads() -> int:
    """All usable cores, or fewer where TVM_NUM_THREADS bounds TVM's pool."""
    bound = os.environ.get("TVM_NUM_THREADS", "")
    return min(usable_cores(), int(bound)) if bound.isdecimal() and int(bound) > 0 else usable_cores()


def find_c_compiler(target: str = "") -> str | None:
    """The compiler that links libraries; None where there is none.

    Args:
        target: the architecture that they are for, by default this machine's. For another one it is TARGET_CXX, or
            GCC's cross compiler; for its own CXX, CC or the first of `C_COMPILERS`.
    """
    if target and target != architecture():
        known = (os.environ.get("TARGET_CXX"), *cross_compilers(target))
    else:
        known = (os.environ.get("CXX") or os.environ.get("CC"), *C_COMPILERS)
    return next((name for name in known if name and shutil.which(name)), None)


def cross_compilers(target: str) -> tuple[str, ...]:
    """GCC's for another architecture, as Debian, Fedora and Arch name them."""
    return tuple(f"{target}-linux-gnu-{name}" for name in ("g++", "gcc"))
