"""What multipliers of 24 odd bits change beside multipliers of 31: answers, logits, and how many layers they serve.

    python -m benchmarks.multipliers DATA [--networks resnet50 mobilenet_v2 squeezenet1_1] [--images 300]

DATA is as for `benchmarks.imagenet`. Each network is quantised once, at 8 bits, and turned into integers twice: with
multipliers cut to what float32 holds (`hawq_tvm.core.float32_rescale`), and with all 31 bits. Prints a table: top-1 of
both, images with the same answer, the largest difference of logits beside the spread of a logit, and the layers whose
rescale float32 is proved to compute exactly, of those with one product and few bits. Writes
``benchmarks/results/multipliers.json``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.ablation import Subject, subject
from benchmarks.imagenet import NETWORKS
from benchmarks.runs import markdown, read_results, write_results
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.core.float32_rescale import float32_is_exact
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.ops import Add

COLUMNS = ("network", "top-1, 31 bits", "top-1, 24 odd bits", "same answers", "largest difference / spread", "exact")


def graph_of(case: Subject, *, cut: bool) -> Graph:
    """The integer network; without the cut, as if it were not there."""
    if cut:
        return integerize(case.graph, case.ranges, case.bits)
    with mock.patch("hawq_tvm.core.integerize.odd_multipliers", lambda multipliers, shift: multipliers):
        return integerize(case.graph, case.ranges, case.bits)


def served(graph: Graph) -> tuple[int, int]:
    """The layers whose rescale is exact in float32, of those of one product that becomes at most 8 bits."""
    answers = []
    for node in graph:
        rescale, bounds = node.op.rescale_or_none, node.op.bounds([graph.types[name] for name in node.inputs])
        if rescale is None or bounds is None or rescale.residual is not None or isinstance(node.op, Add):
            continue
        if node.type.dtype.bits <= 8:
            answers.append(float32_is_exact(rescale, bounds))
    return sum(answers), len(answers)


def measure(case: Subject) -> dict[str, Any]:
    graphs = {"31": graph_of(case, cut=False), "24": graph_of(case, cut=True)}
    logits = {name: torch.cat([IntegerModule(graph)(x) for x, _ in case.evaluation]) for name, graph in graphs.items()}
    labels = torch.cat([label for _, label in case.evaluation])
    answers = {name: values.argmax(1) for name, values in logits.items()}
    exact, layers = served(graphs["24"])
    return {
        "images": len(labels),
        "top1": {name: float((found == labels).double().mean()) for name, found in answers.items()},
        "same_answers": int((answers["31"] == answers["24"]).sum()),
        "largest_difference": float((logits["31"] - logits["24"]).abs().max()),
        "spread": float(logits["31"].std()),
        "exact": exact,
        "layers": layers,
    }


def row(name: str, found: dict[str, Any]) -> list[str]:
    return [
        name,
        *(f"{found['top1'][bits]:.2%}" for bits in ("31", "24")),
        f"{found['same_answers']} of {found['images']}",
        f"{found['largest_difference'] / found['spread']:.4f}",
        f"{found['exact']} of {found['layers']}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=300)
    arguments = parser.parse_args()
    with torch.no_grad():
        for name in arguments.networks:
            found = measure(subject(name, arguments.data, "w8a8", arguments.images))
            write_results("multipliers", {**read_results("multipliers"), name: found})
    results = read_results("multipliers")
    print(markdown(COLUMNS, [row(name, results[name]) for name in NETWORKS if name in results]))


if __name__ == "__main__":
    main()
