"""A run in numbers: what `inspect` prints, what `--json` gives and what the report shows.

Bits, bytes and BOPS are those of the integer graph as it was exported, not of what the allocator intended. All of it is
read from JSON, so that a run is inspected in an instant: neither PyTorch, ONNX nor TVM is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from hawq_tvm.backends.tvm.info import GpuInfo, GpuKernelInfo, LibraryInfo, PredictedTimes
from hawq_tvm.backends.tvm.records import TunedLayer
from hawq_tvm.core.errors import AllocationError, RunError
from hawq_tvm.core.specs import BitConfig, CostName, CostTable, summed_error
from hawq_tvm.core.targets import DEFAULT_TARGET, TARGETS
from hawq_tvm.ilp.difference import Difference, difference
from hawq_tvm.ilp.explain import Explanation
from hawq_tvm.ilp.front import Front
from hawq_tvm.measure.accuracy import Accuracy
from hawq_tvm.measure.bench import BenchReport
from hawq_tvm.measure.fidelity import Fidelity, ValueFidelity
from hawq_tvm.measure.verify import VerifyReport
from hawq_tvm.runs import artifacts as files
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.front import price_sentences
from hawq_tvm.runs.layers import LayerFacts
from hawq_tvm.runs.rundir import Run
from hawq_tvm.settings import METRICS, Settings
from hawq_tvm.sources.names import shown


@dataclass(frozen=True)
class LayerSummary:
    """One layer with weights.

    Attributes:
        name: the layer.
        kind: its operator.
        bits: weight and input-activation bits.
        input: type of its input activation.
        output: type and shape of its result.
        parameters: number of weights.
        macs: multiply-accumulates a sample.
        size_bytes: weights x bits / 8.
        stored_bytes: of the weights as the file stores them: 4 bits for up to 4, else 8.
        bops: bit operations a sample.
        sensitivity: what it is taken to lose at these bits; None where it was not profiled.
        sensitivity_error: its relative standard error; None where it is not known.
        latency_us: of its kernel alone, from the cost table; see `LAYER_TIMES`.
        energy_uj: microjoules a sample, from the cost table.
        within_us: of its call inside the running network, from the benchmark, by target.
        accumulator_bound: proved magnitude of its accumulator.
        fidelity: how much of its signal is left; None where it was not measured.
        kernel: by target.
        declines: by target, why kernels that stand earlier in the table were not taken.
    """

    name: str
    kind: str
    bits: str
    input: str
    output: str
    parameters: int
    macs: int
    size_bytes: float
    stored_bytes: int
    bops: int
    sensitivity: float | None
    sensitivity_error: float | None
    latency_us: float | None
    energy_uj: float | None
    within_us: Mapping[str, float]
    accumulator_bound: int
    fidelity: ValueFidelity | None
    kernel: Mapping[str, str]
    declines: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class StoredValue:
    """One call of a compiled library and how it stores what it writes.

    Attributes:
        value: the value that is made, or copied.
        kernel: what does it.
        storage: as `hawq_tvm.core.storage.Storage` prints.
        size_bytes: of the stored value, its padding counted, a call.
        conversion: whether the value is only copied into another storage.
        constant_bytes: weights, biases and multipliers that stay in memory for it.
        weight_bits: what a weight takes of that; None where there are none, or a GPU's kernel does not tell.
        tuned: what tuning found for it; None where it is as the kernels choose by themselves.
    """

    value: str
    kernel: str
    storage: str
    size_bytes: int
    conversion: bool
    constant_bytes: int
    weight_bits: int | None
    tuned: TunedLayer | None


@dataclass(frozen=True)
class Launch:
    """One kernel that a call of a GPU's library launches.

    Attributes:
        call: the value that the call makes, or copies.
        kernel: the kernel's symbol.
        takes: how it is launched and what it takes.
    """

    call: str
    kernel: str
    takes: GpuKernelInfo


@dataclass(frozen=True)
class Totals:
    """Sums over the layers and, of what the cost table knows, over what lies between them.

    The error of the sensitivity adds up those of the layers, which bounds it however they depend on each other.

    Attributes:
        limits: those that the allocator was held to, by cost.
        borders: what of latency and energy lies between layers, by the cost table; none where that is nothing.
    """

    parameters: int
    macs: int
    size_bytes: float
    stored_bytes: int
    bops: int
    latency_us: float | None
    energy_uj: float | None
    sensitivity: float | None
    sensitivity_error: float | None
    limits: Mapping[str, float]
    borders: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSummary:
    """Everything that a run knows of the network in its `model.onnx`; what was made from another one is left out.

    Attributes:
        path: of the run directory.
        model: as the user named it.
        weights: where they come from.
        data: as the user named it.
        layers: one a layer with weights.
        totals: over the layers.
        activation_bytes: planned memory, by target.
        storages: every kernel call's storage in order, conversions too, by target.
        launches: what every kernel call launches, in order, by target that is a GPU.
        predictions: how long every kernel call takes, as a model says, by target that is a GPU.
        accuracy: None where it was not measured.
        fidelity: of every value, those without weights too; None where it was not measured.
        verification: by target.
        benchmark: by target.
        notes: what is missing or out of date, a sentence each.
        remarks: what else to know of the numbers, a sentence each: how samples were held out, weights that were not
            rounded as asked for, estimates that did not converge, layers in integers that keep little of their signal.
        sources: where each cost comes from.
        versions: of the packages that made the run.
        prices: what more of each budget that binds would buy, a sentence each.
        front: of the profile that the network is made from; None where none was asked for.
        allocations: by name, what tells each that lies beside the run's own bits apart from these.
        explanations: why each layer has its bits; None where nobody asked, or of other bits.
    """

    path: str
    model: str
    weights: str
    data: str
    layers: tuple[LayerSummary, ...]
    totals: Totals
    activation_bytes: Mapping[str, int]
    storages: Mapping[str, tuple[StoredValue, ...]]
    launches: Mapping[str, tuple[Launch, ...]]
    predictions: Mapping[str, PredictedTimes]
    accuracy: Accuracy | None
    fidelity: Fidelity | None
    verification: Mapping[str, VerifyReport]
    benchmark: Mapping[str, BenchReport]
    notes: tuple[str, ...]
    remarks: tuple[str, ...]
    sources: Mapping[str, str]
    versions: Mapping[str, str]
    prices: tuple[str, ...] = ()
    front: Front | None = None
    allocations: Mapping[str, Difference] = field(default_factory=dict)
    explanations: tuple[Explanation, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **{key: getattr(self, key) for key in ("path", "model", "weights", "data")},
            "layers": [asdict(layer) for layer in self.layers],
            "totals": asdict(self.totals),
            "activation_bytes": dict(self.activation_bytes),
            "storages": {target: [asdict(call) for call in calls] for target, calls in self.storages.items()},
            "launches": {target: [asdict(launch) for launch in found] for target, found in self.launches.items()},
            "predictions": {target: asdict(found) for target, found in self.predictions.items()},
            "accuracy": None if self.accuracy is None else self.accuracy.to_json(),
            "fidelity": None if self.fidelity is None else self.fidelity.to_json(),
            "verification": {target: report.to_json() for target, report in self.verification.items()},
            "benchmark": {target: report.to_json() for target, report in self.benchmark.items()},
            "notes": list(self.notes),
            "remarks": list(self.remarks),
            "sources": dict(self.sources),
            "versions": dict(self.versions),
            "prices": list(self.prices),
            "front": None if self.front is None else self.front.to_json(),
            "allocations": {name: found.to_json() for name, found in self.allocations.items()},
            "explanations": None if self.explanations is None else [row.to_json() for row in self.explanations],
        }


def summarize(run: Run) -> RunSummary:
    """Read a run's files into numbers.

    Raises:
        RunError: the integer graph is missing or damaged.
    """
    found = Artifacts(run)
    facts = found.layers
    costs = found.costs
    compiled = {name: target for name, target in TARGETS.items() if run.is_fresh(target.library_name)}
    libraries = {name: found.library_info(target) for name, target in compiled.items()}
    for info in libraries.values():
        foreign = [layer.name for layer in facts if layer.name not in info.kernels or layer.name not in info.declines]
        if foreign:
            raise RunError(f"{run.name} holds a library without layer {foreign[0]!r}; start the run again")
    profiled = [metric for metric in METRICS if files.sensitivity_file(metric) in run]
    benchmark = {
        name: found.benchmark(target) for name, target in compiled.items() if run.is_fresh(files.bench_file(target))
    }
    fidelity = found.fidelity if run.is_fresh(files.FIDELITY) else None
    layers = tuple(_layer(layer, costs, bool(profiled), fidelity, libraries, benchmark) for layer in facts)
    identity = run.manifest["identity"]
    accuracy = found.accuracy if run.is_fresh(files.ACCURACY) else None
    return RunSummary(
        path=str(run.path),
        model=shown(identity["model"]),
        weights=identity["weights"],
        data=shown(identity["data"]),
        layers=layers,
        totals=_totals(layers, _limits(run), costs.between({layer.name: layer.bits for layer in facts})),
        activation_bytes={name: info.planned_bytes for name, info in libraries.items()},
        storages={name: stored_values(info) for name, info in libraries.items()},
        launches={name: launches(info.gpu, info.calls) for name, info in libraries.items() if info.gpu is not None},
        predictions={name: info.gpu.predicted for name, info in libraries.items() if info.gpu is not None},
        accuracy=accuracy,
        fidelity=fidelity,
        verification={
            name: found.verification(target)
            for name, target in compiled.items()
            if run.is_fresh(files.verify_file(target))
        },
        benchmark=benchmark,
        notes=_notes(run),
        remarks=(
            *_data_notes(run, accuracy),
            *_rounding_notes(run),
            *_sensitivity_notes(found, profiled, costs),
            *(() if fidelity is None else fidelity.warnings),
        ),
        sources=dict(costs.sources),
        versions=dict(run.manifest["versions"]),
        prices=_prices(found),
        front=found.front if run.is_fresh(files.FRONT) else None,
        allocations=_allocations(found, costs, facts),
        explanations=found.explanations if run.is_fresh(files.EXPLANATIONS) else None,
    )


def describe(summary: RunSummary) -> str:
    """A run in one paragraph."""
    bits = [layer.bits for layer in summary.layers]
    counts = ", ".join(f"{bits.count(pair)} {pair}" for pair in sorted(set(bits)))
    parts = [
        f"{summary.model} on {summary.data}: {len(bits)} layers ({counts}), {summary.totals.size_bytes:,.0f} bytes of "
        f"weights, {summary.totals.bops:,} bit operations a sample"
    ]
    if summary.accuracy is not None:
        parts.append(str(summary.accuracy))
    for target, report in summary.verification.items():
        parts.append(f"{target} verified: {str(report).splitlines()[0]}")
    for target, bench in summary.benchmark.items():
        parts.append(f"{target}: {bench.contenders[0].median_us:,.1f} us a batch of {bench.batch} on {bench.machine}")
    return "; ".join([*parts, *summary.notes, f"files: {summary.path}"])


def stored_values(info: LibraryInfo) -> tuple[StoredValue, ...]:
    """What each call of a library writes and how, in order."""
    calls = []
    for call in info.calls:
        conversion = info.conversions.get(call)
        name = call if conversion is None else conversion.value
        value = info.values[name]
        storage = value.storage if conversion is None else conversion.storage
        size = storage.size_bytes(value.type, info.batch)
        calls.append(
            StoredValue(
                name,
                info.call_kernels[call],
                str(storage),
                size,
                conversion is not None,
                info.constants[call],
                info.weight_bits.get(call),
                info.tuned.get(call),
            )
        )
    return tuple(calls)


def launches(gpu: GpuInfo, calls: Sequence[str]) -> tuple[Launch, ...]:
    """What the calls of a library launch, in order."""
    return tuple(Launch(call, name, kernel) for call in calls for name, kernel in gpu.launched_by(call).items())


def _layer(
    facts: LayerFacts,
    costs: CostTable,
    profiled: bool,
    fidelity: Fidelity | None,
    libraries: Mapping[str, LibraryInfo],
    benchmark: Mapping[str, BenchReport],
) -> LayerSummary:
    row = next((layer for layer in costs.layers if layer.name == facts.name), None)
    cost = row.choices.get(facts.bits) if row is not None else None
    return LayerSummary(
        name=facts.name,
        kind=facts.kind,
        bits=repr(facts.bits),
        input=facts.input,
        output=facts.output,
        parameters=facts.parameters,
        macs=facts.macs,
        size_bytes=facts.size_bytes,
        stored_bytes=facts.stored_bytes,
        bops=facts.bops,
        sensitivity=cost.sensitivity if cost is not None and profiled else None,
        sensitivity_error=row.sensitivity_error if row is not None and profiled else None,
        latency_us=cost.latency_us if cost is not None else None,
        energy_uj=cost.energy_uj if cost is not None else None,
        within_us={
            target: report.layers_us[facts.name]
            for target, report in benchmark.items()
            if facts.name in report.layers_us
        },
        accumulator_bound=facts.accumulator_bound,
        fidelity=None if fidelity is None else fidelity.of(facts.name),
        kernel={target: info.kernels.get(facts.name, "") for target, info in libraries.items()},
        declines={target: tuple(info.declines.get(facts.name, ())) for target, info in libraries.items()},
    )


def _notes(run: Run) -> tuple[str, ...]:
    """What is out of date or was not done, for the reader."""
    notes = []
    if not run.is_fresh(files.MODEL):
        notes.append("bits or ranges were changed since this network was integerised; hawq-tvm compile builds it anew")
    for name, target in TARGETS.items():
        if target.library_name in run and not run.is_fresh(target.library_name):
            notes.append(
                f"{target.library_name} was compiled from another model.onnx, or before it was tuned; hawq-tvm compile "
                "builds it anew"
            )
        elif target.library_name in run and not run.is_fresh(files.verify_file(target)):
            named = "" if name == DEFAULT_TARGET else f" --target {name}"
            notes.append(f"target {name} is not verified; hawq-tvm verify{named} compares every layer")
    if files.ACCURACY in run and not run.is_fresh(files.ACCURACY):
        notes.append("accuracy was measured on another network and is left out; hawq-tvm compile measures it anew")
    if files.FIDELITY in run and not run.is_fresh(files.FIDELITY):
        notes.append("fidelity was measured on another network and is left out; hawq-tvm compile measures it anew")
    return tuple(notes)


def _data_notes(run: Run, accuracy: Accuracy | None) -> tuple[str, ...]:
    """What is to be known of the samples, such as that a part was held out: of those that accuracy was measured on."""
    stored = run.manifest.get("data")
    note = stored.get("note") if isinstance(stored, dict) else None
    if accuracy is not None and accuracy.data:
        note = accuracy.note
    return (note,) if isinstance(note, str) and note else ()


def _rounding_notes(run: Run) -> tuple[str, ...]:
    """That weights were rounded to nearest where more was asked for."""
    asked = run.manifest.get("settings")
    if asked is None or Settings.from_json(asked).rounding.is_nearest or files.WEIGHTS in run.made_from(files.MODEL):
        return ()
    return (
        "weights are rounded to nearest and not as asked for, which costs accuracy below 8 bits: the samples that "
        "calibrated the run were not at hand; hawq-tvm compile with them (--data, or --trust-code for your own code) "
        "rounds them anew",
    )


def _sensitivity_notes(found: Artifacts, profiled: Iterable[str], costs: CostTable) -> tuple[str, ...]:
    """Which estimates did not converge, and what to raise; none of a metric that the cost table is not of."""
    notes = (found.sensitivity(metric).get("note") for metric in profiled)
    return tuple(note for note in notes if isinstance(note, str) and note in costs.sources.get("sensitivity", ""))


def _allocations(found: Artifacts, costs: CostTable, facts: Sequence[LayerFacts]) -> dict[str, Difference]:
    """The allocations by name, beside the network's bits; none where the cost table does not price them any more."""
    own = BitConfig({layer.name: layer.bits for layer in facts})
    differences = {}
    for name in found.named:
        if found.run.is_fresh(files.named_file(name)):
            with suppress(AllocationError):
                differences[name] = difference(costs, own, found.named_allocation(name)[0])
    return differences


