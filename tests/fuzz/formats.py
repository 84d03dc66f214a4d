"""A small whole run, and for each of its files how it is damaged, how it is read and what its reader promises."""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import torch

from hawq_tvm.backends.onnx.io import to_onnx
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.errors import HawqError
from hawq_tvm.core.given import check_scales, clip_to, override, read_ranges, read_scales, unused_ranges
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.quantizer import Range, ranges_to_json
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.core.targets import find_target
from hawq_tvm.ilp import formulate
from hawq_tvm.measure.accuracy import Accuracy
from hawq_tvm.measure.bench import BenchReport, Latency
from hawq_tvm.measure.costing import cost_table, read_latency_table
from hawq_tvm.measure.debug_report import DebugReport, LayerCause
from hawq_tvm.measure.fidelity import Fidelity, ValueFidelity
from hawq_tvm.measure.verify import Mismatch, VerifyReport
from hawq_tvm.runs import artifacts as files
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.float_io import save_float_graph
from hawq_tvm.runs.golden import GOLDEN, GOLDEN_INDEX, check_golden, write_golden
from hawq_tvm.runs.layers import describe_layers
from hawq_tvm.runs.manifest import EDITABLE, MANIFEST
from hawq_tvm.runs.provenance import stored_data, stored_options, stored_settings, withheld_code
from hawq_tvm.runs.rundir import Run, edit_run, open_run
from hawq_tvm.runs.summary import summarize
from hawq_tvm.settings import Settings
from hawq_tvm.sources.options import DataOptions

from ..builders import SIZE, captured, compiled, integer_samples, integers_of, ranges_of
from .mutations import mutate_bytes, mutate_json, mutate_message

TARGET = find_target("llvm")
LIBRARY, LIBRARY_JSON = files.library_files(TARGET)
LATENCIES = "latency.json"
GIVEN_RANGES, GIVEN_SCALES = "given-ranges.json", "given-scales.json"
OF_THE_USER = (LATENCIES, GIVEN_RANGES, GIVEN_SCALES)
"""Files that the command line is given, which no run's manifest knows."""

NETWORK = "Residual"
OTHER_NETWORKS = ("Pools", "Concat", "Mobile")
"""Their graphs stand beside the run's own as what float.safetensors and model.onnx are made from."""

Mutate = Callable[[Random, bytes], bytes]


@dataclass(frozen=True)
class Format:
    """One file of a run.

    Attributes:
        file: its name in the run.
        mutate: damages its bytes.
        read: reads it as the project does and uses what it read; a value to compare.
        sealed: whether what is read must be what was written, or be refused: a fingerprint goes with it.
        bases: what it is made from, where not from the run's own file alone.
    """

    file: str
    mutate: Mutate
    read: Callable[[Run], Any]
    sealed: bool = False
    bases: tuple[bytes, ...] = ()


# what is done with each file


def _bits(run: Run) -> Any:
    found = Artifacts(run).bits
    _quietly(lambda: integerize(captured(NETWORK), ranges_of(NETWORK), found))
    return found


def _ranges(run: Run) -> Any:
    ranges = Artifacts(run).ranges
    _quietly(lambda: integerize(captured(NETWORK), ranges, bits()))
    return ranges


def _costs(run: Run) -> Any:
    costs = Artifacts(run).costs
    _quietly(lambda: formulate(costs, Budget(size="50%"), candidates=PAIRS, pins={}))
    return costs.to_json()


def _sensitivity(run: Run) -> Any:
    table = Artifacts(run).sensitivity("omega")
    _quietly(lambda: cost_table(captured(NETWORK), PAIRS, sensitivity=table, latency=None))
    return table


def _latencies(run: Run) -> Any:
    table = read_latency_table(run.path / LATENCIES, tuple(bits().layers))
    _quietly(lambda: cost_table(captured(NETWORK), PAIRS, sensitivity=None, latency=table))
    return table.to_json()


