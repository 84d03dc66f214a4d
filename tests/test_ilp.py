from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.ilp_scale import BUDGET, is_optimal, large
from benchmarks.optimality import best, judge, realistic, wild
from hawq_tvm.core.budget import Budget, Limit
from hawq_tvm.core.errors import AllocationError, InfeasibleBudget
from hawq_tvm.core.specs import Bits, Border, BorderCost, Cost, CostTable, LayerCosts
from hawq_tvm.ilp import SOLVERS, Problem, find_allocator, formulate, pulp_program, pulp_solver, search, solve_ilp
from hawq_tvm.ilp.search import Answer

W4, W8 = Bits(4, 4), Bits(8, 8)
FACTS = json.loads((Path(__file__).parent / "facts" / "hawqv3_resnet18_ilp.json").read_text())


def upstream_table() -> CostTable:
    """Upstream's inputs for ResNet-18: traces, perturbations and latencies as published."""
    rows = []
    for layer in FACTS["layers"]:
        choices = {
            Bits(b, b): Cost(
                layer["hessian_trace_avg"] * layer[f"delta_w_sq_int{b}"],
                layer["params"] * b / 8,
                layer["macs"] * b * b,
                layer[f"ilp_latency_int{b}"],
            )
            for b in (4, 8)
        }
        rows.append(LayerCosts(layer["name"], layer["params"], layer["macs"], choices))
    return CostTable(tuple(rows), tuple(tuple(pair) for pair in FACTS["tied_layer_pairs"]))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", FACTS["published"])
def test_upstreams_resnet18_answers_are_reproduced(name: str, solver: str) -> None:
    kind, share = name.rsplit("_", 1)
    budget = Budget(**{{"modelsize": "size"}.get(kind, kind): f"{float(share):.0%}"})
    result = solve_ilp(formulate(upstream_table(), budget), solver=solver)
    assert [bits.weight for bits in result.bits.layers.values()] == FACTS["published"][name]["weight_bits"]
    assert result.sensitivity == pytest.approx(FACTS["published"][name]["omega"], rel=1e-9)
    assert len(FACTS["published"]) == 9


PAIRS = [Bits(2, 8), W4, Bits(4, 8), W8]


