"""HAQ's search on a MobileNet: policies for three accelerators, for energy and for bytes, beside other choices.

    python -m benchmarks.train_mobilenet DATA --output FILE
    python -m benchmarks.haq DATA --weights FILE [--goals edge cloud ...] [--seeds 234 ...] [--evaluations 600]

Within what uniform bits cost on one simulated accelerator, each layer of MobileNetV1 (half width, CIFAR-10) gets its
bits from the agent of `hawq_tvm.search.haq`, from as many random configurations, and from the program by two measured
sensitivities. The agent's reward is the accuracy on images that no fine-tuning sees and that are not reported: of
weights that were rounded beforehand (``--reward rounded``), or after a brief fine-tuning as in the paper
(``finetuned``), which takes four times as long. Then every policy is rounded as a run rounds it, and fine-tuned, all
alike; both are turned into integers and measured on test images.

Rows that are there already are kept, so that a run that was cut off goes on, within a search too. Writes
``benchmarks/results/haq.json`` and the tables of ``docs/haq.md``; ``--tables`` writes those alone.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from benchmarks.haq_tables import write_tables
from benchmarks.runs import read_results, write_results
from benchmarks.subjects import WIDTHS, Entry, Subject, whole
from benchmarks.train_mobilenet import IMAGES
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.hashing import file_sha256, json_sha256
from hawq_tvm.core.specs import BitConfig, Bits, CostName, CostTable
from hawq_tvm.ilp import Problem, formulate
from hawq_tvm.ilp.simulators import ACCELERATORS
from hawq_tvm.measure.costing import cost_table
from hawq_tvm.measure.losses import MeasuredMetric, profile_measured
from hawq_tvm.measure.sensitivity import Alone
from hawq_tvm.measure.simulated import on_accelerator
from hawq_tvm.posttraining.alone import round_alone
from hawq_tvm.posttraining.layer_losses import PIECE
from hawq_tvm.posttraining.simulate import input_grids
from hawq_tvm.search import ALLOCATORS, Evaluate, Resources
from hawq_tvm.search.finetune import FinetunedAccuracy, FinetuneSettings, TrainableNetwork, fine_tune
from hawq_tvm.search.memory import remembered
from hawq_tvm.search.simulated import SimulatedAccuracy
from hawq_tvm.search.states import layer_states
from hawq_tvm.settings import RoundingSettings
from hawq_tvm.sources.data import load_data
from hawq_tvm.sources.options import DataOptions
from hawq_tvm.sources.samples import Batch

SEED = 234
"""Of the published search."""

CALIBRATION, SEARCH, REPORT = 256, 1000, 5000
"""Images: ranges, roundings and sensitivities come of the first, rewards of the second; the third are reported."""

BRIEF_IMAGES, LONG_IMAGES = 640, 10_000
BRIEF = FinetuneSettings(rate=5e-3)
"""HAQ's, with a larger step for its fewer images: 640 where HAQ has 20,000."""
LONG = FinetuneSettings(rate=5e-3, schedule="cosine")
"""The rate is, of 2, 5, 10 and 20 thousandths, that of most right answers of uniform w3a3 on the search's images."""

PIN = Bits(8, 8)
PAIRS = tuple(Bits(weight, activation) for weight in WIDTHS for activation in WIDTHS)
KMEANS = (*(Bits(bits, 8, codebook=True) for bits in range(2, 7)), Bits(7, 8), Bits(8, 8))
"""As in HAQ's published search, weights of more than 6 bits are in no codebook."""

Reward = Literal["rounded", "finetuned"]
T = TypeVar("T")
METRICS: tuple[MeasuredMetric, ...] = ("kl", "loss")


