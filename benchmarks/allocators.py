"""All allocators on one network, one budget, one number of measurements: what their bits are worth.

    python -m benchmarks.allocators DATA [--networks "resnet20 digits" resnet20 ...] [--folder FOLDER]

DATA is as for `benchmarks.cifar` and `benchmarks.imagenet`; the digits come with scikit-learn. Every allocator chooses
weights and activations of 2 to 8 bits in each layer, first and last at 8, within what a uniform network costs, which
stands beside them as the row to beat: its bytes, its BOPS, and its latency on a simulated accelerator. On this
machine's CPU kernels of 4 and of 8 bits take nearly the same time, and a latency would bound nothing. Those that draw
at random run with several seeds. `benchmarks.subjects` says what is measured on which images.

All weights are rounded once for each width, each layer by itself. A run rounds a layer on what the rounded layers
before it give, which loses less and would take minutes for each row.

Rows that are there already are kept, and with FOLDER what they are made of, so that a run that was cut off goes on.
Writes ``benchmarks/results/allocators_NETWORK.json`` and prints what `benchmarks.allocator_tables` makes of it; with
the three networks that the documents show, writes their tables there. ``--tables`` measures nothing. Which metric
should be the default is decided by `benchmarks.deciding`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.allocator_tables import write_tables
from benchmarks.deciding import PAPERS, Cell
from benchmarks.runs import read_results, write_results
from benchmarks.subjects import Effort, Entry, Subject, paired
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.specs import BitConfig, Bits, CostName, CostTable
from hawq_tvm.ilp import Problem, formulate
from hawq_tvm.search import ALLOCATORS, Resources
from hawq_tvm.search.states import layer_states
from hawq_tvm.settings import METRICS, HessianSettings, parse_bits
from hawq_tvm.sources.options import Preprocessing

PIN = Bits(8, 8)
ACCELERATOR = "bismo-edge"
"""Whose latency is the third budget: it takes every bit of weights and of activations into account."""
WEIGHTS_ALONE = "hawq, weights alone"
"""HAWQ's order with bits as of its paper's ResNet-20: a few widths of weights, activations as uniform bits have."""
FEW = (2, 3, 4, 6, 8)
"""Those widths: the paper leaves them to its reader."""
FROM_TABLE = ("highs", "hawq", WEIGHTS_ALONE, "greedy")
"""What is chosen from the table of a sensitivity, and so runs once for each."""
OPTUNA = ("optuna",) if find_spec("optuna") else ()  # left out where it is not installed
DRAWING = ("random", "ddpg", *OPTUNA)
HALF = (0.5, 0.5, 0.5)

_POWER = HessianSettings(samples=4, max_iterations=4)  # of networks of 224 x 224, on a CPU

NETWORKS = {
    "resnet20 digits": Entry("resnet20", None, "digits", Preprocessing(), *(256, 250, 540)),
    "resnet20": Entry(
        "resnet20_cifar",
        "resnet20_cifar10.safetensors",
        "cifar10:{}/cifar10.zip",
        Preprocessing(),
        *(256, 250, 2000, 2000),
    ),
    "squeezenet1_1": Entry(
        "{}/networks.py:squeezenet1_1",
        "squeezenet1_1_imagenet.safetensors",
        "imagefolder:{}/imagenet_sample.zip",
        Preprocessing(),
        *(64, 64, 450, 400),
        effort=Effort(HessianSettings(samples=16, max_probes=64), _POWER, loss_samples=16),
    ),
    "mobilenet_v2": Entry(
        "{}/networks.py:mobilenet_v2",
        "mobilenet_v2_imagenet.safetensors",
        "imagefolder:{}/imagenet_sample.zip",
        Preprocessing(mean=HALF, std=HALF),
        *(48, 64, 450, 400, range(4, 9)),
        effort=Effort(HessianSettings(samples=8, max_probes=32), _POWER, loss_samples=16),
    ),
}


MARKS: Mapping[str, tuple[tuple[CostName, str], ...]] = {
    "resnet20 digits": (("size_bytes", "w2a8,w3a8"), ("bops", "w3a3"), ("latency_us", "w3a3")),
    "resnet20": (("size_bytes", "w2a8,w3a8"), ("bops", "w3a3"), ("latency_us", "w3a3")),
    "squeezenet1_1": (("size_bytes", "w3a8"), ("bops", "w4a4"), ("latency_us", "w4a4")),
    "mobilenet_v2": (("bops", "w5a5"), ("latency_us", "w5a5"), ("size_bytes", "w4a8,w5a8")),
}
"""The budgets of each network: what uniform bits cost, a mean where two are named. At these the uniform network, the
first that is named, loses points, so that it matters which layer has the bits."""


@dataclass(frozen=True)
class Goal:
    """A budget.

    Attributes:
        limit: its name.
        budget: what the network may cost.
        uniform: uniform bits within it.
    """

    limit: str
    budget: Budget
    uniform: BitConfig


@dataclass(frozen=True)
class Contender:
    """What fills one row: an allocator, with the metric that it reads or the seed that it draws with.

    Attributes:
        allocator: its name, or ``uniform``.
        metric: empty where it reads none.
        seed: 0 where it draws nothing.
        measures: whether it measures accuracy.
    """

    allocator: str
    metric: str = ""
    seed: int = 0
    measures: bool = False


_BUDGETS: Mapping[CostName, tuple[str, Callable[[float], Budget]]] = {
    "size_bytes": ("bytes", lambda limit: Budget(size=limit)),
    "bops": ("BOPS", lambda limit: Budget(bops=limit)),
    "latency_us": (f"{ACCELERATOR} latency", lambda limit: Budget(latency=limit)),
}
"""By cost, how it is called and what bounds it."""


def goals(table: CostTable, marks: Iterable[tuple[CostName, str]]) -> list[Goal]:
    """What uniform networks cost with their ends at 8 bits.

    Args:
        table: with that cost.
        marks: a cost and the bits that it is of; a mean where there are several, the first of them the cheapest.
    """
    found = []
    for cost, text in marks:
        uniform = [with_ends(table, bits) for bits in parse_bits(text)]
        limit = sum(table.total(bits, cost) for bits in uniform) / len(uniform)
        title, budget = _BUDGETS[cost]
        found.append(Goal(f"{title} of {text.replace(',', ' and ')}", budget(limit), uniform[0]))
    return found


def with_ends(table: CostTable, uniform: Bits) -> BitConfig:
    """The same bits everywhere but in the first and the last layer."""
    pinned = {table.names[0]: PIN, table.names[-1]: PIN}
    return BitConfig({name: pinned.get(name, uniform) for name in table.names})


def pinned_problem(table: CostTable, budget: Budget, candidates: Sequence[Bits] | None = None) -> Problem:
    """First and last layer at 8 bits, the others at any of the table's or of `candidates`."""
    return formulate(table, budget, candidates=candidates, pins={table.names[0]: PIN, table.names[-1]: PIN})


