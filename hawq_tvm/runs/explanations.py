"""Why the layers of a run have their bits: asked of its files, kept among them, and said in sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from hawq_tvm.core.errors import RunError
from hawq_tvm.core.specs import COST_UNITS, BitConfig, Bits, CostName, CostTable, parsed_bits, written
from hawq_tvm.ilp.explain import BorderReading, BudgetReading, Explanation, explain, explain_all
from hawq_tvm.runs.artifacts import ALLOCATION, BITS, COSTS, EXPLANATIONS, Artifacts
from hawq_tvm.runs.quantities import name_of, number_of, title_of
from hawq_tvm.runs.rundir import Run

REGRET = "regret: by how much the network's sensitivity rises where these bits are forced and all others adapt"
"""What stands in the table of choices, for the reader."""


class _Options(TypedDict):
    """What the allocation was asked for, of the options of its stage."""

    bits: tuple[str, ...]
    pins: Mapping[str, str]
    metric: str
    caution: float


@dataclass(frozen=True)
class _Question:
    """What a run's bits were chosen by.

    Attributes:
        table: the costs.
        bits: what the network has.
        limits: of the costs.
        candidates: pairs that there were to choose from.
        pins: layers that were held.
    """

    table: CostTable
    bits: BitConfig
    limits: Mapping[CostName, float]
    candidates: Sequence[Bits]
    pins: Mapping[str, Bits]

    @classmethod
    def of(cls, run: Run) -> _Question:
        """Read it from a run.

        Raises:
            RunError: the run has no allocation, or bits that were given.
        """
        found, reader = Artifacts(run), run.reader(ALLOCATION)
        limits, options = found.limits, run.options(ALLOCATION)
        if options.get("given") is not None:
            raise RunError(
                f"the bits of {run.name} were given, not chosen; hawq-tvm allocate {run.name} chooses within budgets"
            )
        asked: _Options = reader.take(options, _Options, where="the manifest's allocate")
        chooses = len(set(asked["bits"])) > 1  # else nothing was profiled
        return cls(
            found.costs_by(asked["metric"], asked["caution"]) if chooses else found.costs,
            found.bits,
            {cost: limits[cost] for cost in COST_UNITS if cost in limits},
            [parsed_bits(reader, "a candidate", text) for text in asked["bits"]],
            {name: parsed_bits(reader, name, text) for name, text in asked["pins"].items()},
        )


def explain_in(run: Run, layer: str) -> Explanation:
    """The explanation of a layer of a run.

    Raises:
        RunError: the run has no allocation, or bits that were given.
        AllocationError: no such layer.
    """
    asked = _Question.of(run)
    return explain(asked.table, layer, asked.bits, asked.limits, candidates=asked.candidates, pins=asked.pins)


def keep_all(run: Run, progress: Callable[[int], None] | None = None) -> tuple[Explanation, ...]:
    """Explain every layer, of tied ones the first, and keep that in the run.

    Args:
        run: open for editing.
        progress: called with the number of layers done.

    Raises:
        RunError: the run has no allocation, or bits that were given.
    """
    asked = _Question.of(run)
    found: list[Explanation] = []

    def make() -> None:
        rows = explain_all(asked.table, asked.bits, asked.limits, candidates=asked.candidates, pins=asked.pins)
        for row in rows:
            found.append(row)
            if progress is not None:
                progress(len(found))
        run.write_json(EXPLANATIONS, {"layers": [row.to_json() for row in found]})

    run.stage(
        "explain", make, options={}, reads=(COSTS, BITS, ALLOCATION), writes=(EXPLANATIONS,), force=True
    )  # quick enough to be asked anew
    return tuple(found)


def in_a_row(found: Explanation) -> tuple[str, ...]:
    """A layer in a row of a table: its name, bits, what would come next, its regret, that as a share, how sure."""
    others = len(found.tied) - 1
    name = f"{found.layer}{f' and {others} tied' if others else ''}"
    nearest = found.nearest
    if nearest is None or nearest.regret is None:
        return name, repr(found.bits), "pinned" if found.pinned else "none fits", "", "", ""
    share = f"{nearest.regret / found.sensitivity:.2%}" if found.sensitivity > 0 else ""
    if found.pinned:
        return name, f"{found.bits}, pinned", repr(nearest.bits), f"{nearest.regret:.3g}", share, ""
    sure = {True: "yes", False: "no", None: ""}[found.is_sure]
    return name, repr(found.bits), repr(nearest.bits), f"{nearest.regret:.3g}", share, sure


def choices(found: Explanation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A layer's choices as a table: the names of its columns, and a row for each of `found.alternatives`."""
    costs = [cost for cost in COST_UNITS if all(cost in choice.costs for choice in found.alternatives)]
    rows = [
        (
            repr(choice.bits),
            f"{choice.sensitivity:.3g}",
            *(number_of(choice.costs[cost], cost) for cost in costs),
            "over budget" if choice.regret is None else f"{choice.regret:.3g}",
        )
        for choice in found.alternatives
    ]
    return ("bits", "sensitivity", *map(title_of, costs), "regret"), rows


