"""Why a layer has its bits: what each other choice would cost and save, what binds, and what would change the answer.

Every alternative is a program of its own: the layer held at other bits, everything else chosen anew within the same
limits. What it loses is so the least that it must lose, not what changing the layer alone would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hawq_tvm.core.errors import AllocationError, InfeasibleBudget
from hawq_tvm.core.specs import BitConfig, Bits, CostName
from hawq_tvm.ilp.front import shadow_prices
from hawq_tvm.ilp.problem import Group, Problem, Quantity
from hawq_tvm.ilp.pulp_solver import solve_ilp


@dataclass(frozen=True)
class Alternative:
    """Other bits for the layer, and for those tied to it.

    Attributes:
        bits: what they would have.
        alone: what that adds to each total with all other layers as they are; negative where it saves.
        exceeds: budgets that it alone would leave.
        loss: how much the sensitivity rises with all other layers chosen anew; None where the budgets allow it to no
            configuration at all.
        follows: the other layers that would change then.
    """

    bits: Bits
    alone: Mapping[Quantity, float]
    exceeds: tuple[CostName, ...]
    loss: float | None
    follows: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "bits": repr(self.bits), "alone": dict(self.alone)}


@dataclass(frozen=True)
class Explanation:
    """Why a layer has its bits.

    Attributes:
        layer: its name.
        bits: what it has.
        tied: the layers that must have the same.
        alternatives: the other choices, ascending.
        used: the share of each budget that is used.
        prices: by how much the sensitivity could fall at most for a unit more of each budget; 0 where it does not bind.
        sensitivity_error: relative standard error of the layer's sensitivities; None where it is not known.
        margin: by what factor the layer's sensitivities would have to be wrong for the nearest alternative to be as
            good; None where no error of them would change the answer.
    """

    layer: str
    bits: Bits
    tied: tuple[str, ...]
    alternatives: tuple[Alternative, ...]
    used: Mapping[CostName, float]
    prices: Mapping[Quantity, float]
    sensitivity_error: float | None
    margin: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "bits": repr(self.bits),
            "alternatives": [alternative.to_json() for alternative in self.alternatives],
            "used": dict(self.used),
            "prices": dict(self.prices),
        }

    def sentences(self) -> list[str]:
        """In words."""
        found = []
        if self.tied:
            found.append(f"{self.layer} must have the same bits as {', '.join(self.tied)}")
        if not self.alternatives:
            found.append(f"{self.layer} has no other choice: it is pinned, or no other bits were profiled")
        binding = [name for name, price in self.prices.items() if price > 0]
        for name, share in self.used.items():
            bound = "binds" if name in binding else "does not bind"
            found.append(f"the budget on {name} is used to {share:.1%} and {bound}")
        if not self.used:
            found.append("no budget holds it: it has the bits that lose least")
        nearest = min((a for a in self.alternatives if a.loss is not None), key=lambda a: a.loss or 0.0, default=None)
        if nearest is not None and nearest.loss is not None:
            changed = f", with {len(nearest.follows)} other layers changed" if nearest.follows else ""
            found.append(f"the nearest alternative is {nearest.bits}: it loses {nearest.loss:.3g} more{changed}")
        impossible = [repr(alternative.bits) for alternative in self.alternatives if alternative.loss is None]
        if impossible:
            found.append(f"the budgets allow no configuration with {', '.join(impossible)}")
        if self.sensitivity_error is not None and self.margin is not None:
            doubt = abs(self.margin - 1) <= 2 * self.sensitivity_error
            found.append(
                f"its sensitivities are known to {self.sensitivity_error:.0%}; times {self.margin:.3g} they would "
                f"change the answer, which is {'within' if doubt else 'beyond'} two standard errors"
            )
        return found


def explain(
    problem: Problem, bits: BitConfig, layer: str, *, sensitivity_error: float | None = None, solver: str | None = None
) -> Explanation:
    """Why a layer has its bits in a configuration of a problem.

    Args:
        problem: what was solved.
        bits: its answer, or any configuration of its choices.
        layer: a layer's name.
        sensitivity_error: relative standard error of the layer's sensitivities.
        solver: as of `solve_ilp`.

    Raises:
        AllocationError: there is no such layer, or a layer has bits that are none of its choices.
    """
    picks = [_pick(group, bits) for group in problem.groups]
    place = next((g for g, group in enumerate(problem.groups) if layer in group.layers), None)
    if place is None:
        raise AllocationError(f"there is no layer '{layer}'; the layers are {', '.join(problem.names)}")
    group, here = problem.groups[place], picks[place]
    now: dict[Quantity, float] = {"sensitivity": problem.sensitivity(picks)}
    now.update((cost, problem.total(picks, cost)) for cost in problem.known)
    alternatives = []
    for k, choice in enumerate(group.choices):
        if k == here:
            continue
        trial = [*picks[:place], k, *picks[place + 1 :]]
        alone = {quantity: problem.total(trial, quantity) - value for quantity, value in now.items()}
        exceeds = tuple(cost for cost, limit in problem.limits.items() if problem.total(trial, cost) > limit)
        held = replace(group, choices=(choice,))
        other = _without_other_choices(problem, place, k, held)
        loss: float | None = None
        follows: tuple[str, ...] = ()
        try:
            best = solve_ilp(other, solver=solver)
            loss = best.sensitivity - now["sensitivity"]
            follows = tuple(
                name for name, own in best.bits.layers.items() if own != bits.layers[name] and name not in group.layers
            )
        except InfeasibleBudget:
            pass
        alternatives.append(Alternative(choice.bits, alone, exceeds, loss, follows))
    return Explanation(
        layer=layer,
        bits=group.choices[here].bits,
        tied=tuple(name for name in group.layers if name != layer),
        alternatives=tuple(alternatives),
        used={cost: now[cost] / limit if limit else 1.0 for cost, limit in problem.limits.items()},
        prices=shadow_prices(problem) if problem.limits else {},
        sensitivity_error=sensitivity_error,
        margin=_margin(alternatives),
    )


def _pick(group: Group, bits: BitConfig) -> int:
    wanted = bits.layers.get(group.layers[0])
    found = next((k for k, choice in enumerate(group.choices) if choice.bits == wanted), None)
    if found is None:
        raise AllocationError(f"layer '{group.layers[0]}' has {wanted}, which is none of its choices; allocate again")
    return found


def _without_other_choices(problem: Problem, place: int, choice: int, held: Group) -> Problem:
    """The problem with one group held at one choice."""
    edges = []
    for edge in problem.edges:
        costs = dict(edge.costs)
        if edge.first == place:
            costs = {name: matrix[choice : choice + 1] for name, matrix in costs.items()}
        elif edge.second == place:
            costs = {name: matrix[:, choice : choice + 1] for name, matrix in costs.items()}
        edges.append(replace(edge, costs=costs))
    groups = (*problem.groups[:place], held, *problem.groups[place + 1 :])
    return replace(problem, groups=groups, edges=tuple(edges))


def _margin(alternatives: list[Alternative]) -> float | None:
    """The factor on the layer's own sensitivities, nearest to 1, at which an alternative would be as good.

    With sensitivities f times as large, an alternative's loss changes by (f - 1) of what the layer itself adds to it.
    """
    factors = [
        1 - alternative.loss / alternative.alone["sensitivity"]
        for alternative in alternatives
        if alternative.loss is not None and alternative.alone["sensitivity"]
    ]
    return min((f for f in factors if f > 0), key=lambda factor: abs(factor - 1), default=None)