def choices(allocator: str, goal: Goal, widths: Iterable[int]) -> list[Bits] | None:
    """What the layers between the ends may have; None for all that the table has."""
    if allocator != WEIGHTS_ALONE:
        return None
    activation = list(goal.uniform.layers.values())[1].activation
    return [Bits(weight, activation) for weight in widths if weight in FEW]


def contenders(metrics: Iterable[str], seeds: int) -> tuple[list[Contender], list[Contender]]:
    """Every row of a budget: those that measure nothing, then the searches."""
    quick = [Contender("uniform"), *(Contender(name, metric) for metric in metrics for name in FROM_TABLE)]
    searches = [Contender("greedy-accuracy", measures=True)]
    searches += [Contender(name, seed=seed, measures=True) for seed in range(seeds) for name in DRAWING]
    return quick, searches


def results_name(network: str) -> str:
    return f"allocators_{network.replace(' ', '_')}"


def contest(
    subject: Subject, metrics: Sequence[str], evaluations: int, seeds: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of one network that is not there yet, the searches last: its key, and what was found."""
    known = read_results(results_name(subject.name))
    subject.profile(metrics)
    tables = {metric: subject.costs(metric, ACCELERATOR) for metric in metrics}
    any_table = next(iter(tables.values()))
    states, curvatures, simulated = layer_states(subject.graph), subject.curvatures(), subject.simulated()
    quick, searches = contenders(metrics, seeds)
    limits, widths = goals(any_table, MARKS[subject.name]), subject.entry.widths
    for goal, contender in [(goal, one) for part in (quick, searches) for goal in limits for one in part]:
        asked = evaluations if contender.measures else 0
        key = f"{goal.limit} | {contender.allocator} {contender.metric} | {asked} | {contender.seed}"
        if key in known:
            continue
        start, bits = time.perf_counter(), goal.uniform
        if contender.allocator != "uniform":
            table, candidates = tables.get(contender.metric, any_table), choices(contender.allocator, goal, widths)
            problem = pinned_problem(table, goal.budget, candidates)
            resources = Resources(
                simulated,
                subject.question,
                evaluations=evaluations,
                seed=contender.seed,
                states=states,
                curvatures=curvatures,
            )
            bits = ALLOCATORS[contender.allocator.partition(",")[0]](problem, resources).bits
        seconds = time.perf_counter() - start
        yield (
            key,
            {
                "network": subject.name,
                "limit": goal.limit,
                "allocator": contender.allocator,
                "metric": contender.metric,
                "seed": contender.seed,
                "evaluations": asked,
                "seconds": round(seconds, 2),
                **{cost: any_table.total(bits, cost) for cost in ("size_bytes", "bops", "latency_us")},
                "bits": {layer: repr(pair) for layer, pair in bits.layers.items()},
                **accuracies(subject, bits),
            },
        )


def accuracies(subject: Subject, bits: BitConfig) -> dict[str, dict[str, float]]:
    """What a configuration reads of the images to decide on, and of those to report."""
    parts = zip(("deciding", "reported"), subject.right(bits), subject.float_right(), strict=True)
    return {name: paired(got, expected) for name, got, expected in parts if len(expected)}


def cells(subject: Subject, rows: Iterable[Mapping[str, Any]], *, reported: bool) -> list[Cell]:
    """What the program's bits lose by each metric, image by image, under each budget that all metrics have a row of.

    Args:
        subject: the network.
        rows: of its results.
        reported: of the images to report, instead of those to decide on.
    """
    expected = subject.float_right()[reported].astype(float)
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["allocator"] == "highs":
            bits = BitConfig({layer: Bits.parse(pair) for layer, pair in row["bits"].items()})
            found.setdefault(row["limit"], {})[row["metric"]] = expected - subject.right(bits)[reported]
    most = max(map(len, found.values()), default=0)
    return [Cell(subject.name, limit, by) for limit, by in found.items() if len(by) == most and PAPERS in by]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep profiles and outcomes here")
    parser.add_argument("--tables", action="store_true", help="print what is there, and measure nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="allocators-") as scratch:
        folder = arguments.folder or Path(scratch)
        subjects = {name: Subject(name, NETWORKS[name], arguments.data, folder) for name in arguments.networks}
        for name, subject in () if arguments.tables else subjects.items():
            for key, found in contest(subject, arguments.metrics, arguments.evaluations, arguments.seeds):
                write_results(results_name(name), {**read_results(results_name(name)), key: found})
                print(name, key, found["reported"], flush=True)
        rows = {name: list(read_results(results_name(name)).values()) for name in subjects}
        scored = {
            name: (cells(subject, rows[name], reported=False), cells(subject, rows[name], reported=True))
            for name, subject in subjects.items()
        }
        write_tables(rows, {name: both for name, both in scored.items() if all(both)})


if __name__ == "__main__":
    main()
