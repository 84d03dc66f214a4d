"""`hawq-tvm explain`, in a file of its own: it reads JSON and solves programs, without PyTorch, ONNX and TVM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from rich.text import Text

from hawq_tvm.cli import console
from hawq_tvm.core.errors import RunError
from hawq_tvm.core.specs import COST_UNITS, CostName, parsed_bits
from hawq_tvm.ilp.explain import Alternative, BudgetReading, Explanation
from hawq_tvm.ilp.explain import explain as explain_layer
from hawq_tvm.runs.artifacts import ALLOCATION, Artifacts
from hawq_tvm.runs.rundir import Run, read_run

_SHORT: Mapping[CostName, str] = {"size_bytes": "size", "bops": "BOPS", "latency_us": "latency", "energy_uj": "energy"}


def explain(path: Path, layer: str, as_json: bool) -> int:
    """Say why a layer has its bits."""
    found = read_run(path, lambda run: explain_in(run, layer))
    if as_json:
        console.print_json(found.to_json())
    else:
        print_explanation(found)
    return 0


class _Asked(TypedDict):
    """What the allocation was asked for, of the options of its stage."""

    bits: tuple[str, ...]
    pins: Mapping[str, str]
    metric: str
    caution: float


def explain_in(run: Run, layer: str) -> Explanation:
    """The explanation of a layer of a run.

    Raises:
        RunError: the run has no allocation, or bits that were given.
        AllocationError: no such layer.
    """
    found, reader = Artifacts(run), run.reader(ALLOCATION)
    bits, limits = found.bits, found.limits
    options = run.options(ALLOCATION)
    if options.get("given") is not None:
        raise RunError(
            f"the bits of {run.name} were given, not chosen; hawq-tvm allocate {run.name} chooses within budgets"
        )
    asked: _Asked = reader.take(options, _Asked, where="the manifest's allocate")
    chooses = len(set(asked["bits"])) > 1  # else nothing was profiled
    return explain_layer(
        found.costs_by(asked["metric"], asked["caution"]) if chooses else found.costs,
        layer,
        bits,
        {cost: limits[cost] for cost in COST_UNITS if cost in limits},
        candidates=[parsed_bits(reader, layer, text) for text in asked["bits"]],
        pins={name: parsed_bits(reader, name, text) for name, text in asked["pins"].items()},
    )


def print_explanation(found: Explanation) -> None:
    """The sentences, and a table of the choices."""
    out = console.out
    for sentence in sentences(found):
        out.print(Text(sentence))
    costs = [cost for cost in COST_UNITS if all(cost in choice.costs for choice in found.alternatives)]
    columns = ("bits", "sensitivity", *(f"{_SHORT[cost]} [{COST_UNITS[cost]}]" for cost in costs), "regret")
    console.print_table(columns, [_row(choice, costs, found) for choice in found.alternatives])
    out.print(
        Text("regret: by how much the network's sensitivity rises where these bits are forced and all others adapt")
    )


def _row(choice: Alternative, costs: list[CostName], found: Explanation) -> tuple[str, ...]:
    mark = " <" if choice.bits == found.bits else ""
    regret = "over budget" if choice.regret is None else f"{choice.regret:.3g}"
    return (
        f"{choice.bits}{mark}",
        f"{choice.sensitivity:.3g}",
        *(f"{choice.costs[cost]:,.6g}" for cost in costs),
        regret,
    )


def sentences(found: Explanation) -> list[str]:
    """What a person wants to hear, most important first."""
    return [_has(found), *_ties(found), *map(_budget, found.budgets), *_next(found), *_sure(found)]


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
    spent = f"{_SHORT[reading.cost]}: {reading.spent:,.6g} of {reading.limit:,.6g} {unit}"
    if reading.gain == 0:
        return f"{spent}; it does not bind"
    return (
        f"{spent}; it binds: without it the sensitivity would be {reading.gain:.3g} lower, this layer at {reading.bits}"
    )


def _next(found: Explanation) -> list[str]:
    nearest = found.nearest
    if nearest is None or nearest.regret is None:
        return ["no other bits of it fit the budgets, whatever the other layers have"] if not found.pinned else []
    own = next(choice for choice in found.alternatives if choice.bits == found.optimal)
    return [
        f"next would come {nearest.bits}: the network would lose {nearest.regret:.3g} more "
        f"({_share(found, nearest.regret)}); the answer changes where {own.bits} loses {nearest.regret:.3g} more than "
        f"its {own.sensitivity:.3g}, or {nearest.bits} so much less"
    ]


def _share(found: Explanation, regret: float) -> str:
    return f"{regret / found.sensitivity:.1%} of its sensitivity" if found.sensitivity > 0 else "of none"


def _sure(found: Explanation) -> list[str]:
    if found.error is None or found.nearest is None:
        return []
    verdict = {True: "so the choice is sure", False: "so the choice may be chance: probe more", None: ""}[found.is_sure]
    return [f"its sensitivity is known to {found.error:.0%} (standard error), {verdict}"]
