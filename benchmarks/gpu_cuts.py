"""Whether other cuts of a product would be faster where it fills few multiprocessors, as the cost model has it.

    python -m benchmarks.gpu_cuts [NETWORK ...]

For each network at batch 1 on a T4: the tiles that there are, every tile that could be written, and sums cut into
parts, each of a block of its own. Such a block stores its sums in memory and counts itself; the last block of a tile
reads those of the others and ends as usual. That costs a handover through the L2, counted as a barrier of the whole
grid was measured, what is stored and read, and the code for it. No device is asked, and no such kernel is written.

Prints tables and writes ``benchmarks/results/gpu_cuts.json``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.gpu_model import planned, predictions
from benchmarks.runs import markdown, write_results
from hawq_tvm.backends.tvm.storage import Plan
from hawq_tvm.core.gpu import MAX_REGISTERS_PER_THREAD, STATIC_SHARED_BYTES, T4
from hawq_tvm.core.gpu_model import L2_BYTES_PER_CYCLE, Phase, predict
from hawq_tvm.kernels.cuda.gemm import Gemm, Tile
from hawq_tvm.kernels.cuda.gemm_costs import Ends, gemm_work, registers_wanted
from hawq_tvm.kernels.cuda.gemm_kernel import STAGES
from hawq_tvm.kernels.cuda.gemm_shared import Swizzled
from hawq_tvm.kernels.cuda.gemm_tiles import TILES
from hawq_tvm.kernels.cuda.storages import CHUNK_BYTES, CHUNK_WORDS

NETWORKS = ("resnet18", "resnet50", "torchvision:mobilenet_v2")
FORMS = ("INT8", "INT4")
PARTS = (2, 3, 4, 5, 6, 8)

HANDOVER_CYCLES = 1201
"""From a block's last store until another block knows of it: a barrier of 72 blocks of 256 threads (github
connollydavid/tu102, table/tu102_ops.csv, sync.grid.lat)."""

L2_LATENCY_CYCLES = 235
"""The same, mem.l2.lat."""

Cut = tuple[Tile, int]
"""A tile, and the parts of the sum."""


@dataclass(frozen=True)
class Layer:
    """A product of a network.

    Attributes:
        name: of the layer.
        gemm: the product.
        ends: what happens to its sums.
        dram_bytes: that the layer moves.
    """

    name: str
    gemm: Gemm
    ends: Ends
    dram_bytes: float


def every_tile() -> Iterator[Tile]:
    """All tiles that a kernel could have, of up to 512 threads."""
    for m, n, k, warps_m, warps_n, slices in itertools.product(
        (32, 64, 128), (32, 64, 128), (2, 4, 8, 16), (1, 2, 4), (1, 2, 4), (1, 2, 4, 8)
    ):
        try:
            tile = Tile(m, n, k, warps_m, warps_n, slices)
        except AssertionError:
            continue
        words = max(STAGES * Swizzled(tile).stage_words, Swizzled(tile).finish_words)
        if tile.threads <= 512 and words * 4 <= STATIC_SHARED_BYTES:
            yield tile


def microseconds(layer: Layer, cut: Cut) -> float | None:
    """What a product takes at the boost clock; None for a cut that it cannot have."""
    (tile, parts), gemm, architecture = cut, layer.gemm, T4.architecture
    registers = registers_wanted(gemm, tile)
    if registers > MAX_REGISTERS_PER_THREAD or registers * tile.threads > architecture.registers_per_sm:
        return None
    work = replace(gemm_work(gemm, Swizzled(tile), layer.ends, T4, layer.dram_bytes), registers=registers)
    handover = 0.0
    if parts > 1:
        steps = gemm.steps(tile)
        if parts > steps:
            return None
        mine, (loop, ending) = -(-steps // parts), work.phases
        sums = tile.m * tile.n * 4
        stored = Phase(data_bytes=sums, instructions=sums / CHUNK_BYTES / 32 * 2)
        loop = replace(
            loop, macs=loop.macs * mine / steps, data_bytes=loop.data_bytes * mine / steps,
            instructions=loop.instructions * mine / steps,
        )  # fmt: skip
        loaded = mine * tile.k * (tile.m * gemm.loaded_words * 4 + tile.n * CHUNK_BYTES)
        # Of the last block: the others' sums, one after the other from the L2, and the ending.
        others = (parts - 1) * max(sums / L2_BYTES_PER_CYCLE, 2 * sums / CHUNK_WORDS / 32 / architecture.schedulers)
        issued = 2 * ending.instructions / min(architecture.schedulers, tile.warps)
        handover = HANDOVER_CYCLES + L2_LATENCY_CYCLES + others + issued
        work = replace(
            work, blocks=work.blocks * parts, phases=(loop, stored), l2_bytes=loaded + 2 * sums,
            code_instructions=work.code_instructions + 1.5 * tile.m * tile.n / tile.threads,
            alone_cycles=(work.alone_cycles - issued) * mine / steps,
        )  # fmt: skip
    found = predict(work, T4)
    return None if found is None else found.us(T4.boost_clock_mhz) + handover / T4.boost_clock_mhz


def layers_of(plan: Plan) -> list[Layer]:
    found = []
    for name, request in plan.requests.items():
        offer = plan.offers[name]
        if plan.kernels[name].endswith(("_mma", "_mma_nhwc")):
            assert offer.prediction is not None
            gemm = Gemm.of(request, offer.reads[0])
            found.append(Layer(name, gemm, Ends.of(offer.reads, offer.writes), offer.prediction.dram_bytes))
    return found


def best(layer: Layer, cuts: Sequence[Cut]) -> tuple[float, Cut]:
    times = {cut: us for cut in cuts if (us := microseconds(layer, cut)) is not None}
    least = min(times, key=lambda cut: times[cut])
    return times[least], least


CUTS: Mapping[str, list[Cut]] = {
    "tiles": [(tile, 1) for tile in TILES],
    "every tile": [(tile, 1) for tile in every_tile()],
    "tiles, sums in parts": [(tile, parts) for tile in TILES for parts in (1, *PARTS)],
    "every tile, sums in parts": [(tile, parts) for tile in every_tile() for parts in (1, *PARTS)],
}


def network(name: str, form: str) -> dict[str, Any]:
    """The whole network's microseconds with the best of each set of cuts, and the layers that would gain most."""
    plan = planned(name, form, 1)
    layers = layers_of(plan)
    named = {layer.name for layer in layers}
    rest = sum(made.us(T4.boost_clock_mhz) for key, made in predictions(plan).items() if key not in named)
    found = {label: {layer.name: best(layer, cuts) for layer in layers} for label, cuts in CUTS.items()}
    whole = {label: rest + sum(us for us, _ in rows.values()) for label, rows in found.items()}
    gains = {
        layer: {label: {"us": rows[layer][0], "cut": _shown(rows[layer][1])} for label, rows in found.items()}
        for layer in named
    }
    return {"us": whole, "gain": {label: 1 - us / whole["tiles"] for label, us in whole.items()}, "layers": gains}


def _shown(cut: Cut) -> str:
    return f"{cut[0]}" + (f", {cut[1]} parts" if cut[1] > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="as `hawq-tvm run` takes them")
    arguments = parser.parse_args()
    results, rows = {}, []
    for name, form in itertools.product(arguments.networks, FORMS):
        label = f"{name.split(':')[-1]}, {form}"
        found = results[label] = network(name, form)
        gains = [f"{found['us'][cuts]:.0f} ({found['gain'][cuts]:.1%})" for cuts in list(CUTS)[1:]]
        rows.append([label, f"{found['us']['tiles']:.0f}", *gains])
    print(markdown(["network, batch 1", "us, tiles as they are", *list(CUTS)[1:]], rows))
    print(f"\nwrote {write_results('gpu_cuts', results)}")


if __name__ == "__main__":
    main()
