"""The policy that HAQ's authors published for MobileNet-V2, beside the program's and uniform bits at the same cost.

    python -m benchmarks.haq_published DATA [--folder FOLDER]

DATA and FOLDER are as for `benchmarks.allocators`, whose network, images, roundings and profile are taken. Their policy
was found for their own checkpoint, and fine-tuned before it was measured. Here no policy is fine-tuned: weights are
rounded on calibration images, each layer by itself, and the integers run on others, in the library that TVM compiles of
them. Each budget is what theirs costs: on one of the simulated accelerators, in bytes, or in BOPS. Within it stand the
program by the network's divergence, of 4 to 8 bits, and the most uniform bits, first and last layer at 8.

Rows that are there already are kept. Writes ``benchmarks/results/haq_published.json`` and its table in ``docs/haq.md``;
``--tables`` writes that alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.allocators import NETWORKS
from benchmarks.haq import PIN, prices
from benchmarks.haq_tables import PAGE
from benchmarks.pages import fill
from benchmarks.runs import markdown, read_results, write_results
from benchmarks.subjects import Subject, paired
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.specs import BitConfig, Bits, CostName, CostTable
from hawq_tvm.ilp import formulate
from hawq_tvm.ilp.simulators import ACCELERATORS
from hawq_tvm.measure.costing import cost_table
from hawq_tvm.measure.simulated import on_accelerator
from hawq_tvm.search import ALLOCATORS, Resources
from hawq_tvm.sources.models import load_model

NETWORK = "mobilenet_v2"
FACTS = json.loads((Path(__file__).parents[1] / "tests" / "facts" / "haq.json").read_text())
POLICY: list[tuple[int, int]] = FACTS["policies"]["mobilenet_v2_linear_0.6"]
"""Bits of weights and of the input of each layer, with their source in that file; -1: not quantised."""

BUDGETS: tuple[tuple[str, str, CostName], ...] = (
    ("cloud", "bismo-cloud", "latency_us"),
    ("bytes", "bitfusion", "size_bytes"),
    ("edge", "bismo-edge", "latency_us"),
    ("BitFusion's energy", "bitfusion", "energy_uj"),
    ("BitFusion", "bitfusion", "latency_us"),
    ("BOPS", "bitfusion", "bops"),
)
"""Each cost by its name, and the accelerator that prices it; bytes and BOPS are the same on all."""


class Stand:
    """The network with the policy, and what is measured on it."""

    def __init__(self, data: Path, folder: Path | None) -> None:
        self.subject = Subject(NETWORK, NETWORKS[NETWORK], data, folder)
        self.subject.calibrate()
        self.graph, self.candidates = self.subject.graph, NETWORKS[NETWORK].pairs
        known = {layer.name for layer in self.graph.layers}
        module = load_model(NETWORKS[NETWORK].model.format(data), "random").module
        self.names = tuple(name for name, _ in module.named_modules() if name in known)
        """The layers in the order of the network's modules, which is that of the policy."""
        self.pins = {self.names[0]: PIN, self.names[-1]: PIN}

    @cached_property
    def theirs(self) -> BitConfig:
        """The published policy; the first layer's input, which they leave unquantised, has 8 bits."""
        pairs = (Bits(weight, activation if activation > 0 else 8) for weight, activation in POLICY)
        return BitConfig(dict(zip(self.names, pairs, strict=True)), "published")

    def costs(self, accelerator: str) -> CostTable:
        """What every layer costs, at the published bits too."""
        pairs = sorted({*self.candidates, PIN, *self.theirs.layers.values()})
        return on_accelerator(cost_table(self.graph, pairs, sensitivity=None, latency=None), self.graph, accelerator)

    def uniform(self, accelerator: str, cost: CostName) -> BitConfig | None:
        """The most bits for all layers between the ends that take no more, counted by the fewer of the two."""
        table, fitting = self.costs(accelerator), []
        for pair in self.candidates:
            bits = BitConfig({name: self.pins.get(name, pair) for name in self.names}, f"uniform {pair}")
            if table.total(bits, cost) <= table.total(self.theirs, cost):
                least = min(pair.weight, pair.activation)
                fitting.append(((least, pair.weight + pair.activation, pair.activation), bits))
        return max(fitting, key=lambda one: one[0])[1] if fitting else None

    def program(self, accelerator: str, cost: CostName) -> BitConfig:
        """The program's bits at no more than the published cost."""
        budget = Budget(**{cost.partition("_")[0]: self.costs(accelerator).total(self.theirs, cost)})
        table = self.subject.costs("kl", accelerator)
        problem = formulate(table, budget, candidates=self.candidates, pins=self.pins)
        return ALLOCATORS["highs"](problem, Resources()).bits

    def policies(self) -> Iterator[tuple[str, str, BitConfig]]:
        """Budget, who chose, and the bits: the published ones, then within what they cost the program's and uniform."""
        yield "", "HAQ's authors", self.theirs
        self.subject.profile(["kl"])
        for name, accelerator, cost in BUDGETS:
            yield name, "the program by kl", self.program(accelerator, cost)
            uniform = self.uniform(accelerator, cost)
            if uniform is not None:
                yield name, uniform.origin, uniform

    def row(self, budget: str, who: str, bits: BitConfig) -> dict[str, Any]:
        """What a policy costs everywhere, and how accurate its integers are on all images that no choice saw."""
        got, expected = (np.concatenate(right) for right in (self.subject.right(bits), self.subject.float_right()))
        on = {name: prices(self.costs(name), bits) for name in ACCELERATORS}
        layers = {name: repr(bits.layers[name]) for name in self.names}
        return {"budget": budget, "who": who, "bits": layers, "on": on, **paired(got, expected)}


