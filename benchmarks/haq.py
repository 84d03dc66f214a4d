"""HAQ's search on a MobileNet: policies for two accelerators, for energy and for bytes, beside uniform bits.

    python -m benchmarks.train_mobilenet DATA --output FILE
    python -m benchmarks.haq DATA --weights FILE [--evaluations 200] [--budgets edge cloud energy bytes]

The agent of `hawq_tvm.search.haq` gives each layer of MobileNetV1 (half width, CIFAR-10) its bits within what uniform
bits cost on one simulated accelerator. Its reward is the accuracy on images that are neither trained on nor reported,
as in the paper after a brief fine-tuning (``--reward finetuned``), or with weights rounded after training
(``rounded``), which measures in a tenth of the time. Then its policy and the uniform one are fine-tuned alike for
longer, turned into integers and measured on test images. Every policy is also priced on the other accelerators, as in
HAQ's table 1.

Rows that are there already are kept. Writes ``benchmarks/results/haq.json``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.allocators import PAIRS, PIN, Entry, Subject, whole
from benchmarks.runs import markdown, read_results, write_results
from benchmarks.train_mobilenet import IMAGES
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.hashing import file_sha256, json_sha256
from hawq_tvm.core.specs import BitConfig, Bits, Cost, CostName, CostTable, LayerCosts
from hawq_tvm.ilp import formulate
from hawq_tvm.ilp.simulators import ACCELERATORS, workloads
from hawq_tvm.posttraining.alone import round_alone
from hawq_tvm.search import ALLOCATORS, Evaluate, Resources
from hawq_tvm.search.finetune import FinetunedAccuracy, FinetuneSettings, TrainableNetwork, fine_tune
from hawq_tvm.search.simulated import SimulatedAccuracy
from hawq_tvm.search.states import layer_states
from hawq_tvm.settings import RoundingSettings
from hawq_tvm.sources.data import load_data
from hawq_tvm.sources.options import DataOptions

SEED = 234  # of the published search
TRAINING, LONG_TRAINING = 640, 3840
BRIEF = FinetuneSettings(rate=5e-3)
"""HAQ's, with a larger step for its fewer images: 640 where HAQ has 20,000."""
LONG = FinetuneSettings(rate=5e-3)
KMEANS = (*(Bits(bits, 8, codebook=True) for bits in range(2, 7)), Bits(7, 8), Bits(8, 8))
"""As in HAQ's published search, weights of more than 6 bits are in no codebook."""


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


GOALS = {
    "edge": Goal("bismo-edge", "latency_us", Bits(4, 4)),
    "cloud": Goal("bismo-cloud", "latency_us", Bits(4, 4)),
    "energy": Goal("bitfusion", "energy_uj", Bits(4, 4)),
    "bytes": Goal("bitfusion", "size_bytes", Bits(3, 8, codebook=True), KMEANS, pins_ends=False),
}


def priced(graph: FloatGraph, candidates: tuple[Bits, ...], accelerator: str) -> CostTable:
    """Every layer's bytes, BOPS, and simulated latency and energy; a codebook's weights are multiplied as 8 bits."""
    simulator, work = ACCELERATORS[accelerator], workloads(graph)
    rows = []
    for node in graph.layers:
        assert node.weight is not None
        weights, choices = int(node.weight.size), {}
        for pair in sorted({*candidates, PIN}):
            found = simulator.simulate(work[node.name], pair.format.carried_bits, pair.activation)
            choices[pair] = Cost(
                0.0,
                pair.format.size_bytes(weights),
                node.macs * pair.operations,
                found.latency_us,
                energy_uj=found.energy_uj,
            )
        rows.append(LayerCosts(node.name, weights, node.macs, choices))
    return CostTable(tuple(rows), graph.tied_groups())


class Search:
    """A network, its training images, and what is measured on it."""

    def __init__(self, data: Path, weights: Path) -> None:
        entry = Entry(
            "benchmarks/train_mobilenet.py:mobilenet_v1",
            str(weights.resolve()),
            "cifar10:{}/cifar10.zip",
            IMAGES,
            *(256, 250, 2000),
        )
        self.subject = Subject("mobilenet_v1", entry, data)
        self.subject.calibrate()
        self.graph, self.ranges = self.subject.graph, self.subject.ranges
        first = entry.calibration + entry.search  # the training images come after those
        options = DataOptions(calibration_samples=first + LONG_TRAINING, evaluation_samples=1, preprocessing=IMAGES)
        images, labels = whole(load_data(entry.data.format(data), options).calibration)
        self._training: tuple[Tensor, Tensor] = (images[first:], labels[first:])
        self._question = json_sha256({"haq": file_sha256(weights), "brief": vars(BRIEF), "of": [first, TRAINING]})

    def brief(self) -> FinetunedAccuracy:
        """HAQ's reward."""
        images, labels = self._training
        training = (images[:TRAINING], labels[:TRAINING])
        return FinetunedAccuracy(self.graph, self.ranges, training, self.subject.searched(), BRIEF)

    def after_rounding(self) -> SimulatedAccuracy:
        """Every layer's weights rounded beforehand, in every format."""
        formats = {pair.format for pair in (*PAIRS, *KMEANS)}
        weights = round_alone(self.graph, self.subject.calibration, formats, RoundingSettings())
        images, labels = self.subject.searched()
        return SimulatedAccuracy(self.graph, self.ranges, weights, images, labels)

    def resources(self, evaluations: int, reward: str) -> Resources:
        def advance(done: int, total: int | None) -> None:
            print(f"\r  {done}/{total}", end="", flush=True)

        states = layer_states(self.graph)
        measure: Evaluate = self.brief() if reward == "finetuned" else self.after_rounding()
        question = f"{self._question} {reward}"
        return Resources(measure, question, evaluations=evaluations, seed=SEED, states=states, advance=advance)

    def reported(self, bits: BitConfig) -> dict[str, float]:
        """Accuracy of the integers on test images after the longer fine-tuning."""
        network = TrainableNetwork(self.graph, ActivationTypes(self.graph, self.ranges, bits))
        fine_tune(network, self._training, LONG)
        return self.subject.integer_accuracy(bits, network.deployed())


