"""This machine: its CPU's name, instruction sets and usable cores, its C compiler. Standard library alone."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
from functools import cache
from pathlib import Path

from hawq_tvm.core.machine import usable_cores as usable_cores

_RELEVANT = re.compile(r"(avx|amx|fma|bmi|sse4|ssse3|f16c|gfni|vaes|vpclmul|asimd|sve|i8mm|bf16|dotprod).*")

C_COMPILERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")
"""What can link a compiled library; the first that is there is taken, unless the environment names one."""


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
    return sorted(flag for flag in flags.split() if _RELEVANT.fullmatch(flag))


def needed_instruction_sets() -> tuple[str, ...]:
    """What a library compiled for this CPU cannot do without, sorted.

    Tiles are not among it: kernels ask for them in every call, and compute the same on vectors where they get none.
    """
    return tuple(flag for flag in instruction_sets() if not flag.startswith("amx"))


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


def find_c_compiler() -> str | None:
    """The compiler that links libraries: CXX, CC or the first of `C_COMPILERS`; None where there is none."""
    named = os.environ.get("CXX") or os.environ.get("CC")
    return next((name for name in (named, *C_COMPILERS) if name and shutil.which(name)), None)
