"""What a run is asked to do: one frozen record, the same for the command line and the Python interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from hawq_tvm.core.budget import CHOICE, Budget, parse_share
from hawq_tvm.core.devices import FORMS, Device
from hawq_tvm.core.errors import AllocationError, RunError, SettingsError
from hawq_tvm.core.given import (
    GivenRanges,
    GivenScales,
    parse_ranges,
    parse_scales,
    read_ranges,
    read_scales,
)
from hawq_tvm.core.option import option
from hawq_tvm.core.specs import RESIDUAL_BITS, Bits, is_number, parsed_bits
from hawq_tvm.core.strict_json import JsonReader

DEFAULT_BITS = (Bits(4, 4), Bits(4, 8), Bits(8, 8))
DEFAULT_OBSERVER = "auto"
PIN_BITS = Bits(8, 8)

ROUNDING = "Rounding"
"""The heading of the options that decide how weights are rounded."""

ROUNDING_METHODS = ("least-error", "nearest")

MOST_DAMPING = 1_000_000
"""Where nothing is left but the trained weights; far beyond, sums of such numbers are no longer finite."""

METRICS = ("omega", "eigenvalue", "fisher", "fisher-form", "kl", "loss", "sqnr")
"""How much a layer is said to lose; `hawq_tvm.measure.sensitivity` has what each is."""

DEFAULT_METRIC = "kl"
"""By what the chosen bits lost under budgets, on other images than those reported (`docs/sensitivity.md`)."""

SIMULATED = ("bismo-edge", "bismo-cloud", "bitfusion")
"""Accelerators that are simulated, by the names that `hawq_tvm.ilp.simulators.ACCELERATORS` has."""

LATENCY_SOURCES = ("timing", "model", *SIMULATED)
"""Where a layer's latency comes from where no table gives it: kernels run here, the target's cost model, or an
accelerator that is simulated, which has energies too."""

_WIDTHS = {str(bits): bits for bits in range(2, 9)}

SAMPLES = "Samples"
"""The heading of the options that are about samples."""


def parse_bits(text: str) -> tuple[Bits, ...]:
    """Candidate pairs from ``4,8`` or ``w4a4,w8a8``.

    Raises:
        SettingsError: no bits at all.
    """
    bits = tuple(dict.fromkeys(Bits.parse(part) for part in text.split(",") if part.strip()))
    if not bits:
        raise SettingsError("--bits names no bits; write 4,8 or w4a4,w4a8,w8a8")
    return bits


def parse_pins(pins: Sequence[str]) -> dict[str, Bits]:
    """Pins from ``NAME=w8a8``.

    Raises:
        AllocationError: a pin that is not written so; a layer at two pairs.
    """
    table: dict[str, Bits] = {}
    for pin in pins:
        name, separator, bits = pin.rpartition("=")
        if not separator or not name:
            raise AllocationError(f"a pin is written NAME=w8a8, got '{pin}'")
        pair = Bits.parse(bits)
        if table.setdefault(name, pair) != pair:
            raise AllocationError(f"'{name}' is pinned to {table[name]} and to {pair}; pin it once")
    return table


def parse_stored_bits(given: Sequence[str]) -> dict[str, int]:
    """Bits of stored values from ``NAME=8``, by name or pattern.

    Raises:
        SettingsError: one that is not written so.
    """
    table: dict[str, int] = {}
    for text in given:
        name, separator, bits = text.rpartition("=")
        if not separator or not name or bits not in _WIDTHS:
            raise SettingsError(f"stored bits are written NAME=8 or 'layer4.*=8', from 2 to 8; got '{text}'")
        table.pop(name, None)  # so that the one said last stands last
        table[name] = _WIDTHS[bits]
    return table


def parse_metrics(given: Sequence[str]) -> tuple[str, ...]:
    """Metrics as ``omega`` or ``omega,kl``, said once or several times.

    Raises:
        SettingsError: none at all.
    """
    metrics = tuple(dict.fromkeys(name.strip() for text in given for name in text.split(",") if name.strip()))
    if not metrics:
        raise SettingsError(f"--metric names no metric; the metrics are {', '.join(METRICS)}")
    return metrics


@dataclass(frozen=True)
class HessianSettings:
    """How sensitivities are estimated that need derivatives of the loss.

    Attributes:
        samples: calibration samples that the loss is taken over.
        batch: samples differentiated at once; None chooses by the size of a sample.
        target_error: relative standard error at which probing stops.
        max_probes: double backwards at which it stops anyway, shared evenly among the batches, at least 2 for each.
            None for as many as are cheap (`hawq_tvm.measure.curvature.probe_limit`).
        max_iterations: of the power iteration for top eigenvalues, a double backward for each layer and batch.
    """

    samples: int = option(
        32, "calibration samples that the loss is taken over", flag="--hessian-samples", panel=CHOICE, least=1
    )
    batch: int | None = None
    target_error: float = option(
        0.1, "relative standard error at which probing stops", flag="--hessian-error", panel=CHOICE, least=0
    )
    max_probes: int | None = option(
        None,
        "double backwards at which it stops, at least 2 for each batch; default: as many as are cheap",
        flag="--hessian-probes",
        panel=CHOICE,
        least=2,
    )
    max_iterations: int = option(
        50, "rounds of power iteration at which eigenvalue stops", flag="--power-iterations", panel=CHOICE, least=1
    )

    def __post_init__(self) -> None:
        _at_least("rounds of power iteration", self.max_iterations, 1)
        _at_least("samples of the Hessian", self.samples, 1)
        _at_least("batch of the Hessian", self.batch, 1)
        _at_least("probes of the Hessian", self.max_probes, 2)
        if not is_number(self.target_error) or self.target_error < 0:
            raise SettingsError(f"the target error of the Hessian is a number of at least 0, got {self.target_error!r}")


@dataclass(frozen=True)
class RoundingSettings:
    """How weights become integers, and what is corrected afterwards.

    Attributes:
        method: ``least-error`` fits the integers to the layer's outputs on the calibration samples; ``nearest`` takes
            the integers nearest to the weights.
        scale_search: whether a channel's scale may be narrower and wider than its largest weight asks for.
        slope: whether each output channel keeps the spread that it has in the float network.
        bias: whether it keeps the mean.
        damping: how far least error is drawn to the trained weights, as a share of the inputs' mean squares: more of it
            fits the samples less closely. None finds it for each layer, on halves of the samples.
    """

    method: str = option("least-error", "of weights: least-error or nearest", flag="--rounding", panel=ROUNDING)
    scale_search: bool = option(True, "search weight scales, narrower and wider", panel=ROUNDING, negated=True)
    slope: bool = option(True, "match the spread of every output channel", panel=ROUNDING, negated=True)
    bias: bool = option(True, "match the mean of every output channel", panel=ROUNDING, negated=True)
    damping: float | None = option(
        None,
        "pull of least error to the trained weights; default: found for each layer on halves of the samples",
        flag="--rounding-damping",
        panel=ROUNDING,
        least=0,
        most=MOST_DAMPING,
    )

    def __post_init__(self) -> None:
        if self.method not in ROUNDING_METHODS:
            raise SettingsError(f"rounding is one of {', '.join(ROUNDING_METHODS)}, got {self.method!r}")
        if self.damping is not None and not (is_number(self.damping) and 0 <= self.damping <= MOST_DAMPING):
            raise SettingsError(f"the damping of rounding is a number from 0 to {MOST_DAMPING:,}, got {self.damping!r}")

    @property
    def is_nearest(self) -> bool:
        """Whether nothing is asked for but max-abs scales and the nearest integers, which takes no samples."""
        return self.method == "nearest" and not (self.scale_search or self.slope or self.bias)


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do.

    Attributes:
        bits: candidate bit pairs for every layer.
        budget: limits on bytes, BOPS, microseconds and microjoules.
        pins: layers held at a pair.
        pin_ends: whether the first and the last layer are held at 8 bits unless `pins` says otherwise.
        rounding: see `RoundingSettings`.
        observer: of activation ranges, as `hawq_tvm.calibration.make_observers` reads it.
        metrics: how much a layer is said to lose, in one way or several, side by side: some of `METRICS`.
        choose_by: the metric that bits are chosen by; None for the first of `metrics`.
        caution: standard errors that are added to each sensitivity before bits are chosen.
        loss_samples: calibration samples that ``kl``, ``loss`` and ``sqnr`` measure on.
        hessian: see `HessianSettings`.
        latency: whether kernels are timed even without a latency budget.
        latency_table: a JSON file of microseconds by layer and pair, instead of timing.
        latency_from: ``timing`` runs kernels on this machine, ``model`` predicts them for the target, the name of an
            accelerator simulates it, with energies.
        device: where kernels are timed; None for this machine's CPU, and only where a latency is asked for.
        ranges: activation ranges to take in place of calibrated ones; see `hawq_tvm.core.given`.
        clip_to_ranges: whether these are clips that the network was trained with, so that the float network has them.
        scales: weight scales to take as they are, by layer.
        residual_bits: bits that a value which a sum reads is stored at, at least; None for those of a given
            configuration, or `RESIDUAL_BITS`.
        stored_bits: bits of stored values, by name or pattern, in place of those that their readers ask for.
        solver: an allocator of `hawq_tvm.search.ALLOCATORS`.
        gap: relative, how far above the least sensitivity the answer may be; 0 for the least itself.
        time_limit: seconds that the solver may take; None for as many as it needs.
        evaluations: configurations that an allocator measures which searches by accuracy.
        batch: samples a call of the compiled library.
        threads: of the compiled library and its peers; None for all cores.
        verify_samples: evaluation samples that `verify` compares.
        bench_seconds: how long the benchmark takes at most, as far as one call of each contender allows.
        seed: of everything random.
    """

    bits: tuple[Bits, ...] = option(
        DEFAULT_BITS, "candidate pairs, as 4,8 or w4a4,w4a8,k4a8,w8a8", panel=CHOICE, parse=parse_bits
    )
    budget: Budget = field(default_factory=Budget)
    pins: Mapping[str, Bits] = option(
        {}, "hold a layer: NAME=w8a8; repeat for more", flag="--pin", panel=CHOICE, parse=parse_pins, many=True
    )
    pin_ends: bool = option(True, "hold the first and the last layer at 8 bits", panel=CHOICE, negated=True)
    solver: str = option(
        "ilp",
        "ilp, the integer program, by cbc or highs where one is named; hawq or greedy, from the same sensitivities; "
        "greedy-accuracy, random, ddpg or optuna, which measure accuracy",
        panel=CHOICE,
    )
    gap: float = option(
        0.0,
        "how far above the least sensitivity will do, as 0.01%",
        panel=CHOICE,
        parse=parse_share,
    )
    time_limit: float | None = option(
        None, "seconds for the program; the best by then is taken, with its bound", panel=CHOICE, least=0.01
    )
    evaluations: int = option(200, "configurations that a solver measures which searches", panel=CHOICE, least=1)
    latency: bool = option(False, "time kernels even without a latency budget", panel=CHOICE)
    latency_table: Path | None = option(None, "JSON of microseconds by layer and pair, instead of timing", panel=CHOICE)
    latency_from: str = option(
        "timing",
        "timing, of kernels on this machine; model, which predicts them for --target; or an accelerator that is "
        f"simulated: {', '.join(SIMULATED)}",
        panel=CHOICE,
    )
    device: Device | None = option(None, f"time kernels there: {FORMS}", panel=CHOICE, parse=Device.parse)
    metrics: tuple[str, ...] = option(
        (DEFAULT_METRIC,),
        f"how much layers lose: {', '.join(METRICS)}; repeat for several",
        flag="--metric",
        panel=CHOICE,
        parse=parse_metrics,
        many=True,
    )
    choose_by: str | None = option(None, "the metric that bits are chosen by; default: the first", panel=CHOICE)
    caution: float = option(
        1.0, "standard errors added to each sensitivity before bits are chosen", panel=CHOICE, least=0
    )
    loss_samples: int = option(
        16, "calibration samples that the metrics kl, loss and sqnr are measured on", panel=CHOICE, least=1
    )
    hessian: HessianSettings = field(default_factory=HessianSettings)
    rounding: RoundingSettings = field(default_factory=RoundingSettings)
    observer: str = option(
        DEFAULT_OBSERVER,
        "of activation ranges: max, percentile:99.9, mse, kl, or auto, which compares them on the output",
        panel=SAMPLES,
    )
    ranges: GivenRanges = option(
        {}, 'JSON of ranges to take instead of calibrating: {"layer": 3.0, ...}', panel=SAMPLES, parse=read_ranges
    )
    clip_to_ranges: bool = option(
        False, "the network was trained with these ranges as clips: clip the float network too", panel=SAMPLES
    )
    scales: GivenScales = option(
        {}, 'JSON of weight scales to take as they are: {"layer": [0.02, ...], ...}', panel=CHOICE, parse=read_scales
    )
    residual_bits: int | None = option(
        None,
        f"bits that values which a sum reads are stored at; default {RESIDUAL_BITS}, or as --bits-file says",
        panel=CHOICE,
        least=2,
        most=8,
    )
    stored_bits: Mapping[str, int] = option(
        {},
        "store a value at other bits than its readers ask for: NAME=8 or 'layer4.*=8'; repeat for more",
        panel=CHOICE,
        parse=parse_stored_bits,
        many=True,
    )
    batch: int = option(1, "samples a call of the compiled library", least=1)
    threads: int | None = option(None, "of the library and its peers; default: all cores", least=1)
    verify_samples: int = option(256, "evaluation samples that verify compares", least=1)
    bench_seconds: float = option(5.0, "how long the benchmark takes at most", least=0.1)
    seed: int = option(0, "of everything random", least=0, most=2**63 - 1)

    def __post_init__(self) -> None:
        if not self.bits:
            raise SettingsError("there are no bits to choose from; name some, such as 4,8")
        if not isinstance(self.budget, Budget):
            raise SettingsError(f"a budget is a hawq_tvm.Budget, such as Budget(size='60%'), got {self.budget!r}")
        self._check_metrics()
        if self.latency_from not in LATENCY_SOURCES:
            *names, last = LATENCY_SOURCES
            raise SettingsError(f"latencies are from {', '.join(names)} or {last}, got {self.latency_from!r}")
        predicts = f"--latency-from {self.latency_from} predicts"
        if self.latency_from != "timing" and self.latency_table is not None:
            raise SettingsError(f"--latency-table gives times and {predicts} them; say one of them")
        if self.latency_table is not None and self.device is not None:
            raise SettingsError("--latency-table gives times and --device measures them; say one of them")
        if self.latency_from != "timing" and self.device is not None:
            raise SettingsError(f"{predicts} times and --device measures them; say one of them")
        for what, number in (("gap", self.gap), ("time limit", self.time_limit)):
            if number is not None and (not is_number(number) or number < 0):
                raise SettingsError(f"the {what} is a number of at least 0, got {number!r}")
        _at_least("samples of the loss", self.loss_samples, 1)
        _at_least("measured configurations", self.evaluations, 1)
        if self.clip_to_ranges and not self.ranges:
            raise SettingsError("there are no ranges to clip to; give them with --ranges")
        for what, bits in (("residuals", self.residual_bits), *self.stored_bits.items()):
            _at_least(f"stored bits of {what}", bits, 2)
            if bits is not None and bits > 8:
                raise SettingsError(f"stored bits of {what}: at most 8, got {bits}")
        _at_least("batch", self.batch, 1)
        _at_least("threads", self.threads, 1)
        _at_least("samples to verify", self.verify_samples, 1)
        if not is_number(self.bench_seconds) or self.bench_seconds <= 0:
            raise SettingsError(f"the benchmark takes more than 0 seconds, got {self.bench_seconds!r}")
        check_seed(self.seed)

    def _check_metrics(self) -> None:
        for metric in (*self.metrics, *([] if self.choose_by is None else [self.choose_by])):
            if metric not in METRICS:
                raise SettingsError(f"a metric is one of {', '.join(METRICS)}, got {metric!r}")
        if not self.metrics:
            raise SettingsError(f"there is no metric to choose bits by; name some of {', '.join(METRICS)}")
        if not is_number(self.caution) or self.caution < 0:
            raise SettingsError(f"caution is a number of standard errors of at least 0, got {self.caution!r}")

    @property
    def metric(self) -> str:
        """What bits are chosen by."""
        return self.metrics[0] if self.choose_by is None else self.choose_by

    @property
    def profiled(self) -> tuple[str, ...]:
        """The metrics that are looked at, that which bits are chosen by among them."""
        return tuple(dict.fromkeys((*self.metrics, self.metric)))

    @property
    def chooses_activations(self) -> bool:
        """Whether candidates differ in the bits of activations, so that what those lose decides anything."""
        return len({pair.activation for pair in self.bits}) > 1

    @property
    def wants_latency(self) -> bool:
        """Whether layers need a latency: for its own sake, or for a budget on it."""
        given = self.latency_table is not None or self.latency_from != "timing" or self.device is not None
        return self.latency or given or self.budget.latency is not None

    def all_pins(self, layers: tuple[str, ...], ties: tuple[tuple[str, ...], ...] = ()) -> dict[str, Bits]:
        """The pins of a network with these layers; an end that is tied to a layer of `pins` takes that pin."""
        pinned = {name for tie in ties if not self.pins.keys().isdisjoint(tie) for name in tie}
        ends = {name: PIN_BITS for name in (layers[0], layers[-1]) if self.pin_ends and name not in pinned}
        return {**ends, **self.pins}

    def pairs(self, layers: tuple[str, ...]) -> tuple[Bits, ...]:
        """Every pair that a cost table needs, pins included, ascending."""
        return tuple(sorted({*self.bits, *self.all_pins(layers).values()}))

    def to_json(self) -> dict[str, Any]:
        return {
            "bits": [repr(bits) for bits in self.bits],
            "budget": self.budget.to_json(),
            "pins": {name: repr(bits) for name, bits in self.pins.items()},
            "pin_ends": self.pin_ends,
            "observer": self.observer,
            "metrics": list(self.metrics),
            "choose_by": self.choose_by,
            "caution": self.caution,
            "loss_samples": self.loss_samples,
            "hessian": vars(self.hessian),
            "rounding": vars(self.rounding),
            "latency": self.latency,
            "latency_table": None if self.latency_table is None else str(self.latency_table),
            "latency_from": self.latency_from,
            "device": None if self.device is None else str(self.device),
            "ranges": dict(self.ranges),
            "clip_to_ranges": self.clip_to_ranges,
            "scales": dict(self.scales),
            "residual_bits": self.residual_bits,
            "stored_bits": dict(self.stored_bits),
            "solver": self.solver,
            "gap": self.gap,
            "time_limit": self.time_limit,
            "evaluations": self.evaluations,
            "batch": self.batch,
            "threads": self.threads,
            "verify_samples": self.verify_samples,
            "bench_seconds": self.bench_seconds,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, data: Any) -> Settings:
        """Read what `to_json` wrote.

        Raises:
            RunError: anything else.
        """
        reader = JsonReader("the manifest's settings are damaged", RunError, "start the run again elsewhere")
        found = reader.take(data, _SettingsFile)
        table, device = found["latency_table"], found.get("device")
        try:
            ranges, scales = parse_ranges(found["ranges"]), parse_scales(found["scales"])
            where = None if device is None else Device.parse(device)
        except SettingsError as error:
            raise reader.fault(str(error)) from error
        return cls(
            **{
                **found,
                "bits": tuple(parsed_bits(reader, "bits", bits) for bits in found["bits"]),
                "budget": Budget.from_json(found["budget"]),
                "pins": {name: parsed_bits(reader, name, bits) for name, bits in found["pins"].items()},
                "latency_table": None if table is None else Path(table),
                "device": where,
                "ranges": ranges,
                "scales": scales,
            }
        )


