"""What a product on Tensor Cores asks of a GPU, counted tile by tile, and the tile that the model takes.

Counted is what `gemm_kernel` and `gemm_epilogue` write. Instructions of a warp are read off the machine code that
nvcc 13.0 makes for sm_75; they are the same for 8 and 4 bits, within 2%.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from hawq_tvm.core.gpu import MAX_REGISTERS_PER_THREAD, WARP_SIZE, Architecture, GpuFacts
from hawq_tvm.core.gpu_model import (
    DEPENDENT_CYCLES,
    DRAM_LATENCY_CYCLES,
    EXCHANGE_CYCLES,
    KernelWork,
    Phase,
    Prediction,
    beyond_l2,
    predict,
)
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.cuda.costs import stored_bytes
from hawq_tvm.kernels.cuda.gemm import Gemm, Tile
from hawq_tvm.kernels.cuda.gemm_kernel import resident_steps, shared_words
from hawq_tvm.kernels.cuda.gemm_shared import Layout, Swizzled
from hawq_tvm.kernels.cuda.gemm_tiles import MIN_BLOCKS, TILES
from hawq_tvm.kernels.cuda.storages import CHUNK_BYTES, CHUNK_WORDS, stored_values
from hawq_tvm.kernels.interface import Request

# Instructions of a warp, beside loads, stores and multiplications, read off the machine code

START_INSTRUCTIONS = 150
STEP_INSTRUCTIONS = 25
PIXEL_INSTRUCTIONS = 15
"""For 32 chunks of pixels: the place of a window's tap, and whether it lies in the image."""
PLAIN_PIXEL_INSTRUCTIONS = 6
"""The same where the window is of one tap, so that nothing lies outside."""
WEIGHT_INSTRUCTIONS = 4
WIDEN_INSTRUCTIONS = 8
"""For 32 chunks of 4-bit values that become 8-bit ones."""
RESULT_INSTRUCTIONS = 5
RESIDUAL_INSTRUCTIONS = 6.5
"""For 32 results: rescale, clip and pack; and what a residual adds."""

LONE_CYCLES = 2
"""From an instruction of a warp that multiplies nothing to its next one, where a scheduler has no other warp."""

OTHER_REGISTERS = 50
"""Of a thread, beside sums, operands and words on their way: 42 to 58 in machine code."""

LAYOUTS: tuple[Layout, ...] = tuple(map(Swizzled, TILES))
"""Those of `mma.sync`."""


@dataclass(frozen=True)
class Ends:
    """What a product reads and writes when its sums are done.

    Attributes:
        result_bits: of a stored result.
        residual_bits: of a stored element that is added; 0 for none.
    """

    result_bits: int
    residual_bits: int = 0

    @classmethod
    def of(cls, reads: tuple[Storage, ...], writes: Storage) -> Ends:
        return cls(writes.bits, reads[1].bits if len(reads) > 1 else 0)


def gemm_work(gemm: Gemm, layout: Layout, ends: Ends, gpu: GpuFacts, dram_bytes: float = 0.0) -> KernelWork:
    """What a product asks for when it is cut into these tiles.

    Args:
        gemm: the product.
        layout: how it is cut, and where a block's part lies.
        ends: what happens to its sums.
        gpu: whose instructions it uses.
        dram_bytes: that the layer moves, whatever the tile.
    """
    tile, steps = layout.tile, gemm.steps(layout.tile)
    step, ending = _step(gemm, tile), _ending(layout, ends)
    loaded = steps * tile.k * (tile.m * gemm.loaded_words * 4 + tile.n * CHUNK_BYTES)
    return KernelWork(
        blocks=prod(gemm.tiles(tile)),
        threads=tile.threads,
        registers=_registers(gemm, tile, gpu.architecture),
        shared_bytes=4 * shared_words(gemm, layout),
        bits=gemm.bits,
        phases=(step.times(steps), ending),
        l2_bytes=loaded + tile.m * tile.n * (ends.result_bits + ends.residual_bits) / 8,
        start_cycles=START_INSTRUCTIONS * DEPENDENT_CYCLES + DRAM_LATENCY_CYCLES,
        code_instructions=START_INSTRUCTIONS + (step.code_instructions + ending.instructions) / tile.warps,
        alone_cycles=_loop_alone(step, gemm, layout, gpu.architecture) + _alone(ending, tile.warps, gpu.architecture),
        dram_bytes=dram_bytes,
    )


@dataclass(frozen=True)
class Step:
    """What a step of the loop asks for, of all warps together.

    Attributes:
        macs: multiply-accumulates.
        arriving_bytes: from memory to registers; 0 where copies pass them by.
        stored_bytes: from there to shared memory.
        read_bytes: from there to the multiplications.
        copying_instructions: of loads, addresses and stores, and those of the loop.
        reading_instructions: of ldmatrix.
        multiplications: instructions of those.
    """

    macs: float
    arriving_bytes: float
    stored_bytes: float
    read_bytes: float
    copying_instructions: float
    reading_instructions: float
    multiplications: float

    @property
    def code_instructions(self) -> float:
        """As the kernel has them: the last step's multiplications are written out behind the loop."""
        return self.copying_instructions + 2 * (self.reading_instructions + self.multiplications)

    def times(self, steps: int) -> Phase:
        return Phase(
            macs=steps * self.macs,
            data_bytes=steps * (self.arriving_bytes + self.stored_bytes + self.read_bytes),
            instructions=steps * (self.copying_instructions + self.reading_instructions + self.multiplications),
        )


