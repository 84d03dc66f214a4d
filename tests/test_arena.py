"""The arena: the budgets of a network, its rows, and what its integers get right."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from benchmarks import allocators, runs, subjects
from benchmarks.allocators import choices, contenders, contest, goals, pinned_problem
from benchmarks.subjects import Effort, Entry, Subject, paired
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.backends.tvm.host import find_c_compiler
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.specs import BitConfig, Bits, Cost, CostTable, LayerCosts
from hawq_tvm.ilp.problem import Group
from hawq_tvm.settings import HessianSettings
from hawq_tvm.sources.options import Preprocessing

SOURCE = """
import numpy as np
import torch
from torch import nn


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(288, 4))


def data():
    random = np.random.default_rng(0)
    parts = [random.normal(size=(count, 3, 12, 12)).astype(np.float32) for count in (32, 60)]
    calibration, evaluation = ((x, random.integers(0, 4, len(x))) for x in parts)
    return {"calibration": calibration, "evaluation": evaluation}
"""


def table() -> CostTable:
    """Four layers of one size, of which bits at the first one lose the most."""
    pairs = [Bits(weight, activation) for weight in (2, 3, 4, 8) for activation in (4, 8)]
    rows = [
        LayerCosts(
            f"layer{n}",
            100,
            1000,
            {
                bits: Cost(4.0 ** (-bits.weight - n), 100 * bits.weight / 8, 1000 * bits.operations, float(bits.weight))
                for bits in pairs
            },
        )
        for n in range(4)
    ]
    return CostTable(tuple(rows))


def test_a_budget_is_what_uniform_bits_cost_with_their_ends_at_8() -> None:
    bytes_, bops, latency = goals(table(), (("size_bytes", "w2a8,w4a8"), ("bops", "w3a4"), ("latency_us", "w3a4")))
    assert bytes_.budget == Budget(size=(200 + 50 + 200 + 100) / 2)
    assert bops.budget == Budget(bops=2 * 64_000 + 2 * 12_000)
    assert latency.budget == Budget(latency=2 * 8 + 2 * 3)
    assert [goal.limit for goal in (bytes_, bops)] == ["bytes of w2a8 and w4a8", "BOPS of w3a4"]
    for goal, bits in ((bytes_, Bits(2, 8)), (bops, Bits(3, 4)), (latency, Bits(3, 4))):
        assert list(goal.uniform.layers.values()) == [Bits(8, 8), bits, bits, Bits(8, 8)]
        problem = pinned_problem(table(), goal.budget)
        assert problem.meets([_pick(goal.uniform, group) for group in problem.groups])


def test_weights_alone_keep_the_activations_of_uniform_bits() -> None:
    goal = goals(table(), (("bops", "w3a4"),))[0]
    assert choices("hawq", goal, range(2, 9)) is None
    found = choices("hawq, weights alone", goal, range(2, 9))
    assert found == [Bits(2, 4), Bits(3, 4), Bits(4, 4), Bits(6, 4), Bits(8, 4)]
    problem = pinned_problem(table(), goal.budget, choices("hawq, weights alone", goal, (2, 3, 4, 5, 8)))
    assert [len(group.choices) for group in problem.groups] == [1, 4, 4, 1]


def _pick(bits: BitConfig, group: Group) -> int:
    return [choice.bits for choice in group.choices].index(bits.layers[group.layers[0]])


def test_searches_come_last_and_only_what_draws_has_seeds() -> None:
    quick, searches = contenders(("omega", "kl"), seeds=3)
    assert [(one.allocator, one.metric) for one in quick][:4] == [
        ("uniform", ""),
        ("highs", "omega"),
        ("hawq", "omega"),
        ("hawq, weights alone", "omega"),
    ]
    assert not any(one.measures or one.seed for one in quick) and all(one.measures for one in searches)
    assert [one.seed for one in searches if one.allocator == "random"] == [0, 1, 2]
    assert len([one for one in searches if one.allocator == "greedy-accuracy"]) == 1


def test_a_paired_difference() -> None:
    found = paired(np.array([True, False, True, False]), np.array([True, True, False, False]))
    assert (found["float_top1"], found["integer_top1"], found["difference"], found["images"]) == (0.5, 0.5, 0.0, 4)
    assert found["standard_error"] == pytest.approx((2 / 3) ** 0.5 / 2)


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    """A small network of a file, its samples of another factory in it."""
    path = tmp_path_factory.mktemp("user") / "user.py"
    path.write_text(SOURCE)
    effort = Effort(HessianSettings(samples=4, max_probes=4), HessianSettings(samples=4, max_iterations=2), 4)
    return Entry(
        f"{path}:network", None, f"{path}:data", Preprocessing(), *(16, 16, 40, 20), widths=(3, 8), effort=effort
    )


@pytest.fixture
def compiler() -> None:
    if find_c_compiler() is None:
        pytest.skip("no C compiler to link libraries with")


def test_a_subject_keeps_what_it_found(
    entry: Entry, tmp_path: Path, compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("tiny", entry, tmp_path, tmp_path)
    subject.profile(("sqnr",))
    assert subject.seconds("sqnr") >= 0
    names = [layer.name for layer in subject.graph.layers]
    bits = BitConfig(dict(zip(names, (Bits(8, 8), Bits(3, 3), Bits(3, 8), Bits(8, 8)), strict=True)))
    deciding, reported = subject.right(bits)
    assert (len(deciding), len(reported)) == (20, 40)

    chosen = {name: subject.rounded[name][pair.format] for name, pair in bits.layers.items()}
    integers = IntegerModule(integerize(subject.graph, subject.ranges, bits, chosen))
    images, labels = (torch.cat([piece[part] for piece in subject._held_out]) for part in (0, 1))
    expected = (integers(images).flatten(1).argmax(1) == labels).numpy()
    assert np.array_equal(np.concatenate([deciding, reported]), expected)
    exact = (FloatModule(subject.graph)(images).flatten(1).argmax(1) == labels).numpy()
    assert np.array_equal(np.concatenate(subject.float_right()), exact)

    again = Subject("tiny", entry, tmp_path, tmp_path)
    for name in ("round_alone", "compiled", "in_float"):
        monkeypatch.setattr(subjects, name, None)  # nothing is found twice
    again.profile(("sqnr",))
    assert all(np.array_equal(*pair) for pair in zip(again.right(bits), (deciding, reported), strict=True))
    assert again.costs("sqnr", "bismo-edge").total(bits, "latency_us") > 0
    assert again.curvatures() == {}


def test_a_contest_goes_on_where_it_was(
    entry: Entry, tmp_path: Path, compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr(allocators, "DRAWING", ("random",))
    monkeypatch.setitem(allocators.MARKS, "tiny", (("size_bytes", "w3a8"), ("latency_us", "w3a3,w8a8")))  # type: ignore[arg-type]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    subject = Subject("tiny", entry, tmp_path, tmp_path)
    rows = contest(subject, ("sqnr",), evaluations=3, seeds=2)
    first = [next(rows) for _ in range(5)]
    runs.write_results("allocators_tiny", dict(first))
    rest = list(contest(subject, ("sqnr",), evaluations=3, seeds=2))
    found = dict([*first, *rest])
    assert len(found) == len(first) + len(rest) == 2 * (1 + 4 + 1 + 2)
    limits = {goal.limit: goal.budget for goal in goals(subject.costs("sqnr", "bismo-edge"), allocators.MARKS["tiny"])}
    for row in found.values():
        problem = pinned_problem(subject.costs("sqnr", "bismo-edge"), limits[row["limit"]])
        bits = BitConfig({layer: Bits.parse(pair) for layer, pair in row["bits"].items()})
        assert problem.meets([_pick(bits, group) for group in problem.groups])
        assert row["reported"]["images"] == 40 and row["deciding"]["images"] == 20


class _Fake:
    """A network of two images to decide on and one to report, float right on all; w2 loses the first of each."""

    name = "fake"

    def float_right(self) -> tuple[subjects.Right, subjects.Right]:
        return np.array([True, True]), np.array([True])

    def right(self, bits: BitConfig) -> tuple[subjects.Right, subjects.Right]:
        good = bits.layers["x"].weight > 2
        return np.array([good, True]), np.array([good])


def test_the_rule_is_given_the_budgets_that_all_metrics_have_a_row_of() -> None:
    def row(limit: str, metric: str, bits: str, allocator: str = "highs") -> dict[str, object]:
        return {"limit": limit, "metric": metric, "allocator": allocator, "bits": {"x": bits}}

    rows = [row("bytes", "omega", "w2a8"), row("bytes", "kl", "w4a8"), row("BOPS", "omega", "w4a8")]
    rows.append(row("BOPS", "kl", "w4a8", allocator="greedy"))
    subject = cast(Subject, _Fake())
    (found,) = allocators.cells(subject, rows, reported=False)
    assert (found.network, found.limit) == ("fake", "bytes")
    assert {metric: list(losses) for metric, losses in found.losses.items()} == {"omega": [1, 0], "kl": [0, 0]}
    (found,) = allocators.cells(subject, rows, reported=True)
    assert {metric: list(losses) for metric, losses in found.losses.items()} == {"omega": [1], "kl": [0]}