@dataclass(frozen=True)
class Goal:
    """A budget: what uniform bits cost.

    Attributes:
        accelerator: that prices latency and energy.
        cost: what is bounded.
        uniform: the bits whose cost is the limit.
        candidates: to choose from.
        pins_ends: whether first and last layer have 8 bits; HAQ's search over codebooks pins nothing.
    """

    accelerator: str
    cost: CostName
    uniform: Bits
    candidates: tuple[Bits, ...] = PAIRS
    pins_ends: bool = True

    def pins(self, names: tuple[str, ...]) -> dict[str, Bits]:
        return {names[0]: PIN, names[-1]: PIN} if self.pins_ends else {}

    def uniform_bits(self, names: tuple[str, ...]) -> BitConfig:
        pins = self.pins(names)
        return BitConfig({name: pins.get(name, self.uniform) for name in names}, f"uniform {self.uniform}")

    def problem(self, table: CostTable) -> Problem:
        """Of an accelerator's costs."""
        limit = table.total(self.uniform_bits(table.names), self.cost)
        budget = Budget(**{self.cost.partition("_")[0]: limit})
        return formulate(table, budget, candidates=self.candidates, pins=self.pins(table.names))


GOALS = {
    "edge": Goal("bismo-edge", "latency_us", Bits(3, 3)),
    "cloud": Goal("bismo-cloud", "latency_us", Bits(3, 3)),
    "fusion": Goal("bitfusion", "latency_us", Bits(3, 3)),
    "energy": Goal("bitfusion", "energy_uj", Bits(3, 3)),
    "bytes": Goal("bitfusion", "size_bytes", Bits(3, 8, codebook=True), KMEANS, pins_ends=False),
}


@dataclass(frozen=True)
class Choice:
    """Who chooses: an allocator, the sensitivity that it goes by or the reward, and its seed."""

    allocator: str
    by: str = ""
    seed: int = 0

    def key(self, goal: str, evaluations: int) -> str:
        return f"{goal} | {self.allocator} {self.by} | {evaluations} | {self.seed}"


def choices(metrics: Iterable[str], seeds: Iterable[int], reward: Reward) -> list[Choice]:
    """Every row of a goal."""
    searches = [Choice(name, reward, seed) for seed in seeds for name in ("ddpg", "random")]
    return [Choice("uniform"), *(Choice("highs", metric) for metric in metrics), *searches]


