"""The allocation problem: for each group of tied layers one bit pair, least sensitivity within every budget.

    minimise   sum_g Omega_g(b_g)
    subject to sum_g cost_g(b_g) + sum_(g,h) border_gh(b_g, b_h) <= limit
               for each of bytes, BOPS, microseconds, microjoules that is bounded

Source: HAWQ-V3 (arXiv 2011.10680), section 3.4, equations 11 to 15; ties and pins as upstream's `ILP.ipynb` has them.
Borders are ours: what repacking and rescaling between neighbours of different bits costs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.budget import Budget
from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.specs import COST_NAMES, BitConfig, Bits, Border, CostName, CostTable, LayerCosts, parsed_bits
from hawq_tvm.core.strict_json import JsonReader

FloatArray = NDArray[np.float64]

Quantity = CostName | Literal["sensitivity"]
"""What a configuration has a sum of."""

QUANTITIES: tuple[Quantity, ...] = ("sensitivity", *COST_NAMES)


@dataclass(frozen=True)
class Choice:
    """One bit pair for a group, with the group's summed costs, borders within it too; None where not all are known."""

    bits: Bits
    sensitivity: float
    size_bytes: float
    bops: float
    latency_us: float | None
    energy_uj: float | None = None

    def cost(self, name: Quantity) -> float:
        value = getattr(self, name)
        assert value is not None, f"{name} was checked when the problem was formulated"
        return float(value)


@dataclass(frozen=True)
class Group:
    """Layers whose bits must agree, and what they may be: choices ascend in bits."""

    layers: tuple[str, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True, eq=False)
class Edge:
    """What the choices of two groups cost together, beside what each costs alone.

    Attributes:
        first: number of a group.
        second: number of another, larger.
        costs: for each cost that it has, float64 [choices of the first, choices of the second].
    """

    first: int
    second: int
    costs: Mapping[CostName, FloatArray]


@dataclass(frozen=True)
class Problem:
    """What a solver is given.

    Attributes:
        names: all layers, in the network's order.
        groups: a partition of them.
        limits: absolute limits by cost, shares already resolved.
        edges: what pairs of groups cost together; no pair stands twice.
    """

    names: tuple[str, ...]
    groups: tuple[Group, ...]
    limits: Mapping[CostName, float]
    edges: tuple[Edge, ...] = ()

    def uniform(self, cost: CostName) -> tuple[float, float]:
        """The least and the greatest cost of a uniform configuration.

        Uniform is one pair for all; a group that may not have it, as a pinned one, takes its own next lower.
        """
        pairs = {choice.bits for group in self.groups for choice in group.choices}
        totals = [self.total([at_most(group, pair) for group in self.groups], cost) for pair in pairs]
        return min(totals), max(totals)

    def total(self, picks: Sequence[int], cost: Quantity) -> float:
        """The cost of picking choice ``picks[g]`` for group g, borders included, summed without rounding error."""
        alone = (group.choices[pick].cost(cost) for group, pick in zip(self.groups, picks, strict=True))
        tables = ((e, e.costs.get(cost)) for e in self.edges if cost != "sensitivity")
        together = (float(table[picks[e.first], picks[e.second]]) for e, table in tables if table is not None)
        return fsum((*alone, *together))

    @property
    def known(self) -> tuple[CostName, ...]:
        """The costs that every choice has a number for."""
        choices = [choice for group in self.groups for choice in group.choices]
        return tuple(cost for cost in COST_NAMES if all(getattr(choice, cost) is not None for choice in choices))

    def sensitivity(self, picks: Sequence[int]) -> float:
        """The objective of a pick."""
        return fsum(group.choices[pick].sensitivity for group, pick in zip(self.groups, picks, strict=True))

    def meets(self, picks: Sequence[int]) -> bool:
        """Whether a pick is within every limit."""
        return self.exceeded(picks) is None

    def exceeded(self, picks: Sequence[int]) -> CostName | None:
        """A limit that the sum of a pick's costs, correctly rounded, exceeds; or None."""
        return next((cost for cost, limit in self.limits.items() if self.total(picks, cost) > limit), None)

    def config(self, picks: Sequence[int], origin: str) -> BitConfig:
        """The bit configuration of a pick, in the network's order."""
        bits = {
            name: group.choices[pick].bits
            for group, pick in zip(self.groups, picks, strict=True)
            for name in group.layers
        }
        return BitConfig({name: bits[name] for name in self.names}, origin)


@dataclass(frozen=True)
class ShadowPrice:
    """What more of a budget that binds buys.

    Attributes:
        cost: what it bounds.
        limit: how far.
        price: by how much the relaxation's least sensitivity falls for a unit more.
        more: a round amount more, in the cost's unit.
        less: by how much the least sensitivity falls for that, as another program has it.
        sensitivity: what it falls from.
        changes: the layers whose bits then differ, from what to what.
    """

    cost: CostName
    limit: float
    price: float
    more: float
    less: float
    sensitivity: float
    changes: Mapping[str, tuple[Bits, Bits]]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "changes": {name: list(map(repr, pair)) for name, pair in self.changes.items()}}


