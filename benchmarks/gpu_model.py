"""What the cost model of GPUs says of a T4, beside what others measured on one. No device is asked.

    python -m benchmarks.gpu_model [--costs COSTS.json]

Predicted times of ResNet-50, what bounds each of its layers, the tiles that the model takes and what they would lose if
its numbers were 20% wrong; ResNet-18's layers beside two published sets of times; bits allocated on the model's column
beside published choices. Weights are random: no time depends on them. ``--costs`` takes the ``costs.json`` of

    hawq-tvm profile resnet50 --bits w4a4,w8a8 --target nvidia/t4 --latency-from model --batch 8 ...

Prints tables and writes ``benchmarks/results/gpu_model.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.nvidias_network import NVIDIAS_RESIDUAL_BITS, NVIDIAS_STORED_BITS
from benchmarks.random_networks import captured, integers
from benchmarks.runs import markdown, read_results, write_results
from hawq_tvm.backends.tvm.storage import Plan, plan_storages
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.gpu import SM_75, T4, GpuFacts, HeldLoad
from hawq_tvm.core.gpu_model import (
    GRAPH_LAUNCH_US,
    STATIC_WATTS,
    STREAM_LAUNCH_US,
    Prediction,
    held_clock,
    typical_clock,
)
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.specs import RESIDUAL_BITS, Bits, Cost, CostTable, LayerCosts
from hawq_tvm.core.targets import Target, find_target
from hawq_tvm.ilp import formulate, solve_ilp
from hawq_tvm.kernels.cuda.gemm import Tile
from hawq_tvm.kernels.cuda.gemm_costs import fastest
from hawq_tvm.kernels.cuda.gemm_layers import layer_tiles
from hawq_tvm.kernels.cuda.gemm_tiles import TILES

HERE = Path(__file__).parent
PUBLISHED = json.loads((HERE / "published" / "turing.json").read_text())
UPSTREAM = json.loads((HERE.parent / "tests" / "facts" / "hawqv3_resnet18_ilp.json").read_text())

T4_TARGET = find_target("nvidia/t4")
TITAN_RTX = GpuFacts(
    "TITAN RTX",
    SM_75,
    sms=72,  # NVIDIA Turing GPU Architecture, WP-09183-001, and the next
    base_clock_mhz=1350,
    boost_clock_mhz=1770,
    power_watts=280,
    memory_bytes=24 * 10**9,
    bandwidth_gb_s=672,
    l2_bytes=6 * 2**20,
    published_tops={4: 522, 8: 261, 16: 130.5},
    # An RTX 2080 Ti, the same chip with 68 multiprocessors, held 1,095 MHz at 148 W (`hawq_tvm.core.gpu`, [Miner]).
    held=HeldLoad(clock_mhz=1095, busy=0.888, watts=STATIC_WATTS + (148 - STATIC_WATTS) * 72 / 68),
)
"""NVIDIA measured the same networks on this card: the model's architecture, and other numbers for all else."""


@dataclass(frozen=True)
class Form:
    """The bits of a network.

    Attributes:
        bits: of all layers but the first and the last, which have 8.
        residual: of values that a sum reads.
        stored: of single values.
    """

    bits: int
    residual: int = RESIDUAL_BITS
    stored: Mapping[str, int] = field(default_factory=dict)


NVIDIAS = "NVIDIA's INT4"
FORMS = {"INT8": Form(8), "INT4": Form(4), NVIDIAS: Form(4, NVIDIAS_RESIDUAL_BITS, NVIDIAS_STORED_BITS)}

BATCHES = (1, 8, 32, 128)


@cache
def in_form(name: str, form: str) -> Graph:
    """A network in integers of a form's bits."""
    bits = FORMS[form]
    return integers(name, (f"w{bits.bits}a{bits.bits}",), residual=bits.residual, stored=bits.stored)


