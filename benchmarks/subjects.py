"""The networks of the arena, as every allocator is given them: costs, what a search measures with, and the integers.

Four sets of images that share none: ranges, roundings and sensitivities are found on the first; searches measure
accuracy on the second, with the simulated network; the default sensitivity is decided on the third; what is reported is
of the fourth. On the last two the integers run, in the library that TVM compiles of them.

What is found lies in a folder of the network: its run, its rounded weights, and which images each configuration got
right. It is found once, however often the script is cut off.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hawq_tvm import pipeline
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.backends.pytorch.threads import run_pieces
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.host import default_threads
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.backends.tvm.runtime import CompiledModule, configure_threads
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.hashing import json_sha256
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.quantizer import LayerWeights, RangeTable
from hawq_tvm.core.reporter import LineReporter
from hawq_tvm.core.specs import BitConfig, Bits, CostTable
from hawq_tvm.core.targets import find_target
from hawq_tvm.measure.costing import cost_table
from hawq_tvm.measure.simulated import on_accelerator
from hawq_tvm.posttraining.alone import round_alone
from hawq_tvm.posttraining.walk import PIECE, Walk
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.provenance import describe_run, run_identity
from hawq_tvm.runs.rundir import edit_run, open_run, read_run
from hawq_tvm.runs.weights_io import load_weights, save_weights
from hawq_tvm.search.simulated import SimulatedAccuracy
from hawq_tvm.settings import HessianSettings, RoundingSettings, Settings
from hawq_tvm.sources.data import batches, load_data
from hawq_tvm.sources.models import load_model
from hawq_tvm.sources.options import DataOptions, Preprocessing
from hawq_tvm.sources.splits import Subset
from hawq_tvm.stages.calibrate import calibrate
from hawq_tvm.stages.capture import capture
from hawq_tvm.stages.profile import profiles
from hawq_tvm.stages.stage import Step
from hawq_tvm.stages.work import Work

WIDTHS = range(2, 9)

Right = NDArray[np.bool_]
"""Which images a network names the class of, [images]."""

Classify = Callable[[Tensor], Tensor]
"""float32 [N, ...] images to int64 [N] classes."""


@dataclass(frozen=True)
class Effort:
    """What a network's profile may take.

    Attributes:
        hessian: of the metrics that differentiate.
        power: of ``eigenvalue``, which differentiates each layer apart.
        loss_samples: that ``kl``, ``loss`` and ``sqnr`` measure on.
    """

    hessian: HessianSettings = field(default_factory=HessianSettings)
    power: HessianSettings = field(default_factory=HessianSettings)
    loss_samples: int = 64


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
        deciding: images that the default sensitivity is decided on.
        widths: that weights and activations may have.
        codebooks: bits that the indexes of weights may have, with activations of 8 bits.
        effort: of its profile.
    """

    model: str
    weights: str | None
    data: str
    images: Preprocessing
    calibration: int
    search: int
    report: int
    deciding: int = 0
    widths: Sequence[int] = WIDTHS
    codebooks: Sequence[int] = ()
    effort: Effort = field(default_factory=Effort)

    @property
    def pairs(self) -> tuple[Bits, ...]:
        """Every pair of bits that a layer may have."""
        linear = (Bits(weight, activation) for weight in self.widths for activation in self.widths)
        return (*linear, *(Bits(index, 8, codebook=True) for index in self.codebooks))


