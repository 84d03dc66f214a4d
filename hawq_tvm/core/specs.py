"""The data that passes between the rooms: bit pairs, bit configurations, cost tables.

`ilp` is given a `CostTable` and a `Budget` (`hawq_tvm/core/budget.py`) and answers with a `BitConfig`; it never sees a
model. All of them are written to the run directory as JSON that a person can read and edit.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, NotRequired, TypedDict

from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.strict_json import JsonReader

CostName = Literal["size_bytes", "bops", "latency_us", "energy_uj"]
COST_NAMES: tuple[CostName, ...] = ("size_bytes", "bops", "latency_us", "energy_uj")
COST_UNITS: Mapping[CostName, str] = {"size_bytes": "bytes", "bops": "BOPS", "latency_us": "us", "energy_uj": "uJ"}
TOTAL_NAMES: Mapping[CostName, tuple[str, str]] = {
    "size_bytes": ("weights", "bytes"),
    "bops": ("bit operations", "a sample"),
    "latency_us": ("kernels of all layers, each alone", "us"),
    "energy_uj": ("energy", "uJ a sample"),
}
"""What a network's costs are called for the reader, and their units."""

RESIDUAL_BITS = 8
"""The bits of a value that a sum reads, by default: coarser costs more accuracy than the memory is worth."""

LAYER_TIMES = (
    "us alone: a layer's kernel called by itself as within the network, which is what bits are chosen by; "
    "us within: its call inside the running network, from the benchmark"
)
"""The two times of a layer, for the reader; they differ, since layers share caches and threads."""

_BITS = re.compile(r"([wk])([2-8])a([2-8])")


def is_number(value: object) -> bool:
    """Whether a value read from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


@dataclass(frozen=True, order=True)
class Bits:
    """Weight bits and the bits of the input activation, written ``w4a8``; a lone number means both.

    With a codebook, written ``k4a8``, the weight bits are those of an index; see `hawq_tvm.core.codebook`.

    >>> Bits.parse("w4a8"), Bits.parse(4), Bits.parse("k4a8").format
    (w4a8, w4a4, WeightFormat(bits=4, codebook=True))
    """

    weight: int
    activation: int
    codebook: bool = False

    def __post_init__(self) -> None:
        if not (2 <= self.activation <= 8 and (self.codebook or 2 <= self.weight <= 8)):
            raise AllocationError(f"weights and activations have 2 to 8 bits, got {self!r}")
        WeightFormat(self.weight, self.codebook)  # which checks an index's bits

    @property
    def format(self) -> WeightFormat:
        """What weights are stored as."""
        return WeightFormat(self.weight, self.codebook)

    @property
    def operations(self) -> int:
        """Bit operations of a multiply-accumulate (HAWQ-V3): a codebook's values are multiplied as 8 bits."""
        return self.format.carried_bits * self.activation

    @classmethod
    def parse(cls, value: Bits | str | int) -> Bits:
        """Read ``"w4a8"``, ``"k4a8"``, ``"4"`` or ``4``."""
        if isinstance(value, Bits):
            return value
        text = str(value).strip().lower()
        if text.isdecimal() and len(text) == 1:
            return cls(int(text), int(text))
        match = _BITS.fullmatch(text)
        if match is None:
            raise AllocationError(
                "bits are written like w4a8, or 4 for w4a4, from 2 to 8, or k4a8 for weights in a codebook; "
                f"got {value!r}"
            )
        return cls(int(match[2]), int(match[3]), codebook=match[1] == "k")

    def __repr__(self) -> str:
        return f"{'k' if self.codebook else 'w'}{self.weight}a{self.activation}"


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
        size_bytes: parameters x weight bits / 8, plus a codebook where there is one.
        bops: multiply-accumulates x weight bits x activation bits, a sample; a codebook's values have 8 bits.
        latency_us: microseconds of its kernel; None where nothing was measured or given.
        latency_spread_us: tenth and ninetieth percentile of what was measured; None where that is not known.
        energy_uj: microjoules a sample; None where nothing was simulated, measured or given.
    """

    sensitivity: float
    size_bytes: float
    bops: int
    latency_us: float | None = None
    latency_spread_us: tuple[float, float] | None = None
    energy_uj: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "latency_spread_us" or (value is None and name in ("latency_us", "energy_uj")):
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


@dataclass(frozen=True)
class BorderCost:
    """What one border costs at one pair of bit pairs, beside what both layers cost alone; units as of `Cost`.

    Attributes:
        latency_spread_us: how far `latency_us` may lie off, low and high, low first; None where that is not known. Of
            one kernel that was timed, the tenth and ninetieth percentile of its calls; of several, the sums of these,
            which are no percentiles of the sum but hold it at least as often where the kernels vary by themselves; of a
            difference of two kernels, the one's tenth less the other's ninetieth, and the one's ninetieth less the
            other's tenth.
    """

    size_bytes: float = 0.0
    bops: float = 0.0
    latency_us: float = 0.0
    latency_spread_us: tuple[float, float] | None = None
    energy_uj: float = 0.0

    def __post_init__(self) -> None:
        for name in COST_NAMES:
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise AllocationError(f"{name} of a border must be a finite number of at least 0, got {value!r}")
        spread = self.latency_spread_us
        if spread is not None and not (all(map(is_number, spread)) and spread[0] <= self.latency_us <= spread[1]):
            raise AllocationError(
                f"latency_spread_us of a border must be a low and a high number around its latency_us of "
                f"{self.latency_us!r}, got {list(spread)!r}: mend it or leave it out"
            )


@dataclass(frozen=True)
class Border:
    """Two layers whose bits cost something together: values repacked, rescaled or copied on the way between them.

    Attributes:
        first: a layer, as a rule the one that makes the value.
        second: another, as a rule one that reads it.
        costs: by the bits of the first and of the second; a combination that is not there costs nothing.
        source: what runs there, and where the numbers come from; empty where nobody said.
    """

    first: str
    second: str
    costs: Mapping[tuple[Bits, Bits], BorderCost]
    source: str = ""

    def at(self, bits: Mapping[str, Bits]) -> BorderCost | None:
        """What it costs under the bits of the layers; None for nothing."""
        return self.costs.get((bits[self.first], bits[self.second]))

    def to_json(self) -> dict[str, Any]:
        table: dict[str, dict[str, Any]] = {}
        for (first, second), cost in self.costs.items():
            table.setdefault(repr(first), {})[repr(second)] = vars(cost)
        return {"first": self.first, "second": self.second, "source": self.source, "costs": table}


def written(value: float) -> str:
    """A cost for the reader: whole where it is large, else four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.4g}"


