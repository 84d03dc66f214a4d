"""Every allocator: within budgets, ties and pins kept, seeded, and what each is said to do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hawq_tvm import ilp
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.errors import AllocationError, InfeasibleBudget
from hawq_tvm.core.specs import BitConfig, Bits, Border, BorderCost, Cost, CostTable, LayerCosts
from hawq_tvm.ilp import Allocation, Problem, formulate, solve_ilp
from hawq_tvm.search import ALLOCATORS, MEASURING, Resources, check_allocator, find_allocator
from hawq_tvm.search.chance import drawn
from hawq_tvm.search.picks import enforced, highest, savings
from hawq_tvm.search.ranking import ranked
from hawq_tvm.search.tpe import _optuna
from hawq_tvm.settings import Settings
from hawq_tvm.stages.allocate import solve

W4, W8 = Bits(4, 4), Bits(8, 8)
PAIRS = [Bits(2, 8), W4, Bits(4, 8), W8, Bits(4, 8, codebook=True)]


def have_optuna() -> bool:
    try:
        _optuna()
    except AllocationError:
        return False
    return True


NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(name == "optuna" and not have_optuna(), reason="needs optuna"))
    for name in ALLOCATORS
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def rows(
    count: int, seed: int = 0, pairs: tuple[Bits, ...] | None = None, module: str = "m{}.conv"
) -> tuple[LayerCosts, ...]:
    """Layers whose losses fall by four with each bit, each with its own sensitivity and size."""
    generator = np.random.default_rng(seed)
    table = []
    for i in range(count):
        weights, macs = int(generator.integers(50, 500)), int(generator.integers(500, 50000))
        curvature = float(generator.lognormal(0, 1.5))
        table.append(
            LayerCosts(
                module.format(i), weights, macs,
                {
                    bits: Cost(
                        curvature * (4.0**-bits.weight + 4.0**-bits.activation),
                        weights * bits.weight / 8, macs * bits.operations, macs * (1.0 + bits.weight),
                    )
                    for bits in pairs or PAIRS
                },
            )
        )  # fmt: skip
    return tuple(table)


def resources(table: CostTable, **fields: Any) -> Resources:
    """A network whose accuracy is what the table's sensitivities say, on a few trials."""

    def accuracy(bits: BitConfig) -> float:
        return math.exp(-table.total(bits, "sensitivity"))

    generator = np.random.default_rng(1)
    states = {layer.name: tuple(generator.random(8)) for layer in table.layers}
    return replace(Resources(accuracy, evaluations=12, states=states), **fields)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 7), seed=st.integers(0, 9), shares=st.tuples(*[st.integers(0, 100)] * 3))
def test_budgets_ties_and_pins_are_kept(name: str, count: int, seed: int, shares: tuple[int, int, int]) -> None:
    layers = rows(count, seed)
    names = [layer.name for layer in layers]
    ties = ((names[0], names[-1]),) if count > 2 else ()
    table = CostTable(layers, ties)
    pins = {names[1]: Bits(4, 8)} if count > 1 else {}
    budget = Budget(size=f"{shares[0]}%", bops=f"{shares[1]}%", latency=f"{shares[2]}%")
    problem = formulate(table, budget, pins=pins)
    try:
        best = solve_ilp(problem)
    except InfeasibleBudget:
        with pytest.raises(InfeasibleBudget):
            ALLOCATORS[name](problem, resources(table))
        return
    found = ALLOCATORS[name](problem, resources(table))
    assert list(found.bits.layers) == names
    assert all(found.bits.layers[layer] == pair for layer, pair in pins.items())
    assert not ties or found.bits.layers[names[0]] == found.bits.layers[names[-1]]
    for cost, limit in problem.limits.items():
        total = table.total(found.bits, cost)
        assert total <= limit * (1 + 1e-12)
        assert found.costs[cost] == pytest.approx(total)
    assert found.sensitivity == pytest.approx(table.total(found.bits, "sensitivity"))
    assert found.sensitivity >= best.sensitivity - 1e-9, "nothing beats what is proved optimal"


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bits(name: str) -> None:
    table = CostTable(rows(6))
    problem = formulate(table, Budget(size="40%"))
    first, second = (ALLOCATORS[name](problem, resources(table, seed=3)) for _ in range(2))
    assert first.bits == second.bits