def planned(name: str, form: str, batch: int, target: Target = T4_TARGET) -> Plan:
    return plan_storages(in_form(name, form), target, 128, batch=batch)


def predictions(plan: Plan) -> dict[str, Prediction]:
    """Every kernel of a network, conversions among them, by what it makes."""
    offers = dict(plan.offers)
    for made, (_, offer) in zip(plan.conversions, plan.converters, strict=True):
        offers[f"{made.value} as {made.to}"] = offer
    return {name: offer.prediction for name, offer in offers.items() if offer.prediction is not None}


@dataclass(frozen=True)
class Whole:
    """A network's time at the clock that it holds."""

    ms: float
    clock_mhz: float
    batch: int
    kernels: int
    bound_share: Mapping[str, float]
    streamed_ms: float

    @classmethod
    def of(cls, plan: Plan, gpu: GpuFacts, batch: int) -> Whole:
        kernels = list(predictions(plan).values())
        clock = held_clock(gpu, kernels)
        times = [kernel.us(clock) for kernel in kernels]
        shares: dict[str, float] = defaultdict(float)
        for kernel, us in zip(kernels, times, strict=True):
            shares[kernel.bound(clock)] += us / sum(times)
        streamed = sum(times) + len(kernels) * (STREAM_LAUNCH_US - GRAPH_LAUNCH_US)
        return cls(
            sum(times) / 1e3,
            clock,
            batch,
            len(kernels),
            dict(sorted(shares.items(), key=lambda item: -item[1])),
            streamed / 1e3,
        )

    @property
    def images_per_s(self) -> float:
        return self.batch / self.ms * 1e3


def whole(form: str, batch: int, gpu: GpuFacts = T4) -> Whole:
    target = replace(T4_TARGET, gpu=gpu)
    return Whole.of(planned("resnet50", form, batch, target), gpu, batch)


def whole_networks() -> dict[str, Any]:
    """ResNet-50 at several batches."""
    rows, results = [], {}
    for form, batch in itertools.product(FORMS, BATCHES):
        found = whole(form, batch)
        results[f"{form}, batch {batch}"] = vars(found) | {"images_per_s": found.images_per_s}
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found.bound_share.items() if share >= 0.01)
        bits = str(FORMS[form].bits)
        paper = PUBLISHED["resnet50_batch8_ms"][bits] if batch == 8 and form in ("INT8", "INT4") else None
        rows.append(
            [form, f"{batch}", f"{found.ms:.2f}", f"{found.images_per_s:,.0f}", f"{found.clock_mhz:.0f}",
             f"{found.streamed_ms:.2f}", shares, "" if paper is None else f"{paper}"]
        )  # fmt: skip
    print("\n## ResNet-50 on a T4, predicted\n")
    print(markdown(["network", "batch", "ms", "images/s", "MHz", "ms without a graph", "time by what bounds it",
                    "HAWQ-V3 measured ms"], rows))  # fmt: skip
    for batch in BATCHES:
        int8, *others = (results[f"{form}, batch {batch}"]["ms"] for form in FORMS)
        print(f"batch {batch}: INT4 over INT8 {int8 / others[0]:.2f}x, as in NVIDIA's network {int8 / others[1]:.2f}x")
    return results