def counted(count: int, what: str) -> str:
    """So many things, for the reader.

    >>> counted(1, "thread"), counted(2, "thread")
    ('1 thread', '2 threads')
    """
    return f"{count} {what}{'' if count == 1 else 's'}"


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
        sources: for each of ``sensitivity size_bytes bops latency_us energy_uj``, how its numbers were obtained.
        borders: what pairs of layers cost together.
    """

    layers: tuple[LayerCosts, ...]
    ties: tuple[tuple[str, ...], ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    borders: tuple[Border, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    def total(self, bits: BitConfig, cost: CostName | Literal["sensitivity"]) -> float:
        """The network's cost under a configuration, in the cost's unit: that of its layers and of their borders.

        Raises:
            AllocationError: a layer is missing from `bits`, its pair from the table, or the cost is not known.
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
        if cost == "sensitivity":
            return total
        for border in self.borders:
            found = border.at(bits.layers)
            total += 0.0 if found is None else getattr(found, cost)
        return total

    def between(self, bits: Mapping[str, Bits]) -> dict[CostName, float]:
        """What of each cost lies between layers under these bits; none of those where that is nothing."""
        found = [border.at(bits) for border in self.borders if border.first in bits and border.second in bits]
        sums = {name: sum(getattr(cost, name) for cost in found if cost is not None) for name in COST_NAMES}
        return {name: value for name, value in sums.items() if value}

    def sensitivity_error(self, bits: BitConfig) -> float | None:
        """Relative standard error of the summed sensitivity under a configuration; see `summed_error`."""
        self.total(bits, "sensitivity")  # AllocationError where a layer or a pair is missing
        return summed_error(
            (layer.choices[bits.layers[layer.name]].sensitivity, layer.sensitivity_error) for layer in self.layers
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "units": {
                "size_bytes": "byte",
                "bops": "bit operation a sample",
                "latency_us": "microsecond",
                "energy_uj": "microjoule a sample",
            },
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
            "borders": [border.to_json() for border in self.borders],
        }

    @classmethod
    def from_json(cls, data: Any, name: str = "the cost table") -> CostTable:
        """Read what `to_json` wrote.

        Args:
            data: as `JsonReader` parses it.
            name: of the file, for messages.

        Raises:
            AllocationError: anything else; two layers of one name, one pair written in two ways, a border of layers or
                bits that are not there.
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
        known = {name: layer.choices for name, layer in rows.items()}
        borders = parsed_borders(reader, found.get("borders", ()), known)
        return cls(tuple(rows.values()), found.get("ties", ()), found.get("sources", {}), borders)


class BorderRow(TypedDict):
    """The JSON of a `Border`."""

    first: str
    second: str
    source: NotRequired[str]
    costs: Mapping[str, Mapping[str, BorderCost]]


def parsed_borders(
    reader: JsonReader, rows: Iterable[BorderRow], layers: Mapping[str, Collection[Bits]]
) -> tuple[Border, ...]:
    """Borders as a file gives them, held to the layers and the pairs that these have."""
    return tuple(_border(reader, row, layers) for row in rows)


def _border(reader: JsonReader, row: BorderRow, layers: Mapping[str, Collection[Bits]]) -> Border:
    first, second = row["first"], row["second"]
    for name in (first, second):
        if name not in layers:
            raise reader.fault(f"borders names {name!r}, which is no layer of layers")
    if first == second:
        raise reader.fault(f"a border lies between two layers, and one names {first!r} twice")
    costs: dict[tuple[Bits, Bits], BorderCost] = {}
    for one, by_second in row["costs"].items():
        for other, cost in by_second.items():
            pair = parsed_bits(reader, first, one), parsed_bits(reader, second, other)
            for name, bits in zip((first, second), pair, strict=True):
                if bits not in layers[name]:
                    raise reader.fault(f"a border of layer {name!r} has a cost at {bits}, and the layer has none")
            if pair in costs:
                raise reader.fault(f"the border of {first!r} and {second!r} has two costs for {pair[0]} and {pair[1]}")
            costs[pair] = cost
    return Border(first, second, costs, row.get("source", ""))


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
    borders: NotRequired[tuple[BorderRow, ...]]
