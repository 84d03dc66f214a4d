"""The machines that a graph can be compiled for, one row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hawq_tvm.core.cpu import (
    AARCH64,
    ALDERLAKE,
    AMX,
    CASCADELAKE,
    CORTEX_A76,
    HASWELL,
    ICELAKE_SERVER,
    LINUX_NAMES,
    NEOVERSE_N1,
    NEOVERSE_V1,
    NEOVERSE_V2,
    SAPPHIRERAPIDS,
    SKYLAKE_AVX512,
    X86_64,
    ZNVER4,
    CpuFacts,
)
from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.gpu import A10, A100, H100, L4, MAX_THREADS_PER_BLOCK, T4, WARP_SIZE, GpuFacts


@dataclass(frozen=True)
class Target:
    """A machine to compile for.

    Attributes:
        name: what the user writes.
        kind: TVM's target kind; kernels accept by it.
        summary: what it is, for the reader.
        host_cpu: whether the CPU of the compiling machine is detected and compiled for (``mcpu``).
        attributes: further attributes of the TVM target.
        gpu: what is known of the GPU; None for a CPU.
        cpu: what is known of the CPU; None for a GPU, and where it is this machine's.
        without: instruction sets to leave alone, by LLVM's names.
    """

    name: str
    kind: str
    summary: str
    host_cpu: bool = False
    attributes: Mapping[str, str | int] = field(default_factory=dict)
    gpu: GpuFacts | None = None
    cpu: CpuFacts | None = None
    without: frozenset[str] = frozenset()

    @property
    def library_name(self) -> str:
        """The compiled library's file name in a run directory."""
        return f"model.{self.name.replace('/', '-')}.so"


def _gpu_target(name: str, facts: GpuFacts) -> Target:
    """A row for a GPU: everything TVM needs to know follows from the facts."""
    architecture = facts.architecture
    attributes: dict[str, str | int] = {
        "arch": architecture.sm,
        "max_shared_memory_per_block": architecture.shared_bytes_per_block,
        "max_threads_per_block": MAX_THREADS_PER_BLOCK,
        "thread_warp_size": WARP_SIZE,
    }
    summary = f"NVIDIA {facts.name} ({architecture.sm})"
    return Target(name, "cuda", summary, attributes=attributes, gpu=facts)


def _cpu_target(facts: CpuFacts) -> Target:
    """A row for a CPU that need not be this machine's."""
    family = {X86_64: "x86", AARCH64: "arm"}[facts.architecture]
    attributes: dict[str, str | int] = {"mcpu": facts.llvm, "mtriple": facts.triple}
    summary = f"{facts.name} ({', '.join(LINUX_NAMES[name] for name in facts.sets)})"
    return Target(f"{family}/{facts.llvm}", "llvm", summary, attributes=attributes, cpu=facts)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("llvm", "llvm", "this machine's CPU, with every instruction set it has", host_cpu=True),
        Target("llvm/no-amx", "llvm", "this machine's CPU, its AMX tiles left alone", host_cpu=True, without=AMX),
        Target("llvm/portable", "llvm", "any CPU of this machine's architecture"),
        *map(
            _cpu_target,
            (
                HASWELL,
                ALDERLAKE,
                SKYLAKE_AVX512,
                CASCADELAKE,
                ICELAKE_SERVER,
                ZNVER4,
                SAPPHIRERAPIDS,
                CORTEX_A76,
                NEOVERSE_N1,
                NEOVERSE_V1,
                NEOVERSE_V2,
            ),
        ),
        _gpu_target("nvidia/t4", T4),
        _gpu_target("nvidia/a100", A100),
        _gpu_target("nvidia/a10", A10),
        _gpu_target("nvidia/l4", L4),
        _gpu_target("nvidia/h100", H100),
    )
}
"""Every target by its name. To add one, see `docs/adding.md`."""

DEFAULT_TARGET = "llvm"
"""What is compiled for where nothing is said."""


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        CompileError: there is none; the message lists those there are.
    """
    if name not in TARGETS:
        raise CompileError(f"unknown target '{name}'; known: {', '.join(TARGETS)}")
    return TARGETS[name]


def architectures_of(target: Target, also: Sequence[Target] = ()) -> tuple[int, ...]:
    """The numbers of the GPU architectures that a library is compiled for, ascending; none for a CPU.

    Args:
        target: whose kernels are taken.
        also: further GPUs that the library is to hold machine code for.

    Raises:
        CompileError: a further target that is no GPU, or older than the one whose kernels are taken.
    """
    numbers = set() if target.gpu is None else {target.gpu.architecture.number}
    for other in also:
        if target.gpu is None or other.gpu is None:
            raise CompileError(
                f"a library for '{target.name}' cannot hold machine code for '{other.name}' too; both must be GPUs"
            )
        if other.gpu.architecture.number < target.gpu.architecture.number:
            raise CompileError(
                f"kernels for '{target.name}' ({target.gpu.architecture.sm}) do not run on '{other.name}' "
                f"({other.gpu.architecture.sm}), which is older; compile for --target {other.name} --also {target.name}"
            )
        numbers.add(other.gpu.architecture.number)
    return tuple(sorted(numbers))
