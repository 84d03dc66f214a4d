"""What a layer's weights are judged by: second moments of its inputs, and of the outputs that it should give.

With ``x`` a patch of the quantised inputs, ``y`` the outputs wanted there, both less their means,

    H = E[x x^T]        C = E[y x^T]

and weights V have the mean squared error ``tr(V H V^T - 2 V C^T) + const``. The means are left to the bias; where that
is not corrected, they stay in. Moments are summed over batches, so that patches, many times the size of the inputs, are
never kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hawq_tvm.core.float_ir import FloatNode

ROWS = 20_000
"""Patches that a layer's moments are taken over, about: more were seen to change nothing."""

FEW_INPUTS = 64
"""Up to so many inputs an output, moments of each output's own are cheap."""


@dataclass(frozen=True)
class Moments:
    """Second moments of one layer, float64; g groups of o outputs and K inputs each.

    Attributes:
        inputs: H [g, K, K].
        outputs: C [g, o, K].
    """

    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class MomentSums:
    """Centred sums over patches, float64, from which `Moments` are made; those of batches add up.

    Each batch is centred on its own means, and sums of two are moved to their common mean (Chan, Golub and LeVeque
    1983), so that inputs which hardly vary about a large mean lose no digits.

    Attributes:
        weight: [g, 1], how many patches, or the sum of their importance.
        x: [g, K], mean of the inputs.
        y: [g, o], mean of the wanted outputs.
        xx: [g, K, K], sum of products of inputs less their mean.
        yx: [g, o, K], of wanted outputs and inputs.
    """

    weight: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    yx: Tensor

    @classmethod
    def of_each(cls, x: Tensor, y: Tensor, importance: Tensor) -> MomentSums:
        """Sums over one batch for each output alone, which is then a group of its own.

        Args:
            x: float32 [g, K, rows] patches.
            y: float32 [g, o, rows] wanted outputs.
            importance: float32 [g, o, rows], above 0, how much each counts.

        Returns:
            Of g * o groups of one output.
        """
        outputs = range(y.shape[1])
        parts = [cls.of(x, y[:, o : o + 1], importance[:, o : o + 1]) for o in outputs]
        each = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(torch.stack(sums, 1).flatten(0, 1) for sums in each))

    @classmethod
    def of(cls, x: Tensor, y: Tensor, importance: Tensor | None = None) -> MomentSums:
        """Sums over one batch.

        Args:
            x: float32 [g, K, rows] patches.
            y: float32 [g, o, rows] wanted outputs.
            importance: float32 [g, 1, rows], above 0, how much each patch counts; None for all alike.
        """
        counted = torch.ones(len(x), 1, x.shape[2]) if importance is None else importance
        weight = counted.double().sum(2)
        x_mean, y_mean = ((part.double() * counted).sum(2) / weight for part in (x, y))
        x, y = x - x_mean.float()[:, :, None], y - y_mean.float()[:, :, None]
        weighed = (x if importance is None else x * counted).transpose(1, 2)
        return cls(weight, x_mean, y_mean, (x @ weighed).double(), (y @ weighed).double())

    def __add__(self, other: MomentSums) -> MomentSums:
        weight = self.weight + other.weight
        share = other.weight / weight
        x, y = other.x - self.x, other.y - self.y
        apart = (self.weight * share)[:, :, None]
        return MomentSums(
            weight,
            self.x + share * x,
            self.y + share * y,
            self.xx + other.xx + apart * x[:, :, None] * x[:, None, :],
            self.yx + other.yx + apart * y[:, :, None] * x[:, None, :],
        )

    def moments(self, *, centred: bool = True) -> Moments:
        """Second moments, less those of the means where a bias will see to these."""
        weight = self.weight[:, :, None]
        xx, yx = self.xx / weight, self.yx / weight
        if not centred:
            xx = xx + self.x[:, :, None] * self.x[:, None, :]
            yx = yx + self.y[:, :, None] * self.x[:, None, :]
        return Moments(xx, yx)


def positions(node: FloatNode, rows: int, generator: np.random.Generator) -> Tensor:
    """Output positions of a layer to look at, drawn without repetition.

    Args:
        node: a convolution or linear layer; the latter has the one position.
        rows: at most so many; at least 1 is drawn.
        generator: of the draw.

    Returns:
        int64 [P], ascending.
    """
    size = prod(node.shape[1:]) if node.kind == "conv2d" else 1
    return torch.from_numpy(np.sort(generator.permutation(size)[: max(1, rows)]))


def patches(node: FloatNode, x: Tensor, at: Tensor) -> Tensor:
    """The inputs that each output at some positions is summed over.

    Args:
        node: a convolution or linear layer.
        x: float32 [N, ...], its input.
        at: positions in its output, as `positions` gives them.

    Returns:
        float32 [g, K, N * P], K running over channels, rows and columns of the kernel as the weight's axes do.
    """
    if node.kind == "linear":
        return x.flatten(1).T[None]
    assert node.window is not None
    window, groups = node.window, node.groups
    top, left, bottom, right = window.pads
    x = F.pad(x, (left, right, top, bottom)) if any(window.pads) else x
    rows, columns = at // node.shape[2] * window.strides[0], at % node.shape[2] * window.strides[1]
    taps = [
        x[:, :, rows + i * window.dilations[0], columns + j * window.dilations[1]]
        for i in range(window.kernel[0])
        for j in range(window.kernel[1])
    ]
    samples, channels = x.shape[:2]
    cut = torch.stack(taps, 2).view(samples, groups, channels // groups * len(taps), len(at))
    return cut.permute(1, 2, 0, 3).reshape(groups, channels // groups * len(taps), samples * len(at))


def outputs_at(node: FloatNode, y: Tensor, at: Tensor) -> Tensor:
    """A layer's results at some positions: float32 [N, ...] to [g, o, N * P]."""
    if node.kind == "linear":
        return y.T[None]
    samples, channels = y.shape[:2]
    taken = y.flatten(2)[:, :, at].view(samples, node.groups, channels // node.groups, len(at))
    return taken.permute(1, 2, 0, 3).reshape(node.groups, channels // node.groups, samples * len(at))


def by_group(node: FloatNode, weight: Tensor) -> Tensor:
    """A weight [out, ...] as float64 [g, o, K], g the groups whose outputs share the moments of their inputs."""
    groups = len(weight) if has_own_moments(node) else node.groups
    return weight.double().reshape(groups, len(weight) // groups, -1)


def has_own_moments(node: FloatNode) -> bool:
    """Whether each output of a layer has moments of its own, as if it were a group.

    A clip takes the errors of some results away, and of which ones differs from output to output. Where that is cheap,
    each output's patches are counted by it: it has few inputs.
    """
    return node.clip is not None and node.weight is not None and node.weight[0].size <= FEW_INPUTS