class Laboratory:
    """A network, its images, and what is measured on them."""

    def __init__(self, data: Path, weights: Path, work: Path) -> None:
        """Find ranges.

        Args:
            data: a folder with ``cifar10.zip``.
            weights: of `benchmarks.train_mobilenet`.
            work: where roundings and sensitivities are kept.
        """
        self._work = work
        entry = Entry(
            "benchmarks/train_mobilenet.py:mobilenet_v1",
            str(weights.resolve()),
            "cifar10:{}/cifar10.zip",
            IMAGES,
            *(CALIBRATION, SEARCH, REPORT),
        )
        self.subject = Subject("mobilenet_v1", entry, data)
        self.subject.calibrate()
        self.graph, self.ranges = self.subject.graph, self.subject.ranges
        options = DataOptions(
            calibration_samples=CALIBRATION + SEARCH + LONG_IMAGES, evaluation_samples=1, preprocessing=IMAGES
        )
        images, labels = whole(load_data(entry.data.format(data), options).calibration)
        first = CALIBRATION + SEARCH
        self._calibration = (images[:CALIBRATION], labels[:CALIBRATION])
        self._training = (images[first:], labels[first:])
        self._weights = file_sha256(weights)

    @cached_property
    def rounded(self) -> Alone:
        """Every layer's weights, in every format."""
        formats = {pair.format for pair in (*PAIRS, *KMEANS)}
        return self._kept(
            "rounded", lambda: round_alone(self.graph, self.subject.calibration, formats, RoundingSettings())
        )

    @cached_property
    def after_rounding(self) -> Evaluate:
        """Accuracy on the search's images, of weights that were rounded beforehand."""
        measure = SimulatedAccuracy(self.graph, self.ranges, self.rounded, *self.subject.searched())
        return remembered(measure, self._question("rounded"))

    @cached_property
    def after_tuning(self) -> Evaluate:
        """The same after a brief fine-tuning: HAQ's reward."""
        images, labels = self._training
        training = (images[:BRIEF_IMAGES], labels[:BRIEF_IMAGES])
        return FinetunedAccuracy(self.graph, self.ranges, training, self.subject.searched(), BRIEF)

    def sensitivities(self, metric: MeasuredMetric) -> Mapping[str, Any]:
        """What each layer loses alone in every format and at every width of its input."""

        def measured() -> Mapping[str, Any]:
            images, labels = (torch.split(part, PIECE) for part in self._calibration)
            pieces = [Batch(*piece) for piece in zip(images, labels, strict=True)]
            grids = input_grids(self.graph, self.ranges, sorted({pair.activation for pair in PAIRS}))
            return profile_measured(metric, self.graph, pieces, self.rounded, grids)

        return self._kept(metric, measured)

    def _kept(self, what: str, make: Callable[[], T]) -> T:
        """What was made once; a network's file names it."""
        path = self._work / f"{what}-{self._weights[:16]}.pickle"
        if not path.is_file():
            self._work.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(make()))
        found: T = pickle.loads(path.read_bytes())
        return found

    def priced(self, goal: Goal, accelerator: str, by: MeasuredMetric | None = None) -> CostTable:
        """What every layer costs on an accelerator at a goal's candidates, and loses by a sensitivity."""
        pairs = sorted({*goal.candidates, goal.uniform, PIN})
        known = None if by is None else self.sensitivities(by)
        return on_accelerator(cost_table(self.graph, pairs, sensitivity=known, latency=None), self.graph, accelerator)

    def chosen(self, goal: Goal, choice: Choice, evaluations: int) -> BitConfig:
        """The bits of one row."""
        if choice.allocator == "uniform":
            return goal.uniform_bits(tuple(layer.name for layer in self.graph.layers))
        if choice.allocator == "highs":
            problem = goal.problem(self.priced(goal, goal.accelerator, by=_metric(choice.by)))
            return ALLOCATORS["highs"](problem, Resources()).bits
        problem = goal.problem(self.priced(goal, goal.accelerator))
        return ALLOCATORS[choice.allocator](problem, self._resources(choice, evaluations)).bits

    def _resources(self, choice: Choice, evaluations: int) -> Resources:
        def advance(done: int, total: int | None) -> None:
            print(f"\r  {choice.allocator} {done}/{total}", end="\n" if done == total else "", flush=True)

        measure = self.after_tuning if choice.by == "finetuned" else self.after_rounding
        return Resources(
            measure,
            self._question(choice.by),
            evaluations=evaluations,
            seed=choice.seed,
            states=layer_states(self.graph),
            advance=advance,
        )

    def _question(self, reward: str) -> str:
        """Names what decides a measured accuracy."""
        brief = {"brief": vars(BRIEF), "images": BRIEF_IMAGES} if reward == "finetuned" else {}
        return json_sha256({"haq": self._weights, reward: [CALIBRATION, SEARCH], **brief})

    def reported(self, bits: BitConfig) -> dict[str, Any]:
        """Accuracy of the integers on test images after rounding, and after fine-tuning; see `MEASURED`."""
        network = TrainableNetwork(self.graph, ActivationTypes(self.graph, self.ranges, bits))
        fine_tune(network, self._training, LONG)
        return {
            "search_top1": self.after_rounding(bits),
            "rounded": self.subject.integer_accuracy(bits, self.subject.rounded_for(bits)),
            "finetuned": self.subject.integer_accuracy(bits, network.deployed()),
        }


MEASURED = ("search_top1", "rounded", "finetuned")
"""What `Laboratory.reported` finds, once for rows of the same bits."""


def _metric(name: str) -> MeasuredMetric:
    return next(metric for metric in METRICS if metric == name)