def rows(data: Path, folder: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row that is not there yet."""
    stand = Stand(data, folder)
    for budget, who, bits in stand.policies():
        key = f"{budget} | {who}"
        if key not in read_results("haq_published"):
            yield key, stand.row(budget, who, bits)


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Costs as shares of the published policy's."""
    rows = list(results.values())
    theirs = rows[0]["on"]
    cells = [
        [
            row["budget"],
            row["who"],
            *(f"{row['on'][name][cost] / theirs[name][cost]:.3f}" for _, name, cost in BUDGETS),
            f"{row['integer_top1']:.1%}",
            f"{100 * row['difference']:+.1f} ± {100 * row['standard_error']:.1f}",
        ]
        for row in rows
    ]
    names = ("within", "chosen by", *(name for name, *_ in BUDGETS), "integers", "- float, points")
    return markdown(names, cells)


def measure_and_write(
    description: str,
    name: str,
    rows: Callable[[Path, Path | None], Iterator[tuple[str, dict[str, Any]]]],
    table: Callable[[Mapping[str, Mapping[str, Any]]], str],
) -> None:
    """The command line of a script whose rows are policies that were published and what stands beside them.

    Args:
        description: a sentence.
        name: of the file of results, and of the table's place in the page less ``haq_``.
        rows: those that are not there yet, of the data and a folder that keeps profiles and outcomes.
        table: of all rows.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data", type=Path)
    parser.add_argument("--folder", type=Path, help="as of benchmarks.allocators: keeps profiles and outcomes")
    parser.add_argument("--tables", action="store_true", help="write the table of what is there, measure nothing")
    arguments = parser.parse_args()
    for key, found in () if arguments.tables else rows(arguments.data, arguments.folder):
        write_results(name, {**read_results(name), key: found})
        print(key, f"{found['integer_top1']:.1%}", f"{100 * found['difference']:+.2f}", flush=True)
    text = table(read_results(name))
    print(text)
    fill(PAGE, {name.removeprefix("haq_"): text})


if __name__ == "__main__":
    measure_and_write(__doc__.splitlines()[0], "haq_published", rows, table)
