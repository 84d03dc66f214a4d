"""All allocators on one network, one budget, one number of measurements: what their bits are worth.

    python -m benchmarks.allocators DATA [--networks "resnet20 digits" resnet20 ...] [--evaluations 120]

DATA is as for `benchmarks.cifar` and `benchmarks.imagenet`; the digits come with scikit-learn. Three sets of images
that share none: ranges, roundings and sensitivities are found on the first; searches measure accuracy on the second,
with the simulated network; what is reported is the accuracy of the integers on the third, their weights rounded as a
run rounds them. Every allocator chooses weights and activations of 2 to 8 bits in each layer, first and last at 8,
within the cost of a uniform network, which stands beside them as the row to beat. Those that draw at random run with
several seeds.

Rows that are there already are kept, so that a run that was cut off goes on. Writes
``benchmarks/results/allocators.json`` and prints the tables of ``docs/allocators.md``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.runs import markdown, read_results, write_results
from hawq_tvm import pipeline
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.backends.pytorch.threads import run_pieces
from hawq_tvm.backends.tvm.host import default_threads
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.hashing import json_sha256
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.quantizer import LayerWeights, RangeTable
from hawq_tvm.core.reporter import LineReporter
from hawq_tvm.core.specs import BitConfig, Bits, CostTable
from hawq_tvm.ilp import Allocation, Problem, formulate
from hawq_tvm.posttraining.alone import round_alone
from hawq_tvm.posttraining.walk import PIECE, Walk
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.provenance import describe_run, run_identity
from hawq_tvm.runs.rundir import edit_run, open_run, read_run
from hawq_tvm.search import ALLOCATORS, Resources
from hawq_tvm.search.memory import remembered
from hawq_tvm.search.simulated import SimulatedAccuracy
from hawq_tvm.search.states import layer_states
from hawq_tvm.settings import METRICS, RoundingSettings, Settings
from hawq_tvm.sources.data import batches, load_data
from hawq_tvm.sources.models import load_model
from hawq_tvm.sources.options import DataOptions, Preprocessing
from hawq_tvm.sources.splits import Subset
from hawq_tvm.stages.calibrate import calibrate
from hawq_tvm.stages.capture import capture
from hawq_tvm.stages.stage import Step
from hawq_tvm.stages.work import Work

WIDTHS = range(2, 9)
PAIRS = tuple(Bits(weight, activation) for weight in WIDTHS for activation in WIDTHS)
PIN = Bits(8, 8)
DETERMINISTIC = ("highs", "hawq", "greedy")
"""What is chosen from the table of a sensitivity, and so runs once for each."""
OPTUNA = ("optuna",) if find_spec("optuna") else ()  # left out where it is not installed
MEASURING = ("greedy-accuracy", "random", "ddpg", *OPTUNA)
DRAWING = ("random", "ddpg", *OPTUNA)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Entry:
    """A network of the arena.

    Attributes:
        model: as it is named; a file lies in DATA.
        weights: its checkpoint in DATA; None for the one that comes with it.
        data: where in DATA its images are.
        images: how they are normalised.
        calibration: images that ranges, roundings and sensitivities are found on.
        search: images that searches measure on.
        report: images that are reported.
        uniform: the bits whose cost is the budget: bytes by those of the weights, BOPS by both.
    """

    model: str
    weights: str | None
    data: str
    images: Preprocessing
    calibration: int
    search: int
    report: int
    uniform: Bits


NETWORKS = {
    "resnet20 digits": Entry("resnet20", None, "digits", Preprocessing(), *(256, 250, 540, Bits(3, 4))),
    "resnet20": Entry(
        "resnet20_cifar",
        "resnet20_cifar10.safetensors",
        "cifar10:{}/cifar10.zip",
        Preprocessing(),
        *(256, 250, 2000, Bits(3, 4)),
    ),
    "squeezenet1_1": Entry(
        "{}/networks.py:squeezenet1_1",
        "squeezenet1_1_imagenet.safetensors",
        "imagefolder:{}/imagenet_sample.zip",
        Preprocessing(),
        *(100, 200, 700, Bits(5, 5)),
    ),
    "mobilenet_v2": Entry(
        "{}/networks.py:mobilenet_v2",
        "mobilenet_v2_imagenet.safetensors",
        "imagefolder:{}/imagenet_sample.zip",
        Preprocessing(mean=HALF, std=HALF),
        *(100, 200, 700, Bits(6, 6)),
    ),
}


class Subject:
    """A network as every allocator is given it."""

    def __init__(self, name: str, entry: Entry, data: Path) -> None:
        """Find its samples.

        Args:
            name: for its rows.
            entry: what it is.
            data: the folder that its files are in.
        """
        self.name, self.entry, self._folder = name, entry, data
        count = entry.calibration + entry.search
        options = DataOptions(calibration_samples=count, evaluation_samples=entry.report, preprocessing=entry.images)
        found = load_data(entry.data.format(data), options)
        self._first = Subset(found.calibration, range(entry.calibration))
        self._second = Subset(found.calibration, range(entry.calibration, count))
        self._third = found.evaluation
        self._data = replace(found, calibration=self._first, evaluation=self._first)
        self._options = replace(options, calibration_samples=entry.calibration)
        self._threads = default_threads()
        self._scratch = tempfile.TemporaryDirectory(prefix="allocators-")  # goes with this object

    def costs(self, metric: str) -> CostTable:
        """The table that a sensitivity makes."""
        return self._performed(metric, pipeline.PROFILE).artifacts.costs

    def calibrate(self) -> None:
        """Capture the network and find its ranges."""
        self._performed("omega", (capture, calibrate))

    def _performed(self, metric: str, steps: tuple[Step, ...]) -> Work:
        entry, path = self.entry, Path(self._scratch.name) / "run"
        settings = Settings(bits=PAIRS, metrics=(metric,))
        spec = entry.model.format(self._folder)
        model = load_model(spec, None if entry.weights is None else str(self._folder / entry.weights), seed=0)
        with edit_run(path, identity=run_identity(spec, model, self._data.name)) as run:
            describe_run(run, settings, self._data.name, self._options, self._data)
            work = Work(run, settings, model=model, data=self._data, reporter=LineReporter())
            pipeline.perform(work, steps)
        return Work(open_run(path), settings, data=self._data)

    @cached_property
    def _found(self) -> tuple[FloatGraph, RangeTable]:
        path = Path(self._scratch.name) / "run"
        return read_run(path, lambda run: (Artifacts(run).float_graph, Artifacts(run).ranges))

    @property
    def graph(self) -> FloatGraph:
        return self._found[0]

    @property
    def ranges(self) -> RangeTable:
        return self._found[1]

    def curvatures(self) -> dict[str, float]:
        """The top eigenvalue of each layer's Hessian; none where they were not profiled."""
        found = Artifacts(open_run(Path(self._scratch.name) / "run"))
        if "eigenvalue" not in found.profiled:
            return {}
        orders = {name: row["order"] for name, row in found.sensitivity("eigenvalue")["layers"].items()}
        return {
            node.name: orders[node.name] * node.weight.size for node in self.graph.layers if node.weight is not None
        }

    @cached_property
    def calibration(self) -> list[Tensor]:
        return [batch.images for batch in batches(self._first, PIECE)]

    @cached_property
    def rounded(self) -> Mapping[str, Mapping[WeightFormat, LayerWeights]]:
        """Every layer's weights at every width."""
        formats = [WeightFormat(bits) for bits in WIDTHS]
        return round_alone(self.graph, self.calibration, formats, RoundingSettings(), threads=self._threads)

    def searched(self) -> tuple[Tensor, Tensor]:
        """The images that searches measure on, and their labels."""
        return whole(self._second)

    def simulated(self) -> SimulatedAccuracy:
        """What searches measure with."""
        images, labels = self.searched()
        return SimulatedAccuracy(self.graph, self.ranges, self.rounded, images, labels, threads=self._threads)

    @property
    def question(self) -> str:
        """Names what decides a measured accuracy."""
        data = {
            "images": self.entry.data,
            "of": [self.entry.calibration, self.entry.search],
            "weights": self.entry.weights,
        }
        return json_sha256({"arena": self.name, **data})

    @cached_property
    def _reported(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Images, labels, and whether the float network is right."""
        network, pieces = FloatModule(self.graph), []
        for batch in batches(self._third, 20):
            assert batch.labels is not None
            with torch.no_grad():
                right = network(batch.images).argmax(1) == batch.labels
            pieces.append((batch.images, batch.labels, right))
        return pieces

    def rounded_for(self, bits: BitConfig) -> Mapping[str, LayerWeights]:
        """The weights of a configuration, rounded as a run rounds them."""
        types = ActivationTypes(self.graph, self.ranges, bits)
        return Walk(self.graph, types, RoundingSettings(), threads=self._threads).run(self.calibration)

    def integer_accuracy(self, bits: BitConfig, weights: Mapping[str, LayerWeights]) -> dict[str, float]:
        """Top-1 of float and of the integers on the third set, their paired difference and its standard error."""
        network = IntegerModule(integerize(self.graph, self.ranges, bits, weights))

        def right(piece: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            classes: Tensor = network(piece[0]).flatten(1).argmax(1)
            return classes == piece[1]

        got = torch.cat(run_pieces(right, self._reported, self._threads)).double()
        expected = torch.cat([piece[2] for piece in self._reported]).double()
        paired = got - expected
        return {
            "float_top1": float(expected.mean()),
            "integer_top1": float(got.mean()),
            "difference": float(paired.mean()),
            "standard_error": float(paired.std(correction=1)) / len(paired) ** 0.5,
            "images": len(paired),
        }


def whole(split: Any) -> tuple[Tensor, Tensor]:
    """All images and labels of a split."""
    pieces = list(batches(split, 100))
    return torch.cat([piece.images for piece in pieces]), torch.cat([p.labels for p in pieces if p.labels is not None])


def budgets(table: CostTable, uniform: Bits) -> dict[str, Budget]:
    """What a uniform network costs with its ends at 8 bits: its bytes, and its BOPS."""
    pinned = {table.names[0]: PIN, table.names[-1]: PIN}
    bits = BitConfig({name: pinned.get(name, uniform) for name in table.names})
    return {
        f"bytes of w{uniform.weight}": Budget(size=table.total(bits, "size_bytes")),
        f"BOPS of {uniform}": Budget(bops=table.total(bits, "bops")),
    }


def contest(
    subject: Subject, metrics: Iterable[str], evaluations: int, seeds: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of one network that is not there yet: its key, and what was found."""
    known = read_results("allocators")
    tables = {metric: subject.costs(metric) for metric in metrics}
    first = next(iter(tables.values()))
    simulated, curvatures = subject.simulated(), subject.curvatures()
    for limit, budget in budgets(first, subject.entry.uniform).items():
        problems = {metric: pinned_problem(table, budget) for metric, table in tables.items()}
        any_problem = next(iter(problems.values()))
        pinned = {first.names[0]: PIN, first.names[-1]: PIN}
        uniform = subject.entry.uniform if "BOPS" in limit else Bits(subject.entry.uniform.weight, 8)
        same = BitConfig({name: pinned.get(name, uniform) for name in first.names})
        rows: list[tuple[str, str, int, Problem | None]] = [("uniform", "", 0, None)]
        rows += [(name, metric, 0, problem) for metric, problem in problems.items() for name in DETERMINISTIC]
        rows += [("greedy-accuracy", "", 0, any_problem)]
        rows += [(name, "", seed, any_problem) for name in DRAWING for seed in range(seeds)]
        for name, metric, seed, problem in rows:
            key = f"{subject.name} | {limit} | {name} {metric} | {evaluations} | {seed}"
            if key in known:
                continue
            measure = remembered(simulated, subject.question)
            states = layer_states(subject.graph)
            resources = Resources(
                simulated, subject.question, evaluations=evaluations, seed=seed, states=states, curvatures=curvatures
            )
            start = time.perf_counter()
            bits = same if problem is None else answered(name, problem, resources).bits
            seconds = time.perf_counter() - start
            yield (
                key,
                {
                    "network": subject.name,
                    "limit": limit,
                    "allocator": name,
                    "metric": metric,
                    "seed": seed,
                    "evaluations": evaluations if name in MEASURING else 0,
                    "seconds": round(seconds, 2),
                    "search_accuracy": measure(bits),
                    "size_bytes": first.total(bits, "size_bytes"),
                    "bops": first.total(bits, "bops"),
                    "bits": {layer: repr(pair) for layer, pair in bits.layers.items()},
                    **subject.integer_accuracy(bits, subject.rounded_for(bits)),
                },
            )


def answered(name: str, problem: Problem, resources: Resources) -> Allocation:
    return ALLOCATORS[name](problem, resources)


def pinned_problem(table: CostTable, budget: Budget) -> Problem:
    """First and last layer at 8 bits."""
    return formulate(table, budget, pins={table.names[0]: PIN, table.names[-1]: PIN})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for name in arguments.networks:
        for key, found in contest(
            Subject(name, NETWORKS[name], arguments.data), arguments.metrics, arguments.evaluations, arguments.seeds
        ):
            write_results("allocators", {**read_results("allocators"), key: found})
            print(key, {k: v for k, v in found.items() if k != "bits"}, flush=True)
    for title, rows in tables(read_results("allocators").values()):
        print(f"\n{title}\n\n{markdown(COLUMNS, rows)}")


COLUMNS = ("allocator", "sensitivity", "integers - float, points", "on the search's images", "MB", "GBOPS", "seconds")


def tables(results: Iterable[dict[str, Any]]) -> Iterator[tuple[str, list[list[str]]]]:
    """A table for each network and budget: a row for each allocator and sensitivity, its seeds together."""
    found = list(results)
    for network, limit in dict.fromkeys((row["network"], row["limit"]) for row in found):
        rows = [row for row in found if (row["network"], row["limit"]) == (network, limit)]
        names = dict.fromkeys((row["allocator"], row["metric"]) for row in rows)
        images, top1 = rows[0]["images"], rows[0]["float_top1"]
        title = f"{network}, {limit}: float reads {top1:.1%} of {images} images"
        yield title, [_row([row for row in rows if (row["allocator"], row["metric"]) == name]) for name in names]


def _row(seeds: list[dict[str, Any]]) -> list[str]:
    first = seeds[0]
    drops = sorted(100 * row["difference"] for row in seeds)
    spread = f" ({drops[0]:+.1f} to {drops[-1]:+.1f}, {len(drops)} seeds)" if len(drops) > 1 else ""
    error = max(100 * row["standard_error"] for row in seeds)
    searched = sum(row["search_accuracy"] for row in seeds) / len(seeds)
    return [
        first["allocator"],
        first["metric"],
        f"{drops[len(drops) // 2]:+.1f} ± {error:.1f}{spread}",
        f"{searched:.1%}",
        f"{first['size_bytes'] / 1e6:.2f}",
        f"{first['bops'] / 1e9:.2f}",
        f"{sum(row['seconds'] for row in seeds) / len(seeds):.0f}",
    ]


if __name__ == "__main__":
    main()