def _step(gemm: Gemm, tile: Tile) -> Step:
    """Copies to shared memory, ldmatrix, and the multiplications."""
    pixels, weights = tile.m * tile.k, tile.n * tile.k  # chunks
    warp_chunks = tile.warps * tile.slice_k * (tile.warp_m + tile.warp_n)
    macs = tile.m * tile.n * tile.k * gemm.chunk_elements
    address = PIXEL_INSTRUCTIONS if gemm.taps > 1 else PLAIN_PIXEL_INSTRUCTIONS
    copying = (
        pixels * (gemm.taps_per_chunk * (1 + address) + 1 + WIDEN_INSTRUCTIONS * gemm.widens)
        + weights * (WEIGHT_INSTRUCTIONS + 2)
    ) / WARP_SIZE
    return Step(
        macs=macs,
        arriving_bytes=0 if gemm.copies else pixels * gemm.loaded_words * 4 + weights * CHUNK_BYTES,
        stored_bytes=(pixels + weights) * CHUNK_BYTES,
        read_bytes=warp_chunks * CHUNK_BYTES,
        copying_instructions=copying + STEP_INSTRUCTIONS * tile.warps,
        reading_instructions=warp_chunks / WARP_SIZE,  # each moves 32 rows of a chunk
        multiplications=macs / gemm.shape.macs,
    )


def _ending(layout: Layout, ends: Ends) -> Phase:
    """The sums' way through shared memory, then the results, of all warps."""
    results = layout.tile.m * layout.tile.n
    exchanged = 2 * 4 * layout.finish_words  # written and read
    instructions = results * (RESULT_INSTRUCTIONS + RESIDUAL_INSTRUCTIONS * (ends.residual_bits > 0))
    return Phase(
        data_bytes=exchanged + results * (ends.result_bits + ends.residual_bits) / 8,
        instructions=(instructions + exchanged / 4) / WARP_SIZE,
    )


def _loop_alone(step: Step, gemm: Gemm, layout: Layout, architecture: Architecture) -> float:
    """Cycles of the loop of one block that has a multiprocessor to itself.

    A step is multiplied while a later one arrives. What arrived is stored when both are done, and the next step waits
    for it: no other block does anything meanwhile. Copies that pass registers by are stored as they arrive.

    Blocks walk through the weights side by side, so that those of a step come from DRAM for all that are resident. The
    first steps are loaded from the start, each later one while those before it are multiplied.
    """
    steps = gemm.steps(layout.tile)
    used = min(architecture.schedulers, layout.tile.warps)
    a_cycle = architecture.data_bytes_per_cycle
    multiplying = max(
        step.macs / architecture.macs_per_cycle[gemm.bits] * architecture.schedulers / used,
        LONE_CYCLES * (step.copying_instructions + step.reading_instructions) / used,
        step.read_bytes / a_cycle,
    )
    storing = 0 if gemm.copies else step.stored_bytes / a_cycle
    ahead = max(1, resident_steps(gemm, layout) - 1)
    arriving = (DRAM_LATENCY_CYCLES + step.arriving_bytes / a_cycle) / ahead
    later = max(0, steps - ahead)
    return later * max(arriving, multiplying) + (steps - later) * multiplying + steps * (storing + EXCHANGE_CYCLES)


def _alone(phase: Phase, warps: int, architecture: Architecture) -> float:
    """Cycles of a phase without multiplications of such a block."""
    issuing = LONE_CYCLES * phase.instructions / min(architecture.schedulers, warps)
    return max(issuing, phase.data_bytes / architecture.data_bytes_per_cycle)


def registers_wanted(gemm: Gemm, tile: Tile) -> int:
    """Of a thread, if the compiler may take as many as it likes: within 15% of what nvcc reports for sm_75."""
    sums = tile.warp_m * tile.warp_n // WARP_SIZE
    operands = (tile.warp_m + tile.warp_n) // 8 * gemm.chunks_at_once
    on_their_way = 0 if gemm.copies else tile.copied_chunks(tile.m + tile.n) * CHUNK_WORDS
    return OTHER_REGISTERS + sums + operands + on_their_way


def _registers(gemm: Gemm, tile: Tile, architecture: Architecture) -> int:
    """Of a thread, as many as the compiler may take."""
    most = architecture.registers_per_sm // (MIN_BLOCKS * tile.threads)
    return min(registers_wanted(gemm, tile), most, MAX_REGISTERS_PER_THREAD)


def predict_tiles(
    gemm: Gemm, ends: Ends, gpu: GpuFacts, dram_bytes: float = 0.0, layouts: Iterable[Layout] = LAYOUTS
) -> dict[Tile, Prediction]:
    """What a product takes with each tile that fits the GPU."""
    found = {layout.tile: predict(gemm_work(gemm, layout, ends, gpu, dram_bytes), gpu) for layout in layouts}
    return {tile: prediction for tile, prediction in found.items() if prediction is not None}


def predict_layer(
    request: Request, gemm: Gemm, reads: tuple[Storage, ...], writes: Storage, layouts: Iterable[Layout]
) -> dict[Tile, Prediction]:
    """What a convolution or a linear layer takes with each tile that fits the GPU."""
    gpu = request.target.gpu
    assert gpu is not None
    inputs, output = stored_values(request, reads, writes)
    values = beyond_l2(stored_bytes([*inputs, output], request.batch), gpu.l2_bytes)
    found: dict[Tile, Prediction] = {}
    for layout in layouts:
        weights = gemm.out_channels * gemm.chunks(layout.tile) * CHUNK_BYTES
        found |= predict_tiles(gemm, Ends.of(reads, writes), gpu, weights + values, [layout])
    return found


def fastest(predictions: Mapping[Tile, Prediction]) -> Tile:
    """The tile that the model takes for fastest, of equal ones the larger.

    The one place to change where tiles are ranked by measurements.
    """
    return min(predictions, key=lambda tile: predictions[tile].us())
