"""The policies that HAQ's authors published, beside the program's and uniform bits at the same cost.

    python -m benchmarks.haq_published DATA [--networks mobilenet_v2 resnet50]

DATA is as for `benchmarks.imagenet`. Theirs were found for their own checkpoints and fine-tuned for a hundred epochs.
Here no policy is fine-tuned: weights are rounded on calibration images as a run rounds them, and the integers are
measured on others. Each budget is what theirs costs: on one of the simulated accelerators, in bytes, or in BOPS. Within
it stand the program by the network's divergence, and the most uniform bits, first and last layer at 8; for the
codebooks of ResNet-50 nothing is pinned, as in HAQ.

Rows that are there already are kept. Writes ``benchmarks/results/haq_published.json`` and its tables in
``docs/haq.md``; ``--tables`` writes those alone.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.allocators import NETWORKS, PAIRS, PIN, Entry, Subject
from benchmarks.haq import KMEANS, prices
from benchmarks.haq_tables import PAGE
from benchmarks.pages import fill
from benchmarks.runs import markdown, read_results, write_results
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.specs import BitConfig, Bits, CostName, CostTable
from hawq_tvm.ilp import formulate
from hawq_tvm.ilp.simulators import ACCELERATORS
from hawq_tvm.measure.costing import cost_table
from hawq_tvm.measure.losses import profile_measured
from hawq_tvm.measure.simulated import on_accelerator
from hawq_tvm.posttraining.alone import round_alone
from hawq_tvm.posttraining.simulate import input_grids
from hawq_tvm.search import ALLOCATORS, Resources
from hawq_tvm.settings import RoundingSettings
from hawq_tvm.sources.models import load_model
from hawq_tvm.sources.options import Preprocessing
from hawq_tvm.sources.samples import Batch

POLICIES = json.loads((Path(__file__).parents[1] / "tests" / "facts" / "haq.json").read_text())["policies"]
"""With their source beside them."""

T = TypeVar("T")


@dataclass(frozen=True)
class Published:
    """A policy, and the network that it is for.

    Attributes:
        policy: its name among the facts.
        entry: the network, with real weights.
        candidates: what the program and uniform bits choose from.
        pins_ends: whether first and last layer have 8 bits.
        budgets: accelerator and cost of each.
        profiled: calibration images that sensitivities are measured on.
    """

    policy: str
    entry: Entry
    candidates: tuple[Bits, ...]
    pins_ends: bool
    budgets: tuple[tuple[str, CostName], ...]
    profiled: int


IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SAMPLE = "imagefolder:{}/imagenet_sample.zip"
PUBLISHED = {
    "mobilenet_v2": Published(
        "mobilenet_v2_linear_0.6",
        NETWORKS["mobilenet_v2"],
        PAIRS,
        True,
        (
            ("bismo-cloud", "latency_us"),
            ("bitfusion", "size_bytes"),
            ("bismo-edge", "latency_us"),
            ("bitfusion", "energy_uj"),
            ("bitfusion", "latency_us"),
            ("bitfusion", "bops"),
        ),
        profiled=16,
    ),
    "resnet50": Published(
        "resnet50_kmeans_0.1",
        Entry("resnet50", "resnet50_imagenet.safetensors", SAMPLE, IMAGENET, *(100, 200, 700, PIN)),
        KMEANS,
        False,
        (("bitfusion", "size_bytes"),),
        profiled=8,
    ),
}


class Stand:
    """A network with its policy, and what is measured on it."""

    def __init__(self, name: str, data: Path, work: Path) -> None:
        """Find ranges.

        Args:
            name: of `PUBLISHED`.
            data: the folder that its files are in.
            work: where roundings and sensitivities are kept.
        """
        self.name, self.published, self._work = name, PUBLISHED[name], work
        self.subject = Subject(name, self.published.entry, data)
        self.subject.calibrate()
        self.graph = self.subject.graph
        self._data = data
        self._measured: dict[str, dict[str, float]] = {}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The layers in the order of the network's modules, which is that of the policies."""
        module = load_model(self.published.entry.model.format(self._data), "random").module
        known = {layer.name for layer in self.graph.layers}
        return tuple(name for name, _ in module.named_modules() if name in known)

    @property
    def theirs(self) -> BitConfig:
        """The published policy; the first layer's input, which they leave unquantised, has 8 bits."""
        found = {}
        for name, entry in zip(self.names, POLICIES[self.published.policy], strict=True):
            if isinstance(entry, int):
                found[name] = Bits(entry, 8, codebook=entry in range(2, 7))
            else:
                found[name] = Bits(entry[0], entry[1] if entry[1] > 0 else 8)
        return BitConfig(found, self.published.policy)

    def costs(self, accelerator: str, sensitivity: Mapping[str, Any] | None = None) -> CostTable:
        """Bytes, BOPS, and simulated latencies and energies of every layer."""
        pairs = sorted({*self.published.candidates, PIN, *self.theirs.layers.values()})
        return on_accelerator(
            cost_table(self.graph, pairs, sensitivity=sensitivity, latency=None), self.graph, accelerator
        )

    def _profile(self) -> Mapping[str, Any]:
        """The divergence of each layer alone in every format, and at every width of its input where widths differ."""
        formats = {pair.format for pair in (*self.published.candidates, PIN)}
        images = self.subject.calibration
        rounded = round_alone(self.graph, images, formats, RoundingSettings())
        widths = sorted({pair.activation for pair in self.published.candidates})
        grids = input_grids(self.graph, self.subject.ranges, widths) if len(widths) > 1 else {}
        pieces = [Batch(piece, None) for piece in images[: self.published.profiled // len(images[0])]]
        return profile_measured("kl", self.graph, pieces, rounded, grids)

    def _kept(self, what: str, make: Callable[[], T]) -> T:
        """What was made once."""
        path = self._work / f"{self.name}-{what}.pickle"
        if not path.is_file():
            self._work.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(make()))
        found: T = pickle.loads(path.read_bytes())
        return found

    @property
    def _pins(self) -> dict[str, Bits]:
        return {self.names[0]: PIN, self.names[-1]: PIN} if self.published.pins_ends else {}

    def _budget(self, accelerator: str, cost: CostName) -> Budget:
        return Budget(**{cost.partition("_")[0]: self.costs(accelerator).total(self.theirs, cost)})

    def _uniform(self, accelerator: str, cost: CostName) -> BitConfig | None:
        """The most bits for all layers between the ends that take no more, counted by the fewer of the two."""
        table = self.costs(accelerator)
        every = (
            BitConfig({name: self._pins.get(name, pair) for name in self.names}, f"uniform {pair}")
            for pair in sorted(
                self.published.candidates,
                key=lambda pair: (min(pair.weight, pair.activation), pair.weight + pair.activation, pair.activation),
            )
        )
        fitting = [bits for bits in every if table.total(bits, cost) <= table.total(self.theirs, cost)]
        return fitting[-1] if fitting else None

    def policies(self) -> Iterator[tuple[str, str, BitConfig]]:
        """Budget, who chose, and the bits: theirs, then within what it costs uniform bits, and the program's."""
        yield "", "HAQ's authors", self.theirs
        for accelerator, cost in self.published.budgets:
            uniform = self._uniform(accelerator, cost)
            if uniform is not None:
                yield named(accelerator, cost), uniform.origin, uniform
        known = self._kept("kl", self._profile)
        for accelerator, cost in self.published.budgets:
            table, budget = self.costs(accelerator, known), self._budget(accelerator, cost)
            problem = formulate(table, budget, candidates=self.published.candidates, pins=self._pins)
            yield named(accelerator, cost), "the program by kl", ALLOCATORS["highs"](problem, Resources()).bits

    def row(self, budget: str, who: str, bits: BitConfig) -> dict[str, Any]:
        """What a policy costs everywhere, and how accurate its integers are."""
        key = repr(sorted(bits.layers.items()))
        if key not in self._measured:
            self._measured[key] = self.subject.integer_accuracy(bits, self.subject.rounded_for(bits))
        on = {name: prices(self.costs(name), bits) for name in ACCELERATORS}
        layers = {name: repr(bits.layers[name]) for name in self.names}
        return {"network": self.name, "budget": budget, "who": who, "bits": layers, "on": on, **self._measured[key]}


def named(accelerator: str, cost: CostName) -> str:
    """A budget; bytes and BOPS are the same everywhere."""
    return f"{accelerator} {cost}" if cost in ("latency_us", "energy_uj") else cost


def rows(data: Path, names: list[str], work: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row that is not there yet."""
    for name in names:
        stand = Stand(name, data, work)
        for budget, who, bits in stand.policies():
            key = f"{name} | {budget} | {who}"
            if key not in read_results("haq_published"):
                yield key, stand.row(budget, who, bits)


def table(rows: list[Mapping[str, Any]]) -> str:
    """Costs as shares of the published policy's."""
    theirs = rows[0]["on"]
    places: list[tuple[str, str, CostName]] = [
        ("bytes", "bitfusion", "size_bytes"),
        ("BOPS", "bitfusion", "bops"),
        ("cloud", "bismo-cloud", "latency_us"),
        ("edge", "bismo-edge", "latency_us"),
        ("BitFusion", "bitfusion", "latency_us"),
        ("energy there", "bitfusion", "energy_uj"),
    ]
    cells = [
        [
            row["budget"],
            row["who"],
            *(f"{row['on'][name][cost] / theirs[name][cost]:.3f}" for _, name, cost in places),
            f"{row['integer_top1']:.1%}",
            f"{100 * row['difference']:+.1f} ± {100 * row['standard_error']:.1f}",
        ]
        for row in rows
    ]
    return markdown(("within", "chosen by", *(place[0] for place in places), "integers", "- float, points"), cells)


def write_tables(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print them, and put them in their page."""
    for network in dict.fromkeys(row["network"] for row in results.values()):
        found = table([row for row in results.values() if row["network"] == network])
        print(f"\n## {network}\n\n{found}")
        fill(PAGE, {f"published {network}": found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    parser.add_argument("--work", type=Path, default=Path("haq-work"), help="keeps sensitivities")
    parser.add_argument("--tables", action="store_true", help="write the tables of what is there, measure nothing")
    arguments = parser.parse_args()
    for key, found in () if arguments.tables else rows(arguments.data, arguments.networks, arguments.work):
        write_results("haq_published", {**read_results("haq_published"), key: found})
        print(key, f"{found['integer_top1']:.1%}", f"{100 * found['difference']:+.2f}", flush=True)
    write_tables(read_results("haq_published"))


if __name__ == "__main__":
    main()