border_costs = st.builds(
    lambda size, latency: BorderCost(size_bytes=size, latency_us=latency),
    *[st.integers(0, 300).map(lambda value: value / 8)] * 2,
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[CostTable, Budget]:
    """Up to six layers with random costs, choices, ties and one to three budgets."""
    count = draw(st.integers(1, 6))
    numbers = st.floats(0, 100).map(lambda value: round(value, 3))
    shared = sorted(draw(st.sets(st.sampled_from(PAIRS), min_size=1, max_size=4)))
    rows = tuple(
        LayerCosts(
            f"layer{i}", 1, 1,
            {pair: Cost(draw(numbers), draw(numbers), draw(st.integers(0, 100)), draw(numbers)) for pair in shared},
        )
        for i in range(count)
    )  # fmt: skip
    ties = ((rows[0].name, rows[-1].name),) if count > 1 and draw(st.booleans()) else ()
    both = [(one, two) for one in shared for two in shared]
    borders = (
        tuple(
            Border(
                rows[i].name, rows[j].name, {pair: draw(border_costs) for pair in draw(st.sets(st.sampled_from(both)))}
            )
            for i, j in draw(st.sets(st.sampled_from([(i, j) for i in range(count) for j in range(count) if i != j])))
        )
        if count > 1 and draw(st.booleans())
        else ()
    )
    limits: dict[str, Any] = {
        name: draw(st.one_of(st.integers(0, 100 * count), st.integers(0, 100).map(lambda p: f"{p}%")))
        for name in draw(st.sets(st.sampled_from(["size", "bops", "latency"]), min_size=1))
    }
    return CostTable(rows, ties, borders=borders), Budget(**limits)


@settings(max_examples=80)
@given(case=problems(), solver=st.sampled_from(SOLVERS), leaf=st.sampled_from([0, 600]), few=st.sampled_from([0, 100]))
def test_the_program_agrees_with_brute_force(case: tuple[CostTable, Budget], solver: str, leaf: int, few: int) -> None:
    """With and without branching and lists, which small problems would not need."""
    with mock.patch.multiple(search, _LEAF=leaf, _CORE=leaf or 3, _FEW=few, _WIDTHS=(1, 3, 1000)):
        agrees_with_brute_force(*case, solver)


def agrees_with_brute_force(table: CostTable, budget: Budget, solver: str) -> None:
    problem = formulate(table, budget)
    optimum = best(problem)
    if optimum is None:
        with pytest.raises(InfeasibleBudget) as caught:
            solve_ilp(problem, solver=solver)
        check_nearest(problem, caught.value)
        return
    result = solve_ilp(problem, solver=solver)
    assert result.sensitivity == pytest.approx(optimum, abs=1e-9, rel=1e-9)
    assert (result.proved, result.lower_bound) == (True, result.sensitivity)
    for cost, limit in problem.limits.items():
        assert table.total(result.bits, cost) <= limit + 1e-9
        assert result.costs[cost] <= limit


def check_nearest(problem: Problem, error: InfeasibleBudget) -> None:
    """The nearest value is the least that a configuration reaches within the other budgets, or within some of them."""
    cost = error.budget
    every = list(itertools.product(*(range(len(group.choices)) for group in problem.groups)))

    def reach(names: Sequence[str]) -> float | None:
        rest = replace(problem, limits={name: problem.limits[name] for name in names})  # type: ignore[index]
        return min((problem.total(picks, cost) for picks in every if rest.meets(picks)), default=None)  # type: ignore[arg-type]

    others = [name for name in problem.limits if name != cost]
    whole = reach(others)
    if whole is not None:
        assert error.nearest == pytest.approx(whole)
    else:
        subsets = [names for size in range(len(others)) for names in itertools.combinations(others, size)]
        assert any(error.nearest == pytest.approx(reach(names)) for names in subsets)
    assert error.nearest > error.limit == problem.limits[cost]  # type: ignore[index]


def table(rows: Sequence[tuple[float, float]], ties: Sequence[tuple[str, ...]] = ()) -> CostTable:
    """Layers a, b, c, ... of 8 bytes at 8 bits and 4 at 4, with sensitivities at 4 and at 8 bits."""
    layers = tuple(
        LayerCosts("abcdefgh"[i], 8, 8, {W4: Cost(low, 4.0, 128, 1.0), W8: Cost(high, 8.0, 512, 2.0)})
        for i, (low, high) in enumerate(rows)
    )
    return CostTable(layers, tuple(ties))


def chosen(result: Any) -> str:
    return "".join(str(bits.weight) for bits in result.bits.layers.values())


def test_without_a_budget_every_layer_keeps_its_safest_bits() -> None:
    assert chosen(solve_ilp(formulate(table([(3, 1), (2, 1)]), Budget()))) == "88"


def test_the_least_sensitive_layers_go_first() -> None:
    costs = table([(9, 1), (2, 1), (5, 1)])
    assert chosen(solve_ilp(formulate(costs, Budget(size=20)))) == "848"
    assert chosen(solve_ilp(formulate(costs, Budget(size=16)))) == "844"
    assert chosen(solve_ilp(formulate(costs, Budget(size="0%")))) == "444"
    assert chosen(solve_ilp(formulate(costs, Budget(size="100%")))) == "888"


def test_tied_layers_agree_and_ties_chain() -> None:
    costs = table([(9, 0), (1, 0), (2, 0), (1, 0)], ties=[("a", "b"), ("b", "d")])
    assert chosen(solve_ilp(formulate(costs, Budget(size=28)))) == "8848"
    assert chosen(solve_ilp(formulate(costs, Budget(size=20)))) == "4484"


def test_pins_hold_and_pin_their_ties() -> None:
    costs = table([(1, 0), (9, 0), (9, 0)], ties=[("a", "b")])
    assert chosen(solve_ilp(formulate(costs, Budget(), pins={"a": W4}))) == "448"
    with pytest.raises(AllocationError, match=r"a, b must have the same bits .* different ones \(a=w4a4, b=w8a8\)"):
        formulate(costs, Budget(), pins={"a": W4, "b": W8})
    with pytest.raises(AllocationError, match="pin for unknown layer 'z'"):
        formulate(costs, Budget(), pins={"z": W4})
    with pytest.raises(AllocationError, match=r"no entry for layer 'a' at \[w2a2\]"):
        formulate(costs, Budget(), pins={"a": Bits(2, 2)})
    with pytest.raises(AllocationError, match=r"no entry for layer 'a' at \[w2a2, w2a3, w3a3\]"):
        formulate(costs, Budget(), candidates=[Bits(3, 3), W4, Bits(2, 3), Bits(2, 2)])


def test_candidates_may_differ_by_layer() -> None:
    costs = table([(9, 1), (2, 1)])
    assert chosen(solve_ilp(formulate(costs, Budget(), candidates=[W4]))) == "44"
    assert chosen(solve_ilp(formulate(costs, Budget(), candidates={"a": [W4]}))) == "48"
    assert chosen(solve_ilp(formulate(costs, Budget(), candidates=[W4], pins={"a": W8}))) == "84"
    with pytest.raises(AllocationError, match="no entry for layer 'a'"):
        formulate(costs, Budget(), candidates=[Bits(3, 3)])
    tied = table([(1, 0), (1, 0)], ties=[("a", "b")])
    with pytest.raises(AllocationError, match="no bits in common"):
        formulate(tied, Budget(), candidates={"a": [W4], "b": [W8]})


def test_a_share_of_a_latency_that_rises_with_fewer_bits() -> None:
    """On some machines 4 bits are slower; shares still run from the lower to the higher uniform configuration."""
    rows = tuple(LayerCosts(n, 1, 1, {W4: Cost(5, 4, 16, 3.0), W8: Cost(1, 8, 64, 2.0)}) for n in "ab")
    problem = formulate(CostTable(rows), Budget(latency="50%"))
    assert problem.limits["latency_us"] == 5.0
    assert chosen(solve_ilp(problem)) == "88"


def test_equal_sensitivity_goes_to_more_bits() -> None:
    pair = {W4: Cost(1.0, 4.0, 16), Bits(4, 8): Cost(1.0, 4.0, 32), W8: Cost(0.0, 8.0, 64)}
    costs = CostTable(tuple(LayerCosts(name, 8, 1, pair) for name in "ab"))
    assert set(solve_ilp(formulate(costs, Budget(size=8))).bits.layers.values()) == {Bits(4, 8)}
    tight = solve_ilp(formulate(costs, Budget(size=8, bops=48)))
    assert sorted(tight.bits.layers.values()) == [W4, Bits(4, 8)]


@pytest.mark.parametrize(("limit", "expected"), [(None, 3), (40, 2), (25, 1), (16, 0)])
def test_slack_is_spent_on_the_most_bits_that_it_buys(limit: int | None, expected: int) -> None:
    pairs = ("w4a4", "w4a6", "w4a8", "w5a8")
    costs = rows_of({pair: Cost(1.0, 4.0, bops) for pair, bops in zip(pairs, (16, 24, 32, 48), strict=True)})
    problem = formulate(costs, Budget(bops=limit))
    assert pulp_solver._spend_slack(problem, [0]) == [expected]


def test_costs_that_some_layer_has_no_number_for_are_not_summed() -> None:
    costs = rows_of({"w4a4": Cost(1, 4, 16, 1.0)}, {"w4a4": Cost(1, 4, 16), "w8a8": Cost(0, 8, 64, 2.0)})
    result = solve_ilp(formulate(costs, Budget(size=8)))
    assert dict(result.costs) == {"size_bytes": 8.0, "bops": 32.0}


def test_an_infeasible_budget_names_what_binds_and_the_nearest_value() -> None:
    costs = table([(9, 1), (2, 1)])
    with pytest.raises(
        InfeasibleBudget, match=r"budget of 7 bytes \(did you mean 7kB\?\): the nearest is 8 bytes; raise the budget"
    ) as caught:
        solve_ilp(formulate(costs, Budget(size=7)))
    assert (caught.value.budget, caught.value.limit, caught.value.nearest) == ("size_bytes", 7.0, 8.0)
    rows = tuple(LayerCosts(n, 1, 1, {W4: Cost(5, 4, 16, 3.0), W8: Cost(1, 8, 64, 2.0)}) for n in "ab")
    with pytest.raises(InfeasibleBudget, match="with the other budgets as they are") as caught:
        solve_ilp(formulate(CostTable(rows), Budget(size=8, latency=5.9)))
    assert (caught.value.budget, caught.value.nearest) == ("latency_us", 6.0)


def test_a_budget_on_what_was_not_measured() -> None:
    costs = CostTable((LayerCosts("a", 1, 1, {W8: Cost(1, 8, 64)}),))
    with pytest.raises(
        AllocationError, match="a budget on latency_us or a front over it needs it for every layer, and 'a' has none"
    ):
        formulate(costs, Budget(latency="1ms"))


def test_unknown_solvers_and_ties() -> None:
    with pytest.raises(AllocationError, match="unknown solver 'gurobi'; known: cbc, highs"):
        solve_ilp(formulate(table([(1, 0)]), Budget()), solver="gurobi")
    with pytest.raises(AllocationError, match="a tie names the unknown layer 'z'"):
        formulate(table([(1, 0)], ties=[("a", "z")]), Budget())


def test_allocators_have_names() -> None:
    problem = formulate(table([(9, 1), (2, 1)]), Budget(size=12))
    for name in SOLVERS:
        start = time.perf_counter()
        result = find_allocator(name)(problem)
        assert 0 < result.seconds <= time.perf_counter() - start
        assert (chosen(result), result.solver, result.bits.origin) == ("84", name, f"ilp ({name})")
        assert dict(result.limits) == {"size_bytes": 12}
        assert dict(result.costs) == {"size_bytes": 12, "bops": 512 + 128, "latency_us": 3.0}
    with pytest.raises(AllocationError, match="unknown solver 'gurobi'; known: ilp, cbc, highs"):
        find_allocator("gurobi")


def test_what_a_solver_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = formulate(table([(9, 1), (2, 1)]), Budget(size=12))

    def refuses(message: str, solver: str = "cbc") -> None:
        with pytest.raises(AllocationError) as caught:
            solve_ilp(problem, solver=solver)
        assert str(caught.value) == message

    with monkeypatch.context() as patch:
        patch.setattr(pulp.HiGHS, "available", lambda self: False)
        refuses("the solver 'highs' is not installed; pip install highspy", "highs")
        patch.setattr(pulp.PULP_CBC_CMD, "available", lambda self: False)
        refuses("the solver 'cbc' is not installed")

    def fail(program: object, solver: object) -> int:
        raise pulp.PulpError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(pulp.LpProblem, "solve", fail)
        refuses("the solver 'cbc' failed (out of memory); try the other solver")
        patch.setattr(pulp.LpProblem, "solve", lambda program, solver: pulp.LpStatusUndefined)
        refuses("cbc ended with the status 'Undefined'; try the other solver")
    with monkeypatch.context() as patch:
        patch.setattr(pulp_program, "_MOST_CUTS", 0)
        refuses("cbc returned 0 answers that leave a budget by rounding errors; raise the budget slightly")
    true = pulp_solver.minimise
    answers = iter([lambda *given: Answer(None, math.inf)])  # the first is wrong, what looks for the reason is not
    monkeypatch.setattr(pulp_solver, "minimise", lambda *given: next(answers, true)(*given))
    refuses("cbc found no configuration where there is one; try the other solver")


@pytest.mark.parametrize("solver", SOLVERS)
def test_tiny_differences_still_decide(solver: str) -> None:
    """Sensitivities span many orders of magnitude; the smallest still have to be told apart."""
    rng = np.random.default_rng(0)
    layers = tuple(
        LayerCosts(f"l{i}", 8, 8, {W4: Cost(float(10.0 ** rng.uniform(-7, 1)), 4.0, 1), W8: Cost(0.0, 8.0, 4)})
        for i in range(12)
    )
    problem = formulate(CostTable(layers), Budget(size=60))
    result = solve_ilp(problem, solver=solver)
    omegas = sorted(layer.choices[W4].sensitivity for layer in layers)
    assert result.sensitivity == pytest.approx(sum(omegas[:9]), rel=1e-9)


def rows_of(*layers: Mapping[str, Cost]) -> CostTable:
    """A cost table from choices alone."""
    rows = [{Bits.parse(bits): cost for bits, cost in layer.items()} for layer in layers]
    return CostTable(tuple(LayerCosts(f"layer{i}", 1, 1, row) for i, row in enumerate(rows)))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("limit", "eights"), [(54.0, 0), ("0%", 0), ("50%", 27), ("100%", 54)])
