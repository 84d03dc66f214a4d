"""Why a layer has its bits: what every other choice would cost and save, and what would change the answer.

Each question is one more program, solved as exactly as the first: the group held at another choice and all others
chosen anew (what the objective then loses is that choice's *regret*), and the network without one of its budgets. A
regret says exactly how wrong a sensitivity may be: the answer stands until the group's own at the bits it has is
underrated by that much, whatever the other layers do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict

from hawq_tvm.core.budget import Budget
from hawq_tvm.core.errors import AllocationError, InfeasibleBudget
from hawq_tvm.core.specs import (
    COST_NAMES,
    BitConfig,
    Bits,
    Border,
    BorderCost,
    CostName,
    CostTable,
    parsed_bits,
    summed_error,
)
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.ilp.problem import Allocation, Problem, formulate
from hawq_tvm.ilp.pulp_solver import solve_ilp

_SURE = 2.0  # standard errors


@dataclass(frozen=True)
class Alternative:
    """One choice of the layer, and of those tied to it.

    Attributes:
        bits: the pair.
        sensitivity: of the tied layers together, at these bits.
        costs: of the tied layers together, those that are known.
        regret: by how much the network's sensitivity rises where they must have these bits and all others are chosen
            anew; None where no bits of the others meet the budgets.
    """

    bits: Bits
    sensitivity: float
    costs: Mapping[CostName, float]
    regret: float | None


@dataclass(frozen=True)
class BudgetReading:
    """One budget, and what it does to the answer.

    Attributes:
        cost: what it bounds.
        limit: how far.
        spent: by the chosen bits.
        gain: by how much the network's sensitivity falls without this budget; 0 where it does not bind.
        bits: what the layer would have without it.
    """

    cost: CostName
    limit: float
    spent: float
    gain: float
    bits: Bits


@dataclass(frozen=True)
class BorderReading:
    """One border of the layer, under the bits that all layers have.

    Attributes:
        first: the layer before.
        second: the layer behind; one of the two is tied to the one that is asked about.
        costs: what lies between them, those that are not nothing.
        latency_spread_us: how far the microseconds may lie off, as of `BorderCost`; None where that is not known.
        source: what runs there, and where the numbers come from.
    """

    first: str
    second: str
    costs: Mapping[CostName, float]
    latency_spread_us: tuple[float, float] | None
    source: str


@dataclass(frozen=True)
class Explanation:
    """Why a layer has its bits.

    Attributes:
        layer: its name.
        bits: what it has.
        tied: the layers that must have the same, itself among them.
        pinned: whether it was held at its bits.
        optimal: the bits that the program gives it now; others than it has where those were edited or searched.
        sensitivity: of the network, with the program's bits.
        alternatives: every choice, ascending; that of the program has a regret of 0.
        budgets: the limits, in the order of `COST_NAMES`.
        error: standard error of the tied layers' sensitivity, relative; None where it is not known.
        borders: what lies between the tied layers and each of their neighbours, those that cost nothing too.
    """

    layer: str
    bits: Bits
    tied: tuple[str, ...]
    pinned: bool
    optimal: Bits
    sensitivity: float
    alternatives: tuple[Alternative, ...]
    budgets: tuple[BudgetReading, ...]
    error: float | None
    borders: tuple[BorderReading, ...] = ()

    @property
    def nearest(self) -> Alternative | None:
        """The choice that would come next: of the least regret beside the program's own."""
        others = [(choice.regret, choice) for choice in self.alternatives if choice.bits != self.optimal]
        known = [(regret, choice) for regret, choice in others if regret is not None]
        return min(known, key=lambda pair: pair[0])[1] if known else None

    @property
    def is_sure(self) -> bool | None:
        """Whether the nearest choice's regret exceeds two standard errors of what the two choices differ by.

        None where the errors are not known, or where there is no other choice.
        """
        nearest = self.nearest
        if nearest is None or nearest.regret is None or self.error is None:
            return None
        own = next(choice for choice in self.alternatives if choice.bits == self.optimal)
        return nearest.regret > _SURE * self.error * abs(nearest.sensitivity - own.sensitivity)

    def to_json(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "bits": repr(self.bits),
            "tied": list(self.tied),
            "pinned": self.pinned,
            "optimal": repr(self.optimal),
            "sensitivity": self.sensitivity,
            "sensitivity_error": self.error,
            "is_sure": self.is_sure,
            "alternatives": [
                {
                    "bits": repr(choice.bits),
                    "sensitivity": choice.sensitivity,
                    "costs": dict(choice.costs),
                    "regret": choice.regret,
                }
                for choice in self.alternatives
            ],
            "budgets": [{**vars(reading), "bits": repr(reading.bits)} for reading in self.budgets],
            "borders": [vars(reading) for reading in self.borders],
        }

    @classmethod
    def from_json(cls, reader: JsonReader, data: Any) -> Explanation:
        """Read what `to_json` wrote.

        Args:
            reader: of its file.
            data: as it parses it.

        Raises:
            HawqError: anything else, of the reader's kind.
        """
        found = reader.take(data, _Row, signed=("sensitivity", "regret"))
        layer = found["layer"]
        borders = found["borders"]
        if isinstance(borders, Mapping):  # sums, as they were kept before each border had a row
            row = _BorderRow(first=layer, second="its neighbours", costs=borders, latency_spread_us=None, source="")
            borders = (row,) if borders else ()
        for costs in (row["costs"] for row in (*found["alternatives"], *borders)):
            _check_names(reader, costs)
        _check_names(reader, [row["cost"] for row in found["budgets"]])

        def read(text: str) -> Bits:
            return parsed_bits(reader, layer, text)

        return cls(
            layer,
            read(found["bits"]),
            found["tied"],
            found["pinned"],
            read(found["optimal"]),
            found["sensitivity"],
            tuple(
                Alternative(read(row["bits"]), row["sensitivity"], row["costs"], row["regret"])
                for row in found["alternatives"]
            ),
            tuple(
                BudgetReading(row["cost"], row["limit"], row["spent"], row["gain"], read(row["bits"]))
                for row in found["budgets"]
            ),
            found["sensitivity_error"],
            tuple(BorderReading(**row) for row in borders),
        )