class Subject:
    """A network as every allocator is given it."""

    def __init__(self, name: str, entry: Entry, data: Path, folder: Path | None = None) -> None:
        """Find its samples.

        Args:
            name: for its rows.
            entry: what it is.
            data: the folder that its files are in.
            folder: that what is found is kept in; None for one that goes with this object.
        """
        self.name, self.entry, self._data_folder = name, entry, data
        count = entry.calibration + entry.search
        options = DataOptions(
            calibration_samples=count,
            evaluation_samples=entry.report + entry.deciding,
            preprocessing=entry.images,
        )
        found = load_data(entry.data.format(data), options)
        self._first = Subset(found.calibration, range(entry.calibration))
        self._second = Subset(found.calibration, range(entry.calibration, count))
        self._fourth = Subset(found.evaluation, range(entry.report))
        self._third = Subset(found.evaluation, range(entry.report, entry.report + entry.deciding))
        self._data = replace(found, calibration=self._first, evaluation=self._first)
        self._options = replace(options, calibration_samples=entry.calibration)
        self._threads = default_threads()
        if folder is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="allocators-")  # goes with this object
            folder = Path(self._scratch.name)
        self._folder = folder / name.replace(" ", "_")
        self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def _run(self) -> Path:
        return self._folder / "run"

    def calibrate(self) -> None:
        """Capture the network and find its ranges."""
        self._perform(("omega",), (capture, calibrate))

    def profile(self, metrics: Iterable[str]) -> None:
        """Find each metric's sensitivities, where they are not there yet, and note the seconds that each took."""
        self.calibrate()
        for metric in metrics:
            start = time.process_time()
            if self._perform((metric,), profiles, rounded=True):
                note = self._folder / f"seconds.{metric}"
                note.write_text(f"{time.process_time() - start:.1f}\n")

    def seconds(self, metric: str) -> float:
        """What a metric's sensitivities took of a processor, in seconds, the rounding of weights left out."""
        return float((self._folder / f"seconds.{metric}").read_text())

    def _perform(self, metrics: tuple[str, ...], steps: tuple[Step, ...], *, rounded: bool = False) -> bool:
        """Make what is not there; whether the last metric was not."""
        entry, effort = self.entry, self.entry.effort
        settings = Settings(
            bits=entry.pairs,
            metrics=metrics,
            hessian=effort.power if metrics == ("eigenvalue",) else effort.hessian,
            loss_samples=effort.loss_samples,
            threads=self._threads,
        )
        spec = entry.model.format(self._data_folder)
        weights = None if entry.weights is None else str(self._data_folder / entry.weights)
        model = load_model(spec, weights, seed=0)
        with edit_run(self._run, identity=run_identity(spec, model, self._data.name)) as run:
            before = Artifacts(run).profiled
            describe_run(run, settings, self._data.name, self._options, self._data)
            work = Work(run, settings, model=model, data=self._data, reporter=LineReporter())
            if rounded:
                work.rounded_alone = self.rounded
            pipeline.perform(work, steps)
        return metrics[-1] not in before

    @cached_property
    def _found(self) -> tuple[FloatGraph, RangeTable]:
        return read_run(self._run, lambda run: (Artifacts(run).float_graph, Artifacts(run).ranges))

    @property
    def graph(self) -> FloatGraph:
        return self._found[0]

    @property
    def ranges(self) -> RangeTable:
        return self._found[1]

    def costs(self, metric: str, accelerator: str | None = None) -> CostTable:
        """The table that a profiled sensitivity makes, with a simulated accelerator's latencies where one is named."""
        found = Artifacts(open_run(self._run)).sensitivity(metric)
        table = cost_table(self.graph, self.entry.pairs, sensitivity=found, latency=None, caution=Settings().caution)
        return table if accelerator is None else on_accelerator(table, self.graph, accelerator)

    def curvatures(self) -> dict[str, float]:
        """The top eigenvalue of each layer's Hessian; none where they were not profiled."""
        found = Artifacts(open_run(self._run))
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
        """Every layer's weights at every width, each layer rounded by itself on the float network's values."""
        formats = sorted({pair.format for pair in self.entry.pairs})
        files = {format: self._folder / f"rounded.{format}.safetensors" for format in formats}
        if not all(file.is_file() for file in files.values()):
            found = round_alone(self.graph, self.calibration, formats, RoundingSettings(), threads=self._threads)
            for format, file in files.items():
                save_weights({name: by[format] for name, by in found.items()}, file)
        by_format = {format: load_weights(file) for format, file in files.items()}
        return {
            layer.name: {format: table[layer.name] for format, table in by_format.items()}
            for layer in self.graph.layers
        }

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
    def _held_out(self) -> list[tuple[Tensor, Tensor]]:
        """Images and labels of the third set, then of the fourth."""
        sets = (self._third, self._fourth) if self.entry.deciding else (self._fourth,)
        pieces = [batch for split in sets for batch in batches(split, 20)]
        return [(piece.images, piece.labels) for piece in pieces if piece.labels is not None]

    def _right(self, name: str, make: Callable[[], Classify]) -> tuple[Right, Right]:
        """What a network gets right of the third set and of the fourth, kept under a name."""
        path = self._folder / "right" / f"{name}.npy"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            classify = make()
            right = torch.cat([classify(images) == labels for images, labels in self._held_out])
            np.save(path, right.numpy())
        found: Right = np.load(path)
        return found[: self.entry.deciding], found[self.entry.deciding :]

    def float_right(self) -> tuple[Right, Right]:
        """What the float network gets right of the third set and of the fourth."""
        return self._right("float", lambda: in_float(self.graph))

    def right(self, bits: BitConfig) -> tuple[Right, Right]:
        """What the integers get right of the third set and of the fourth, by the library that is compiled of them.

        Their weights are those of `rounded`.
        """
        asked = {name: value for name, value in bits.to_json().items() if name != "origin"}
        chosen = {name: self.rounded[name][pair.format] for name, pair in bits.layers.items()}
        return self._right(
            json_sha256(asked), lambda: compiled(integerize(self.graph, self.ranges, bits, chosen), self._threads)
        )

    def rounded_for(self, bits: BitConfig) -> Mapping[str, LayerWeights]:
        """The weights of a configuration, rounded as a run rounds them."""
        types = ActivationTypes(self.graph, self.ranges, bits)
        return Walk(self.graph, types, RoundingSettings(), threads=self._threads).run(self.calibration)

    def integer_accuracy(self, bits: BitConfig, weights: Mapping[str, LayerWeights]) -> dict[str, float]:
        """Top-1 of float and of some integers on the fourth set, their paired difference and its standard error."""
        network = IntegerModule(integerize(self.graph, self.ranges, bits, weights))
        pieces = [(batch.images, batch.labels) for batch in batches(self._fourth, 20)]

        def right(piece: tuple[Tensor, Tensor | None]) -> Tensor:
            classes, labels = network(piece[0]).flatten(1).argmax(1), piece[1]
            assert labels is not None
            same: Tensor = classes == labels
            return same

        got = torch.cat(run_pieces(right, pieces, self._threads)).numpy()
        return paired(got, self.float_right()[1])


