"""Which sensitivity the program should choose bits by, where nobody says: the rule, and what it says of some images.

Every metric's bits, as the integer program chooses them, lose some share of the images that the float network gets
right. A metric's score is that loss, a mean over the networks and their budgets. Images are drawn again with
replacement, those of a network alike for all of its budgets and metrics: differences between metrics are paired.

HAWQ-V3's trace is the default unless another metric's score is lower and the interval of their difference, 95 %, does
not hold 0: then it is the best one's turn. Only metrics that need no labels can become the default, since a network has
none as a rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WITHOUT_LABELS = ("omega", "eigenvalue", "fisher-form", "kl", "sqnr")

PAPERS = "omega"
"""The metric that the rule starts from."""

RESAMPLES = 4000


@dataclass(frozen=True, eq=False)
class Cell:
    """One network under one budget.

    Attributes:
        network: its name; cells of one network are of the same images.
        limit: the budget's name.
        losses: by metric, float64 [images]: 1 where float alone is right, -1 where the integers alone are, else 0.
    """

    network: str
    limit: str
    losses: Mapping[str, Floats]


@dataclass(frozen=True)
class Score:
    """How one metric did.

    Attributes:
        loss: share of the images that is lost, a mean over the cells.
        rank: its place by that, 1 the best, a mean over the cells; equals share their places.
        beside: how much more than `PAPERS` it loses, with the ends of the 95 % interval.
    """

    loss: float
    rank: float
    beside: tuple[float, float, float]


@dataclass(frozen=True)
class Decision:
    """What the rule says.

    Attributes:
        scores: by metric.
        best: of those that need no labels.
        metric: the default that follows.
    """

    scores: Mapping[str, Score]
    best: str
    metric: str

    @property
    def is_clear(self) -> bool:
        """Whether another metric than `PAPERS` is the default."""
        return self.metric != PAPERS


def decide(cells: Sequence[Cell], *, seed: int = 0) -> Decision:
    """Apply the rule.

    Args:
        cells: at least one, each with `PAPERS`; metrics that all of them have are compared.
        seed: of the resampling.
    """
    metrics = [metric for metric in cells[0].losses if all(metric in cell.losses for cell in cells)]
    means = np.array([[cell.losses[metric].mean() for metric in metrics] for cell in cells])
    ranks = np.mean([_ranks(row) for row in means], axis=0)
    drawn = _resampled(cells, metrics, seed)
    default = metrics.index(PAPERS)
    scores = {}
    for m, metric in enumerate(metrics):
        low, high = np.percentile(drawn[m] - drawn[default], (2.5, 97.5))
        difference = float(means[:, m].mean() - means[:, default].mean())
        scores[metric] = Score(float(means[:, m].mean()), float(ranks[m]), (difference, float(low), float(high)))
    best = min((metric for metric in metrics if metric in WITHOUT_LABELS), key=lambda metric: scores[metric].loss)
    clear = scores[best].beside[2] < 0
    return Decision(scores, best, best if clear else PAPERS)


def _ranks(values: Floats) -> Floats:
    """Places from 1 up, equals at the mean of theirs."""
    below = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    ranks: Floats = below + (equal + 1) / 2
    return ranks


def _resampled(cells: Sequence[Cell], metrics: Sequence[str], seed: int) -> Floats:
    """Every metric's score over images drawn again: [metrics, RESAMPLES]."""
    generator, total = np.random.default_rng(seed), np.zeros((len(metrics), RESAMPLES))
    for network in dict.fromkeys(cell.network for cell in cells):
        losses = np.array([[cell.losses[m] for m in metrics] for cell in cells if cell.network == network])
        images = losses.shape[2]
        counts = generator.multinomial(images, np.full(images, 1 / images), RESAMPLES)
        total += losses.sum(0) @ counts.T / images
    return total / len(cells)
