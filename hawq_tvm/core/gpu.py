"""What is known of a GPU before one is at hand: checked data, each number with its source.

No code path asks for a GPU's name. A kernel asks for the shapes that its tensor cores multiply, whether copies to
shared memory can be asynchronous, and how much a block may hold; the build asks for the architecture to compile for;
the cost model asks for clocks and bandwidth.

Sources:
    [CUDA] CUDA C++ Programming Guide 13.0, "Compute Capabilities", tables "Feature Support per Compute Capability" and
        "Technical Specifications per Compute Capability"; NVIDIA's CCCL holds the same numbers as constants
        (``libcudacxx/include/cuda/__device/arch_traits.h``).
    [PTX] Parallel Thread Execution ISA 9.0, "Multiply-and-Accumulate Instruction: mma", its shapes and target notes.
    [SASS] which instructions ``nvdisasm`` shows for each ``mma`` that ``ptxas`` 13.0 assembles. It assembles the 4-bit
        ``mma`` for sm_90 too, as two 8-bit instructions and about 175 others: slower than 8 bits, so not native.
    [Turing] NVIDIA Turing GPU Architecture, WP-09183-001, appendix A; [Ampere] A100 Tensor Core GPU Architecture,
        WP-09736-001, table 3 and appendix A; [GA102] Ampere GA102 GPU Architecture, table of tensor core throughput;
        [Ada] Ada GPU Architecture, appendix A; [Hopper] H100 Tensor Core GPU Architecture, tables 2 and 3.
    [T4], [A100], [A10], [L4], [H100] NVIDIA's data sheet and product brief of the card.
    [TU102] measured cycles of an sm_75 GPU: github connollydavid/tu102, table/tu102_ops.csv.
    [Miner] measured clock and power of 8-bit matrix products that run for minutes: github super3/llmjob, benchmark.md.

>>> T4.peak_tops(8), T4.peak_tops(4), T4.architecture.mma[4]
(130.2528, 260.5056, (MmaShape(m=8, n=8, k=32, sass='IMMA.8832'),))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WARP_SIZE = 32
"""Threads of a warp, on every NVIDIA GPU [CUDA]."""

MAX_THREADS_PER_BLOCK = 1024
MAX_REGISTERS_PER_THREAD = 255
"""Both on every NVIDIA GPU since compute capability 3.5 [CUDA]."""


@dataclass(frozen=True)
class MmaShape:
    """One tensor core instruction: D[m, n] += A[m, k] B[k, n], in a warp's registers.

    Attributes:
        m: rows of A.
        n: columns of B.
        k: what is summed over.
        sass: how its machine instruction's name begins.
    """

    m: int
    n: int
    k: int
    sass: str

    @property
    def ptx(self) -> str:
        """As PTX names it: ``m8n8k32``."""
        return f"m{self.m}n{self.n}k{self.k}"

    @property
    def macs(self) -> int:
        return self.m * self.n * self.k


@dataclass(frozen=True)
class Architecture:
    """What all GPUs of a compute capability have in common.

    Attributes:
        compute_capability: (major, minor).
        shared_bytes_per_sm: shared memory of a multiprocessor.
        shared_bytes_per_block: the most that one block may ask for, dynamically above 48 KiB [CUDA].
        shared_bytes_reserved: what the system takes of it for every resident block.
        shared_granularity: shared memory is given out in multiples of so many bytes.
        registers_per_sm: 32-bit registers of a multiprocessor.
        register_granularity: a warp's registers are given out in multiples of so many.
        schedulers: a multiprocessor's parts, each with a share of registers and warps.
        warps_per_sm: resident warps of a multiprocessor at most.
        blocks_per_sm: resident blocks of a multiprocessor at most.
        mma: the shapes that its tensor cores multiply natively, fastest first, by bits of an operand: 4 and 8 are
            integers, either operand signed or unsigned, 16 is fp16. What is not there is not native.
        macs_per_cycle: multiply-accumulates of a multiprocessor's tensor cores in a cycle, by bits of an operand.
        async_copy: whether ``cp.async`` copies from global to shared memory without passing through registers.
        data_bytes_per_cycle: what passes in a cycle between a multiprocessor's shared memory or L1 and its registers.
    """

    compute_capability: tuple[int, int]
    shared_bytes_per_sm: int
    shared_bytes_per_block: int
    shared_bytes_reserved: int
    shared_granularity: int
    registers_per_sm: int
    register_granularity: int
    schedulers: int
    warps_per_sm: int
    blocks_per_sm: int
    mma: Mapping[int, tuple[MmaShape, ...]]
    macs_per_cycle: Mapping[int, int]
    async_copy: bool
    data_bytes_per_cycle: int

    def __post_init__(self) -> None:
        assert self.shared_bytes_per_block == self.shared_bytes_per_sm - self.shared_bytes_reserved, self
        assert set(self.mma) == set(self.macs_per_cycle), self
        assert self.warps_per_sm % self.schedulers == 0 and self.registers_per_sm % self.schedulers == 0, self
        for bits, shapes in self.mma.items():
            # A row of A fills a 32-bit register of each of four lanes, or two: k is 128 or 256 bits.
            assert shapes and all(shape.k * bits in (128, 256) for shape in shapes), (bits, shapes)
            assert list(shapes) == sorted(shapes, key=lambda shape: -shape.macs), f"fastest first: {shapes}"

    @property
    def sm(self) -> str:
        """What a compiler calls it: ``sm_75``."""
        return "sm_{}{}".format(*self.compute_capability)

    @property
    def number(self) -> int:
        """The number in its name: 75."""
        return 10 * self.compute_capability[0] + self.compute_capability[1]

    def native(self, bits: int) -> bool:
        """Whether tensor cores multiply operands of that many bits, rather than emulate it."""
        return bits in self.mma

    def resident_blocks(self, threads: int, registers: int, shared_bytes: int) -> int:
        """How many blocks of a kernel a multiprocessor holds at once; 0 where not even one fits.

        The rules of NVIDIA's occupancy calculator (``cuda_occupancy.h``): a warp's registers are rounded up and come
        from the register file of one scheduler, a block's shared memory is rounded up.

        Args:
            threads: of a block.
            registers: of a thread, as the compiler reports them.
            shared_bytes: of a block, static and dynamic.
        """
        if threads > MAX_THREADS_PER_BLOCK or shared_bytes > self.shared_bytes_per_block:
            return 0
        warps = -(-threads // WARP_SIZE)
        warp_registers = _round_up(max(registers, 1) * WARP_SIZE, self.register_granularity)
        warps_by_registers = self.registers_per_sm // self.schedulers // warp_registers * self.schedulers
        block_shared = _round_up(shared_bytes + self.shared_bytes_reserved, self.shared_granularity)
        by_shared = self.shared_bytes_per_sm // block_shared if block_shared else self.blocks_per_sm
        return min(self.warps_per_sm // warps, warps_by_registers // warps, by_shared, self.blocks_per_sm)

    def occupancy(self, threads: int, registers: int, shared_bytes: int) -> float:
        """The share of a multiprocessor's warps that a kernel keeps resident; arguments as of `resident_blocks`."""
        warps = -(-threads // WARP_SIZE)
        return self.resident_blocks(threads, registers, shared_bytes) * warps / self.warps_per_sm


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


_M8N8K16 = MmaShape(8, 8, 16, "IMMA.8816")
_M8N8K32 = MmaShape(8, 8, 32, "IMMA.8832")
_M16N8K16 = MmaShape(16, 8, 16, "IMMA.16816")
_M16N8K32 = MmaShape(16, 8, 32, "IMMA.16832")
_M16N8K32_S4 = MmaShape(16, 8, 32, "IMMA.16832")
_M16N8K64 = MmaShape(16, 8, 64, "IMMA.16864")
_M16N8K8_FP16 = MmaShape(16, 8, 8, "HMMA.1688")
_M16N8K16_FP16 = MmaShape(16, 8, 16, "HMMA.16816")

_AMPERE_MMA = {
    4: (_M16N8K64, _M16N8K32_S4),
    8: (_M16N8K32, _M16N8K16),
    16: (_M16N8K16_FP16, _M16N8K8_FP16),
}

SM_75 = Architecture(
    compute_capability=(7, 5),
    shared_bytes_per_sm=64 * 1024,  # [CUDA], and the next seven
    shared_bytes_per_block=64 * 1024,
    shared_bytes_reserved=0,
    shared_granularity=256,
    registers_per_sm=65536,
    register_granularity=256,
    schedulers=4,
    warps_per_sm=32,
    blocks_per_sm=16,
    mma={4: (_M8N8K32,), 8: (_M8N8K16,), 16: (_M16N8K8_FP16,)},  # [PTX]: target notes of mma; [SASS]
    macs_per_cycle={4: 2048, 8: 1024, 16: 512},  # [Turing]: 8 tensor cores of 64 fp16 each
    async_copy=False,  # [PTX]: cp.async requires sm_80
    data_bytes_per_cycle=64,  # [TU102]: shared memory, L1 and ldmatrix alike
)
SM_80 = Architecture(
    compute_capability=(8, 0),
    shared_bytes_per_sm=164 * 1024,  # [CUDA], and the next seven
    shared_bytes_per_block=163 * 1024,
    shared_bytes_reserved=1024,
    shared_granularity=128,
    registers_per_sm=65536,
    register_granularity=256,
    schedulers=4,
    warps_per_sm=64,
    blocks_per_sm=32,
    mma=_AMPERE_MMA,  # [PTX], [SASS]
    macs_per_cycle={4: 4096, 8: 2048, 16: 1024},  # [Ampere]: 4 tensor cores of 256 fp16 each
    async_copy=True,
    data_bytes_per_cycle=128,  # [CUDA]: 32 banks of 32 bits a cycle
)
SM_86 = Architecture(
    compute_capability=(8, 6),
    shared_bytes_per_sm=100 * 1024,  # [CUDA], and the next seven
    shared_bytes_per_block=99 * 1024,
    shared_bytes_reserved=1024,
    shared_granularity=128,
    registers_per_sm=65536,
    register_granularity=256,
    schedulers=4,
    warps_per_sm=48,
    blocks_per_sm=16,
    mma=_AMPERE_MMA,  # [PTX], [SASS]
    macs_per_cycle={4: 2048, 8: 1024, 16: 512},  # [GA102]: 4 tensor cores of 128 fp16 each
    async_copy=True,
    data_bytes_per_cycle=128,  # [CUDA]: 32 banks of 32 bits a cycle
)
SM_89 = Architecture(
    compute_capability=(8, 9),
    shared_bytes_per_sm=100 * 1024,  # [CUDA], and the next seven
    shared_bytes_per_block=99 * 1024,
    shared_bytes_reserved=1024,
    shared_granularity=128,
    registers_per_sm=65536,
    register_granularity=256,
    schedulers=4,
    warps_per_sm=48,
    blocks_per_sm=24,
    mma=_AMPERE_MMA,  # [PTX], [SASS]
    macs_per_cycle={4: 2048, 8: 1024, 16: 512},  # [Ada]: 4 tensor cores of 128 fp16 each
    async_copy=True,
    data_bytes_per_cycle=128,  # [CUDA]: 32 banks of 32 bits a cycle
)
SM_90 = Architecture(
    compute_capability=(9, 0),
    shared_bytes_per_sm=228 * 1024,  # [CUDA], and the next seven
    shared_bytes_per_block=227 * 1024,
    shared_bytes_reserved=1024,
    shared_granularity=128,
    registers_per_sm=65536,
    register_granularity=256,
    schedulers=4,
    warps_per_sm=64,
    blocks_per_sm=32,
    mma={bits: shapes for bits, shapes in _AMPERE_MMA.items() if bits != 4},  # [SASS]: 4 bits are emulated
    macs_per_cycle={8: 4096, 16: 2048},  # [Hopper]: 4 tensor cores of 512 fp16 each, which only wgmma keeps busy
    async_copy=True,
    data_bytes_per_cycle=128,  # [CUDA]: 32 banks of 32 bits a cycle
)


@dataclass(frozen=True)
class HeldLoad:
    """What a board was seen to hold for minutes while it did little but multiply.

    Attributes:
        clock_mhz: of its multiprocessors.
        busy: the share of their tensor cores' peak at that clock.
        watts: that the board drew.
    """

    clock_mhz: int
    busy: float
    watts: float


@dataclass(frozen=True)
class GpuFacts:
    """One GPU product.

    Attributes:
        name: as its maker calls it.
        architecture: what it shares with others of its compute capability.
        sms: multiprocessors.
        base_clock_mhz: the clock that its maker promises under any load.
        boost_clock_mhz: the clock of the published peaks, where power and temperature allow it.
        power_watts: what the board may draw.
        memory_bytes: device memory.
        bandwidth_gb_s: of device memory, 10^9 bytes a second.
        l2_bytes: the cache that all multiprocessors share.
        published_tops: tensor core peaks without sparsity as its maker prints them, 10^12 operations a second, two a
            multiply-accumulate, by bits of an operand.
        held: what its power allows; None where nothing is known.
    """

    name: str
    architecture: Architecture
    sms: int
    base_clock_mhz: int
    boost_clock_mhz: int
    power_watts: int
    memory_bytes: int
    bandwidth_gb_s: float
    l2_bytes: int
    published_tops: Mapping[int, float]
    held: HeldLoad | None = None

    def __post_init__(self) -> None:
        assert 0 < self.base_clock_mhz <= self.boost_clock_mhz, self
        for bits, published in self.published_tops.items():
            assert abs(self.peak_tops(bits) / published - 1) < 0.01, f"{self.name}: {self.peak_tops(bits)} {published}"

    def peak_tops(self, bits: int) -> float:
        """Tensor core peak: multiprocessors x boost clock x operations a multiprocessor and cycle.

        Args:
            bits: of an operand: 4 or 8 for integers, 16 for fp16; one that is native.

        Returns:
            10^12 operations a second, two a multiply-accumulate.
        """
        return self.sms * self.boost_clock_mhz * 2 * self.architecture.macs_per_cycle[bits] / 1e6


T4 = GpuFacts(
    "Tesla T4",
    SM_75,
    sms=40,  # [Turing]: 2,560 CUDA cores of 64 an SM
    base_clock_mhz=585,  # [T4] PB-09256-001
    boost_clock_mhz=1590,  # [T4] PB-09256-001
    power_watts=70,
    memory_bytes=16 * 10**9,  # [T4]: 16 GB of GDDR6, of which ECC keeps a sixteenth
    bandwidth_gb_s=320,
    l2_bytes=4 * 2**20,  # [Turing]: TU104
    published_tops={4: 260, 8: 130, 16: 65},  # [T4]
    held=HeldLoad(clock_mhz=750, busy=0.89, watts=67.5),  # [Miner]: 27.4 x 10^12 a second, at the power limit
)
A100 = GpuFacts(
    "A100-SXM4-40GB",
    SM_80,
    sms=108,  # [Ampere] table 3
    base_clock_mhz=1095,  # card databases; NVIDIA prints none for this board, so it is not confirmed
    boost_clock_mhz=1410,  # [Ampere] table 3
    power_watts=400,
    memory_bytes=40 * 10**9,
    bandwidth_gb_s=1555,
    l2_bytes=40 * 2**20,
    published_tops={4: 1248, 8: 624, 16: 312},  # [Ampere] table 1
)
A10 = GpuFacts(
    "A10",
    SM_86,
    sms=72,  # [A10]: 9,216 CUDA cores of 128 an SM
    base_clock_mhz=885,  # [A10] PB-10415-001
    boost_clock_mhz=1695,
    power_watts=150,
    memory_bytes=24 * 10**9,
    bandwidth_gb_s=600,
    l2_bytes=6 * 2**20,  # [GA102]
    published_tops={4: 500, 8: 250, 16: 125},  # [A10]
)
L4 = GpuFacts(
    "L4",
    SM_89,
    sms=58,  # [L4]: 7,424 CUDA cores of 128 an SM
    base_clock_mhz=795,  # [L4] PB-11316-001
    boost_clock_mhz=2040,
    power_watts=72,
    memory_bytes=24 * 10**9,
    bandwidth_gb_s=300,
    l2_bytes=48 * 2**20,  # [Ada]: AD104
    published_tops={8: 242.5, 16: 121},  # [L4]: 485 and 242 with sparsity; 4 bits are not printed
    held=HeldLoad(clock_mhz=1403, busy=0.96, watts=72 * 0.965),  # [Miner]: 80 x 10^12 a second, 96% of the peak
)
H100 = GpuFacts(
    "H100-SXM5-80GB",
    SM_90,
    sms=132,  # [Hopper] table 3
    base_clock_mhz=1590,  # not confirmed: NVIDIA prints none for this board
    boost_clock_mhz=1830,  # [Hopper]: of the tensor cores; the other units boost to 1980
    power_watts=700,
    memory_bytes=80 * 10**9,
    bandwidth_gb_s=3352,
    l2_bytes=50 * 2**20,
    published_tops={8: 1978.9, 16: 989.4},  # [Hopper] table 2
)

ARCHITECTURES = {architecture.number: architecture for architecture in (SM_75, SM_80, SM_86, SM_89, SM_90)}
"""Every architecture by its number."""