class _SettingsFile(TypedDict):
    """The JSON of `Settings`."""

    bits: tuple[str, ...]
    budget: Any
    pins: Mapping[str, str]
    pin_ends: bool
    observer: str
    metrics: tuple[str, ...]
    choose_by: str | None
    caution: float
    loss_samples: int
    hessian: HessianSettings
    rounding: RoundingSettings
    latency: bool
    latency_table: str | None
    latency_from: str
    device: NotRequired[str | None]
    ranges: Mapping[str, Any]
    clip_to_ranges: bool
    scales: Mapping[str, Any]
    residual_bits: int | None
    stored_bits: Mapping[str, int]
    solver: str
    gap: NotRequired[float]
    time_limit: NotRequired[float | None]
    evaluations: NotRequired[int]
    batch: int
    threads: int | None
    verify_samples: int
    bench_seconds: float
    seed: int


def _at_least(what: str, value: object, least: int) -> None:
    """Raise `SettingsError` unless `value` is None or a whole number of at least `least`."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise SettingsError(f"{what}: a whole number of at least {least}, got {value!r}")


def check_seed(seed: object) -> int:
    """A seed that numpy and PyTorch both take.

    Raises:
        SettingsError: not a whole number from 0 to 2^63 - 1.
    """
    if isinstance(seed, Integral) and not isinstance(seed, bool) and 0 <= int(seed) < 2**63:
        return int(seed)
    raise SettingsError(f"the seed is {seed!r}; give a whole number from 0 to 2^63 - 1")