def beside_nvidia() -> dict[str, Any]:
    """The batches that NVIDIA measured at, on both cards."""
    results, rows = [], []
    for row in PUBLISHED["mlperf_images_per_s"]:
        gpu = {gpu.name: gpu for gpu in (T4, TITAN_RTX)}[row["gpu"]]
        found = whole("INT8" if row["bits"] == 8 else NVIDIAS, row["batch"], gpu)
        error = found.images_per_s / row["images_per_s"] - 1
        results.append({**row, "predicted": found.images_per_s, "error": error, "clock_mhz": found.clock_mhz})
        rows.append([row["gpu"], f"{row['version']} {row['scenario']}", f"INT{row['bits']}", f"{row['batch']}",
                     f"{row['images_per_s']:,.0f}", f"{found.images_per_s:,.0f}", f"{error:+.0%}",
                     f"{found.clock_mhz:.0f}"])  # fmt: skip
    large = next(tile for tile in TILES if (tile.m, tile.n) == (128, 128))
    plan = planned("resnet50", "INT8", 1)
    kernels = predictions(plan) | {name: tiles[large] for name, tiles in tiles_of(plan).items()}
    alone_ms = sum(kernel.us(held_clock(T4, list(kernels.values()))) for kernel in kernels.values()) / 1e3
    print("\n## ResNet-50 beside NVIDIA's kernels (MLPerf Inference), images a second\n")
    print(markdown(["GPU", "scenario", "bits", "batch", "NVIDIA measured", "predicted", "error", "MHz"], rows))
    print(f"INT8, batch 1, if every layer were cut into {large}: {alone_ms:.2f} ms, {1e3 / alone_ms:,.0f} images/s")
    return {"rows": results, "batch_1_of_large_tiles_ms": alone_ms}


# Layers and tiles


def tiles_of(plan: Plan) -> dict[str, dict[Tile, Prediction]]:
    """Every layer on Tensor Cores, with each tile that it could be cut into."""
    return {
        name: layer_tiles(request, plan.offers[name].reads, plan.offers[name].writes)
        for name, request in plan.requests.items()
        if plan.kernels[name].endswith(("_mma", "_mma_nhwc"))
    }


def layer_table(form: str, batch: int = 8) -> list[dict[str, Any]]:
    """Every kernel of ResNet-50 at the clock that the network holds; those that look alike are one row."""
    plan = planned("resnet50", form, batch)
    found = predictions(plan)
    clock = held_clock(T4, list(found.values()))
    chosen = {name: str(fastest(tiles)) for name, tiles in tiles_of(plan).items()}
    results: list[dict[str, Any]] = []
    for name, kernel in found.items():
        results.append(
            {
                "name": name,
                "kernel": plan.kernels.get(name, "conversion"),
                "tile": chosen.get(name),
                "us": kernel.us(clock),
                "bound": kernel.bound(clock),
                "occupancy": kernel.occupancy,
                "busy": kernel.tensor_cycles / clock / kernel.us(clock),
                "parts_us": kernel.parts_us(clock),
            }
        )
    print(f"\n## Kernels of ResNet-50, {form}, batch {batch}, at {clock:.0f} MHz\n")
    rows = []
    for _, group in itertools.groupby(sorted(results, key=_alike), key=_alike):
        first, *rest = group
        rows.append([first["name"] + (f" and {len(rest)} alike" if rest else ""), first["kernel"],
                     first["tile"] or "", f"{first['us']:.1f}", first["bound"], f"{first['busy']:.0%}",
                     "" if first["occupancy"] is None else f"{first['occupancy']:.0%}"])  # fmt: skip
    print(markdown(["layer", "kernel", "tile", "us", "bound by", "tensor cores busy", "occupancy"], rows))
    return results


def _alike(row: dict[str, Any]) -> tuple[float, str, str, str]:
    """Slowest first; equal for kernels that look alike."""
    return (-round(row["us"], 3), row["kernel"], str(row["tile"]), row["bound"])


PARTS = ("start", "tensor cores", "data path", "issue", "L2", "waiting", "DRAM")


def scaled(prediction: Prediction, factors: Mapping[str, float]) -> Prediction:
    """The same kernel on a GPU whose parts are slower or faster by factors."""
    return replace(
        prediction,
        start_cycles=prediction.start_cycles * factors["start"],
        cycles={name: cycles * factors[name] for name, cycles in prediction.cycles.items()},
        dram_bytes=prediction.dram_bytes * factors["DRAM"],
    )


