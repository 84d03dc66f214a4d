"""The data that passes between the rooms: bit pairs, bit configurations, cost tables, budgets.

`ilp` is given a `CostTable` and a `Budget` and answers with a `BitConfig`; it never sees a model. All of them are
written to the run directory as JSON that a person can read and edit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, NotRequired, TypedDict

from hawq_tvm.core.errors import AllocationError, RunError
from hawq_tvm.core.option import option
from hawq_tvm.core.strict_json import JsonReader

CostName = Literal["size_bytes", "bops", "latency_us"]
COST_NAMES: tuple[CostName, ...] = ("size_bytes", "bops", "latency_us")

RESIDUAL_BITS = 8
"""The bits of a value that a sum reads, by default: coarser costs more accuracy than the memory is worth."""

CHOICE = "Allocation"
"""The heading of the options that decide on bits."""

LAYER_TIMES = (
    "us alone: a layer's kernel called by itself as within the network, which is what bits are chosen by; "
    "us within: its call inside the running network, from the benchmark"
)
"""The two times of a layer, for the reader; they differ, since layers share caches and threads."""

_BITS = re.compile(r"w([2-8])a([2-8])")


def is_number(value: object) -> bool:
    """Whether a value read from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


@dataclass(frozen=True, order=True)
class Bits:
    """Weight bits and the bits of the input activation, written ``w4a8``; a lone number means both.

    >>> Bits.parse("w4a8"), Bits.parse(4)
    (w4a8, w4a4)
    """

    weight: int
    activation: int

    def __post_init__(self) -> None:
        if not (2 <= self.weight <= 8 and 2 <= self.activation <= 8):
            raise AllocationError(f"weights and activations have 2 to 8 bits, got w{self.weight}a{self.activation}")

    @classmethod
    def parse(cls, value: Bits | str | int) -> Bits:
        """Read ``"w4a8"``, ``"4"`` or ``4``."""
        if isinstance(value, Bits):
            return value
        text = str(value).strip().lower()
        if text.isdecimal() and len(text) == 1:
            return cls(int(text), int(text))
        match = _BITS.fullmatch(text)
        if match is None:
            raise AllocationError(f"bits are written like w4a8, or 4 for w4a4, from 2 to 8; got {value!r}")
        return cls(int(match[1]), int(match[2]))

    def __repr__(self) -> str:
        return f"w{self.weight}a{self.activation}"


def parsed_bits(reader: JsonReader, layer: str, value: str | int) -> Bits:
    """Bits as a file gives them to a layer; raises what `reader` says where they are none."""
    try:
        return Bits.parse(value)
    except AllocationError as error:
        raise reader.fault(f"layer {layer!r}: {error}") from error


@dataclass(frozen=True)
class BitConfig:
    """The bits of every layer: what the allocator decides and the integeriser obeys.

    Attributes:
        layers: bits by layer name, in the network's order.
        origin: how they were chosen, for the reader.
        residual: bits that a value which a sum reads is stored at, at least.
        stored: values that are stored at other bits than their readers ask for, by name; a layer that asks for more
            reads what is there.
    """

    layers: Mapping[str, Bits]
    origin: str = "given"
    residual: int = RESIDUAL_BITS
    stored: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, bits in (("a residual", self.residual), *((f"'{name}'", bits) for name, bits in self.stored.items())):
            if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
                raise AllocationError(f"{what} is stored at 2 to 8 bits, got {bits!r}")

    def to_json(self) -> dict[str, Any]:
        return {
            "origin": self.origin,
            "bits": {name: repr(bits) for name, bits in self.layers.items()},
            "residual": self.residual,
            "stored": dict(self.stored),
        }

    @classmethod
    def from_json(cls, data: Any, name: str = "the bit configuration") -> BitConfig:
        """Read what `to_json` wrote, or a plain ``{layer: bits}``.

        Args:
            data: as `JsonReader` parses it.
            name: of the file, for messages.

        Raises:
            AllocationError: anything else.
        """
        reader = JsonReader(name, AllocationError, 'write {"bits": {"layer": "w4a8", ...}}')
        where = "bits" if isinstance(data, dict) and "bits" in data else ""
        table = reader.take(data[where] if where else data, Mapping[str, str | int], where=where)
        if not table:
            raise reader.fault("no layer in it")
        rest = data if where else {}
        origin = reader.take(rest.get("origin", "given"), str, where="origin")
        residual = reader.take(rest.get("residual", RESIDUAL_BITS), int, where="residual")
        stored = reader.take(rest.get("stored", {}), Mapping[str, int], where="stored")
        layers = {layer: parsed_bits(reader, layer, value) for layer, value in table.items()}
        try:
            return cls(layers, origin, residual, stored)
        except AllocationError as error:
            raise reader.fault(str(error)) from error

    @classmethod
    def uniform(cls, layers: tuple[str, ...], bits: Bits) -> BitConfig:
        """The same bits for every layer."""
        return cls(dict.fromkeys(layers, bits), f"uniform {bits}")


