"""Whether metrics order layers as the loss does: rank correlations with what each layer really loses, and how sure.

The truth is what the float network loses by one layer's weights alone, or by its input alone, at the fewest candidate
bits, on samples that no metric looked at. Both correlations follow from the signs of differences,

    s_ij = sign(x_i - x_j)      Kendall's tau-b = sum s_ij t_ij / sqrt(sum s_ij^2 sum t_ij^2)
    r_i  = sum_j s_ij / 2       Spearman's rho  = sum r_i q_i / sqrt(sum r_i^2 sum q_i^2)

since r_i is the rank of x_i less the mean rank, ties at their average; t and q are those of the truth.

Intervals are of 95 %, from 1,000 bootstrap resamples of layers and, for the truth, of samples; they are corrected for
their bias, since a resample has the noise of the samples twice (Efron and Tibshirani, An Introduction to the Bootstrap,
section 14.3, without acceleration). One metric is told apart from another where such an interval of their difference on
the same resamples leaves out 0. The noise of the metrics themselves is not in them; it stands beside each metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.errors import RunError, SensitivityError
from hawq_tvm.core.strict_json import JsonReader

FloatArray = NDArray[np.float64]

Truth = Literal["loss", "kl"]
TRUTHS: tuple[Truth, ...] = get_args(Truth)
"""What metrics are held to; the first counts where samples have labels."""

ORDER = "'s order"
"""Follows the name of a metric where it is what its paper ranks layers by that is compared, at no width."""

_RESAMPLES = 1000
_ENDS = (0.025, 0.975)
_FEWEST_LAYERS = 4

Interval = tuple[float, float]


@dataclass(frozen=True)
class Agreement:
    """How far one metric orders one part of the layers as a truth does.

    Attributes:
        metric: its name, followed by `ORDER` where it is the paper's order.
        part: ``weights`` or ``inputs``.
        bits: that these are rounded to, as ``4``, or ``k4`` for a codebook.
        truth: ``loss``, the rise of the loss against labels, or ``kl``, the divergence of the network's result.
        spearman: rank correlation, 1 for the same order.
        spearman_interval: of it, 95 %.
        kendall: tau-b.
        kendall_interval: of it, 95 %.
        trusted: whether it is the best of its part and truth, or not told apart from that.
    """

    metric: str
    part: str
    bits: str
    truth: str
    spearman: float
    spearman_interval: Interval
    kendall: float
    kendall_interval: Interval
    trusted: bool


@dataclass(frozen=True)
class Comparison:
    """Every metric beside every truth.

    Attributes:
        samples: how many the truth was measured on.
        layers: how many were ordered.
        rows: a metric, part and truth each, the best first.
        losses: what each layer really loses by one part alone, its mean over the samples and the standard error of
            that, by part and truth, as ``weights loss``, and by layer.
        itself: how far one half of the samples orders layers as the other does, by part and truth: what no
            metric can be expected to exceed by much.
        advice: which to trust, a sentence each.
        data: the name of the samples.
    """

    samples: int
    layers: int
    rows: tuple[Agreement, ...]
    losses: Mapping[str, Mapping[str, Interval]]
    itself: Mapping[str, float]
    advice: tuple[str, ...]
    data: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], "advice": list(self.advice)}

    @classmethod
    def from_json(cls, data: Any, name: str = "the comparison") -> Comparison:
        """Read what `to_json` wrote.

        Args:
            data: as `JsonReader` parses it.
            name: of the file, for messages.

        Raises:
            RunError: anything else.
        """
        reader = JsonReader(name, RunError, "make it again with hawq-tvm compare")
        signed = ("losses", "spearman", "spearman_interval", "kendall", "kendall_interval", "itself")
        found: Comparison = reader.take(data, cls, signed=signed)
        return found


@dataclass(frozen=True)
class Measured:
    """What layers really lose by one part alone.

    Attributes:
        part: ``weights`` or ``inputs``.
        bits: that these are rounded to, as ``4``, or ``k4`` for a codebook.
        truth: what was measured.
        losses: float64 [layers, samples].
    """

    part: str
    bits: str
    truth: Truth
    losses: FloatArray

    @property
    def key(self) -> str:
        """Part and truth."""
        return f"{self.part} {self.truth}"

    @property
    def means(self) -> list[Interval]:
        """Mean over samples and its standard error, by layer."""
        errors = self.losses.std(1, ddof=1) / np.sqrt(self.losses.shape[1])
        return [(float(mean), float(error)) for mean, error in zip(self.losses.mean(1), errors, strict=True)]


def compare(
    tables: Mapping[str, Mapping[str, Any]],
    layers: Sequence[str],
    measured: Sequence[Measured],
    *,
    seed: int = 0,
) -> Comparison:
    """Hold metrics to what was measured.

    Args:
        tables: of `hawq_tvm.measure.sensitivity`, by metric.
        layers: whose order counts.
        measured: the truths, all on the same samples.
        seed: of the resamples.

    Raises:
        SensitivityError: fewer than 4 layers, or fewer than 4 samples, from which no order can be told.
    """
    samples = min((truth.losses.shape[1] for truth in measured), default=0)
    for what, count, flag in (("layers", len(layers), ""), ("samples", samples, "; raise --samples")):
        if count < _FEWEST_LAYERS:
            raise SensitivityError(
                f"a rank correlation over {count} {what} says nothing; it takes at least {_FEWEST_LAYERS}{flag}"
            )
    rows, itself, advice = list[Agreement](), dict[str, float](), list[str]()
    losses: dict[str, dict[str, Interval]] = {}
    for truth in measured:
        found = _against(truth, _predictions(tables, layers, truth), np.random.default_rng(seed))
        first, second = (_signs(truth.losses[:, start::2].mean(1)) for start in (0, 1))
        itself[truth.key] = float(_spearman(first, second, np.ones(len(layers))))
        losses[truth.key] = dict(zip(layers, truth.means, strict=True))
        rows += found
        if found:
            advice.append(_advice(truth, found, itself[truth.key]))
    return Comparison(samples, len(layers), tuple(rows), losses, itself, tuple(advice))


def _predictions(
    tables: Mapping[str, Mapping[str, Any]], layers: Sequence[str], truth: Measured
) -> dict[str, FloatArray]:
    """What each metric says of each layer; none of a metric that has nothing for this part and these bits."""
    found = {}
    for metric, table in tables.items():
        rows = [table["layers"].get(name, {}) for name in layers]
        values = [row.get(truth.part, {}).get(truth.bits) for row in rows]
        if None not in values:
            found[metric] = np.array(values, np.float64)
        orders = [row.get("order") for row in rows]
        if truth.part == "weights" and None not in orders:
            found[f"{metric}{ORDER}"] = np.array(orders, np.float64)
    return found


def _against(truth: Measured, predictions: Mapping[str, FloatArray], draw: np.random.Generator) -> list[Agreement]:
    """Every metric beside one truth, the best first."""
    layers, samples = truth.losses.shape
    counts = draw.multinomial(layers, np.full(layers, 1 / layers), _RESAMPLES).astype(np.float64)
    weights = draw.multinomial(samples, np.full(samples, 1 / samples), _RESAMPLES) / samples
    whole, resampled = _signs(truth.losses.mean(1)), _signs((truth.losses @ weights.T).T)
    once = np.ones(layers)
    found: dict[str, tuple[_Spread, _Spread]] = {}
    for metric, values in predictions.items():
        signs = _signs(values)
        found[metric] = (
            _Spread(float(_spearman(signs, whole, once)), _spearman(signs, resampled, counts)),
            _Spread(float(_kendall(signs, whole, once)), _kendall(signs, resampled, counts)),
        )
    order = sorted(found, key=lambda metric: -found[metric][0].value)
    rows = []
    for metric in order:
        spearman, kendall = found[metric]
        trusted = metric == order[0] or (found[order[0]][0] - spearman).interval[0] <= 0
        rows.append(
            Agreement(
                metric,
                truth.part,
                truth.bits,
                truth.truth,
                spearman.value,
                spearman.interval,
                kendall.value,
                kendall.interval,
                trusted,
            )
        )
    return rows


@dataclass(frozen=True)
class _Spread:
    """A statistic, and what it is on resamples."""

    value: float
    resampled: FloatArray

    def __sub__(self, other: _Spread) -> _Spread:
        return _Spread(self.value - other.value, self.resampled - other.resampled)

    @property
    def interval(self) -> Interval:
        """Of 95 %, corrected for bias: the resamples' quantiles, moved as far as their median is from the value."""
        normal = NormalDist()
        below = float((self.resampled < self.value).mean() + (self.resampled == self.value).mean() / 2)
        shift = normal.inv_cdf(min(max(below, 1 / _RESAMPLES), 1 - 1 / _RESAMPLES))
        ends = [normal.cdf(2 * shift + normal.inv_cdf(end)) for end in _ENDS]
        low, high = np.quantile(self.resampled, ends)
        return float(low), float(high)