@pytest.mark.parametrize("name", ["random", "ddpg"])
def test_another_seed_draws_otherwise(name: str) -> None:
    table = CostTable(rows(8))
    problem = formulate(table, Budget(size="40%"))
    found = {str(ALLOCATORS[name](problem, resources(table, seed=seed)).bits.layers) for seed in range(4)}
    assert len(found) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_that_nothing_meets_is_one_sentence(name: str) -> None:
    table = CostTable(rows(3))
    with pytest.raises(InfeasibleBudget, match="no bit configuration meets the budget of 1 bytes.*the nearest is"):
        ALLOCATORS[name](formulate(table, Budget(size=1)), resources(table))


@pytest.mark.parametrize("name", NAMES)
def test_contradicting_ties_and_pins_are_refused_before_anything_is_measured(name: str) -> None:
    table = CostTable(rows(2), ties=(("m0.conv", "m1.conv"),))
    with pytest.raises(AllocationError, match="must have the same bits and are pinned to different ones"):
        ALLOCATORS[name](formulate(table, Budget(), pins={"m0.conv": W4, "m1.conv": W8}), resources(table))


@pytest.mark.parametrize("name", [p for p in NAMES if p.values[0] in set(MEASURING) - {"random"}])
def test_without_a_network_there_is_nothing_to_measure(name: str) -> None:
    with pytest.raises(AllocationError, match=f"the allocator '{name}' measures accuracy.*give the run directory"):
        ALLOCATORS[name](formulate(CostTable(rows(2)), Budget()), Resources())


def test_random_needs_no_network() -> None:
    found = ALLOCATORS["random"](formulate(CostTable(rows(4)), Budget(size="50%")), Resources(seed=7))
    assert found.bits.origin == "random, drawn with seed 7"


def test_names() -> None:
    check_allocator("hawq")
    with pytest.raises(AllocationError, match="unknown solver 'ddgp'; known: .*did you mean ddpg"):
        check_allocator("ddgp")
    table = CostTable(rows(3))
    assert find_allocator("greedy", Resources())(formulate(table, Budget(size="50%"))).solver == "greedy"
    with pytest.raises(AllocationError, match="at least 1 configuration, got 0"):
        Resources(evaluations=0)


def test_the_program_is_told_how_near_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    def program(problem: Problem, **effort: Any) -> Allocation:
        told.append(effort)
        return solve_ilp(problem)

    monkeypatch.setitem(ilp.ALLOCATORS, "cbc", program)
    table, asked = CostTable(rows(3)), Settings(bits=tuple(PAIRS), solver="cbc")
    solve(table, asked)
    solve(table, replace(asked, gap=0.25, time_limit=7.0), Resources(seed=1))
    assert told == [{"gap": 0.0, "seconds": math.inf}, {"gap": 0.25, "seconds": 7.0}]


def test_optuna_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    table = CostTable(rows(2))
    with pytest.raises(AllocationError, match="pip install optuna"):
        ALLOCATORS["optuna"](formulate(table, Budget()), resources(table))


def test_no_search_measures_more_often_than_it_may() -> None:
    table = CostTable(rows(6))
    problem = formulate(table, Budget(size="40%"))
    for name in ("greedy-accuracy", "random", "ddpg", *(("optuna",) if have_optuna() else ())):
        asked: list[tuple[int, int | None]] = []
        ALLOCATORS[name](
            problem,
            resources(table, evaluations=30, advance=lambda done, total, asked=asked: asked.append((done, total))),
        )
        assert [done for done, _ in asked] == list(range(1, len(asked) + 1)) and len(asked) <= 30
        assert {total for _, total in asked} == {30}


# picks


def problem_of(layers: tuple[LayerCosts, ...], **limits: Any) -> Problem:
    return formulate(CostTable(layers), Budget(**limits))


def test_haqs_enforcement_steps_from_the_last_layer_to_the_first_activation_then_weights() -> None:
    every = tuple(Bits(w, a) for w in range(2, 9) for a in range(2, 9))
    layers = tuple(LayerCosts(n, 1, 1, {b: Cost(0.0, 1.0, b.weight + b.activation) for b in every}) for n in "abc")
    start = highest(problem_of(layers))

    def bits_at(limit: int) -> str:
        problem = problem_of(layers, bops=limit)
        picks = enforced(problem, start, [0, 0, 0])
        return " ".join(map(repr, problem.config(picks, "").layers.values()))

    assert bits_at(48) == "w8a8 w8a8 w8a8"
    assert bits_at(47) == "w8a8 w8a8 w8a7"
    assert bits_at(46) == "w8a8 w8a8 w7a7"
    assert bits_at(45) == "w8a8 w8a7 w7a7"
    assert bits_at(42) == "w7a7 w7a7 w7a7"
    assert bits_at(41) == "w7a7 w7a7 w7a6", "the next sweep begins at the last again"


