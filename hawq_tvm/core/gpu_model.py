"""How long a GPU takes for a kernel, predicted from the GPU's facts: no device is asked.

    time = launch + start + the longest of

        tensor cores   multiply-accumulates of the busiest multiprocessor      by what it does in a cycle
        data path      bytes to and from its shared memory and L1              by what passes in a cycle
        issue          its warps' instructions                                 by what it starts in a cycle
        waiting        rounds of resident blocks x what one block takes alone
        L2             bytes that leave it                                     by what the L2 gives in a cycle
        DRAM           bytes that the L2 does not hold                         by bandwidth

The busiest multiprocessor gets blocks / multiprocessors of them, rounded up: that is the tail. Of these, as many are
resident at once as registers, shared memory and warps allow (`Architecture.resident_blocks`): those are the waves. All
but DRAM run at the clock, and what the clock is follows from power (`held_clock`).

Facts about hardware are measured by others; free constants are not, and each says how it was set. Nothing here has been
compared with a run of our own kernels. `docs/gpu-model.md` tells how far predictions are from what others measured.

Sources:
    [TU102] D. Connolly, TU102 (sm_75) microarchitecture characterisation, github connollydavid/tu102 at 789ff42,
        table/tu102_ops.csv: cycles at a locked clock on a Quadro RTX 6000, of the T4's architecture.
    [Jia] Z. Jia et al., Dissecting the NVidia Turing T4 GPU via Microbenchmarking, arXiv 1903.07486, 2019.
    [Miner] github super3/llmjob, benchmark.md: a program that does little but 8-bit matrix products, for minutes on
        many cards, with clock and power; its 10^12 operations a second are multiply-accumulates.
    [Colab] github Vshiva27/cuda-transformer-performance, measured results: simple kernels on a T4.
    [Micron] Micron, Ultra-Bandwidth Solutions: average device power of GDDR6, 7.5 pJ a bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hawq_tvm.core.gpu import GpuFacts

# Facts, measured

GRAPH_LAUNCH_US = 0.91
"""From one kernel of a CUDA graph to the next [TU102: launch.graph_node.replay]."""

STREAM_LAUNCH_US = 1.55
"""The same where the host launches each [TU102: launch.empty_kernel.lat, submission with 8 arguments]."""

DRAM_LATENCY_CYCLES = 436
"""Of a load [TU102: 299.9 ns at 1,455 MHz]; 235 where the L2 holds it."""

EXCHANGE_CYCLES = 90
"""From data that arrived in registers to a warp that multiplies it: a store to shared memory (22), a barrier of eight
warps (36), and ldmatrix (30) [TU102]."""

DEPENDENT_CYCLES = 4
"""From an integer instruction to one that uses its result [TU102: IMAD, IADD3, LOP3, SHF]."""

PIPE_EFFICIENCY = 0.9
"""What hand-tuned kernels keep busy of the pipe that bounds them: 89% of the tensor cores' peak on a T4, 92% on other
cards of its architecture [Miner]."""

DRAM_EFFICIENCY = 0.8
"""What is reached of the bandwidth that is printed: on a T4 with ECC on 82% [Colab] or 69% [Jia]; with ECC off 76%
copying, 91% reading [TU102]."""

DRAM_PICOJOULES_PER_BYTE = 60
"""[Micron]"""

HELD_POWER = 0.965
"""What a board draws on average at its limit, as a share of it: 67.5 of 70 W [Miner: Tesla T4]."""

FLAT_MHZ = 1100
RISE = 1.4
"""A cycle costs the same energy up to this clock, and above it energy grows with the clock to this power. A T4 at 750
MHz and an RTX 2080 Ti at 1,095 MHz spend 1.6 and 1.5 nJ a cycle and multiprocessor, an RTX 2070 Super (the T4's chip
with as many multiprocessors) at 1,680 MHz 2.8 nJ, all 87 to 89% busy [Miner]."""

# Free constants, not measured

L2_BYTES_PER_CYCLE = 20
"""What the L2 gives each multiprocessor. Set above 14, which a T4 gives at the least: it adds vectors of 3.1 MB, which
its L2 holds, in 3.5 us with the launch [Colab]. [TU102] measures 11 on a larger chip. With 14 a ResNet-50 at batch 8
takes 1.5% longer, at batch 128 no longer."""

PHASES_APART = 0.5
"""How far the phases of a block are from overlapping with other phases of others: 0 for wholly, 1 for not at all. Set
half-way."""

STATIC_WATTS = 20
"""What a small board draws beside tensor cores and DRAM traffic. Set between idle (10) and idle at full clocks (30);
10 W more move the clock of a busy T4 by 4%."""

TYPICAL_BUSY = 0.5
"""How busy the tensor cores are where kernels are compared, which sets the clock that they are compared at. NVIDIA's
ResNet-50 on a T4 comes to this."""


@dataclass(frozen=True)
class Phase:
    """A part of a block's work, after which its threads wait for one another.

    Attributes:
        macs: multiply-accumulates on tensor cores.
        data_bytes: through the data path that shared memory and L1 have in common.
        instructions: of all warps together, a warp's counted once.
    """

    macs: float = 0.0
    data_bytes: float = 0.0
    instructions: float = 0.0


@dataclass(frozen=True)
class KernelWork:
    """What a kernel asks of a GPU.

    Attributes:
        blocks: of the whole launch.
        threads: of a block.
        registers: of a thread.
        shared_bytes: of a block.
        bits: of what tensor cores multiply.
        phases: of a block.
        l2_bytes: that a block loads and stores.
        start_cycles: from a block's first instruction until its first data arrives.
        alone_cycles: what it takes from there if it has a multiprocessor to itself.
        dram_bytes: of the whole launch.
    """

    blocks: int
    threads: int
    registers: int
    shared_bytes: int
    bits: int
    phases: tuple[Phase, ...]
    l2_bytes: float
    start_cycles: float
    alone_cycles: float
    dram_bytes: float


@dataclass(frozen=True)
class Prediction:
    """What a kernel takes of a GPU, before a clock is chosen.

    Attributes:
        gpu: the GPU.
        start_cycles: before the first data arrives.
        cycles: that each part is busy for, of which the longest counts; by the part's name.
        dram_bytes: read and written.
        tensor_cycles: of all tensor cores at their peak: what they are busy for on average.
        occupancy: the share of a multiprocessor's warps that are resident; None where it was not counted.
    """

    gpu: GpuFacts
    start_cycles: float
    cycles: Mapping[str, float]
    dram_bytes: float
    tensor_cycles: float = 0.0
    occupancy: float | None = None

    @property
    def dram_us(self) -> float:
        return self.dram_bytes / (self.gpu.bandwidth_gb_s * 1e3 * DRAM_EFFICIENCY)

    def parts_us(self, clock_mhz: float) -> dict[str, float]:
        """Microseconds of each part; `launch` holds the start."""
        parts = {name: cycles / clock_mhz for name, cycles in self.cycles.items()}
        return {"launch": GRAPH_LAUNCH_US + self.start_cycles / clock_mhz, **parts, "DRAM": self.dram_us}

    def us(self, clock_mhz: float | None = None) -> float:
        """Microseconds of the kernel; at the clock of a typical load where none is given."""
        parts = self.parts_us(clock_mhz or typical_clock(self.gpu))
        return parts.pop("launch") + max(parts.values())

    def slowed(self, factor: float) -> Prediction:
        """The same kernel where all but DRAM takes so many times as long."""
        cycles = {name: value * factor for name, value in self.cycles.items()}
        return replace(self, start_cycles=self.start_cycles * factor, cycles=cycles)

    def bound(self, clock_mhz: float | None = None) -> str:
        """The part that takes longest."""
        parts = self.parts_us(clock_mhz or typical_clock(self.gpu))
        return max(parts, key=lambda name: parts[name])


def predict(work: KernelWork, gpu: GpuFacts) -> Prediction | None:
    """What a kernel takes; None where not even one block is resident."""
    architecture = gpu.architecture
    resident = architecture.resident_blocks(work.threads, work.registers, work.shared_bytes)
    if resident == 0:
        return None
    rates = {
        "tensor cores": architecture.macs_per_cycle[work.bits],
        "data path": architecture.data_bytes_per_cycle,
        "issue": architecture.schedulers,
    }
    phases = [
        {"tensor cores": phase.macs, "data path": phase.data_bytes, "issue": phase.instructions}
        for phase in work.phases
    ]
    of_block = {name: sum(phase[name] for phase in phases) / rate for name, rate in rates.items()}
    apart = sum(max(phase[name] / rate for name, rate in rates.items()) for phase in phases) - max(of_block.values())
    busiest = -(-work.blocks // gpu.sms)
    cycles = {name: busiest * (value + PHASES_APART * apart) / PIPE_EFFICIENCY for name, value in of_block.items()}
    cycles["L2"] = work.blocks * work.l2_bytes / (gpu.sms * L2_BYTES_PER_CYCLE)
    rounds = -(-busiest // resident)
    cycles["waiting"] = rounds * work.alone_cycles + (rounds - 1) * work.start_cycles
    return Prediction(
        gpu,
        work.start_cycles,
        cycles,
        work.dram_bytes,
        work.blocks * of_block["tensor cores"] / gpu.sms,
        architecture.occupancy(work.threads, work.registers, work.shared_bytes),
    )


def beyond_l2(bytes_: float, l2_bytes: int) -> float:
    """What of a layer's inputs and results travels to DRAM and back: all but what the L2 keeps."""
    return max(0.0, bytes_ - l2_bytes)