def _prices(found: Artifacts) -> tuple[str, ...]:
    """What more of the budgets would buy; nothing where the network is older than they are, or of other bits."""
    run = found.run
    if not (run.is_fresh(files.MODEL) and run.is_fresh(files.ALLOCATION)) or run.edited(files.BITS):
        return ()
    return tuple(price_sentences(found.shadow_prices))


def _limits(run: Run) -> Mapping[str, float]:
    """The budgets that were asked for; none where the network is older than they are."""
    if not (run.is_fresh(files.MODEL) and run.is_fresh(files.ALLOCATION)):
        return {}
    return Artifacts(run).limits


_TABLED: tuple[CostName, ...] = ("latency_us", "energy_uj")
"""What a network's layers cost by the cost table alone; bytes and BOPS are the integer graph's own."""


def _totals(layers: tuple[LayerSummary, ...], limits: Mapping[str, float], between: Mapping[CostName, float]) -> Totals:
    omegas = [layer.sensitivity for layer in layers]
    omega = None if None in omegas else sum(value for value in omegas if value is not None)
    errors = [(layer.sensitivity or 0.0, layer.sensitivity_error) for layer in layers]

    def tabled(name: CostName) -> float | None:
        values = [getattr(layer, name) for layer in layers]
        return None if None in values else sum(values, between.get(name, 0.0))

    return Totals(
        parameters=sum(layer.parameters for layer in layers),
        macs=sum(layer.macs for layer in layers),
        size_bytes=sum(layer.size_bytes for layer in layers),
        stored_bytes=sum(layer.stored_bytes for layer in layers),
        bops=sum(layer.bops for layer in layers),
        latency_us=tabled("latency_us"),
        energy_uj=tabled("energy_uj"),
        sensitivity=omega,
        sensitivity_error=None if omega is None else summed_error(errors),
        limits=limits,
        borders={name: between[name] for name in _TABLED if name in between},
    )