def test_costs_that_differ_by_rounding_errors_do_not_hold_the_solver_up(
    limit: str | float, eights: int, solver: str
) -> None:
    costs = rows_of(*({"w4a4": Cost(1 + i / 100, 4, 1, 1.0), "w8a8": Cost(0.1, 8, 1, 1.0 + 1e-9)} for i in range(54)))
    result = solve_ilp(formulate(costs, Budget(latency=limit)), solver=solver)
    assert sum(bits == W8 for bits in result.bits.layers.values()) == eights


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_large_layer_does_not_hide_small_ones(solver: str) -> None:
    small = ({"w4a4": Cost(1.0, 1.0 + i, 1), "w8a8": Cost(0.1, 2.0 + 2 * i, 1)} for i in range(10))
    costs = rows_of({"w4a4": Cost(1.0, 5e8, 1)}, *small)
    assert set(solve_ilp(formulate(costs, Budget(size="0%")), solver=solver).bits.layers.values()) == {W4}
    result = solve_ilp(formulate(costs, Budget(size=5e8 + 58)), solver=solver)
    assert [bits.weight for bits in result.bits.layers.values()].count(8) == 2, "55 bytes, and 1 + 2 to spare"


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_problem_that_presolve_got_wrong(solver: str) -> None:
    pairs = [Bits(4, 4), Bits(4, 8), W8]
    layers = [
        (11011, 2504100, (0.002127942, 0.002104845, 8.44e-6)),
        (843, 2545974, (4.2646e-5, 4.9206e-5, 1.81e-7)),
        (4934, 4277154, (0.000164942, 0.000164058, 5.53e-7)),
        (94590, 525364, (5.796e-6, 6.807e-6, 2.6e-8)),
    ]
    rows = [
        {repr(b): Cost(s, n * b.weight / 8, macs * b.weight * b.activation) for b, s in zip(pairs, omega, strict=True)}
        for n, macs, omega in layers
    ]
    problem = formulate(rows_of(*rows), Budget(size="50%", bops="20%"))
    assert solve_ilp(problem, solver=solver).sensitivity == best(problem)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        *((realistic, seed) for seed in (0, 1, 2, 1038)),  # HiGHS missed 1038 on rows without room
        *((wild, seed) for seed in (5, 16, 38, 44, 45, 1901)),  # and 1901; the others when solved only once
    ],
)
def test_hard_problems_against_brute_force(kind: Any, seed: int, solver: str) -> None:
    problem = formulate(*kind(random.Random(seed)))
    assert judge(problem, best(problem), solver) == "right"