def _check_names(reader: JsonReader, names: Iterable[str]) -> None:
    for name in names:
        if name not in COST_NAMES:
            raise reader.fault(f"{name!r} is no cost; there are {', '.join(COST_NAMES)}")


class _ChoiceRow(TypedDict):
    """The JSON of an `Alternative`."""

    bits: str
    sensitivity: float
    costs: Mapping[str, float]
    regret: float | None


class _BudgetRow(TypedDict):
    """The JSON of a `BudgetReading`."""

    cost: str
    limit: float
    spent: float
    gain: float
    bits: str


class _BorderRow(TypedDict):
    """The JSON of a `BorderReading`."""

    first: str
    second: str
    costs: Mapping[str, float]
    latency_spread_us: tuple[float, float] | None
    source: str


class _Row(TypedDict):
    """The JSON of an `Explanation`."""

    layer: str
    bits: str
    tied: tuple[str, ...]
    pinned: bool
    optimal: str
    sensitivity: float
    sensitivity_error: float | None
    alternatives: tuple[_ChoiceRow, ...]
    budgets: tuple[_BudgetRow, ...]
    borders: tuple[_BorderRow, ...] | Mapping[str, float]


def explain(
    table: CostTable,
    layer: str,
    bits: BitConfig,
    limits: Mapping[CostName, float],
    *,
    candidates: Sequence[Bits] | None = None,
    pins: Mapping[str, Bits] | None = None,
    solve: Callable[[Problem], Allocation] = solve_ilp,
) -> Explanation:
    """Ask why a layer has its bits.

    Args:
        table: costs of every layer.
        layer: which.
        bits: what the network has.
        limits: absolute ones, by cost.
        candidates: pairs to choose from; None for all of the table.
        pins: layers held at one pair. What a pinned layer would cost otherwise is told all the same.
        solve: the exact solver.

    Raises:
        AllocationError: no such layer; as `formulate`.
        InfeasibleBudget: the limits leave no bits at all.
    """
    if layer not in table.names:
        raise AllocationError(f"no layer '{layer}'; the layers are {', '.join(table.names)}")
    return _Asked(table, bits, limits, candidates, pins or {}, solve).about(layer)