def found(search: Search, name: str, evaluations: int, reward: str) -> dict[str, Any]:
    """One goal: HAQ's policy and the uniform one, what they cost on every accelerator, and how accurate they are."""
    goal = GOALS[name]
    table = priced(search.graph, goal.candidates, goal.accelerator)
    pins = {table.names[0]: PIN, table.names[-1]: PIN} if goal.pins_ends else {}
    uniform = BitConfig({layer: pins.get(layer, goal.uniform) for layer in table.names}, f"uniform {goal.uniform}")
    limit = table.total(uniform, goal.cost)
    budget = Budget(**{goal.cost.partition("_")[0]: limit})
    problem = formulate(table, budget, candidates=goal.candidates, pins=pins)
    start = time.perf_counter()
    policy = ALLOCATORS["ddpg"](problem, search.resources(evaluations, reward))
    seconds = time.perf_counter() - start
    answers = {}
    for which, bits in (("haq", policy.bits), ("uniform", uniform)):
        answers[which] = {
            "bits": {layer: repr(pair) for layer, pair in bits.layers.items()},
            "cost": table.total(bits, goal.cost),
            "origin": bits.origin,
            "means": kinds(search.graph, bits),
            "on": dict(prices(search.graph, goal.candidates, bits)),
            **search.reported(bits),
        }
    asked = {"goal": name, "cost": goal.cost, "limit": limit, "evaluations": evaluations, "reward": reward}
    return {**asked, "seconds": seconds, **answers}


def kinds(graph: FloatGraph, bits: BitConfig) -> dict[str, list[float]]:
    """Mean bits of weights and of activations, of the depthwise and of the pointwise layers that are not pinned."""
    sums: dict[str, list[Bits]] = {"depthwise": [], "pointwise": []}
    for node in graph.layers[1:-1]:
        sums["depthwise" if node.groups > 1 else "pointwise"].append(bits.layers[node.name])
    return {
        kind: [sum(pair.weight for pair in pairs) / len(pairs), sum(pair.activation for pair in pairs) / len(pairs)]
        for kind, pairs in sums.items()
    }


def prices(graph: FloatGraph, candidates: tuple[Bits, ...], bits: BitConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What a policy costs on each accelerator."""
    for name in ACCELERATORS:
        table = priced(graph, candidates, name)
        has_energy = all(cost.energy_uj is not None for row in table.layers for cost in row.choices.values())
        costs: tuple[CostName, ...] = ("latency_us", "energy_uj") if has_energy else ("latency_us",)
        yield name, {cost: table.total(bits, cost) for cost in costs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="of benchmarks.train_mobilenet")
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--reward", choices=("finetuned", "rounded"), default="finetuned")
    parser.add_argument("--budgets", nargs="+", choices=GOALS, default=list(GOALS))
    arguments = parser.parse_args()
    search = Search(arguments.data, arguments.weights)
    for name in arguments.budgets:
        if name not in read_results("haq"):
            row = found(search, name, arguments.evaluations, arguments.reward)
            write_results("haq", {**read_results("haq"), name: row})
            print()
    print_tables(read_results("haq"))


def print_tables(results: Mapping[str, Any]) -> None:
    """Each goal's two policies; then what each of HAQ's costs elsewhere, relative to the policy made for it."""
    names = ("budget", "policy", "cost", "limit", "depthwise w, a", "pointwise w, a", "integers", "- float")
    rows = []
    for name, row in results.items():
        for which in ("haq", "uniform"):
            one = row[which]
            means = [", ".join(f"{mean:.1f}" for mean in one["means"][kind]) for kind in ("depthwise", "pointwise")]
            error = f"{100 * one['difference']:+.1f} ± {100 * one['standard_error']:.1f}"
            costs = [f"{one['cost']:,.1f}", f"{row['limit']:,.1f} {row['cost']}"]
            rows.append([name, which, *costs, *means, f"{one['integer_top1']:.1%}", error])
    print(markdown(names, rows))
    accelerators = list(ACCELERATORS)
    table = [
        [f"found for {name}", *(f"{results[name]['haq']['on'][other]['latency_us']:,.1f}" for other in accelerators)]
        for name in results
    ]
    print(f"\n{markdown(['us', *accelerators], table)}")


if __name__ == "__main__":
    main()
