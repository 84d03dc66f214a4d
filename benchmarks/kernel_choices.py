"""Whether the cost model takes the fastest kernel for each layer, on each CPU that this machine can be.

    python -m benchmarks.kernel_choices [--networks resnet18] [--targets x86/haswell ...] [--rounds N]

INT8, random weights, batch 1, one thread. For each distinct layer, every kernel that offers itself is timed, those in
turns that compete: the chosen one and all whose estimate is at most `LIMIT` times its own. Reading and writing other
storages is in no kernel's time. Listed are layers where another kernel takes less than 0.95 times the chosen one's, and
what all layers take as they are chosen and with the fastest of each. Prints tables and writes
``benchmarks/results/kernel_choices.json``.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.cpu_targets import runnable
from benchmarks.random_networks import integers
from benchmarks.runs import markdown, write_results
from hawq_tvm.backends.tvm.chosen import ChosenKernel
from hawq_tvm.backends.tvm.lower import Machine, build_kernel
from hawq_tvm.backends.tvm.storage import Plan, plan_storages
from hawq_tvm.backends.tvm.timing import time_kernels
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.ops import Flatten, WeightedOperator
from hawq_tvm.core.targets import Target
from hawq_tvm.kernels import Offer
from hawq_tvm.kernels.registry import collect_offers

LIMIT = 4.0
WORSE = 0.95
COLUMNS = ("layer", "calls", "kernel", "us", "best", "best_us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18"])
    parser.add_argument("--targets", nargs="+", help="by default all that this machine runs")
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    targets = {name: target for name, target in runnable().items() if name in (options.targets or runnable())}
    sums, misses, results = [], [], {}
    for network in options.networks:
        graph = integers(network, ["w8a8"])
        for name, target in targets.items():
            layers = measure(graph, target, options.rounds)
            results[f"{network} {name}"] = layers
            chosen, best = (sum(layer["calls"] * layer[which] for layer in layers) for which in ("us", "best_us"))
            sums.append([network, name, str(len(layers)), f"{chosen:.0f}", f"{best:.0f}", f"{best / chosen:.3f}"])
            misses += [
                [network, name, *(str(layer[column]) for column in COLUMNS)]
                for layer in layers
                if layer["best_us"] < WORSE * layer["us"]
            ]
    print(markdown(["network", "target", "distinct", "us as chosen", "us of the fastest", "share"], sums))
    print()
    print(markdown(["network", "target", *COLUMNS], misses))
    print(f"\nwrote {write_results('kernel_choices', {'rounds': options.rounds, 'layers': results})}")


def measure(graph: Graph, target: Target, rounds: int) -> list[dict[str, Any]]:
    """Each distinct layer: its chosen kernel and the fastest one, microseconds, and in how many calls it is."""
    machine = Machine.resolve(target)
    plan = plan_storages(graph, target, machine.vector_bits, batch=1, features=machine.features)
    size_bytes = sum(node.op.weight.size for node in graph if isinstance(node.op, WeightedOperator))
    found: dict[Any, dict[str, Any]] = {}
    for node in graph:
        if isinstance(node.op, Flatten):
            continue
        code = ChosenKernel.of_node(plan, node.name).code
        if code in found:
            found[code]["calls"] += 1
            continue
        found[code] = {"layer": node.name, "calls": 1, **_timed(plan, node.name, machine, size_bytes, rounds)}
    return list(found.values())


def _timed(plan: Plan, name: str, machine: Machine, size_bytes: int, rounds: int) -> dict[str, Any]:
    """The chosen kernel of a layer beside those that compete with it."""
    request, chosen = plan.requests[name], plan.kernels[name]
    answers = collect_offers(request)
    offers = {kernel: offer for kernel, offer in answers.items() if isinstance(offer, Offer)}
    offers = {kernel: offer for kernel, offer in offers.items() if offer.cost <= LIMIT * offers[chosen].cost}
    kernels = []
    for kernel, offer in offers.items():
        candidate = ChosenKernel(request, kernel, offer)
        kernels.append(candidate.timed(build_kernel(candidate.title, kernel, offer.build, machine.target)))
    times = time_kernels(kernels, machine, threads=1, network_bytes=size_bytes, rounds=rounds)
    us = {kernel: round(time.median_us, 2) for kernel, time in zip(offers, times, strict=True)}
    best = min(us, key=us.__getitem__)
    costs = {kernel: round(offer.cost, 2) for kernel, offer in offers.items()}
    return {"kernel": chosen, "us": us[chosen], "best": best, "best_us": us[best], "all_us": us, "costs": costs}


if __name__ == "__main__":
    main()