def row(laboratory: Laboratory, name: str, choice: Choice, evaluations: int) -> dict[str, Any]:
    """One choice for one goal: its bits, what they cost on every accelerator, and how accurate they are."""
    goal, graph = GOALS[name], laboratory.graph
    bits = laboratory.chosen(goal, choice, evaluations)
    table = laboratory.priced(goal, goal.accelerator)
    named = {layer: repr(pair) for layer, pair in bits.layers.items()}
    alike = next((other for other in read_results("haq").values() if other["bits"] == named), None)
    return {
        "goal": name,
        "choice": vars(choice),
        "evaluations": evaluations if choice.allocator in ("ddpg", "random") else 0,
        "bits": named,
        "origin": bits.origin,
        "bounded": goal.cost,
        "cost": table.total(bits, goal.cost),
        "limit": goal.problem(table).limits[goal.cost],
        "means": kinds(graph, bits),
        "on": {accelerator: prices(laboratory.priced(goal, accelerator), bits) for accelerator in ACCELERATORS},
        **(laboratory.reported(bits) if alike is None else {what: alike[what] for what in MEASURED}),
    }


def kinds(graph: FloatGraph, bits: BitConfig) -> dict[str, dict[str, float]]:
    """Mean bits of weights and of activations, of the depthwise and of the pointwise layers between the ends."""
    found: dict[str, list[Bits]] = {"depthwise": [], "pointwise": []}
    for node in graph.layers[1:-1]:
        found["depthwise" if node.groups > 1 else "pointwise"].append(bits.layers[node.name])
    return {
        kind: {
            "weight": sum(pair.weight for pair in pairs) / len(pairs),
            "activation": sum(pair.activation for pair in pairs) / len(pairs),
        }
        for kind, pairs in found.items()
    }


def prices(table: CostTable, bits: BitConfig) -> dict[str, float]:
    """What a policy costs by a table, where that is known."""
    known = [bits.layers[row.name] in row.choices for row in table.layers]
    assert all(known), "a goal's table has all of its candidates"
    costs: tuple[CostName, ...] = ("size_bytes", "bops", "latency_us")
    has_energy = all(cost.energy_uj is not None for row in table.layers for cost in row.choices.values())
    return {cost: table.total(bits, cost) for cost in (*costs, *(("energy_uj",) if has_energy else ()))}


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row that is asked for and not there yet."""
    laboratory: Laboratory | None = None
    for choice in choices(arguments.metrics, arguments.seeds, arguments.reward):
        if choice.allocator not in arguments.allocators:
            continue
        for name in arguments.goals:
            key = choice.key(name, arguments.evaluations)
            if key not in read_results("haq"):
                laboratory = laboratory or Laboratory(arguments.data, arguments.weights, arguments.work)
                yield key, row(laboratory, name, choice, arguments.evaluations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="of benchmarks.train_mobilenet")
    parser.add_argument("--work", type=Path, default=Path("haq-work"), help="keeps roundings and sensitivities")
    parser.add_argument("--evaluations", type=int, default=600)
    parser.add_argument("--reward", choices=("rounded", "finetuned"), default="rounded")
    parser.add_argument("--goals", nargs="+", choices=GOALS, default=list(GOALS))
    parser.add_argument("--allocators", nargs="+", default=["uniform", "highs", "ddpg", "random"])
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[SEED])
    parser.add_argument("--tables", action="store_true", help="write the tables of what is there, measure nothing")
    arguments = parser.parse_args()
    for key, found in () if arguments.tables else rows(arguments):
        write_results("haq", {**read_results("haq"), key: found})
        tops = [f"{what} {found[what]['integer_top1']:.1%}" for what in ("rounded", "finetuned")]
        print(key, found["cost"], found["limit"], f"search {found['search_top1']:.1%}", *tops, flush=True)
    write_tables(read_results("haq"))


if __name__ == "__main__":
    main()
