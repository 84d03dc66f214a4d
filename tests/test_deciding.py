"""The rule by which the default sensitivity is decided."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.deciding import PAPERS, WITHOUT_LABELS, Cell, decide
from hawq_tvm.settings import METRICS

OTHER = next(metric for metric in WITHOUT_LABELS if metric != PAPERS)


def cell(network: str, lost: dict[str, int], images: int = 400, limit: str = "bytes") -> Cell:
    """A cell in which each metric loses its first so many images; one that is not named loses 100."""
    return Cell(network, limit, {name: (np.arange(images) < lost.get(name, 100)).astype(float) for name in METRICS})


def test_a_metric_that_loses_clearly_less_becomes_the_default() -> None:
    found = decide([cell("one", {OTHER: 20}), cell("two", {OTHER: 30})])
    assert (found.best, found.metric, found.is_clear) == (OTHER, OTHER, True)
    score = found.scores[OTHER]
    assert score.loss == pytest.approx((20 + 30) / 800)
    assert score.beside[0] == pytest.approx(-150 / 800)
    assert score.beside[1] < score.beside[0] < score.beside[2] < 0
    assert score.rank == 1 and found.scores[PAPERS].rank == pytest.approx(1 + len(METRICS) / 2)


def test_a_difference_within_chance_changes_nothing() -> None:
    found = decide([cell("one", {OTHER: 99})])
    assert (found.best, found.metric, found.is_clear) == (OTHER, PAPERS, False)
    assert found.scores[OTHER].beside[2] == 0


def test_one_that_needs_labels_is_shown_but_cannot_become_the_default() -> None:
    found = decide([cell("one", {"loss": 0})])
    assert found.scores["loss"].loss == 0 and found.scores["loss"].rank == 1
    assert found.metric == PAPERS and found.best in WITHOUT_LABELS


def test_images_are_drawn_alike_for_all_budgets_of_a_network() -> None:
    """Two budgets that lose the same images say no more than one; of two networks they would."""
    alike = decide([cell("one", {OTHER: 60}, limit=limit) for limit in ("bytes", "BOPS")]).scores[OTHER].beside
    alone = decide([cell("one", {OTHER: 60})]).scores[OTHER].beside
    apart = decide([cell(name, {OTHER: 60}) for name in ("one", "two")]).scores[OTHER].beside
    assert alike == pytest.approx(alone)
    assert apart[2] - apart[1] < 0.8 * (alone[2] - alone[1])


def test_a_metric_that_one_network_lacks_is_left_out() -> None:
    one, two = cell("one", {"fisher": 10}), cell("two", {})
    without = Cell(two.network, two.limit, {name: losses for name, losses in two.losses.items() if name != "fisher"})
    assert set(decide([one, without]).scores) == set(METRICS) - {"fisher"}


def test_the_interval_is_that_of_a_mean_of_paired_differences() -> None:
    """Where 10 % of 400 images differ, the mean deviates by sqrt(0.1 * 0.9 / 400), 1.96 times that on each side."""
    mean, low, high = decide([cell("one", {OTHER: 60})]).scores[OTHER].beside
    assert mean == pytest.approx(-0.1)
    assert high - low == pytest.approx(2 * 1.96 * (0.1 * 0.9 / 400) ** 0.5, rel=0.1)