def tile_losses(form: str, batch: int, wrong: float = 0.2) -> dict[str, Any]:
    """What the chosen tiles lose where every part is `wrong` too slow or too fast, in all combinations."""
    layers = tiles_of(planned("resnet50", form, batch))
    chosen = {name: fastest(tiles) for name, tiles in layers.items()}
    whole_losses, worst_layers = [], []
    for signs in itertools.product((1 - wrong, 1 + wrong), repeat=len(PARTS)):
        factors = dict(zip(PARTS, signs, strict=True))
        taken, best, worst = 0.0, 0.0, 0.0
        for name, tiles in layers.items():
            times: dict[Tile, float] = {tile: scaled(tiles[tile], factors).us() for tile in tiles}
            taken, best = taken + times[chosen[name]], best + min(times.values())
            worst = max(worst, times[chosen[name]] / min(times.values()) - 1)
        whole_losses.append(taken / best - 1)
        worst_layers.append(worst)
    one = {tile: sum(tiles[tile].us() for tiles in layers.values()) for tile in next(iter(layers.values()))}
    best_one = min(one, key=lambda tile: one[tile])
    total = sum(tiles[chosen[name]].us() for name, tiles in layers.items())
    return {
        "tiles": {str(tile): count for tile, count in Counter(chosen.values()).most_common()},
        "mean_loss": float(np.mean(whole_losses)),
        "largest_loss": max(whole_losses),
        "largest_loss_of_a_layer": max(worst_layers),
        "best_single_tile": str(best_one),
        "single_tile_loss": one[best_one] / total - 1,
    }


def tile_table() -> dict[str, Any]:
    results, rows = {}, []
    for form, batch in itertools.product(("INT8", "INT4"), (1, 8, 128)):
        found = results[f"{form}, batch {batch}"] = tile_losses(form, batch)
        tiles = "; ".join(f"{count} x {tile}" for tile, count in found["tiles"].items())
        rows.append([form, f"{batch}", tiles, f"{found['mean_loss']:.1%}", f"{found['largest_loss']:.1%}",
                     f"{found['largest_loss_of_a_layer']:.0%}",
                     f"{found['single_tile_loss']:.0%} ({found['best_single_tile']})"])  # fmt: skip
    print(f"\n## Tiles, and what they lose where the model's parts are 20% wrong ({2 ** len(PARTS)} combinations)\n")
    print(markdown(["network", "batch", "tiles", "mean loss", "largest loss", "of one layer",
                    "loss of the best single tile, model right"], rows))  # fmt: skip
    return results


# Published times of layers


def resnet18_layers() -> dict[str, dict[int, float]]:
    """Microseconds of each layer at 8 and at 4 bits, batch 8, kernels alone."""
    times: dict[str, dict[int, float]] = {name: {} for name in PUBLISHED["resnet18_layers"]}
    for bits, form in ((8, "INT8"), (4, "INT4")):
        plan = planned("resnet18", form, 8)
        for name, row in times.items():
            row[bits] = plan.offers[name].cost
    return times