@pytest.mark.parametrize("solver", SOLVERS)
def test_where_only_the_number_of_layers_counts(solver: str) -> None:
    """One layer fewer fits than without rounding, whichever: more configurations than could be cut off one by one."""
    costs = rows_of(*({"w4a4": Cost(1.0 + i, 4, 16, 0.1), "w8a8": Cost(0.0, 8, 64, 0.2)} for i in range(40)))
    limit = math.nextafter(math.fsum([0.2] * 20 + [0.1] * 20), 0)
    result = solve_ilp(formulate(costs, Budget(latency=Limit(limit))), solver=solver)
    assert [bits.weight for bits in result.bits.layers.values()] == [4] * 21 + [8] * 19


@pytest.mark.parametrize("solver", SOLVERS)
def test_latencies_of_any_size(solver: str) -> None:
    costs = rows_of(*({"w4a4": Cost(1.0, 4, 16, x), "w8a8": Cost(0.0, 8, 64, 2 * x)} for x in (1e-200, 1.0, 1e200)))
    result = solve_ilp(formulate(costs, Budget(latency=Limit(1.5e200))), solver=solver)
    assert [bits.weight for bits in result.bits.layers.values()] == [8, 8, 4]
    result = solve_ilp(formulate(costs, Budget(latency=Limit(2e200))), solver=solver)
    assert [bits.weight for bits in result.bits.layers.values()] == [8, 8, 8]