def sentences(found: Explanation) -> list[str]:
    """What a person wants to hear, most important first."""
    return [
        _has(found),
        *_ties(found),
        *map(_budget, found.budgets),
        *_borders(found),
        *_next(found),
        *_sure(found),
    ]


def _has(found: Explanation) -> str:
    text = f"{found.layer} has {found.bits}"
    if found.pinned:
        return f"{text}, at which it is pinned"
    if found.bits != found.optimal:
        return f"{text}, edited by hand or found by a search; the program gives it {found.optimal}"
    if not found.budgets:
        return f"{text}: there is no budget, so every layer has the bits that lose least"
    return f"{text}: the least loss of the whole network within its budgets"


def _ties(found: Explanation) -> list[str]:
    others = [name for name in found.tied if name != found.layer]
    if not others:
        return []
    return [f"it is tied to {', '.join(others)}: tied layers have the same bits, and are counted together below"]


def _budget(reading: BudgetReading) -> str:
    unit = COST_UNITS[reading.cost]
    spent = f"{name_of(reading.cost)}: {written(reading.spent)} of {written(reading.limit)} {unit}"
    if reading.gain == 0:
        return f"{spent}; it does not bind"
    return (
        f"{spent}; it binds: without it the sensitivity would be {reading.gain:.3g} lower, this layer at {reading.bits}"
    )


def _borders(found: Explanation) -> list[str]:
    """What lies between it and its neighbours; a border that never costs anything is told by its source alone."""
    return [_border(reading) for reading in found.borders if reading.costs or reading.source]


def _border(reading: BorderReading) -> str:
    """What a border costs now, how sure, and where that comes from."""
    costs = " and ".join(f"{written(value)} {COST_UNITS[cost]}" for cost, value in reading.costs.items())
    low, high = reading.latency_spread_us or (0.0, 0.0)
    spread = f" ({written(low)} to {written(high)})" if reading.latency_spread_us else ""
    source = f"; {reading.source}" if reading.source else ""
    return f"between {reading.first} and {reading.second}: {costs or 0}{spread} at these bits{source}"


def _next(found: Explanation) -> list[str]:
    nearest = found.nearest
    if nearest is None or nearest.regret is None:
        return ["no other bits of it fit the budgets, whatever the other layers have"] if not found.pinned else []
    if found.pinned and nearest.regret < 0:
        less = f"{-nearest.regret:.3g} less ({_share(found, -nearest.regret)})"
        return [f"without the pin it would have {nearest.bits}, and the network would lose {less}"]
    own = next(choice for choice in found.alternatives if choice.bits == found.optimal)
    return [
        f"next would come {nearest.bits}: the network would lose {nearest.regret:.3g} more "
        f"({_share(found, nearest.regret)}); the answer changes where {own.bits} loses {nearest.regret:.3g} more than "
        f"its {own.sensitivity:.3g}, or {nearest.bits} so much less"
    ]


def _share(found: Explanation, regret: float) -> str:
    return f"{regret / found.sensitivity:.1%} of its sensitivity" if found.sensitivity > 0 else "of none"


def _sure(found: Explanation) -> list[str]:
    if found.error is None or found.nearest is None or found.pinned:
        return []
    verdict = {True: "so the choice is sure", False: "so the choice may be chance: probe more", None: ""}[found.is_sure]
    return [f"its sensitivity is known to {found.error:.0%} (standard error), {verdict}"]
