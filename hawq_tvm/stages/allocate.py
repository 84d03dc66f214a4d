"""Cost table + budgets -> bits for every layer."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

from hawq_tvm.core.reporter import Advance
from hawq_tvm.core.specs import BitConfig, CostTable
from hawq_tvm.ilp import ALLOCATORS, Allocation, Allocator, Problem, formulate
from hawq_tvm.ilp.prices import shadow_prices
from hawq_tvm.measure.costing import cost_table
from hawq_tvm.runs.artifacts import ALLOCATION, BITS, COSTS
from hawq_tvm.search import MEASURING, Resources, find_allocator
from hawq_tvm.settings import Settings
from hawq_tvm.stages.searching import search_reads, search_resources
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def allocate(work: Work) -> Stage:
    """Bits from the allocator that is asked for, or as given."""
    given = work.given

    def make(advance: Advance) -> None:
        if given is not None:
            work.run.write_json(BITS, work.as_stored(given).to_json())
            work.run.write_json(ALLOCATION, {"origin": given.origin})
            return
        result = choose(work, advance)
        work.run.write_json(BITS, work.as_stored(result.bits).to_json())
        work.run.write_json(ALLOCATION, result.to_json())

    return Stage(
        "allocate",
        "allocating bits",
        make,
        allocation_options(work),
        reads=allocation_reads(work),
        writes=(BITS, ALLOCATION),
    )


def choose(work: Work, advance: Advance) -> Allocation:
    """The bits that a run's settings ask for; see `solve`."""
    return solve(asked_costs(work), work.settings, search_resources(work, advance))


def _searches(work: Work) -> bool:
    return work.given is None and work.settings.solver in MEASURING


def allocation_reads(work: Work) -> tuple[str, ...]:
    """The files that decide an allocation."""
    return (COSTS, *(search_reads(work) if work.given is None else ()))


def allocation_options(work: Work) -> dict[str, Any]:
    """What else decides it."""
    settings, given = work.settings, work.given
    stored = work.as_stored(BitConfig({}))
    return {
        "given": None if given is None else given.to_json(),
        "bits": [repr(bits) for bits in settings.bits],
        "budget": settings.budget.to_json(),
        "pins": {name: repr(bits) for name, bits in settings.all_pins(work.layers).items()},
        "solver": settings.solver,
        "gap": settings.gap,
        "time_limit": settings.time_limit,
        **({"evaluations": settings.evaluations, "seed": settings.seed} if _searches(work) else {}),
        "metric": settings.metric,
        "caution": settings.caution,
        "residual": stored.residual,
        "stored": dict(stored.stored),
    }


def asked_costs(work: Work) -> CostTable:
    """The cost table, with the sensitivities of another metric where bits are to be chosen by another one now.

    Raises:
        RunError: that metric was not profiled.
    """
    if not work.has_choice:
        return work.artifacts.costs
    return work.artifacts.costs_by(work.settings.metric, work.settings.caution)


def solve(costs: CostTable, settings: Settings, resources: Resources | None = None) -> Allocation:
    """The best bits within the budgets of `settings`, as far as its allocator finds them.

    Where that is the integer program, and proves them, the answer says what more of each budget would buy.

    Args:
        costs: of every layer.
        settings: name the allocator, budgets, candidates and pins.
        resources: what it may use beside the table; None where there is only the table.

    Raises:
        InfeasibleBudget: none meets them; the message names the budget that binds and the nearest value.
        AllocationError: bits, pins or ties that make no sense for this table.
    """
    problem = problem_of(costs, settings)
    allocator = _allocator(settings, resources)
    result = allocator(problem)
    result = replace(result, sensitivity_error=costs.sensitivity_error(result.bits))
    if settings.solver in ALLOCATORS and result.proved:
        return replace(result, prices=shadow_prices(problem, result, allocator))
    return result


def _allocator(settings: Settings, resources: Resources | None = None) -> Allocator:
    used = resources or Resources(evaluations=settings.evaluations, seed=settings.seed)
    seconds = inf if settings.time_limit is None else settings.time_limit
    return find_allocator(settings.solver, replace(used, gap=settings.gap, seconds=seconds))


def problem_of(costs: CostTable, settings: Settings) -> Problem:
    """What is to be decided: candidates, pins and budgets of `settings` on a cost table."""
    pins = settings.all_pins(costs.names, costs.ties)
    return formulate(costs, settings.budget, candidates=settings.bits, pins=pins)


def within_reach(work: Work) -> None:
    """Refuse budgets that no bits can meet as soon as the network is captured: bytes and BOPS are known by then.

    Raises:
        InfeasibleBudget: as for `solve`, before any calibration.
    """
    budget = replace(work.settings.budget, latency=None, energy=None)
    if work.given is None and budget:
        pairs = work.settings.pairs(work.layers)
        costs = cost_table(work.artifacts.float_graph, pairs, sensitivity=None, latency=None)
        settings = replace(work.settings, budget=budget, solver=Settings.solver)
        _allocator(settings)(problem_of(costs, settings))