@dataclass(frozen=True)
class Cost:
    """What one layer costs at one bit pair.

    Attributes:
        sensitivity: how much the loss rises, predicted (Omega) or measured: of the weights plus of the input.
        size_bytes: parameters x weight bits / 8.
        bops: multiply-accumulates x weight bits x activation bits, a sample.
        latency_us: microseconds of its kernel; None where nothing was measured or given.
        latency_spread_us: tenth and ninetieth percentile of what was measured; None where that is not known.
    """

    sensitivity: float
    size_bytes: float
    bops: int
    latency_us: float | None = None
    latency_spread_us: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "latency_spread_us" or (value is None and name == "latency_us"):
                continue
            signed = name == "sensitivity"  # an estimate, which may fall below 0
            if not is_number(value) or (value < 0 and not signed):
                raise AllocationError(
                    f"{name} must be a finite number{'' if signed else ' of at least 0'}, got {value!r}"
                )


@dataclass(frozen=True)
class LayerCosts:
    """One layer's row in the cost table.

    Attributes:
        name: the layer.
        parameters: number of weights.
        macs: multiply-accumulates a sample.
        choices: cost by bit pair.
        sensitivity_error: relative standard error of its sensitivities, the same at every pair, being that of the
            Hessian's trace; None where it is not known.
    """

    name: str
    parameters: int
    macs: int
    choices: Mapping[Bits, Cost]
    sensitivity_error: float | None = None

    def __post_init__(self) -> None:
        error = self.sensitivity_error
        if error is not None and (not is_number(error) or error < 0):
            raise AllocationError(f"sensitivity_error must be a finite number of at least 0, got {error!r}")


def summed_error(estimates: Iterable[tuple[float, float | None]]) -> float | None:
    """The relative standard error of a sum of estimates, each with its own; None where one is not known.

    Errors add up, which bounds that of the sum however they depend on each other.
    """
    known, total, error = True, 0.0, 0.0
    for value, relative in estimates:
        known = known and relative is not None
        total += value
        error += abs(value) * (relative or 0.0)
    return error / abs(total) if known and total else None


