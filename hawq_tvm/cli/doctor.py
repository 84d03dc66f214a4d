"""What this machine can do, and what it lacks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from ctypes.util import find_library
from dataclasses import dataclass

from hawq_tvm.backends.tvm.host import architecture, cpu_name, instruction_sets, tiles_granted, usable_cores
from hawq_tvm.core.cpu import AARCH64, X86_64
from hawq_tvm.core.errors import HawqError
from hawq_tvm.core.targets import TARGETS, architectures_of


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        ok: whether it is there and works.
        needed: whether the CPU path needs it.
        detail: what was found, or what to do.
    """

    name: str
    ok: bool
    needed: bool
    detail: str


def examine() -> list[Check]:
    """Look at the CPU, the compilers, TVM, the solvers and the CUDA toolchain; nothing is changed."""
    return [
        Check("Python", sys.version_info >= (3, 11), True, f"{sys.version.split()[0]}; 3.11 or newer is needed"),
        _cpu(),
        _probe("PyTorch", _torch),
        _probe("TVM", _tvm),
        _probe("ONNX Runtime", _onnxruntime),
        _c_compiler(),
        _cross_compiler(),
        _probe("solver CBC", _cbc),
        _package("solver HiGHS", "highspy", "optional; pip install highspy"),
        _package("solver Optuna", "optuna", "optional; pip install optuna"),
        _cuda_compiler(),
        _disassembler(),
        _cuda_driver(),
        _command("NVIDIA GPU", "nvidia-smi", ["--query-gpu=name", "--format=csv,noheader"], "none found"),
    ]


_CPU_SETS = (
    ("amx_int8", "AMX"),
    ("avx512_vnni", "AVX512-VNNI"),
    ("avx512bw", "AVX-512 without VNNI"),
    ("avx_vnni", "AVX-VNNI"),
    ("avx2", "AVX2"),
    ("i8mm", "NEON with int8 matrices"),
    ("asimddp", "NEON with dot products"),
    ("asimd", "NEON without dot products: kernels are slow"),
)
"""What kernels are written for, best first: a set by Linux's name, and what it is called."""


def _cpu() -> Check:
    found = instruction_sets()
    best = next(
        (name for flag, name in _CPU_SETS if flag in found), "no vector instructions known of, kernels are slow"
    )
    granted = ""
    if tiles_granted() is not None:
        granted = (
            ", whose tiles Linux grants; where it does not, libraries compute the same on AVX512-VNNI"
            if tiles_granted()
            else ", but Linux does not grant its tiles (5.16 and later do): "
            "libraries compute the same on AVX512-VNNI, several times slower"
        )
    return Check("CPU", True, True, f"{cpu_name()}, {usable_cores()} usable cores, {best}{granted}")


def _probe(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, True, look())
    except Exception as error:  # a package that is broken may raise anything
        return Check(name, False, True, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _torch() -> str:
    import torch

    from hawq_tvm.backends.pytorch.integer_module import check_exact_float32

    check_exact_float32()
    return f"{torch.__version__}; float32 convolution is exact on integers under 2^24"


def _tvm() -> str:
    import tvm

    from hawq_tvm.backends.tvm.lower import Machine

    machine = Machine.resolve(TARGETS["llvm"])
    llvm = tvm.target.codegen.llvm_version_major()
    return f"{tvm.__version__}, LLVM {llvm}, compiles for {machine.cpu} ({machine.vector_bits}-bit vectors)"


def _onnxruntime() -> str:
    import onnx
    import onnxruntime

    return f"{onnxruntime.__version__}, onnx {onnx.__version__}"


def _c_compiler() -> Check:
    from hawq_tvm.backends.tvm.host import C_COMPILERS, find_c_compiler

    found = find_c_compiler()
    missing = f"none of {', '.join(C_COMPILERS)} found; install one, as with apt install g++"
    return Check("C compiler", found is not None, True, shutil.which(found) or found if found else missing)


def _cross_compiler() -> Check:
    """What links libraries for the other of the architectures that there are targets for."""
    from hawq_tvm.backends.tvm.host import cross_compilers, find_c_compiler

    (other,) = {X86_64, AARCH64} - {architecture()} or {AARCH64}
    found = find_c_compiler(other)
    missing = f"optional, for targets of that architecture; install {cross_compilers(other)[-1]}"
    return Check(f"C compiler for {other}", found is not None, False, found or missing)


def _cbc() -> str:
    import pulp

    if not pulp.PULP_CBC_CMD(msg=False).available():
        raise RuntimeError("PuLP's CBC does not run here; pip install highspy and use --solver highs")
    return f"PuLP {pulp.__version__}"


def _package(name: str, package: str, otherwise: str) -> Check:
    try:
        found = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        found = False
    return Check(name, found, False, "installed" if found else otherwise)


def _command(name: str, command: str, arguments: list[str], otherwise: str) -> Check:
    path = shutil.which(command)
    if path is None:
        return Check(name, False, False, otherwise)
    try:
        result = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return Check(name, False, False, f"{path} fails: {error}")
    lines = result.stdout.strip().splitlines()
    return Check(name, bool(lines), False, lines[-1] if lines else f"{path} says nothing; {otherwise}")


def _cuda_compiler() -> Check:
    """A compiler of kernels for GPU targets, which needs no GPU; and where its results are kept."""
    from hawq_tvm.backends.tvm.cache import cache_folder
    from hawq_tvm.backends.tvm.cuda.compiler import find_cuda_compiler

    try:
        found = find_cuda_compiler()
    except HawqError as error:
        return Check("CUDA compiler", False, False, f"optional, for GPU targets; {error}")
    served = [name for name, target in TARGETS.items() if set(architectures_of(target)) & set(found.architectures)]
    return Check("CUDA compiler", True, False, f"{found.name}, for {', '.join(served)}; cache {cache_folder('cuda')}")


def _disassembler() -> Check:
    """What `inspect` names tensor core instructions by."""
    from hawq_tvm.backends.tvm.cuda.disassembly import find_disassembler

    found = find_disassembler()
    missing = "optional, names tensor core instructions; pip install nvidia-cuda-nvdisasm"
    return Check("CUDA disassembler nvdisasm", found is not None, False, found or missing)


def _cuda_driver() -> Check:
    found = find_library("cuda") or next(
        (
            folder
            for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":")
            if os.path.exists(f"{folder}/libcuda.so.1")
        ),
        None,
    )
    return Check(
        "CUDA driver libcuda",
        found is not None,
        False,
        found or "none; GPU libraries are compiled here, and run elsewhere",
    )