def test_a_pinned_layer_is_never_stepped_down() -> None:
    problem = formulate(CostTable(rows(3)), Budget(size="20%"), pins={"m2.conv": W8})
    picks = enforced(problem, highest(problem), [0, 0, 0])
    assert problem.meets(picks)
    assert problem.config(picks, "").layers["m2.conv"] == W8


def test_where_fewer_bits_cost_more_the_enforcement_falls_back() -> None:
    slow = {W4: Cost(1.0, 4.0, 1, 9.0), Bits(4, 8): Cost(1.0, 4.0, 1, 9.0), W8: Cost(0.0, 8.0, 1, 5.0)}
    problem = problem_of((LayerCosts("a", 1, 1, slow),), latency=6)
    assert enforced(problem, [1], [2]) == [2]


@given(
    seed=st.integers(0, 100),
    g=st.integers(0, 3),
    k=st.integers(0, 4),
    picks=st.lists(st.integers(0, 4), min_size=4, max_size=4),
)
def test_what_a_step_saves_counts_its_borders(seed: int, g: int, k: int, picks: list[int]) -> None:
    generator = np.random.default_rng(seed)
    layers = rows(4, seed)
    borders = tuple(
        Border(
            layers[i].name,
            layers[i + 1].name,
            {
                (a, b): BorderCost(latency_us=float(generator.integers(1, 10**5)))
                for a in PAIRS
                for b in PAIRS
                if a != b
            },
        )
        for i in range(3)
    )
    problem = formulate(CostTable(layers, borders=borders), Budget(latency=1, size=10**9))
    then = [*picks[:g], k, *picks[g + 1 :]]
    expected = problem.total(picks, "latency_us") - problem.total(then, "latency_us")
    assert savings(problem, picks)(g, k) == pytest.approx(expected, abs=1e-6), "bytes are within their limit"


@given(seed=st.integers(0, 10**6))
def test_random_draws_use_what_the_budget_gives(seed: int) -> None:
    problem = problem_of(rows(5), size="50%")
    picks = drawn(problem, np.random.default_rng(seed), [0] * 5)
    assert problem.meets(picks)
    for g, group in enumerate(problem.groups):
        for k in range(picks[g] + 1, len(group.choices)):
            assert not problem.meets([*picks[:g], k, *picks[g + 1 :]]), "no group could have more"


# hawq


def test_blocks_rank_by_eigenvalue_over_weights() -> None:
    layers = tuple(
        LayerCosts(name, n, 1, {W4: Cost(1.0, n * 4 / 8, 1), W8: Cost(0.0, n, 1)})
        for name, n in (("stem", 10), ("b1.conv1", 100), ("b1.conv2", 300), ("b2.conv1", 50), ("fc", 20))
    )
    problem = problem_of(layers)
    curvatures = {"stem": 1.0, "b1.conv1": 8.0, "b1.conv2": 100.0, "b2.conv1": 2.0, "fc": 10.0}
    # S: stem 0.1, b1 100/400, b2 0.04, fc 0.5
    assert ranked(problem, curvatures) == [(4,), (1, 2), (0,), (3,)]


GRID = tuple(Bits(weight, activation) for weight in (2, 3, 4, 8) for activation in (3, 4, 8))


@given(share=st.integers(0, 100), seed=st.integers(0, 20), pairs=st.sets(st.sampled_from(GRID), min_size=1))
@settings(max_examples=40)
@example(share=1, seed=0, pairs={Bits(2, 4), Bits(8, 3)})  # of which neither has fewer of both
def test_weights_and_activations_descend_with_the_ranking(share: int, seed: int, pairs: set[Bits]) -> None:
    """Whichever pairs there are, as long as one has the most of both."""
    offered = tuple(sorted(pairs | {W8}))
    problem = formulate(CostTable(rows(8, seed, offered)), Budget(bops=f"{share}%"), pins={"m3.conv": W8})
    curvatures = {f"m{i}.conv": float(i + 1) for i in range(8)}
    found = ALLOCATORS["hawq"](problem, Resources(curvatures=curvatures)).bits.layers
    order = [problem.groups[g].layers[0] for block in ranked(problem, curvatures) for g in block]
    for part in ("weight", "activation"):
        bits = [getattr(found[name], part) for name in order if name != "m3.conv"]
        assert bits == sorted(bits, reverse=True)
    assert found["m3.conv"] == W8