def beside_published() -> dict[str, Any]:
    """ResNet-18's layers beside both published sets."""
    ours = resnet18_layers()
    sets = {
        key: {name: row[key] for name, row in PUBLISHED["resnet18_layers"].items()} for key in ("table_ms", "tuned_ms")
    }
    rows, results = [], {}
    for name, row in ours.items():
        cells = [f"{row[bits]:.1f}" for bits in (8, 4)]
        for table in sets.values():
            cells += [f"{1e3 * table[name][str(bits)]:.0f}" for bits in (8, 4)]
        rows.append([name, *cells])
    print("\n## ResNet-18's layers on a T4 at batch 8, us: predicted, and published by HAWQ-V3\n")
    print(markdown(["layer", "INT8", "INT4", "table INT8", "table INT4", "tuned INT8", "tuned INT4"], rows))
    flat = {"predicted": [row[bits] for row in ours.values() for bits in (8, 4)]}
    flat |= {key: [1e3 * table[name][str(b)] for name in ours for b in (8, 4)] for key, table in sets.items()}
    for one, other in itertools.combinations(flat, 2):
        ratios = np.array(flat[other]) / np.array(flat[one])
        factor = float(np.exp(np.log(ratios).mean()))
        results[f"{other} over {one}"] = {
            "factor": factor,
            "largest_misfit_after_scaling": float(np.exp(np.abs(np.log(ratios / factor)).max())),
            "median_misfit_after_scaling": float(np.exp(np.median(np.abs(np.log(ratios / factor))))),
            "rank_correlation": float(spearmanr(flat[one], flat[other]).statistic),
            "rank_correlation_int8": float(spearmanr(flat[one][::2], flat[other][::2]).statistic),
            "rank_correlation_int4": float(spearmanr(flat[one][1::2], flat[other][1::2]).statistic),
            "rank_correlation_gain": float(spearmanr(_gains(flat[one]), _gains(flat[other])).statistic),
        }
    print()
    print(markdown(
        ["", "factor", "misfit after scaling, median and largest", "rank correlation", "INT8", "INT4", "INT8 - INT4"],
        [[pair, f"{found['factor']:.2f}", f"{found['median_misfit_after_scaling']:.2f}, "
          f"{found['largest_misfit_after_scaling']:.2f}",
          *(f"{found[f'rank_correlation{part}']:.2f}" for part in ("", "_int8", "_int4", "_gain"))]
         for pair, found in results.items()],
    ))  # fmt: skip
    gains = {key: float(sum(values[::2]) / sum(values[1::2])) for key, values in flat.items()}
    print("INT8 over INT4, all layers: " + ", ".join(f"{key} {gain:.2f}x" for key, gain in gains.items()))
    return {"layers_us": ours, "comparison": results, "int8_over_int4": gains}


def _gains(flat: Sequence[float]) -> list[float]:
    """What 4 bits save, layer by layer."""
    return [int8 - int4 for int8, int4 in zip(flat[::2], flat[1::2], strict=True)]


# Allocation


def resnet18_allocations() -> dict[str, Any]:
    """The paper's sensitivities and shares of latency, on the model's column instead of theirs."""
    predicted = resnet18_layers()
    names = {row["upstream"]: name for name, row in PUBLISHED["resnet18_layers"].items()}
    layers = []
    for layer in UPSTREAM["layers"]:
        choices = {
            Bits(b, b): Cost(layer["hessian_trace_avg"] * layer[f"delta_w_sq_int{b}"], layer["params"] * b / 8,
                             layer["macs"] * b * b, predicted[names[layer["name"]]][b])
            for b in (4, 8)
        }  # fmt: skip
        layers.append(LayerCosts(layer["name"], layer["params"], layer["macs"], choices))
    table = CostTable(tuple(layers), tuple(tuple(pair) for pair in UPSTREAM["tied_layer_pairs"]))
    predicted_us = [predicted[names[layer["name"]]] for layer in UPSTREAM["layers"]]
    int8 = sum(row[8] for row in predicted_us)
    results, rows = {}, []
    for share in ("75%", "50%", "25%"):
        ours = solve_ilp(formulate(table, Budget(latency=share)))
        chosen = [bits.weight for bits in ours.bits.layers.values()]
        published = UPSTREAM["published"][f"latency_0.{share[:2].rstrip('0')}"]
        theirs = published["weight_bits"]
        their_us = sum(row[bits] for row, bits in zip(predicted_us, theirs, strict=True))
        results[share] = found = {
            "bits": chosen, "published_bits": theirs, "layers_that_differ": sum(map(int.__ne__, chosen, theirs)),
            "us": ours.costs["latency_us"], "published_us": their_us, "int8_us": int8, "omega": ours.sensitivity,
            "published_omega": published["omega"], "limit_us": ours.limits["latency_us"],
        }  # fmt: skip
        rows.append([share, _marks(chosen), _marks(theirs), f"{found['layers_that_differ']} of {len(chosen)}",
                     f"{found['us']:.0f}", f"{their_us:.0f} (limit {found['limit_us']:.0f})",
                     f"{int8 / found['us']:.2f}x, {int8 / their_us:.2f}x",
                     f"{ours.sensitivity:.3f}, {published['omega']:.3f}"])  # fmt: skip
    print("\n## Bits of ResNet-18 on a share of the latency: the model's column, and HAWQ-V3's choice on its own\n")
    print(markdown(["share", "ours", "HAWQ-V3", "differ", "ours us", "HAWQ-V3's us",
                    "over INT8, predicted: ours, theirs", "Omega: ours, theirs"], rows))  # fmt: skip
    return results


