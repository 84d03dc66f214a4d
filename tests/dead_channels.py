"""Networks with one channel that never changes, in each of the places where it spoils the others.

Batch norms hold the statistics of the noise that the networks are run on, as training would leave them. Over the dead
channel the variance is 0, and so the factor ``1 / sqrt(eps)`` is 316 where the others are about 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .builders import SIZE

DEAD = 3
"""The channel."""


def noise(count: int = 64, seed: int = 0) -> Tensor:
    """Samples, float32 [count, 4, 12, 12], the channel `DEAD` always 0."""
    x = torch.randn(count, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    x[:, DEAD] = 0.0
    return x


def dead(layer: nn.Conv2d, bias: float = 0.0) -> nn.Conv2d:
    """The layer, its output channel `DEAD` always `bias`."""
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight[DEAD] = 0.0
        layer.bias[DEAD] = bias
    return layer


class InputNormalised(nn.Module):
    """A batch norm on the samples, of which nobody can know that a channel is 0; it folds forward alone."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 16, 3)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(self.bn(x))).mean((2, 3)))


class Pooled(nn.Module):
    """A batch norm behind a pool, which two layers read; the dead channel is always above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = dead(nn.Conv2d(4, 8, 3), bias=0.1)
        self.bn = nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(F.max_pool2d(F.relu(self.stem(x)), 2))
        return self.fc((F.relu(self.left(x)) + F.relu(self.right(x))).mean((2, 3)))


class Unproved(nn.Module):
    """A batch norm behind a pool; that the channel is dead lies in the samples, not in the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3)
        read = self.stem.weight[DEAD, DEAD].detach().clone()
        with torch.no_grad():
            dead(self.stem).weight[DEAD, DEAD] = read
        self.bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 16, 3)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(F.max_pool2d(F.relu(self.stem(x)), 2))
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


class PreActivation(nn.Module):
    """Blocks of a pre-activation ResNet: norm, ReLU, convolution, sum; a norm without a ReLU at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = dead(nn.Conv2d(4, 8, 3))
        self.norms = nn.ModuleList([nn.BatchNorm2d(8) for _ in range(3)])
        self.convs = nn.ModuleList([dead(nn.Conv2d(8, 8, 3, padding=1)) for _ in range(2)])
        self.last = nn.Conv2d(8, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = x + conv(F.relu(norm(x)))
        return self.fc(F.relu(self.last(self.norms[-1](x))).mean((2, 3)))


class Dense(nn.Module):
    """Blocks of a DenseNet: concatenation, norm, ReLU, convolution; a transition without a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = dead(nn.Conv2d(4, 8, 3))
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(16), nn.BatchNorm2d(24)])
        self.convs = nn.ModuleList([dead(nn.Conv2d(8, 8, 3, padding=1)), dead(nn.Conv2d(16, 8, 3, padding=1))])
        self.transition = nn.Conv2d(24, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.fc(F.relu(self.transition(self.norms[-1](x))).mean((2, 3)))


class ClosedRelu(nn.Module):
    """A ReLU that never opens, and huge weights that read it: next to it, behind a concatenation, and as a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = dead(nn.Conv2d(4, 8, 3), bias=-1.0)
        self.conv = dead(nn.Conv2d(8, 8, 3, padding=1), bias=-0.5)
        self.join = nn.Conv2d(16, 8, 1)
        self.fc = nn.Linear(8 * 25, 10)
        with torch.no_grad():
            dead(self.join).weight[:, DEAD::8] *= 316.0
            self.conv.weight[:, DEAD] *= 316.0
            self.fc.weight[:, DEAD * 25 : (DEAD + 1) * 25] *= 316.0

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([x, F.relu(self.conv(x))], 1)
        return self.fc(F.max_pool2d(F.relu(self.join(x)), 2).flatten(1))


DEAD_CHANNELS = (InputNormalised, Pooled, Unproved, PreActivation, Dense, ClosedRelu)


def make(network: type[nn.Module], seed: int = 0) -> nn.Module:
    """The network, its batch norms at the statistics of the noise."""
    torch.manual_seed(seed)
    built = network()
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average over the batches
    with torch.no_grad():
        built.train()(noise())
    return built.eval()