def test_a_pinned_block_holds_up_none_that_ranks_above_it() -> None:
    pairs = {bits: Bits(bits, 8) for bits in (2, 4, 8)}
    layers = tuple(
        LayerCosts(name, 8, 1, {pair: Cost(loss * (8 - bits), float(bits), 1) for bits, pair in pairs.items()})
        for name, loss in (("sensitive", 9.0), ("robust", 1.0), ("pinned", 1.0))
    )
    problem = formulate(CostTable(layers), Budget(size=8 + 2 + 8), pins={"pinned": W8})
    curvatures = {"sensitive": 9.0, "robust": 1.0, "pinned": 0.1}
    found = ALLOCATORS["hawq"](problem, Resources(curvatures=curvatures))
    assert [bits.weight for bits in found.bits.layers.values()] == [8, 2, 8]


def test_a_pair_of_a_pinned_layer_alone_is_passed_over() -> None:
    choices = {Bits(bits, 4): Cost(loss, float(bits), 1) for bits, loss in ((2, 10.0), (4, 1.0), (8, 0.0))}
    layers = (LayerCosts("first", 8, 1, choices), LayerCosts("second", 8, 1, choices))
    pinned = LayerCosts("pinned", 8, 1, {W8: Cost(0.0, 8.0, 1)})
    problem = formulate(CostTable((*layers, pinned)), Budget(size=8 + 2 + 8), pins={"pinned": W8})
    found = ALLOCATORS["hawq"](problem, Resources(curvatures={"first": 2.0, "second": 1.0, "pinned": 3.0}))
    assert [bits.weight for bits in found.bits.layers.values()] == [4, 4, 8]


def test_layers_of_a_block_share_their_bits() -> None:
    table = CostTable(rows(6, module="b{}.conv"))
    layers = tuple(replace(layer, name=f"b{i // 2}.conv{i % 2}") for i, layer in enumerate(table.layers))
    found = ALLOCATORS["hawq"](problem_of(layers, size="50%"), Resources())
    assert all(found.bits.layers[f"b{i}.conv0"] == found.bits.layers[f"b{i}.conv1"] for i in range(3))


# greedy


def test_greedy_gives_up_what_loses_least_for_what_it_saves() -> None:
    layers = tuple(
        LayerCosts(name, 1, 1, {W4: Cost(loss, size / 2, 1), W8: Cost(0.0, size, 1)})
        for name, loss, size in (("a", 1.0, 10.0), ("b", 1.0, 20.0), ("c", 4.0, 20.0))
    )
    found = ALLOCATORS["greedy"](problem_of(layers, size=40), Resources())
    assert [bits.weight for bits in found.bits.layers.values()] == [8, 4, 8]


def test_a_single_measurement_still_gives_an_answer() -> None:
    table = CostTable(rows(4))
    problem = formulate(table, Budget(size="40%"))
    for name in ("greedy-accuracy", "random", "ddpg"):
        found = ALLOCATORS[name](problem, resources(table, evaluations=1))
        assert problem.meets(
            [
                next(k for k, c in enumerate(g.choices) if c.bits == found.bits.layers[g.layers[0]])
                for g in problem.groups
            ]
        )
        assert "inf" not in found.bits.origin and "nan" not in found.bits.origin
    assert "the program's bits" in found.bits.origin


def test_greedy_by_accuracy_finds_what_the_table_does_not_say() -> None:
    layers = tuple(LayerCosts(n, 1, 1, {W4: Cost(1.0, 4.0, 1), Bits(8, 4): Cost(0.0, 8.0, 1)}) for n in "abc")

    def accuracy(bits: BitConfig) -> float:
        return 0.9 - 0.5 * (bits.layers["a"].weight == 4) - 0.01 * (bits.layers["b"].weight == 4)

    found = ALLOCATORS["greedy-accuracy"](problem_of(layers, size=16), Resources(accuracy, evaluations=20))
    assert [bits.weight for bits in found.bits.layers.values()] == [8, 4, 4]


def test_a_search_leaves_pytorchs_generator_as_it_was() -> None:
    table = CostTable(rows(4))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ALLOCATORS["ddpg"](formulate(table, Budget(size="40%")), resources(table))
    assert torch.equal(torch.get_rng_state(), before)