def explain_all(
    table: CostTable,
    bits: BitConfig,
    limits: Mapping[CostName, float],
    *,
    candidates: Sequence[Bits] | None = None,
    pins: Mapping[str, Bits] | None = None,
    solve: Callable[[Problem], Allocation] = solve_ilp,
) -> Iterator[Explanation]:
    """The same of every layer, one of those that are tied; what all ask alike is solved once.

    Arguments and errors as of `explain`.
    """
    asked = _Asked(table, bits, limits, candidates, pins or {}, solve)
    for group in formulate(table, Budget()).groups:
        yield asked.about(group.layers[0])


class _Asked:
    """One allocation that is asked about."""

    def __init__(
        self,
        table: CostTable,
        bits: BitConfig,
        limits: Mapping[CostName, float],
        candidates: Sequence[Bits] | None,
        pins: Mapping[str, Bits],
        solve: Callable[[Problem], Allocation],
    ) -> None:
        self._table, self._bits, self._limits = table, bits, dict(limits)
        self._candidates, self._pins, self._solve = candidates, dict(pins), solve
        self._best = solve(self._problem(self._limits, self._pins))

    def _problem(self, limits: Mapping[CostName, float], pins: Mapping[str, Bits]) -> Problem:
        return formulate(self._table, Budget.absolute(limits), candidates=self._candidates, pins=pins)

    def _solved(self, limits: Mapping[CostName, float], pins: Mapping[str, Bits]) -> Allocation | None:
        """The optimum within some limits; None where they leave nothing."""
        try:
            return self._solve(self._problem(limits, pins))
        except InfeasibleBudget:
            return None

    @cached_property
    def _without(self) -> dict[CostName, Allocation]:
        """By budget, what would be best if it were not there."""
        found = {}
        for cost in COST_NAMES:
            if cost in self._limits:
                rest = {name: limit for name, limit in self._limits.items() if name != cost}
                answer = self._solved(rest, self._pins)
                assert answer is not None, "fewer budgets leave more"
                found[cost] = answer
        return found

    def about(self, layer: str) -> Explanation:
        """Of one layer."""
        tied = _tied(self._table, layer)
        free = {name: pair for name, pair in self._pins.items() if name not in tied}
        group = next(group for group in self._problem({}, free).groups if layer in group.layers)
        alternatives = []
        for choice in group.choices:
            is_best = choice.bits == self._best.bits.layers[layer]
            found = self._best if is_best else self._solved(self._limits, {**free, layer: choice.bits})
            costs = {cost: choice.cost(cost) for cost in COST_NAMES if getattr(choice, cost) is not None}
            regret = None if found is None else found.sensitivity - self._best.sensitivity
            alternatives.append(Alternative(choice.bits, choice.sensitivity, costs, regret))
        rows = {row.name: row for row in self._table.layers}
        loses_most = max(group.choices, key=lambda choice: choice.sensitivity).bits  # 0 would tell of no error
        return Explanation(
            layer=layer,
            bits=self._bits.layers[layer],
            tied=group.layers,
            pinned=any(name in self._pins for name in group.layers),
            optimal=self._best.bits.layers[layer],
            sensitivity=self._best.sensitivity,
            alternatives=tuple(alternatives),
            budgets=tuple(self._reading(cost, without, layer) for cost, without in self._without.items()),
            error=summed_error(
                (rows[name].choices[loses_most].sensitivity, rows[name].sensitivity_error) for name in group.layers
            ),
            borders=tuple(
                self._border(border)
                for border in self._table.borders
                if border.first in group.layers or border.second in group.layers
            ),
        )

    def _reading(self, cost: CostName, without: Allocation, layer: str) -> BudgetReading:
        gain = max(0.0, self._best.sensitivity - without.sensitivity)
        spent = self._table.total(self._bits, cost)
        return BudgetReading(cost, self._limits[cost], spent, gain, without.bits.layers[layer])

    def _border(self, border: Border) -> BorderReading:
        cost = border.at(self._bits.layers) or BorderCost()
        costs: dict[CostName, float] = {name: value for name in COST_NAMES if (value := getattr(cost, name))}
        return BorderReading(border.first, border.second, costs, cost.latency_spread_us, border.source)


def _tied(table: CostTable, layer: str) -> tuple[str, ...]:
    """The layers whose bits must agree with a layer's, itself among them."""
    groups = formulate(table, Budget()).groups
    return next(group.layers for group in groups if layer in group.layers)
