"""The front: configurations of which none is better in one of two quantities without being worse in the other.

Each point is two programs, both solved to optimality: the least of the second quantity within a limit on the first, and
the least of the first that has it. The next limit lies just below, by the last bit of a float, so that a front without
gaps is every point that there is, those below the convex hull too. Real-valued costs have thousands of points; where a
number of points is asked for, limits are spread evenly over the first quantity. Each of these points is as much proved
to be of the front as in the whole; others may lie between them.

Source: Haimes, Lasdon, Wismer, "On a bicriterion formulation of the problems of integrated system identification and
system optimization" (1971), the epsilon-constraint method.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf, nextafter
from typing import Any, NotRequired, TypedDict

from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.specs import BitConfig, Bits, CostName, parsed_bits
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.ilp.problem import QUANTITIES, Problem, Quantity, require_cost
from hawq_tvm.ilp.program import Program
from hawq_tvm.ilp.pulp_program import Effort
from hawq_tvm.ilp.pulp_solver import default_solver, explain_infeasible
from hawq_tvm.ilp.search import minimise

AXES: Mapping[str, Quantity] = {
    "size": "size_bytes",
    "bops": "bops",
    "latency": "latency_us",
    "energy": "energy_uj",
    "sensitivity": "sensitivity",
}
"""What a front may be over, as users name it."""

MOST_POINTS = 1000
"""After so many a whole front is cut off, and says so."""


@dataclass(frozen=True)
class FrontPoint:
    """A configuration of the front.

    Attributes:
        bits: of every layer.
        totals: its sensitivity, and each cost that every layer has a number for.
        accuracy: top-1 of the integer network on the evaluation samples; None where it was not measured.
    """

    bits: BitConfig
    totals: Mapping[Quantity, float]
    accuracy: float | None = None


@dataclass(frozen=True)
class Step:
    """From one point of a front to the next.

    Attributes:
        more: by how much the first quantity rises.
        less: by how much the second falls.
        price: how much of the second a unit of the first buys here.
        changes: the layers whose bits differ, from what to what.
    """

    more: float
    less: float
    price: float
    changes: Mapping[str, tuple[Bits, Bits]]


@dataclass(frozen=True)
class Front:
    """Points by the first quantity, ascending, and so by the second, descending.

    Attributes:
        axes: the two quantities.
        points: each proved: nothing within the limits is as good in both and better in one.
        limits: what all points were held to.
        is_whole: whether these are all points of the front.
        solver: what proved it.
    """

    axes: tuple[Quantity, Quantity]
    points: tuple[FrontPoint, ...]
    limits: Mapping[CostName, float]
    is_whole: bool
    solver: str

    @property
    def steps(self) -> tuple[Step, ...]:
        """What lies between neighbours: shadow prices by differences, and the layers that bind."""
        first, second = self.axes
        found = []
        for here, there in zip(self.points, self.points[1:], strict=False):
            more, less = there.totals[first] - here.totals[first], here.totals[second] - there.totals[second]
            changes = {
                name: (bits, there.bits.layers[name])
                for name, bits in here.bits.layers.items()
                if bits != there.bits.layers[name]
            }
            found.append(Step(more, less, less / more, changes))
        return tuple(found)

    @property
    def statement(self) -> str:
        """How much the front is, for the reader."""
        named = {quantity: name for name, quantity in AXES.items()}
        names, count = " and ".join(named[axis] for axis in self.axes), len(self.points)
        proved = f"of the front of {names}, each proved optimal by {self.solver}"
        if count == 1:
            return f"the only point {proved.replace('each ', '')}: nothing else is better in either"
        return f"all {count} points {proved}" if self.is_whole else f"{count} points {proved}; others may lie between"

    def to_json(self) -> dict[str, Any]:
        return {
            "axes": list(self.axes),
            "limits": dict(self.limits),
            "is_whole": self.is_whole,
            "solver": self.solver,
            "statement": self.statement,
            "points": [
                {
                    **point.totals,
                    **({} if point.accuracy is None else {"accuracy": point.accuracy}),
                    "bits": {name: repr(bits) for name, bits in point.bits.layers.items()},
                }
                for point in self.points
            ],
            "steps": [
                {
                    "more": step.more,
                    "less": step.less,
                    "price": step.price,
                    "changes": {name: [repr(bits) for bits in pair] for name, pair in step.changes.items()},
                }
                for step in self.steps
            ],
        }

    @classmethod
    def from_json(cls, data: Any, name: str = "the front") -> Front:
        """Read what `to_json` wrote.

        Args:
            data: as `JsonReader` parses it.
            name: of the file, for messages.

        Raises:
            AllocationError: anything else.
        """
        reader = JsonReader(name, AllocationError, "make it again with hawq-tvm allocate --pareto")
        found = reader.take(data, _FrontFile, signed=("sensitivity",))
        axes = found["axes"]
        if len(axes) != 2 or axes[0] == axes[1] or not set(axes) <= set(QUANTITIES):
            raise reader.fault(f"axes is {', '.join(axes)}, expected two of {', '.join(QUANTITIES)}")
        points = []
        for row in found["points"]:
            totals = {quantity: row[quantity] for quantity in QUANTITIES if row.get(quantity) is not None}
            if not set(axes) <= set(totals):
                raise reader.fault(f"a point lacks one of its axes, {', '.join(axes)}")
            bits = {layer: parsed_bits(reader, layer, text) for layer, text in row["bits"].items()}
            points.append(FrontPoint(BitConfig(bits, f"front ({found['solver']})"), totals, row.get("accuracy")))
        return cls(axes, tuple(points), found["limits"], found["is_whole"], found["solver"])

    def to_csv(self) -> str:
        """A line a point: its totals, its accuracy where that was measured, and each layer's bits.

        The price is how much of the second quantity a unit of the first bought, from the point before to this one.
        """
        if not self.points:
            return ""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        measured = any(point.accuracy is not None for point in self.points)
        head = self.points[0]
        writer.writerow([*head.totals, *(["accuracy"] if measured else []), "price", *head.bits.layers])
        for point, price in zip(self.points, ("", *(step.price for step in self.steps)), strict=True):
            accuracy = [point.accuracy] if measured else []
            writer.writerow([*point.totals.values(), *accuracy, price, *map(repr, point.bits.layers.values())])
        return text.getvalue()


class _PointRow(TypedDict):
    """The JSON of a `FrontPoint`."""

    sensitivity: NotRequired[float | None]
    size_bytes: NotRequired[float | None]
    bops: NotRequired[float | None]
    latency_us: NotRequired[float | None]
    energy_uj: NotRequired[float | None]
    accuracy: NotRequired[float | None]
    bits: Mapping[str, str]


class _FrontFile(TypedDict):
    """The JSON of a `Front`; its statement and its steps are for the reader."""

    axes: tuple[str, ...]
    points: tuple[_PointRow, ...]
    limits: Mapping[str, float]
    is_whole: bool
    solver: str


def measures_accuracy(text: str) -> bool:
    """Whether a front is over one quantity and accuracy, written ``size,accuracy``."""
    return text.replace(" ", "").endswith(",accuracy")


def find_axes(text: str) -> tuple[Quantity, Quantity]:
    """Two quantities, written ``size,sensitivity``.

    Raises:
        AllocationError: not two different ones that there are.
    """
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or names[0] == names[1] or not all(name in AXES for name in names):
        raise AllocationError(
            f"a front is over two of {', '.join(AXES)}, written size,sensitivity, or over one of them and accuracy, "
            f"written size,accuracy; got {text!r}"
        )
    return AXES[names[0]], AXES[names[1]]


def pareto_front(
    problem: Problem,
    axes: tuple[Quantity, Quantity] = ("size_bytes", "sensitivity"),
    *,
    points: int | None = None,
    solver: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Front:
    """The front over two quantities within the problem's limits.

    Args:
        problem: see `formulate`.
        axes: the two quantities, both the better the less they are.
        points: about so many, evenly spread over the first; None for all, but no more than `MOST_POINTS`.
        solver: as of `solve_ilp`.
        progress: called with points done and, where that is known, points in all.

    Raises:
        InfeasibleBudget: no configuration meets the limits.
        AllocationError: a quantity twice, or one that is not known of every layer; fewer than two points.
    """
    if axes[0] == axes[1]:
        raise AllocationError(
            f"a front is over two quantities, got {axes[0]} twice; the others are {', '.join(QUANTITIES)}"
        )
    if points is not None and points < 2:
        raise AllocationError(f"a front has at least its two ends, got {points} points")
    for axis in axes:
        if axis != "sensitivity":
            require_cost(problem.groups, axis)
    chosen = default_solver() if solver is None else solver
    walk = _Walk(problem, axes, Effort(chosen))
    found: list[list[int]] = []
    for picks in walk.spread(points) if points else walk.every():
        found.append(picks)
        if progress is not None:
            progress(len(found), points or len(found))
    if not found:
        raise explain_infeasible(problem, chosen)
    found.sort(key=lambda picks: problem.total(picks, axes[0]))
    return Front(
        axes,
        tuple(_point(problem, picks, chosen) for picks in found),
        dict(problem.limits),
        is_whole=len(found) == 1 or (points is None and len(found) < MOST_POINTS),
        solver=chosen,
    )


def _point(problem: Problem, picks: list[int], solver: str) -> FrontPoint:
    totals: dict[Quantity, float] = {"sensitivity": problem.sensitivity(picks)}
    totals.update((cost, problem.total(picks, cost)) for cost in problem.known)
    return FrontPoint(problem.config(picks, f"front ({solver})"), totals)


class _Walk:
    """Points of a front, one after another; each proved by two programs."""

    def __init__(self, problem: Problem, axes: tuple[Quantity, Quantity], effort: Effort) -> None:
        self._problem, self._effort = problem, effort
        self._first, self._second = axes

    def _least(self, objective: Quantity, limits: Mapping[Quantity, float]) -> list[int] | None:
        """The least of a quantity within the problem's limits and these, which go on top where they are tighter."""
        bounded: dict[Quantity, float] = dict(self._problem.limits.items())
        for quantity, limit in limits.items():
            bounded[quantity] = min(limit, bounded.get(quantity, inf))
        return minimise(Program.of(self._problem, objective, bounded), self._effort).picks

    def _at(self, limit: float) -> list[int] | None:
        """The point of the front that is furthest within a limit on the first quantity."""
        within = {} if limit == inf else {self._first: limit}
        picks = self._least(self._second, within)
        if picks is None:
            return None
        return self._least(self._first, {**within, self._second: self._problem.total(picks, self._second)})

    def every(self) -> Iterator[list[int]]:
        """From the least of the second quantity to that of the first."""
        limit = inf
        for _ in range(MOST_POINTS):
            picks = self._at(limit)
            if picks is None:
                return
            yield picks
            limit = nextafter(self._problem.total(picks, self._first), -inf)

    def spread(self, points: int) -> Iterator[list[int]]:
        """Both ends and, in between, the points furthest within evenly spread limits."""
        top, cheapest = self._at(inf), self._least(self._first, {})
        if top is None or cheapest is None:
            return
        low, high = (self._problem.total(picks, self._first) for picks in (cheapest, top))
        limits = [low + (high - low) * step / (points - 1) for step in range(points - 1)]
        seen: set[float] = set()
        for picks in (*(self._at(limit) for limit in limits), top):
            if picks is not None and self._problem.total(picks, self._first) not in seen:
                seen.add(self._problem.total(picks, self._first))
                yield picks
