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
    loaded = steps * tile.k * (tile.m * gemm.loaded_words * 4 + tile.n * CHUNK_BYTES)
    loop, ending = _loop(gemm, tile, steps), _ending(layout, ends)
    # Blocks walk through the weights side by side, so that those of a step come from DRAM for all that are resident.
    # The first steps are loaded from the start, each later one while those before it are multiplied.
    ahead = resident_steps(gemm) - 1
    arriving = max(0, steps - ahead) * DRAM_LATENCY_CYCLES / ahead
    start = START_INSTRUCTIONS * DEPENDENT_CYCLES + DRAM_LATENCY_CYCLES
    alone = [_alone(phase, gemm, tile.warps, gpu.architecture) for phase in (loop, ending)]
    return KernelWork(
        blocks=prod(gemm.tiles(tile)),
        threads=tile.threads,
        registers=_registers(gemm, tile, gpu.architecture),
        shared_bytes=4 * shared_words(gemm, layout),
        bits=gemm.bits,
        phases=(loop, ending),
        l2_bytes=loaded + tile.m * tile.n * (ends.result_bits + ends.residual_bits) / 8,
        start_cycles=start,
        alone_cycles=max(arriving, alone[0]) + steps * EXCHANGE_CYCLES + alone[1],
        dram_bytes=dram_bytes,
    )


def _loop(gemm: Gemm, tile: Tile, steps: int) -> Phase:
    """All steps: copies to shared memory, ldmatrix, and the multiplications."""
    pixels, weights = steps * tile.m * tile.k, steps * tile.n * tile.k  # chunks
    arrived = pixels * gemm.loaded_words * 4 + weights * CHUNK_BYTES
    stored = (pixels + weights) * CHUNK_BYTES
    warp_chunks = steps * tile.warps * tile.slice_k * (tile.warp_m + tile.warp_n)
    macs = tile.m * tile.n * steps * tile.k * gemm.chunk_elements
    address = PIXEL_INSTRUCTIONS if gemm.taps > 1 else PLAIN_PIXEL_INSTRUCTIONS
    copying = (
        pixels * (gemm.taps_per_chunk * (1 + address) + 1 + WIDEN_INSTRUCTIONS * gemm.widens)
        + weights * (WEIGHT_INSTRUCTIONS + 2)
    ) / WARP_SIZE
    return Phase(
        macs=macs,
        data_bytes=(0 if gemm.copies else arrived) + stored + warp_chunks * CHUNK_BYTES,
        instructions=copying
        + warp_chunks / WARP_SIZE  # ldmatrix moves 32 rows of a chunk
        + macs / gemm.shape.macs
        + steps * STEP_INSTRUCTIONS * tile.warps,
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


def _alone(phase: Phase, gemm: Gemm, warps: int, architecture: Architecture) -> float:
    """Cycles of a phase of one block that has a multiprocessor to itself, where a warp uses one of its parts alone.

    Instructions of a lone warp that multiply nothing start every other cycle.
    """
    used = min(architecture.schedulers, warps)
    multiplying = phase.macs / architecture.macs_per_cycle[gemm.bits] * architecture.schedulers / used
    return max(multiplying, 2 * (phase.instructions - phase.macs / gemm.shape.macs) / used)


def _registers(gemm: Gemm, tile: Tile, architecture: Architecture) -> int:
    """Of a thread, as many as the compiler may take: within 15% of what nvcc reports for sm_75."""
    sums = tile.warp_m * tile.warp_n // WARP_SIZE
    operands = (tile.warp_m + tile.warp_n) // 8 * gemm.chunks_at_once
    on_their_way = 0 if gemm.copies else tile.copied_chunks(tile.m + tile.n) * CHUNK_WORDS
    most = architecture.registers_per_sm // (MIN_BLOCKS * tile.threads)
    return min(OTHER_REGISTERS + sums + operands + on_their_way, most, MAX_REGISTERS_PER_THREAD)


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
    weights = gemm.out_channels * gemm.chunks * CHUNK_BYTES
    inputs, output = stored_values(request, reads, writes)
    dram_bytes = weights + beyond_l2(stored_bytes([*inputs, output], request.batch), gpu.l2_bytes)
    return predict_tiles(gemm, Ends.of(reads, writes), gpu, dram_bytes, layouts)


def fastest(predictions: Mapping[Tile, Prediction]) -> Tile:
    """The tile that the model takes for fastest, of equal ones the larger.

    The one place to change where tiles are ranked by measurements.
    """
    return min(predictions, key=lambda tile: predictions[tile].us())