@dataclass(frozen=True)
class CostTable:
    """Everything that an allocator may know of a network.

    Attributes:
        layers: one row a layer, in the network's order.
        ties: groups of layers whose bits must agree.
        sources: for each of ``sensitivity size_bytes bops latency_us``, how its numbers were obtained.
    """

    layers: tuple[LayerCosts, ...]
    ties: tuple[tuple[str, ...], ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    def total(self, bits: BitConfig, cost: CostName | Literal["sensitivity"]) -> float:
        """The network's cost under a configuration, in the cost's unit.

        Raises:
            AllocationError: a layer is missing from `bits`, its pair from the table, or the latency was not measured.
        """
        total = 0.0
        for layer in self.layers:
            chosen = bits.layers.get(layer.name)
            if chosen is None or chosen not in layer.choices:
                raise AllocationError(f"the cost table has no entry for layer '{layer.name}' at {chosen}")
            value = getattr(layer.choices[chosen], cost)
            if value is None:
                raise AllocationError(f"the cost table has no {cost} for layer '{layer.name}' at {chosen}")
            total += value
        return total

    def sensitivity_error(self, bits: BitConfig) -> float | None:
        """Relative standard error of the summed sensitivity under a configuration; see `summed_error`."""
        self.total(bits, "sensitivity")  # AllocationError where a layer or a pair is missing
        return summed_error(
            (layer.choices[bits.layers[layer.name]].sensitivity, layer.sensitivity_error) for layer in self.layers
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "units": {"size_bytes": "byte", "bops": "bit operation a sample", "latency_us": "microsecond"},
            "sources": dict(self.sources),
            "ties": [list(group) for group in self.ties],
            "layers": [
                {
                    "name": layer.name,
                    "parameters": layer.parameters,
                    "macs": layer.macs,
                    "sensitivity_error": layer.sensitivity_error,
                    "choices": {repr(bits): vars(cost) for bits, cost in layer.choices.items()},
                }
                for layer in self.layers
            ],
        }

    @classmethod
    def from_json(cls, data: Any, name: str = "the cost table") -> CostTable:
        """Read what `to_json` wrote.

        Args:
            data: as `JsonReader` parses it.
            name: of the file, for messages.

        Raises:
            AllocationError: anything else; two layers of one name, or one pair written in two ways.
        """
        reader = JsonReader(name, AllocationError, "mend it, or write it anew with hawq-tvm profile")
        found = reader.take(data, _CostFile, signed=("sensitivity",))
        rows: dict[str, LayerCosts] = {}
        for row in found["layers"]:
            layer, choices = row["name"], dict[Bits, Cost]()
            for text, cost in row["choices"].items():
                bits = parsed_bits(reader, layer, text)
                if bits in choices:
                    raise reader.fault(f"layer {layer!r} has two costs for {bits}")
                choices[bits] = cost
            if layer in rows:
                raise reader.fault(f"two layers are named {layer!r}")
            rows[layer] = LayerCosts(layer, row["parameters"], row["macs"], choices, row.get("sensitivity_error"))
        unknown = [layer for tie in found.get("ties", ()) for layer in tie if layer not in rows]
        if unknown:
            raise reader.fault(f"ties names {unknown[0]!r}, which is no layer of layers")
        return cls(tuple(rows.values()), found.get("ties", ()), found.get("sources", {}))


class _CostRow(TypedDict):
    """The JSON of a `LayerCosts`."""

    name: str
    parameters: int
    macs: int
    choices: Mapping[str, Cost]
    sensitivity_error: NotRequired[float | None]


class _CostFile(TypedDict):
    """The JSON of a `CostTable`; its units are for the reader."""

    layers: tuple[_CostRow, ...]
    ties: NotRequired[tuple[tuple[str, ...], ...]]
    sources: NotRequired[Mapping[str, str]]


_UNITS: dict[CostName, dict[str, float]] = {
    "size_bytes": {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30},
    "bops": {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12},
    "latency_us": {"": 1, "us": 1, "ms": 1e3, "s": 1e6},
}
_BUDGETS: dict[str, CostName] = {"size": "size_bytes", "bops": "bops", "latency": "latency_us"}
_LIMIT = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z%]*)")