# Power


def board_watts(gpu: GpuFacts, clock_mhz: float, busy: float, dram_gb_s: float) -> float:
    """What a board draws.

    Args:
        gpu: one whose draw under a known load was measured.
        clock_mhz: of its multiprocessors.
        busy: the share of cycles in which tensor cores start what they can.
        dram_gb_s: traffic.
    """
    dram_watts = dram_gb_s * DRAM_PICOJOULES_PER_BYTE * 1e-3
    return STATIC_WATTS + _busy_watts(gpu) * busy * clock_mhz / FLAT_MHZ * _rise(clock_mhz) + dram_watts


def _busy_watts(gpu: GpuFacts) -> float:
    """What wholly busy tensor cores draw at `FLAT_MHZ`, and all that works for them."""
    known = gpu.held
    assert known is not None, gpu.name
    cycles = known.busy * known.clock_mhz / FLAT_MHZ
    return (known.watts - STATIC_WATTS) / (cycles * _rise(known.clock_mhz))


def _rise(clock_mhz: float) -> float:
    """Energy of a cycle, as a multiple of that at low clocks."""
    return float(max(1.0, clock_mhz / FLAT_MHZ) ** RISE)


def typical_clock(gpu: GpuFacts) -> float:
    """The clock, in MHz, that a load of `TYPICAL_BUSY` holds: where kernels are compared with one another."""
    if gpu.held is None:
        return float(gpu.boost_clock_mhz)
    share = (gpu.power_watts * HELD_POWER - STATIC_WATTS) / (_busy_watts(gpu) * TYPICAL_BUSY)
    clock = FLAT_MHZ * share ** (1.0 if share <= 1 else 1 / (1 + RISE))
    return float(min(clock, gpu.boost_clock_mhz))


def held_clock(gpu: GpuFacts, kernels: Sequence[Prediction]) -> float:
    """The clock, in MHz, that a GPU holds which runs these kernels over and over.

    The boost clock where power allows it, or where nothing is known of the GPU's draw.
    """
    tensor_cycles = sum(kernel.tensor_cycles for kernel in kernels)
    dram_bytes = sum(kernel.dram_bytes for kernel in kernels)

    def watts(clock: float) -> float:
        us = sum(kernel.us(clock) for kernel in kernels)
        return board_watts(gpu, clock, tensor_cycles / clock / us, dram_bytes / us / 1e3)

    limit = gpu.power_watts * HELD_POWER
    low, high = 0.1 * gpu.base_clock_mhz, float(gpu.boost_clock_mhz)
    if gpu.held is None or watts(high) <= limit:
        return high
    for _ in range(30):  # a higher clock draws more
        middle = (low + high) / 2
        low, high = (middle, high) if watts(middle) <= limit else (low, middle)
    return low
