"""How many blocks of a kernel are resident: as NVIDIA's own calculator says, and as follows from the facts."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from hawq_tvm.backends.tvm.cuda.packages import package_roots
from hawq_tvm.core.gpu import ARCHITECTURES, SM_75, SM_80, Architecture
from hawq_tvm.emulator.toolchain import find_compiler

from .emulated import needs_compiler

KIB = 1024

HEADERS = [
    path / "cuda_occupancy.h"
    for path in (Path("/usr/local/cuda/include"), *(root / "include" for root in package_roots()))
    if (path / "cuda_occupancy.h").exists()
]

NVIDIAS = """
#include <cstdio>
#include "cuda_occupancy.h"
int main() {
  int major, minor, threads_per_sm, threads, registers;
  size_t per_sm, per_block, reserved, shared;
  while (scanf("%d %d %d %zu %zu %zu %d %d %zu", &major, &minor, &threads_per_sm, &per_sm, &per_block, &reserved,
               &threads, &registers, &shared) == 9) {
    cudaOccDeviceProp device;
    device.computeMajor = major, device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = threads_per_sm;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536, device.warpSize = 32, device.numSms = 1;
    device.sharedMemPerBlock = 49152, device.sharedMemPerMultiprocessor = per_sm;
    device.sharedMemPerBlockOptin = per_block, device.reservedSharedMemPerBlock = reserved;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024, kernel.numRegs = registers, kernel.sharedSizeBytes = 0;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF, kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = per_block, kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    cudaOccResult result;
    cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
    printf("%d\\n", error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1);
  }
}
"""


@pytest.mark.skipif(not HEADERS, reason="needs cuda_occupancy.h of the CUDA toolkit, or of nvidia-cuda-runtime")
@needs_compiler
def test_nvidias_own_calculator_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "occupancy.cpp").write_text(NVIDIAS)
    command = [find_compiler() or "", "-I", HEADERS[0].parent, "-o", tmp_path / "nvidias", tmp_path / "occupancy.cpp"]
    subprocess.run([*command, "-lstdc++"], check=True)
    threads = (1, 32, 33, 64, 96, 128, 160, 256, 384, 512, 768, 1000, 1024)
    registers = (1, 8, 16, 24, 32, 33, 40, 41, 64, 65, 72, 96, 104, 128, 129, 168, 255)
    shared = (0, 1, 100, 1023, 1024, 4096, 5000, 12 * KIB, 16 * KIB, 24 * KIB, 32 * KIB, 33 * KIB, 48 * KIB, 63 * KIB,
              64 * KIB, 65 * KIB, 99 * KIB, 100 * KIB, 163 * KIB, 227 * KIB, 228 * KIB)  # fmt: skip
    cases = list(itertools.product(ARCHITECTURES.values(), threads, registers, shared))
    lines = [
        f"{' '.join(map(str, a.compute_capability))} {32 * a.warps_per_sm} {a.shared_bytes_per_sm} "
        f"{a.shared_bytes_per_block} {a.shared_bytes_reserved} {t} {r} {s}\n"
        for a, t, r, s in cases
    ]
    result = subprocess.run([tmp_path / "nvidias"], input="".join(lines), capture_output=True, text=True, check=True)
    theirs = [max(int(line), 0) for line in result.stdout.split()]
    ours = [a.resident_blocks(t, r, s) for a, t, r, s in cases]
    different = [(c[0].sm, *c[1:], x, y) for c, x, y in zip(cases, ours, theirs, strict=True) if x != y]
    assert different == []
    assert {0, 1, 16} <= set(ours)


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks"),
    [
        (SM_75, 128, 32, 0, 8),  # 4 warps of 32
        (SM_75, 128, 130, 24 * KIB, 2),  # shared memory: 64 KiB by 24
        (SM_75, 128, 168, 0, 3),  # registers: 168 x 32 is 5,376 a warp; 3 of 16,384 a scheduler, 12 warps in all, by 4
        (SM_75, 32, 16, 0, 16),  # blocks
        (SM_75, 1024, 65, 0, 0),  # 1,024 threads have 64 registers each
        (SM_75, 128, 32, 64 * KIB + 1, 0),
        (SM_80, 256, 64, 40 * KIB, 4),  # 164 KiB by 41: a kibibyte is the system's
    ],
)
def test_what_is_short_bounds_the_blocks(
    architecture: Architecture, threads: int, registers: int, shared: int, blocks: int
) -> None:
    assert architecture.resident_blocks(threads, registers, shared) == blocks
    warps = blocks * threads // 32
    assert architecture.occupancy(threads, registers, shared) == warps / architecture.warps_per_sm