def _given_ranges(run: Run) -> Any:
    given = read_ranges(run.path / GIVEN_RANGES)
    graph = captured(NETWORK)

    def use() -> None:
        unused_ranges(given, graph)
        integerize(graph, override(ranges_of(NETWORK), given, graph), bits())

    def clip() -> None:
        with torch.no_grad():
            FloatModule(clip_to(graph, given))(torch.zeros(1, *graph.input_shape))

    _quietly(use)
    _quietly(clip)
    _quietly(lambda: Settings.from_json(json.loads(json.dumps(Settings(ranges=given).to_json()))))
    return given


def _given_scales(run: Run) -> Any:
    given = read_scales(run.path / GIVEN_SCALES)
    _quietly(lambda: check_scales(given, captured(NETWORK)))
    _quietly(lambda: Settings.from_json(json.loads(json.dumps(Settings(scales=given).to_json()))))
    return given


def _manifest(run: Run) -> Any:
    found = open_run(run.path)
    for name in (files.BITS, files.MODEL, GOLDEN_INDEX, *files.library_files(TARGET)):
        _quietly(lambda name=name: (found.is_fresh(name), found.is_intact(name), found.edited(name)))
        _quietly(lambda name=name: found.fresh(name))
    for look in (stored_settings, stored_options, stored_data):
        _quietly(lambda look=look: look(found))
    _quietly(lambda: withheld_code(found, trust_code=False))
    return found.manifest


def _float_graph(run: Run) -> Any:
    graph = Artifacts(run).float_graph
    if all(np.prod(shape) < 1e6 for shape in graph.shapes.values()):
        with torch.no_grad():
            FloatModule(graph)(torch.zeros(1, *graph.input_shape))
    graph.tied_groups()
    return [graph.name, *((node.name, node.kind, node.inputs, node.shape, node.clip) for node in graph)]


def _library(run: Run) -> Any:
    return Artifacts(run).library(TARGET).info.sha256


def _library_info(run: Run) -> Any:
    info = Artifacts(run).library_info(TARGET)
    _quietly(lambda: summarize(run))
    return info


def _layers(run: Run) -> Any:
    layers = Artifacts(run).layers
    _quietly(lambda: summarize(run))
    return layers


def _golden(run: Run) -> Any:
    check_golden(run, integer_graph())


def _report(name: str, get: Callable[[Artifacts], Any]) -> Format:
    def read(run: Run) -> Any:
        report = get(Artifacts(run))
        return str(report), report.to_json()

    return Format(name, mutate_json, read)


def _quietly(use: Callable[[], object]) -> None:
    """Use what was read: it may be refused here, and only by an error of ours."""
    try:
        use()
    except HawqError as error:
        check_message(error)


def check_message(error: HawqError) -> None:
    """Raise `AssertionError` unless an error is one line of text that can be printed."""
    text = str(error)
    assert text and text.isprintable(), f"not one line: {text!r}"
    assert "internal error" not in text


# how files with a structure of their own are damaged


def mutate_safetensors(random: Random, data: bytes) -> bytes:
    """The header's JSON, the JSON within it, or plain bytes."""
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    if random.random() < 0.3:
        return mutate_bytes(random, data)
    if random.random() < 0.3:
        header = mutate_json(random, header)
    else:
        parsed = json.loads(header)
        (key,) = parsed["__metadata__"]
        inner = mutate_json(random, parsed["__metadata__"][key].encode())
        parsed["__metadata__"][key] = inner.decode("utf-8", "replace")
        header = json.dumps(parsed).encode()
    return len(header).to_bytes(8, "little") + header + body


def mutate_onnx(random: Random, data: bytes) -> bytes:
    """A field of some message in it, its metadata, or plain bytes."""
    if random.random() < 0.3:
        return mutate_bytes(random, data)
    model = onnx.ModelProto.FromString(data)
    if random.random() < 0.3:
        changed = mutate_json(random, model.metadata_props[0].value.encode())
        model.metadata_props[0].value = changed.decode("utf-8", "replace")
    else:
        for _ in range(random.choice((1, 1, 2))):
            mutate_message(random, model)
    return model.SerializeToString()