class PriceRow(TypedDict):
    """The JSON of a `ShadowPrice`."""

    cost: str
    limit: float
    price: float
    more: float
    less: float
    sensitivity: float
    changes: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Allocation:
    """A configuration within the limits, and how good it is known to be.

    Attributes:
        bits: the bits of every layer.
        sensitivity: its objective, the sum of Omega.
        costs: what it costs, for each cost that every layer has a number for.
        limits: what it was held to.
        solver: what found it.
        seconds: how long that took.
        sensitivity_error: relative standard error of the objective; None where it is not known.
        proved: whether nothing within the limits has a lower sensitivity.
        lower_bound: no configuration within the limits has a lower sensitivity; None where no bound is known.
        gap: how far `sensitivity` is above that at most, relative to its magnitude; None where no bound is known.
        prices: what more of each budget that binds buys; none where nobody asked.
    """

    bits: BitConfig
    sensitivity: float
    costs: Mapping[CostName, float]
    limits: Mapping[CostName, float]
    solver: str
    seconds: float
    sensitivity_error: float | None = None
    proved: bool = False
    lower_bound: float | None = None
    gap: float | None = None
    prices: tuple[ShadowPrice, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything but the bits, which are a file of their own."""
        return {
            "sensitivity": self.sensitivity,
            "sensitivity_error": self.sensitivity_error,
            "costs": dict(self.costs),
            "limits": dict(self.limits),
            "solver": self.solver,
            "seconds": self.seconds,
            "proved": self.proved,
            "lower_bound": self.lower_bound,
            "gap": self.gap,
            "prices": [price.to_json() for price in self.prices],
        }

    @classmethod
    def from_json(cls, bits: BitConfig, data: Any, reader: JsonReader) -> Allocation:
        """Read what `to_json` wrote.

        Args:
            bits: from their own file.
            data: as the reader parses it.
            reader: of its file.

        Raises:
            HawqError: anything else, of the reader's kind.
        """
        found = reader.take(data, _AllocationFile, signed=("sensitivity", "lower_bound"))
        return cls(bits, **{**found, "prices": parsed_prices(reader, found.get("prices", ()))})


class _AllocationFile(TypedDict):
    """The JSON of an `Allocation`."""

    sensitivity: float
    sensitivity_error: float | None
    costs: Mapping[str, float]
    limits: Mapping[str, float]
    solver: str
    seconds: float
    proved: bool
    lower_bound: float | None
    gap: float | None
    prices: NotRequired[tuple[PriceRow, ...]]


def parsed_prices(reader: JsonReader, rows: Iterable[PriceRow]) -> tuple[ShadowPrice, ...]:
    """Shadow prices as a file gives them; raises what `reader` says where one is of no cost, or of no bits."""
    found = []
    for row in rows:
        if row["cost"] not in COST_NAMES:
            raise reader.fault(f"{row['cost']!r} is no cost; there are {', '.join(COST_NAMES)}")
        changes = {
            layer: (parsed_bits(reader, layer, before), parsed_bits(reader, layer, after))
            for layer, (before, after) in row["changes"].items()
        }
        found.append(ShadowPrice(**{**row, "changes": changes}))  # type: ignore[arg-type]
    return tuple(found)


def formulate(
    table: CostTable,
    budget: Budget,
    *,
    candidates: Sequence[Bits] | Mapping[str, Sequence[Bits]] | None = None,
    pins: Mapping[str, Bits] | None = None,
) -> Problem:
    """Turn a cost table and budgets into a problem.

    Args:
        table: costs of every layer; its ties are kept.
        budget: limits, absolute or as shares between the lowest and the highest uniform configuration.
        candidates: bit pairs to choose from, for all layers or by layer; None means all that the table has.
        pins: layers held at one pair; a pinned layer pins those tied to it.

    Raises:
        AllocationError: an unknown layer, a layer without choices, ties or pins that contradict each other, a cost
            that is bounded but missing from the table.
    """
    pins = dict(pins or {})
    rows = {layer.name: layer for layer in table.layers}
    for what, given in (("pin", pins), ("candidates", candidates if isinstance(candidates, Mapping) else {})):
        unknown = [name for name in given if name not in rows]
        if unknown:
            raise AllocationError(f"{what} for unknown layer '{unknown[0]}'; the layers are {', '.join(rows)}")
    groups = tuple(_group(members, rows, table.borders, candidates, pins) for members in _partition(table))
    for cost in budget.limits:
        require_cost(groups, cost)
    problem = Problem(table.names, groups, {}, _edges(table, groups))
    limits: dict[CostName, float] = {}
    for cost, limit in budget.limits.items():
        if limit.is_share:
            lowest, highest = problem.uniform(cost)
            limits[cost] = (1 - limit.value) * lowest + limit.value * highest  # the ends come out exactly
        else:
            limits[cost] = limit.value
    return replace(problem, limits=limits)


def at_most(group: Group, bits: Bits) -> int:
    """The group's highest choice that does not exceed a pair; its lowest where all do."""
    return max(bisect_right(group.choices, bits, key=lambda choice: choice.bits) - 1, 0)


def _partition(table: CostTable) -> list[tuple[str, ...]]:
    """Layers grouped by their ties, which may chain; in the network's order."""
    leader = {name: name for name in table.names}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for tie in table.ties:
        unknown = [name for name in tie if name not in leader]
        if unknown:
            raise AllocationError(f"a tie names the unknown layer '{unknown[0]}'")
        for name in tie[1:]:
            leader[find(name)] = find(tie[0])
    members: dict[str, list[str]] = {}
    for name in table.names:
        members.setdefault(find(name), []).append(name)
    return [tuple(names) for names in members.values()]


def _group(
    members: tuple[str, ...],
    rows: Mapping[str, LayerCosts],
    borders: Sequence[Border],
    candidates: Sequence[Bits] | Mapping[str, Sequence[Bits]] | None,
    pins: Mapping[str, Bits],
) -> Group:
    """One group with the choices that all its members share."""
    pinned = {pins[name] for name in members if name in pins}
    if len(pinned) > 1:
        given = ", ".join(f"{name}={pins[name]!r}" for name in members if name in pins)
        raise AllocationError(
            f"the layers {', '.join(members)} must have the same bits and are pinned to different ones ({given}); "
            "pin one of them, or all alike"
        )
    allowed: set[Bits] | None = set(pinned) or None
    for name in members:
        wanted = candidates.get(name) if isinstance(candidates, Mapping) else candidates
        known = set(rows[name].choices)
        own = known if wanted is None or pinned else {Bits.parse(bits) for bits in wanted}
        if pinned - known or own - known:
            missing = sorted((pinned | own) - known)
            raise AllocationError(f"the cost table has no entry for layer '{name}' at {missing}; profile it with them")
        allowed = own if allowed is None else allowed & own
    if not allowed:
        raise AllocationError(f"the tied layers {', '.join(members)} have no bits in common to choose from")
    layers = [rows[name] for name in members]
    within = [border for border in borders if border.first in members and border.second in members]
    return Group(members, tuple(_choice(bits, layers, within) for bits in sorted(allowed)))


def _choice(bits: Bits, layers: Sequence[LayerCosts], within: Sequence[Border]) -> Choice:
    """What layers cost with these bits, the borders among them included."""
    costs = [layer.choices[bits] for layer in layers]
    between = [border.costs[bits, bits] for border in within if (bits, bits) in border.costs]

    def known(name: CostName) -> float | None:
        values = [getattr(cost, name) for cost in costs]
        return None if None in values else fsum([*values, *(getattr(cost, name) for cost in between)])

    size_bytes, bops = known("size_bytes"), known("bops")
    assert size_bytes is not None and bops is not None, "they are counted, not measured"
    sensitivity = fsum(cost.sensitivity for cost in costs)
    return Choice(bits, sensitivity, size_bytes, bops, known("latency_us"), known("energy_uj"))


def _edges(table: CostTable, groups: Sequence[Group]) -> tuple[Edge, ...]:
    """The borders between groups, those of the same two groups summed; costs that are 0 throughout are left out."""
    number = {name: g for g, group in enumerate(groups) for name in group.layers}
    column = [{choice.bits: k for k, choice in enumerate(group.choices)} for group in groups]
    found: dict[tuple[int, int], dict[CostName, FloatArray]] = {}
    for border in table.borders:
        first, second = number[border.first], number[border.second]
        if first == second:
            continue  # it is in the choices of the group
        low, high = min(first, second), max(first, second)
        matrices = found.setdefault((low, high), {})
        for (one, other), cost in border.costs.items():
            if one in column[first] and other in column[second]:
                at = column[first][one], column[second][other]
                for name in COST_NAMES:
                    value = getattr(cost, name)
                    if value:
                        if name not in matrices:
                            matrices[name] = np.zeros((len(groups[low].choices), len(groups[high].choices)))
                        matrices[name][at if first == low else at[::-1]] += value
    return tuple(Edge(*pair, matrices) for pair, matrices in sorted(found.items()) if matrices)


_OBTAINED: Mapping[CostName, str] = {
    "latency_us": "measure it (hawq-tvm profile --latency) or give a table (--latency-table)",
    "energy_uj": "profile with a source of energies (--latency-from bitfusion, docs/simulators.md)",
}


def require_cost(groups: Sequence[Group], cost: CostName) -> None:
    """Refuse to decide by a cost that is not known.

    Raises:
        AllocationError: a choice has no number for it.
    """
    for group in groups:
        for choice in group.choices:
            if getattr(choice, cost) is None:
                raise AllocationError(
                    f"a budget on {cost} or a front over it needs it for every layer, and '{group.layers[0]}' has none "
                    f"at {choice.bits}; {_OBTAINED[cost]}"
                )
