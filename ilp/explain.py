"""Why a layer has its bits: what every other choice would cost and save, and what would change the answer.

Each question is one more program, solved as exactly as the first: the group held at another choice and all others
chosen anew (what the objective then loses is that choice's *regret*), and the network without one of its budgets. A
regret says exactly how wrong a sensitivity may be: the answer stands until the group's own at the bits it has is
underrated by that much, whatever the other layers do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hawq_tvm.core.budget import Budget
from hawq_tvm.core.errors import AllocationError, InfeasibleBudget
from hawq_tvm.core.specs import COST_NAMES, BitConfig, Bits, CostName, CostTable, summed_error
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
        }


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
    pins = dict(pins or {})

    def solved(within: Mapping[CostName, float], held: Mapping[str, Bits]) -> Allocation | None:
        try:
            return solve(formulate(table, Budget.absolute(within), candidates=candidates, pins=held))
        except InfeasibleBudget:
            return None

    best = solve(formulate(table, Budget.absolute(limits), candidates=candidates, pins=pins))
    free = {name: pair for name, pair in pins.items() if name not in _tied(table, layer)}
    group = next(
        group for group in formulate(table, Budget(), candidates=candidates, pins=free).groups if layer in group.layers
    )
    alternatives = []
    for choice in group.choices:
        found = best if choice.bits == best.bits.layers[layer] else solved(limits, {**free, layer: choice.bits})
        costs = {cost: choice.cost(cost) for cost in COST_NAMES if getattr(choice, cost) is not None}
        regret = None if found is None else found.sensitivity - best.sensitivity
        alternatives.append(Alternative(choice.bits, choice.sensitivity, costs, regret))
    budgets = []
    for cost in COST_NAMES:
        if cost in limits:
            without = solved({name: limit for name, limit in limits.items() if name != cost}, pins)
            assert without is not None, "fewer budgets leave more"
            gain = max(0.0, best.sensitivity - without.sensitivity)
            spent = table.total(bits, cost)
            budgets.append(BudgetReading(cost, limits[cost], spent, gain, without.bits.layers[layer]))
    rows = {row.name: row for row in table.layers}
    loses_most = max(group.choices, key=lambda choice: choice.sensitivity).bits  # 0 would tell of no error
    error = summed_error(
        (rows[name].choices[loses_most].sensitivity, rows[name].sensitivity_error) for name in group.layers
    )
    return Explanation(
        layer,
        bits.layers[layer],
        group.layers,
        any(name in pins for name in group.layers),
        best.bits.layers[layer],
        best.sensitivity,
        tuple(alternatives),
        tuple(budgets),
        error,
    )


def _tied(table: CostTable, layer: str) -> tuple[str, ...]:
    """The layers whose bits must agree with a layer's, itself among them."""
    groups = formulate(table, Budget()).groups
    return next(group.layers for group in groups if layer in group.layers)