@pytest.mark.parametrize("solver", SOLVERS)
def test_sensitivities_over_many_decades(solver: str) -> None:
    costs = rows_of(*({"w4a4": Cost(10.0**-i, 4, 1), "w8a8": Cost(0.0, 8, 1)} for i in range(16)))
    result = solve_ilp(formulate(costs, Budget(size="50%")), solver=solver)
    assert [bits.weight for bits in result.bits.layers.values()] == [8] * 8 + [4] * 8


def test_shares_lie_between_the_cheapest_and_the_dearest_uniform_configuration() -> None:
    costs = rows_of(*({"w2a8": Cost(2, 2, 320), "w4a8": Cost(1, 4, 640), "w8a2": Cost(0, 8, 320)} for _ in range(2)))
    assert formulate(costs, Budget(bops="0%")).limits == {"bops": 640}
    assert formulate(costs, Budget(bops="100%")).limits == {"bops": 1280}
    pinned = formulate(costs, Budget(size="100%"), pins={"layer0": Bits(2, 8)})
    assert pinned.limits == {"size_bytes": 10}


def test_the_nearest_value_is_met_when_it_is_given() -> None:
    costs = rows_of(*({"w4a4": Cost(1, 4, 10**12 + 1, 0.1), "w8a8": Cost(0, 8, 10**13, 0.2)} for _ in range(3)))
    for name, text in (("bops", "3000000000003 BOPS"), ("latency", "0.30000000000000004 us")):
        with pytest.raises(InfeasibleBudget, match=text) as caught:
            solve_ilp(formulate(costs, Budget(**{name: 0})))
        assert solve_ilp(formulate(costs, Budget(**{name: text.split()[0]})))
        assert caught.value.nearest == float(text.split()[0])