def _signs(values: FloatArray) -> FloatArray:
    """``sign(x_i - x_j)`` of the last axis, float64 [..., n, n]."""
    signs: FloatArray = np.sign(values[..., :, None] - values[..., None, :])
    return signs


def _kendall(x: FloatArray, y: FloatArray, counts: FloatArray) -> Any:
    """Tau-b of signs [..., n, n], where each layer is there `counts` times, float64 [..., n]; 0 where all are tied."""

    def total(products: FloatArray) -> Any:
        return np.einsum("...i,...ij,...j->...", counts, products, counts)

    return _ratio(total(x * y), total(x * x) * total(y * y))


def _spearman(x: FloatArray, y: FloatArray, counts: FloatArray) -> Any:
    """Rho of signs, as `_kendall` takes them."""
    p, q = (np.einsum("...ij,...j->...i", signs, counts) for signs in (x, y))
    return _ratio((counts * p * q).sum(-1), (counts * p * p).sum(-1) * (counts * q * q).sum(-1))


def _ratio(product: Any, squares: Any) -> Any:
    return np.divide(product, np.sqrt(squares), out=np.zeros_like(product), where=squares > 0)


def _advice(truth: Measured, rows: Sequence[Agreement], itself: float) -> str:
    """Which metric to trust for this part and truth."""
    best, what = rows[0], f"the {truth.truth} of {truth.part} at {truth.bits} bits"
    if best.spearman_interval[0] <= 0:
        return (
            f"trust none for {what}: the best, {best.metric}, correlates {best.spearman:.2f}, which chance may do with "
            f"{len(truth.losses)} layers and {truth.losses.shape[1]} samples (their halves agree by {itself:.2f})"
        )
    equals = [row.metric for row in rows[1:] if row.trusted]
    behind = [row.metric for row in rows if not row.trusted]
    low, high = best.spearman_interval
    return (
        f"for {what} trust {best.metric}: it correlates {best.spearman:.2f} ({low:.2f} to {high:.2f})"
        + (f"; not told apart from it: {', '.join(equals)}" if equals else "")
        + (f"; behind it: {', '.join(behind)}" if behind else "")
    )