# the run

PAIRS = (Bits(4, 4), Bits(8, 8))
NAMES = (
    "manifest", "bits", "costs", "ranges", "sensitivity", "allocation", "latency", "given-ranges",
    "given-scales", "layers", "golden", "golden-index",
    "float", "onnx", "library", "library-json", "accuracy", "fidelity", "debug", "verify", "bench",
)  # fmt: skip
"""Every format."""


@cache
def integer_graph() -> Graph:
    return integers_of(NETWORK)


@cache
def bits() -> BitConfig:
    return BitConfig({layer.name: Bits(8, 8) for layer in captured(NETWORK).layers})


def formats(other: Sequence[str] = OTHER_NETWORKS) -> dict[str, Format]:
    """Every format by name."""
    models = tuple(to_onnx(integers_of(name, ("w8a8", "w4a4"))).SerializeToString() for name in other)
    return {
        "manifest": Format(MANIFEST, mutate_json, _manifest),
        "bits": Format(files.BITS, mutate_json, _bits),
        "costs": Format(files.COSTS, mutate_json, _costs),
        "ranges": Format(files.RANGES, mutate_json, _ranges),
        "sensitivity": Format(files.sensitivity_file("omega"), mutate_json, _sensitivity),
        "allocation": Format(files.ALLOCATION, mutate_json, lambda run: Artifacts(run).limits),
        "latency": Format(LATENCIES, mutate_json, _latencies),
        "given-ranges": Format(GIVEN_RANGES, mutate_json, _given_ranges),
        "given-scales": Format(GIVEN_SCALES, mutate_json, _given_scales),
        "layers": Format(files.LAYERS, mutate_json, _layers),
        "golden": Format(f"{GOLDEN}000.npy", mutate_bytes, _golden),
        "golden-index": Format(GOLDEN_INDEX, mutate_json, _golden),
        "float": Format(files.FLOAT_GRAPH, mutate_safetensors, _float_graph, bases=tuple(map(_saved, other))),
        "onnx": Format(files.MODEL, mutate_onnx, lambda run: Artifacts(run).graph.fingerprint(), True, models),
        "library": Format(LIBRARY, mutate_bytes, _library, True),
        "library-json": Format(LIBRARY_JSON, mutate_json, _library_info),
        "accuracy": _report(files.ACCURACY, lambda found: found.accuracy),
        "fidelity": _report(files.FIDELITY, lambda found: found.fidelity),
        "debug": _report(files.DEBUG, lambda found: found.debug),
        "verify": _report(files.verify_file(TARGET), lambda found: found.verification(TARGET)),
        "bench": _report(files.bench_file(TARGET), lambda found: found.benchmark(TARGET)),
    }


