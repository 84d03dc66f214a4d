"""What each step of the rounding is worth: accuracy and seconds of each alone, of all together, and of all but one.

    python -m benchmarks.ablation DATA [--networks resnet50 mobilenet_v2 squeezenet1_1] [--bits w4a8] [--images 900]
    python -m benchmarks.ablation DATA --observers --bits w4a4     # how ranges are found, all rounding steps on

DATA is as for `benchmarks.imagenet`. Ranges are found once a network, on 100 images, and taken by every row but those
that are about ranges; accuracy is measured on others. The divergence is the mean Kullback-Leibler divergence of the
integer network's output from the float one's: it orders methods with far less noise than accuracy does. Prints a table
and writes ``benchmarks/results/ablation.json``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hawq_tvm
from benchmarks.imagenet import NETWORKS
from benchmarks.runs import markdown, read_results, write_results
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.backends.tvm.host import default_threads
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.quantizer import RangeTable
from hawq_tvm.core.specs import BitConfig
from hawq_tvm.posttraining.walk import PIECE, Walk
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.rundir import read_run
from hawq_tvm.settings import RoundingSettings
from hawq_tvm.sources.data import batches, load_data
from hawq_tvm.sources.options import DataOptions, Preprocessing, parse_three
from hawq_tvm.sources.samples import Data

OFF = RoundingSettings("nearest", scale_search=False, slope=False, bias=False)
ALL = RoundingSettings()
ROWS: dict[str, RoundingSettings] = {
    "nearest, max-abs scales": OFF,
    "bias alone": replace(OFF, bias=True),
    "slope and bias": replace(OFF, bias=True, slope=True),
    "scale search alone": replace(OFF, scale_search=True),
    "scale search and bias": replace(OFF, scale_search=True, bias=True),
    "scale search, slope and bias": replace(ALL, method="nearest"),
    "least error alone": replace(OFF, method="least-error"),
    "least error and bias": replace(OFF, method="least-error", bias=True),
    "all": ALL,
    "all but scale search": replace(ALL, scale_search=False),
    "all but slope": replace(ALL, slope=False),
    "all but bias": replace(ALL, bias=False),
}
OBSERVERS = ("max", "percentile:99.999", "mse", "kl", "auto")


@dataclass(frozen=True)
class Subject:
    """A network as every row starts from it."""

    graph: FloatGraph
    ranges: RangeTable
    bits: BitConfig
    calibration: list[Tensor]
    evaluation: list[tuple[Tensor, Tensor]]
    logits: list[Tensor]


def subject(name: str, data: Path, pair: str, images: int, observer: str = "auto") -> Subject:
    """Capture and calibrate a network, and run it in float."""
    model, preprocessing = NETWORKS[name]
    values = dict(zip(preprocessing[::2], preprocessing[1::2], strict=True))
    prepared = Preprocessing(mean=parse_three(values["--mean"], "--mean"), std=parse_three(values["--std"], "--std"))
    options = DataOptions(calibration_samples=100, evaluation_samples=images, preprocessing=prepared)
    samples = load_data(f"imagefolder:{data / 'imagenet_sample.zip'}", options)
    network = hawq_tvm.quantize(
        f"{data}/{model}" if ".py:" in model else model,
        replace(samples, evaluation=samples.calibration),  # accuracy is measured below
        weights=str(data / f"{name}_imagenet.safetensors"),
        bits=pair,
        observer=observer,
        rounding=OFF,
        data_options=options,
        progress=True,
    )
    found = read_run(network.path, lambda run: (Artifacts(run).float_graph, Artifacts(run).ranges, Artifacts(run).bits))
    calibration = [batch.images for batch in batches(samples.calibration, PIECE)]
    evaluation = list(labelled(samples))
    graph = found[0]
    with torch.no_grad():
        logits = [FloatModule(graph)(x) for x, _ in evaluation]
    return Subject(*found, calibration, evaluation, logits)


def labelled(samples: Data) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches(samples.evaluation, 20):
        assert batch.labels is not None
        yield batch.images, batch.labels


def measure(case: Subject, settings: RoundingSettings) -> dict[str, Any]:
    """Round, and compare with the float network."""
    start = time.perf_counter()
    weights = None
    if not settings.is_nearest:
        types = ActivationTypes(case.graph, case.ranges, case.bits)
        weights = Walk(case.graph, types, settings, threads=default_threads()).run(case.calibration)
    seconds = time.perf_counter() - start
    network = IntegerModule(integerize(case.graph, case.ranges, case.bits, weights))
    differences, divergence = [], 0.0
    for (x, labels), expected in zip(case.evaluation, case.logits, strict=True):
        got = network(x)
        differences.append((got.argmax(1) == labels).double() - (expected.argmax(1) == labels).double())
        logs = (got.log_softmax(1), expected.log_softmax(1))
        divergence += float(F.kl_div(*logs, reduction="sum", log_target=True))
    paired = torch.cat(differences)
    return {
        "difference": float(paired.mean()),
        "standard_error": float(paired.std(correction=1)) / len(paired) ** 0.5,
        "divergence": divergence / len(paired),
        "seconds": round(seconds, 1),
        "images": len(paired),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--images", type=int, default=900)
    parser.add_argument("--observers", action="store_true")
    arguments = parser.parse_args()
    results = read_results("ablation")
    for name in arguments.networks:
        for row, found in rows(name, arguments):
            print(name, row, found, flush=True)
            results[f"{name} {arguments.bits} {row}"] = found
            write_results("ablation", results)
    names = OBSERVERS if arguments.observers else ROWS
    print(markdown(["steps", *arguments.networks], list(table(results, names, arguments.networks, arguments.bits))))


def rows(name: str, arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of one network."""
    data, pair, images = arguments.data, arguments.bits, arguments.images
    if arguments.observers:
        for observer in OBSERVERS:
            yield observer, measure(subject(name, data, pair, images, observer), ALL)
        return
    case = subject(name, data, pair, images)
    for row, settings in ROWS.items():
        yield row, measure(case, settings)


def table(results: dict[str, Any], names: Iterable[str], networks: list[str], bits: str) -> Iterator[list[str]]:
    """A row for each combination of steps, a column for each network."""
    for row in names:
        cells = [results.get(f"{name} {bits} {row}") for name in networks]
        yield [row, *("" if cell is None else words(cell) for cell in cells)]


def words(cell: dict[str, Any]) -> str:
    difference, error = 100 * cell["difference"], 100 * cell["standard_error"]
    return f"{difference:+.2f} ± {error:.2f}, {cell['divergence']:.3f}, {cell['seconds']:.0f} s"


if __name__ == "__main__":
    main()