def _marks(bits: Sequence[int]) -> str:
    return "`" + "".join(map(str, bits)) + "`"


def resnet50_allocations(costs: CostTable, batch: int = 8) -> dict[str, Any]:
    """Bits by the model's column; the paper publishes sizes, BOPS and speed of its choices, not the bits."""
    pins = {costs.names[0]: Bits(8, 8), costs.names[-1]: Bits(8, 8)}
    graph, ranges = captured("resnet50")
    uniform = whole("INT8", batch).ms
    results, rows = {}, []
    published = PUBLISHED["latency_budgets"]["resnet50"]
    for share, paper in zip(("75%", "50%", "25%"), published["rows"], strict=True):
        found = solve_ilp(formulate(costs, Budget(latency=share), pins=pins))
        plan = plan_storages(integerize(graph, ranges, found.bits), T4_TARGET, 128, batch=batch)
        ms = Whole.of(plan, T4, batch).ms
        results[share] = {
            "bits": {name: repr(bits) for name, bits in found.bits.layers.items()}, "costs": dict(found.costs),
            "limit_us": found.limits["latency_us"], "network_ms": ms, "over_int8": uniform / ms, "published": paper,
        }  # fmt: skip
        narrow = sum(bits.weight == 4 for bits in found.bits.layers.values())
        rows.append([share, f"{narrow} of {len(found.bits.layers)}", f"{found.costs['size_bytes'] / 1e6:.1f}",
                     f"{paper['size_MB']}", f"{found.costs['bops'] / 1e9:.0f}", f"{paper['bops_G']}",
                     f"{found.costs['latency_us']:.0f}", f"{ms:.2f}", f"{uniform / ms:.2f}x",
                     f"{paper['speed_vs_int8']}x"])  # fmt: skip
    print("\n## Bits of ResNet-50 on a share of the latency, beside HAWQ-V3's published choices\n")
    print(markdown(["share", "layers at 4 bits", "MB", "theirs", "GBOPS", "theirs", "us, layers alone",
                    "ms, whole network", "over INT8, predicted", "theirs, measured"], rows))  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--costs", type=Path, help="of ResNet-50; without it, its allocations stay as they are")
    arguments = parser.parse_args()
    print(f"kernels alone are compared at {typical_clock(T4):.0f} MHz")
    results: dict[str, Any] = {"whole": whole_networks(), "nvidia": beside_nvidia()}
    results["layers"] = {form: layer_table(form) for form in ("INT8", "INT4")}
    results["tiles"] = tile_table()
    results["resnet18"] = beside_published()
    results["resnet18_allocations"] = resnet18_allocations()
    if arguments.costs is None:
        results = {**read_results("gpu_model"), **results}
    else:
        costs = CostTable.from_json(json.loads(arguments.costs.read_text()))
        results["resnet50_allocations"] = {
            "sources": dict(costs.sources), "shares": resnet50_allocations(costs)
        }  # fmt: skip
    print(f"\nwrote {write_results('gpu_model', results)}")


if __name__ == "__main__":
    main()
