"""Weights to integers with the least error of the layer's outputs, in closed form, no gradient.

All of it minimises one quadratic form for each output channel, ``(t - s q) H (t - s q)^T``, over integers q and a
scale s:

1. Target. With inputs x and wanted outputs y (`hawq_tvm.calibration.moments`), the best real weights are ridge
   regression drawn to the trained ones: ``t = (C + W R) (H + R)^-1``, R a share of H's diagonal.
2. Scale. Candidates narrower and wider than max-abs; a grid that the weights lie on already is found exactly and kept.
3. Elimination. GPTQ's: round one column, let the ones that are not rounded yet make up for it, go on. Rows do not meet,
   so the candidate scales that promise most are tried at once, and the one that ends with the least error is taken.
4. Descent. Integer by integer to the best one given the others, then the best scale given the integers; never worse.

Sources: Frantar and others, GPTQ (arXiv 2210.17323), algorithm 1; Nagel and others, Up or Down? (arXiv 2004.10568) for
the quadratic form; Hubara and others, AdaQuant (arXiv 2006.10518) for a target per layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hawq_tvm.calibration.moments import Moments
from hawq_tvm.core.codebook import WeightFormat, midpoints
from hawq_tvm.core.ir import Array

_NARROWER = torch.linspace(0.3, 1.0, 36, dtype=torch.float64)
_GRID_TOLERANCE = 1e-3  # of a step: float32 weights that were folded with a batch norm are off by far less
_BLOCK = 128  # columns between two updates of the rest: the inner loop stays in the cache
_DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_MANY_INPUTS = 2048  # from here on a factorisation takes so long that every other damping is left out
_CANDIDATES = 6  # scales that elimination is tried at
_FEW_INPUTS = 64  # up to so many it is tried at all of them
_SWEEPS = 4
_SETTLED = 1e-3  # share of the integers that still move when descent is done
_FLOOR = 1e-5  # of an input's mean square: what keeps a singular H invertible where no damping is asked for
_DEAD = 1e-12  # of all inputs' mean square: the same for an input that is always 0


@dataclass(frozen=True, eq=False)
class Levels:
    """The integers that a weight may become: all from -limit to limit, or those of a codebook.

    Attributes:
        format: of the weights.
        codebook: int8 [2^bits], ascending; where the format has one.
    """

    format: WeightFormat
    codebook: Array | None = None

    @cached_property
    def _codes(self) -> tuple[Tensor, Tensor]:
        """The codebook's values and where one's share ends and the next one's begins, float64."""
        assert self.codebook is not None
        return torch.from_numpy(self.codebook.astype(np.float64)), torch.from_numpy(midpoints(self.codebook))

    def nearest(self, ratio: Tensor) -> Tensor:
        """The level nearest to each weight over its scale, ties up; float64."""
        if self.codebook is None:
            return torch.floor(ratio + 0.5).clamp_(-self.format.limit, self.format.limit)
        codes, ends = self._codes
        return codes[torch.bucketize(ratio, ends, right=True)]


@dataclass(frozen=True)
class Rounded:
    """Integers and their scales.

    Attributes:
        integers: float64 [g, o, K], whole numbers.
        scales: float64 [g, o, 1].
        levels: which integers there were to choose from.
    """

    integers: Tensor
    scales: Tensor
    levels: Levels

    @property
    def restored(self) -> Tensor:
        """The reals that they stand for."""
        return self.integers * self.scales


def max_abs_scales(weight: Tensor, limit: int, live: Tensor | None = None) -> Tensor:
    """Scales at which the largest weight of each row is `limit`.

    Args:
        weight: float64 [g, o, K].
        limit: the largest integer.
        live: bool [g, 1, K], inputs that are not always 0: only their weights count.

    Returns:
        float64 [g, o, 1], above 0: a row of zeros takes the largest of all.
    """
    counted = weight if live is None else torch.where(live, weight, 0.0)
    largest = counted.abs().amax(2, keepdim=True)
    if live is not None:
        largest = torch.where(largest > 0, largest, weight.abs().amax(2, keepdim=True))
    return torch.where(largest > 0, largest, largest.max()) / limit


