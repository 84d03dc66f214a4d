"""One layer's weights on a grid: which of the methods of `hawq_tvm.calibration.rounding` applies, and in what order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.threads import run_pieces
from hawq_tvm.calibration.moments import Moments, by_group, has_own_moments
from hawq_tvm.calibration.rounding import (
    Elimination,
    Levels,
    Rounded,
    damped,
    find_damping,
    find_grid,
    fit,
    max_abs_scales,
    search_nearest,
)
from hawq_tvm.core.codebook import WeightFormat, fitted_codebook
from hawq_tvm.core.float_ir import FloatNode
from hawq_tvm.core.quantizer import FloatArray
from hawq_tvm.settings import RoundingSettings

FINE_BITS = 8
"""From so many bits on nearest integers lose nothing that is worth fitting."""

MOST_INPUTS = 4608
"""The most inputs of one output that second moments are kept of: ResNet-50 has that many, and their square in float64,
of which a dozen stand side by side, takes 170 megabytes. Layers of more are rounded to nearest, and corrected."""

_ROWS = 512  # outputs of a block
_FEW_SAMPLES_DAMPING = 3.0  # where samples are too few for halves


@dataclass(frozen=True)
class Evidence:
    """Second moments of one layer over all samples, and over each half of them where there are enough for two."""

    moments: Moments
    halves: tuple[Moments, Moments] | None = None


class LayerRounding:
    """How one layer is rounded to one width."""

    def __init__(
        self,
        node: FloatNode,
        format: WeightFormat,
        settings: RoundingSettings,
        *,
        scales: FloatArray | None = None,
        threads: int = 1,
    ) -> None:
        """Look at a layer.

        Args:
            node: with weights.
            format: of them.
            settings: how.
            scales: float64 [out], given ones, taken as they are; None where they are to be found.
            threads: blocks of outputs that are found at one time: outputs do not meet, and a block has as many of them
                as it has, whatever the threads.
        """
        assert node.weight is not None
        self._settings = settings
        self._threads = threads
        self._weight = by_group(node, torch.from_numpy(node.weight))
        self._format = format
        self._limit = format.limit
        self._fine = not format.codebook and format.bits >= FINE_BITS
        self._wide = is_wide(node)
        self._given = None if scales is None else torch.from_numpy(scales).reshape(*self._weight.shape[:2], 1)
        self._searches = settings.scale_search and scales is None and not format.codebook  # which finds its own levels
        self._grid, self._on_grid = self._known_grid()

    def _known_grid(self) -> tuple[Tensor, Tensor]:
        """Scales of the rows that lie on a grid already, and which do."""
        if not self._searches:
            return torch.ones_like(self._weight[:, :, :1]), torch.zeros(self._weight.shape[:2], dtype=torch.bool)
        return find_grid(self._weight, self._limit)

    @property
    def needs_moments(self) -> bool:
        """Whether the layer's second moments decide anything."""
        weighs = self._settings.method == "least-error" or self._searches
        return weighs and not self._fine and not self._wide and not bool(self._on_grid.all())

    def solve(self, live: Tensor, evidence: Evidence | None = None) -> Rounded:
        """The integers.

        Args:
            live: bool [g, 1, K], the inputs that are not 0 in all samples.
            evidence: of the layer where it `needs_moments`, else None.
        """
        scales = max_abs_scales(self._weight, self._limit, live) if self._given is None else self._given
        found = self._nearest(scales) if evidence is None else self._fitted(scales, evidence)
        if not self._on_grid.any():
            return found
        kept, levels = self._on_grid[:, :, None], found.levels
        grid = levels.nearest(self._weight / self._grid)
        return Rounded(torch.where(kept, grid, found.integers), torch.where(kept, self._grid, found.scales), levels)

    def _levels(self, weight: Tensor, scales: Tensor, inputs: Tensor | None) -> Levels:
        """All integers of the width, or the codebook that loses least of a target.

        Args:
            weight: float64 [g, o, K], the target.
            scales: float64 [g, o, 1].
            inputs: float64 [g, K, K], H, whose diagonal says what an input's weights count; None for all alike.
        """
        if not self._format.codebook:
            return Levels(self._format)
        counts = scales.square()
        if inputs is not None:
            counts = counts * inputs.diagonal(dim1=1, dim2=2)[:, None, :]
        ratios, counts = weight / scales, counts.expand_as(weight)
        return Levels(self._format, fitted_codebook(ratios.numpy(), counts.numpy(), self._format.bits))

    def _nearest(self, scales: Tensor, inputs: Tensor | None = None) -> Rounded:
        levels = self._levels(self._weight, scales, inputs)
        return Rounded(levels.nearest(self._weight / scales), scales, levels)

    def _fitted(self, scales: Tensor, evidence: Evidence) -> Rounded:
        moments = evidence.moments
        if self._settings.method == "nearest":
            if self._searches:
                scales = search_nearest(self._weight, moments.inputs, scales, Levels(self._format))
            return self._nearest(scales, moments.inputs)
        inputs, ridge = damped(moments.inputs, self._damping(evidence))
        elimination = Elimination(inputs)
        target = elimination.solve(moments.outputs + ridge * self._weight)
        levels = self._levels(target, scales, inputs)

        def fitted(rows: slice) -> Rounded:
            return fit(target[:, rows], elimination, scales[:, rows], levels, search=self._searches)

        blocks = [slice(first, first + _ROWS) for first in range(0, target.shape[1], _ROWS)]
        parts = run_pieces(fitted, blocks, self._threads)
        integers, steps = (torch.cat(part, 1) for part in zip(*((p.integers, p.scales) for p in parts), strict=True))
        return Rounded(integers, steps, levels)

    def _damping(self, evidence: Evidence) -> float:
        """As the settings say, or found on halves of the samples."""
        if self._settings.damping is not None:
            return self._settings.damping
        return _FEW_SAMPLES_DAMPING if evidence.halves is None else find_damping(self._weight, evidence.halves)


def is_wide(node: FloatNode) -> bool:
    """Whether a layer has more than `MOST_INPUTS` inputs an output, so that its weights are rounded to nearest."""
    assert node.weight is not None
    return bool(node.weight[0].size > MOST_INPUTS)


def live_inputs(node: FloatNode, channels: Tensor) -> Tensor:
    """Which inputs of an output are not always 0, bool [g, 1, K]; g as of `by_group`.

    Args:
        node: with weights.
        channels: bool [C], which channels of its input are not always 0.
    """
    assert node.weight is not None
    taps = node.weight[0, 0].size if node.kind == "conv2d" else 1
    live = channels.repeat_interleave(taps).reshape(node.groups, 1, -1)
    return live.repeat_interleave(len(node.weight) // node.groups, 0) if has_own_moments(node) else live