def test_an_answer_near_enough_comes_with_its_bound() -> None:
    problem = formulate(*realistic(random.Random(3)))
    exact = solve_ilp(problem)
    rough = solve_ilp(problem, gap=0.5)
    assert rough.lower_bound is not None and rough.gap is not None
    assert rough.lower_bound <= exact.sensitivity <= rough.sensitivity
    assert rough.gap <= 0.5 and exact.gap == 0.0
    assert rough.proved == (rough.lower_bound == rough.sensitivity)


def test_time_that_runs_out_leaves_the_best_so_far_or_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = table([(9 - i, i / 8) for i in range(8)])
    problem = formulate(costs, Budget(size=45))

    def late(self: object, effort: object) -> tuple[None, bool]:
        return None, False

    monkeypatch.setattr(search.PulpProgram, "solve", late)
    result = solve_ilp(problem, seconds=60)  # the relaxation's own configurations
    assert result.lower_bound is not None and result.lower_bound < result.sensitivity and not result.proved
    monkeypatch.setattr(search._Search, "_take", lambda *given: None)
    with pytest.raises(AllocationError, match="found no configuration within 60 s; give it more time"):
        solve_ilp(problem, seconds=60)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_border_decides(solver: str) -> None:
    """Two layers of different bits would be cheapest, but for what lies between them."""
    rows = tuple(LayerCosts(n, 1, 1, {W4: Cost(5, 4, 16, 1.0), W8: Cost(1, 8, 64, 2.0)}) for n in "ab")
    between = {(W4, W8): BorderCost(latency_us=0.75), (W8, W4): BorderCost(latency_us=0.25)}
    problem = formulate(CostTable(rows, borders=(Border("a", "b", between),)), Budget(latency=3.25))
    assert chosen(solve_ilp(problem, solver=solver)) == "84", "w4a4 before w8a8 takes 3.75"
    assert chosen(solve_ilp(replace(problem, limits={"latency_us": 3.0}), solver=solver)) == "44"
    tied = CostTable(rows, (("a", "b"),), borders=(Border("b", "a", {(W4, W4): BorderCost(latency_us=8.0)}),))
    assert [choice.latency_us for choice in formulate(tied, Budget()).groups[0].choices] == [10.0, 4.0]
    back = CostTable(rows, borders=(Border("b", "a", between),))
    assert chosen(solve_ilp(formulate(back, Budget(latency=3.75), pins={"a": W8}), solver=solver)) == "84"
    assert chosen(solve_ilp(formulate(back, Budget(latency=3.25), pins={"b": W8}), solver=solver)) == "48"
    with pytest.raises(InfeasibleBudget, match="the nearest is 3.75 us"):
        solve_ilp(formulate(back, Budget(latency=3.25), pins={"a": W8}), solver=solver)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_hundreds_of_choices_and_borders_against_an_independent_program(seed: int, solver: str) -> None:
    problem = formulate(large(random.Random(seed), 12), BUDGET)
    result = solve_ilp(problem, solver=solver)
    assert result.proved
    assert is_optimal(problem, result.sensitivity)
    assert not is_optimal(problem, result.sensitivity * (1 + 1e-4)), "the proof sees what is not the optimum"