def find_grid(weight: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The coarsest grid that each row lies on already.

    Trained on a grid of ``-limit..limit``, a row's largest weight stands at some level k, so the scale is max / k. A
    row of zeros lies on every grid; it takes the scale of the largest weight of all.

    Args:
        weight: float64 [g, o, K].
        limit: the largest integer.

    Returns:
        Scales float64 [g, o, 1], and bool [g, o], which rows lie on one.
    """
    largest = weight.abs().amax(2, keepdim=True)
    found = largest == 0
    scales = torch.where(found, largest.max() / limit, 0.0)
    for level in range(1, limit + 1):
        candidate = largest / level
        ratio = weight / candidate
        fits = ((ratio - ratio.round()).abs() < _GRID_TOLERANCE).all(2, keepdim=True) & ~found
        scales, found = torch.where(fits, candidate, scales), found | fits
    return scales, found[:, :, 0]


def candidate_ratios(limit: int) -> Tensor:
    """Candidate scales as shares of max-abs: narrower, which clips, and wider, where fewer levels fit better."""
    return torch.cat([_NARROWER, limit / torch.arange(limit - 1, 0, -1, dtype=torch.float64)])


def damped(inputs: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """H and what is added to its diagonal.

    Each input's own mean square, so that the answer does not change when an input is scaled and its weights are scaled
    back, and an input that is always 0 has no say.

    Args:
        inputs: float64 [g, K, K], H.
        damping: at least 0.

    Returns:
        ``H + diag(ridge)``, and the ridge [g, 1, K]; 1 where all inputs are 0.
    """
    squares = inputs.diagonal(dim1=1, dim2=2)[:, None, :]
    mean = squares.mean(2, keepdim=True)
    ridge = torch.where(mean > 0, (damping + _FLOOR) * squares + _DEAD * mean, 1.0)
    return inputs + torch.diag_embed(ridge[:, 0]), ridge


def find_damping(weight: Tensor, halves: tuple[Moments, Moments]) -> float:
    """How far a layer's target is to be drawn to its trained weights, by cross-validation.

    Targets fitted to one half of the samples are judged on the other. Layers with few positions and many inputs want
    strong damping, those with plenty want hardly any. Both halves together bear half as much of it.

    Args:
        weight: float64 [g, o, K].
        halves: moments of the layer over the two halves.
    """
    candidates = _DAMPINGS if weight.shape[2] <= _MANY_INPUTS else _DAMPINGS[1::2]
    errors = [sum(_held_out(weight, a, b, damping) for a, b in (halves, halves[::-1])) for damping in candidates]
    return candidates[errors.index(min(errors))] / 2


def _held_out(weight: Tensor, seen: Moments, unseen: Moments, damping: float) -> float:
    """Squared error, less what no weights change, of the target of some samples on others."""
    inputs, ridge = damped(seen.inputs, damping)
    right = (seen.outputs + ridge * weight).transpose(1, 2)
    target = torch.cholesky_solve(right, torch.linalg.cholesky(inputs)).transpose(1, 2)
    return float(((target @ unseen.inputs) * target).sum() - 2 * (target * unseen.outputs).sum())


def squared_error(weight: Tensor, restored: Tensor, inputs: Tensor) -> Tensor:
    """``(w - r) H (w - r)^T`` of each row, [g, o]."""
    error = weight - restored
    return ((error @ inputs) * error).sum(2)


def nearest_errors(weight: Tensor, inputs: Tensor, scales: Tensor, levels: Levels) -> Tensor:
    """Error of nearest integers at every candidate scale, weighted by H's diagonal: float64 [candidates, g, o]."""
    importance = inputs.diagonal(dim1=1, dim2=2)[:, None, :]
    errors = []
    for ratio in candidate_ratios(levels.format.limit):
        candidate = scales * ratio
        error = weight - levels.nearest(weight / candidate) * candidate
        errors.append((error.square() * importance).sum(2))
    return torch.stack(errors)


def search_nearest(weight: Tensor, inputs: Tensor, scales: Tensor, levels: Levels) -> Tensor:
    """For each row, the candidate scale at which nearest integers have the least error, weighted by H's diagonal."""
    best = nearest_errors(weight, inputs, scales, levels).argmin(0)
    return scales * candidate_ratios(levels.format.limit)[best][:, :, None]


class Elimination:
    """GPTQ's rounding with one H: columns in falling order of its diagonal, the rest makes up for each.

    It needs the upper triangular U with ``H^-1 = U^T U``. H taken backwards has a Cholesky factor; taken forwards again
    that is an upper triangular R with ``H = R R^T``, and ``U = R^-1``: one factorisation instead of three.
    """

    def __init__(self, inputs: Tensor) -> None:
        """Factor H, damped, float64 [g, K, K]."""
        self.inputs = inputs
        self._order = inputs.diagonal(dim1=1, dim2=2).mean(0).argsort(descending=True, stable=True)
        backwards = self._order.flip(0)
        self._factor = _upper_inverse(torch.linalg.cholesky(inputs[:, backwards][:, :, backwards]).flip(1, 2))

    def solve(self, right: Tensor) -> Tensor:
        """``right H^-1``, for rows [g, o, K]."""
        result = torch.empty_like(right)
        result[:, :, self._order] = (right[:, :, self._order] @ self._factor.transpose(1, 2)) @ self._factor
        return result

    def round(self, weight: Tensor, scales: Tensor, levels: Levels) -> Tensor:
        """Integers of rows [g, o, K] at scales [g, o, 1]."""
        rest, columns = weight[:, :, self._order].clone(), weight.shape[2]
        integers = torch.empty_like(rest)
        step = scales[:, :, 0]
        for start in range(0, columns, _BLOCK):
            stop = min(start + _BLOCK, columns)
            errors = torch.empty_like(rest[:, :, start:stop])
            for k in range(start, stop):
                column = rest[:, :, k]
                integers[:, :, k] = levels.nearest(column / step)
                error = (column - integers[:, :, k] * step) / self._factor[:, k, k][:, None]
                errors[:, :, k - start] = error
                rest[:, :, k + 1 : stop] -= error[:, :, None] * self._factor[:, k, k + 1 : stop][:, None, :]
            rest[:, :, stop:] -= errors @ self._factor[:, start:stop, stop:]
        result = torch.empty_like(integers)
        result[:, :, self._order] = integers
        return result

    def search(self, weight: Tensor, scales: Tensor, levels: Levels) -> Rounded:
        """Integers and scale of each row that end with the least error, over the candidate scales that are worth it.

        They are those at which nearest integers come nearest, `_CANDIDATES` of them for each row; of rows of few
        weights all, since there it takes no time.
        """
        groups, rows, columns = weight.shape
        ratios, errors = candidate_ratios(levels.format.limit), nearest_errors(weight, self.inputs, scales, levels)
        count = len(ratios) if columns <= _FEW_INPUTS else min(_CANDIDATES, len(ratios))
        promising = errors.topk(count, dim=0, largest=False).indices
        candidates = (scales * ratios[promising.permute(1, 2, 0)]).permute(0, 2, 1)  # [g, candidates, o]
        several, steps = weight.repeat(1, count, 1), candidates.reshape(groups, count * rows, 1)
        integers = self.round(several, steps, levels)
        ends = squared_error(several, integers * steps, self.inputs).view(groups, count, rows)
        pick = ends.argmin(1)[:, None, :, None]
        return Rounded(
            integers.view(groups, count, rows, columns).gather(1, pick.expand(-1, 1, -1, columns))[:, 0],
            steps.view(groups, count, rows, 1).gather(1, pick)[:, 0],
            levels,
        )


def fit(target: Tensor, elimination: Elimination, scales: Tensor, levels: Levels, *, search: bool) -> Rounded:
    """The integers that come nearest to a target by H's measure, and their scales.

    Args:
        target: float64 [g, o, K], the best real weights.
        elimination: of the layer's H.
        scales: float64 [g, o, 1], at which a row's largest weight is `limit`, or given ones.
        levels: the integers to choose from.
        search: whether scales are searched; else they stay as they are.
    """
    if search:
        start = elimination.search(target, scales, levels)
    else:
        start = Rounded(elimination.round(target, scales, levels), scales, levels)
    return descend(target, elimination.inputs, start, rescale=search)


def descend(weight: Tensor, inputs: Tensor, start: Rounded, *, rescale: bool) -> Rounded:
    """Coordinate descent on the integers and, in closed form, on the scales; the error never rises.

    Args:
        weight: float64 [g, o, K], the target.
        inputs: float64 [g, K, K], H, damped.
        start: where from, and the levels to choose from.
        rescale: whether scales may move.
    """
    integers, scales = start.integers.clone(), start.scales
    columns = weight.shape[2]
    curvature = inputs.diagonal(dim1=1, dim2=2)[:, None, :]
    for _ in range(_SWEEPS):
        gradient = (weight - integers * scales) @ inputs
        moved = 0
        for first in range(0, columns, _BLOCK):
            block = slice(first, min(first + _BLOCK, columns))
            moves = _descend_block(
                integers[:, :, block],
                gradient[:, :, block].clone(),
                scales,
                curvature[:, :, block],
                inputs,
                block,
                start.levels,
            )
            moved += int(torch.count_nonzero(moves))
            gradient -= moves @ inputs[:, block]
        if rescale:
            projected = integers @ inputs
            numerator = (projected * weight).sum(2, keepdim=True)
            denominator = (projected * integers).sum(2, keepdim=True)
            scales = torch.where((numerator > 0) & (denominator > 0), numerator / denominator, scales)
        if moved <= _SETTLED * integers.numel():
            break
    return Rounded(integers, scales, start.levels)


def _descend_block(
    integers: Tensor, gradient: Tensor, scales: Tensor, curvature: Tensor, inputs: Tensor, block: slice, levels: Levels
) -> Tensor:
    """Move the integers of a block of columns in place, one after the other; how far each moved, in reals."""
    inverse = 1 / (curvature * scales)
    moves = torch.zeros_like(gradient)
    own = inputs[:, block, block]
    for k in range(gradient.shape[2]):
        old = integers[:, :, k]
        best = levels.nearest(torch.addcmul(old, gradient[:, :, k], inverse[:, :, k]))
        move = (best - old).mul_(scales[:, :, 0])
        integers[:, :, k], moves[:, :, k] = best, move
        gradient[:, :, k + 1 :].sub_(move[:, :, None] * own[:, k, None, k + 1 :])
    return moves


def _upper_inverse(factor: Tensor) -> Tensor:
    """Inverse of upper triangular matrices [g, K, K], by halves, so that nearly all of it is products of matrices."""
    size = factor.shape[1]
    if size <= _BLOCK:
        eye = torch.eye(size, dtype=factor.dtype).expand_as(factor)
        inverse: Tensor = torch.linalg.solve_triangular(factor, eye, upper=True)
        return inverse
    half = size // 2
    first, last = _upper_inverse(factor[:, :half, :half]), _upper_inverse(factor[:, half:, half:])
    result = torch.zeros_like(factor)
    result[:, :half, :half], result[:, half:, half:] = first, last
    result[:, :half, half:] = -first @ factor[:, :half, half:] @ last
    return result