@dataclass(frozen=True)
class Limit:
    """One budget: an absolute value, or a share of the way from the lowest to the highest uniform configuration.

    >>> Limit.parse("60%", "size_bytes")
    Limit(value=0.6, is_share=True)
    >>> Limit.parse("1.5ms", "latency_us")
    Limit(value=1500.0, is_share=False)
    """

    value: float
    is_share: bool = False

    def __post_init__(self) -> None:
        if not is_number(self.value) or self.value < 0:
            raise AllocationError(f"a budget is a finite number of at least 0, got {self.value!r}")

    @classmethod
    def parse(cls, text: str | float | Limit, cost: CostName) -> Limit:
        """Read a number in the cost's unit, a number with a unit, or a percentage.

        Args:
            text: such as ``60%``, ``6.5MB``, ``1.2G``, ``1500us`` or ``2000000``.
            cost: which budget it is, and so which units it may have.

        Raises:
            AllocationError: anything else.
        """
        if isinstance(text, Limit):
            return text
        if isinstance(text, float) and 0 < text < 1 and cost != "latency_us":
            raise AllocationError(f"a budget of {text} on {cost} is less than one; a share is written '{text:.0%}'")
        match = _LIMIT.fullmatch(str(text).strip().lower())
        units = _UNITS[cost]
        if match is None or (match[2] != "%" and match[2] not in units):
            known = ", ".join(unit for unit in units if unit)
            raise AllocationError(
                f"a budget on {cost} is a number, one with a unit ({known}) or a percentage; got {text!r}"
            )
        if match[2] == "%":
            return cls(float(match[1]) / 100, is_share=True)
        return cls(float(match[1]) * units[match[2]])


@dataclass(frozen=True, kw_only=True, repr=False)
class Budget:
    """What the compiled network may cost; what is left out is not bounded.

    >>> Budget(size="60%", latency="1.5ms")
    Budget(size=60%, latency=1500us)

    Attributes:
        size: bytes of weights, as ``"6.5MB"``, ``2000000`` or a share such as ``"60%"``.
        bops: bit operations a sample, as ``"1.2G"`` or a share.
        latency: microseconds summed over the layers' kernels, as ``"1.5ms"`` or a share.

    Raises:
        AllocationError: a limit that cannot be read.
    """

    size: str | float | Limit | None = option(
        None, "bytes of weights: 60%, 6.5MB or 2000000", flag="--budget-size", panel=CHOICE, parse=str
    )
    bops: str | float | Limit | None = option(
        None, "bit operations a sample: 50% or 1.2G", flag="--budget-bops", panel=CHOICE, parse=str
    )
    latency: str | float | Limit | None = option(
        None, "time of all kernels: 80% or 1.5ms", flag="--budget-latency", panel=CHOICE, parse=str
    )

    def __post_init__(self) -> None:
        for name, cost in _BUDGETS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Limit.parse(value, cost))

    @property
    def limits(self) -> dict[CostName, Limit]:
        """The limits by what they bound."""
        given = {cost: getattr(self, name) for name, cost in _BUDGETS.items()}
        return {cost: limit for cost, limit in given.items() if limit is not None}

    def __bool__(self) -> bool:
        return bool(self.limits)

    def __repr__(self) -> str:
        short = {"size_bytes": ("size", "B"), "bops": ("bops", ""), "latency_us": ("latency", "us")}
        parts = []
        for cost, limit in self.limits.items():
            name, unit = short[cost]
            parts.append(f"{name}={limit.value:.0%}" if limit.is_share else f"{name}={limit.value:g}{unit}")
        return f"Budget({', '.join(parts)})"

    def to_json(self) -> dict[str, Any]:
        return {cost: {"value": limit.value, "is_share": limit.is_share} for cost, limit in self.limits.items()}

    @classmethod
    def from_json(cls, data: Any) -> Budget:
        """Read what `to_json` wrote into a manifest's settings.

        Raises:
            RunError: anything else.
        """
        reader = JsonReader("the manifest's settings are damaged", RunError, "start the run again elsewhere")
        table = reader.take(data, Mapping[str, Limit], where="budget")
        unknown = [cost for cost in table if cost not in COST_NAMES]
        if unknown:
            raise reader.fault(f"budget bounds {unknown[0]!r}; the costs are {', '.join(COST_NAMES)}")
        return cls(size=table.get("size_bytes"), bops=table.get("bops"), latency=table.get("latency_us"))