def _saved(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_float_graph(captured(name), Path(folder) / "x")
        return (Path(folder) / "x").read_bytes()


def make_run(path: Path) -> None:
    """Write a run that holds every format, its library compiled."""
    sensitivity = {
        "method": "counted",
        "layers": {
            name: {"mean_trace": 0.5, "weights": {"4": 0.25, "8": 0.125}, "inputs": {"4": 0.5, "8": 0.25}}
            for name in bits().layers
        },
    }
    costs = cost_table(captured(NETWORK), PAIRS, sensitivity=sensitivity, latency=None)
    ranges = {**ranges_of(NETWORK), "conv1": {4: Range(0.0, 1.5), 8: Range(0.0, 2.5)}}
    mismatch = Mismatch("fc", "linear", 1, 5, (0, 1), {"numpy": -1, "tvm": None}, "tvm")
    latency = Latency("hawq_tvm", 10.5, 9.0, 12.0, 100)
    tables: Mapping[str, Any] = {
        files.BITS: bits().to_json(),
        files.COSTS: costs.to_json(),
        files.RANGES: {"origin": "max", "ranges": ranges_to_json(ranges)},
        files.sensitivity_file("omega"): sensitivity,
        files.LAYERS: describe_layers(integer_graph()),
        files.ALLOCATION: {"sensitivity": 1.5, "costs": {"bops": 3}, "limits": {"bops": 4.0}, "solver": "cbc"},
        files.FIDELITY: Fidelity(
            4,
            (ValueFidelity("fc", "linear", 32, 4, 12.5, 30.0, None, -1.5, None, 0.0, 2.5, None, None, None, 3.0),),
            ("'fc' keeps little",),
        ).to_json(),
        files.DEBUG: DebugReport(
            4, 4, 0.5, 0.25, (LayerCause("fc", "w4a8", 9, 9, 0.25, 0.125, 0.5, 0.0),), ("pin it",)
        ).to_json(),
        files.ACCURACY: Accuracy(10, 0.5, 0.4, -0.1, 0.05, 0.9).to_json(),
        files.verify_file(TARGET): VerifyReport(("numpy", "tvm"), 4, 9, 1000, (mismatch,)).to_json(),
        files.bench_file(TARGET): BenchReport("cpu", "llvm", 1, 1, 3, (latency,), {"fc": 1.5}, {"fc": "x"}).to_json(),
        GIVEN_RANGES: {"ranges": {"input": 2.5, "stem": [-0.5, 3], "conv1": {"4": 1.5, "8": [0, 2.5]}, "conv2": 4}},
        GIVEN_SCALES: {"scales": {"stem": [0.125] * 8, "conv1": 0.25, "fc": 1}},
        LATENCIES: {name: {"w4a4": 1.5, "w8a8": 2} for name in bits().layers},
    }
    with edit_run(path, identity={"model": "m", "weights": "w", "data": "d"}) as run:

        def write() -> None:
            for name, table in tables.items():
                run.write_json(name, table)
            run.write(files.FLOAT_GRAPH, lambda path: save_float_graph(captured(NETWORK), path))
            run.write(files.MODEL, lambda path: onnx.save(to_onnx(integer_graph()), path))
            write_golden(run, integer_graph(), integer_samples(integer_graph(), 1))
            compiled(integer_graph(), run.path)

        written = [*tables, files.FLOAT_GRAPH, files.MODEL, GOLDEN, LIBRARY, LIBRARY_JSON]
        run.manifest["settings"] = Settings(pins={"fc": Bits(8, 8)}, budget=Budget(size="50%")).to_json()
        options = asdict(DataOptions(calibration_samples=4, input_shape=(3, SIZE, SIZE)))
        run.manifest["data"] = {"spec": "random", "options": options, "settings": {}}
        run.stage("all", write, options={}, writes=written)


class Bench:
    """A run of its own, in which one file at a time is damaged and read."""

    def __init__(self, path: Path) -> None:
        """Take up a run that `make_run` wrote."""
        self.path = path
        self.manifest = open_run(path).manifest

    def read(self, form: Format, data: bytes) -> Any:
        """What a format's reader makes of other bytes, given a manifest that knows their hash."""
        file = self.path / form.file
        before = file.read_bytes()
        try:
            file.write_bytes(data)
            return form.read(Run(self.path, self._knowing(form.file, data)))
        finally:
            file.write_bytes(before)

    def read_unknown(self, form: Format, data: bytes) -> Any:
        """What it makes of them where the manifest knows the file as it was."""
        file = self.path / form.file
        before = file.read_bytes()
        try:
            file.write_bytes(data)
            return form.read(Run(self.path, copy.deepcopy(self.manifest)))
        finally:
            file.write_bytes(before)

    def _knowing(self, name: str, data: bytes) -> dict[str, Any]:
        manifest = copy.deepcopy(self.manifest)
        if name != MANIFEST:
            manifest["stages"]["all"]["files"][name] = hashlib.sha256(data).hexdigest()
        return manifest


def is_hashed(form: Format) -> bool:
    """Whether the manifest's hash guards a file."""
    return form.file not in (*EDITABLE, MANIFEST, *OF_THE_USER)