def in_float(graph: FloatGraph) -> Classify:
    """The classes that the float network names."""
    network = FloatModule(graph)

    def classify(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([network(piece).flatten(1).argmax(1) for piece in torch.split(images, 4)])

    return classify


def compiled(graph: Graph, threads: int) -> Classify:
    """The classes that the integers name, in a library that is compiled of them."""
    with tempfile.TemporaryDirectory(prefix="allocators-") as folder:
        path = Path(folder) / "network.so"
        build_library(lower(graph, find_target("llvm"), batch=1), path)
        module = CompiledModule(path)
    configure_threads(threads)
    return lambda images: torch.from_numpy(module.logits(images.numpy())).flatten(1).argmax(1)


def paired(got: Right, expected: Right) -> dict[str, float]:
    """Top-1 of float and of integers on the same images, their difference and its standard error."""
    difference = got.astype(float) - expected
    return {
        "float_top1": float(expected.mean()),
        "integer_top1": float(got.mean()),
        "difference": float(difference.mean()),
        "standard_error": float(difference.std(ddof=1)) / len(difference) ** 0.5,
        "images": len(difference),
    }


def whole(split: Any) -> tuple[Tensor, Tensor]:
    """All images and labels of a split."""
    pieces = list(batches(split, 100))
    return torch.cat([piece.images for piece in pieces]), torch.cat([p.labels for p in pieces if p.labels is not None])
