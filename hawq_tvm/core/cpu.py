"""What is known of CPUs that code can be compiled for elsewhere, and what instruction sets are called.

Sources: LLVM's ``X86.td`` and ``AArch64Processors.td`` for processors and their features; Linux's
``arch/x86/include/asm/cpufeatures.h`` and ``Documentation/arch/arm64/elf_hwcaps.rst`` for the names in /proc/cpuinfo.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hawq_tvm.core.errors import CompileError

X86_64, AARCH64 = "x86_64", "aarch64"

LINUX_NAMES = {
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "lzcnt": "abm",
    "gfni": "gfni",
    "vaes": "vaes",
    "vpclmulqdq": "vpclmulqdq",
    "avxvnni": "avx_vnni",
    "avxvnniint8": "avx_vnni_int8",
    "avxifma": "avx_ifma",
    "avxneconvert": "avx_ne_convert",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512vnni": "avx512_vnni",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512ifma": "avx512ifma",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512vp2intersect": "avx512_vp2intersect",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "amx-fp16": "amx_fp16",
    "neon": "asimd",
    "dotprod": "asimddp",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "fullfp16": "asimdhp",
    "rdm": "asimdrdm",
    "lse": "atomics",
    "sve": "sve",
    "sve2": "sve2",
}
"""The instruction sets that compiled code may hold, by LLVM's name: what Linux calls them."""

AMX = frozenset(name for name in LINUX_NAMES if name.startswith("amx-"))
"""What a library never needs: its kernels ask for tiles in every call, and compute the same on vectors without."""


def linux_names(features: Iterable[str]) -> tuple[str, ...]:
    """What a library compiled with these features, by LLVM's names, cannot do without, sorted.

    >>> linux_names({"avx512vnni", "avx2", "amx-int8", "fast-gather"})
    ('avx2', 'avx512_vnni')
    """
    return tuple(sorted(LINUX_NAMES[name] for name in features if name in LINUX_NAMES and name not in AMX))


@dataclass(frozen=True)
class CpuFacts:
    """A CPU to compile for from anywhere.

    Attributes:
        llvm: what LLVM calls it.
        architecture: `X86_64` or `AARCH64`.
        name: whose it is.
        sets: the instruction sets that make the difference, by LLVM's names.
    """

    llvm: str
    architecture: str
    name: str
    sets: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.sets) - LINUX_NAMES.keys())
        if unknown or self.architecture not in (X86_64, AARCH64):
            raise CompileError(f"no CPU of {self.architecture} with {', '.join(unknown) or self.sets} is known")

    @property
    def triple(self) -> str:
        """LLVM's name of the system that its code runs on."""
        return f"{self.architecture}-linux-gnu"


HASWELL = CpuFacts("haswell", X86_64, "Intel since Haswell, AMD since Zen", ("avx2", "fma"))
ALDERLAKE = CpuFacts("alderlake", X86_64, "Intel Core since Alder Lake", ("avx2", "fma", "avxvnni", "gfni"))
SKYLAKE_AVX512 = CpuFacts("skylake-avx512", X86_64, "Intel Xeon Skylake", ("avx512f", "avx512bw"))
CASCADELAKE = CpuFacts("cascadelake", X86_64, "Intel Xeon Cascade Lake", ("avx512bw", "avx512vnni"))
ICELAKE_SERVER = CpuFacts(
    "icelake-server", X86_64, "Intel Xeon Ice Lake", ("avx512bw", "avx512vnni", "avx512vbmi", "avx512ifma", "gfni")
)
ZNVER4 = CpuFacts("znver4", X86_64, "AMD since Zen 4", ICELAKE_SERVER.sets)
SAPPHIRERAPIDS = CpuFacts(
    "sapphirerapids", X86_64, "Intel Xeon since Sapphire Rapids", (*ICELAKE_SERVER.sets, "amx-tile", "amx-int8")
)
CORTEX_A76 = CpuFacts("cortex-a76", AARCH64, "Arm Cortex-A76, as in a Raspberry Pi 5", ("neon", "dotprod"))
NEOVERSE_N1 = CpuFacts("neoverse-n1", AARCH64, "Arm Neoverse N1, as in Graviton2 and Altra", ("neon", "dotprod"))
NEOVERSE_V1 = CpuFacts("neoverse-v1", AARCH64, "Arm Neoverse V1, as in Graviton3", ("neon", "dotprod", "i8mm", "sve"))
NEOVERSE_V2 = CpuFacts(
    "neoverse-v2", AARCH64, "Arm Neoverse V2, as in Graviton4 and Grace", ("neon", "dotprod", "i8mm", "sve2")
)
