"""Small networks for the tests, each with what is hard about it in its name; a user's own file would look like this."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Conv, batch norm, a residual block with a projection, max-pool, average pool, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.conv1 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1)
        self.project = nn.Conv2d(8, 12, 1, stride=2)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn(self.stem(x))))
        y = self.conv2(F.relu(self.conv1(x)))
        y += self.project(x)
        return self.fc(self.gap(F.relu(y)).flatten(1))


class Concat(nn.Module):
    """Branches side by side, one of them read elsewhere too; one-sided padding; ceil_mode; ends in a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.left = nn.Conv2d(8, 6, 1)
        self.right = nn.Conv2d(8, 10, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.last = nn.Conv2d(16, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(self.pad(x)))
        left, right = F.relu(self.left(x)), F.relu(self.right(x))
        y = self.pool(torch.cat([left, right], 1))
        return F.relu(self.last(y)).mean((2, 3))


class Mobile(nn.Module):
    """Depthwise and grouped convolutions, ReLU6, hardtanh, a sum without a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project = nn.Conv2d(12, 12, 1)
        self.grouped = nn.Conv2d(12, 18, (1, 3), padding=(0, 1), groups=3)
        self.wide = nn.Conv2d(18, 18, 3, padding=2, dilation=2, groups=18)
        self.fc = nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        x = x + self.project(F.relu6(self.depthwise(x)))
        x = F.hardtanh(self.grouped(x), -1.5, 1.5)
        x = self.wide(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Pools(nn.Module):
    """Average pools whose border windows count fewer elements, a free-standing sum and a free-standing ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)
        self.outer = nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)
        self.last = nn.Conv2d(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = self.inner(F.relu(x)), self.inner(x)
        y = torch.cat([a + b, F.relu(b)], 1)
        return self.last(self.outer(y)).flatten(1)


class Shared(nn.Module):
    """A convolution and batch norm called twice, one ReLU everywhere, a batch norm that cannot fold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(3)
        self.late = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        x = self.relu(self.bn(self.conv(x)))
        x = self.relu(self.late(x))
        return self.fc(F.dropout(x.mean([2, 3]), 0.5, self.training))


class Alias(nn.Module):
    """In-place operators on tensors that are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        kept = y
        y += 1.0
        z = self.last(F.relu(y))
        z *= 2.0
        return kept + z


class Ends(nn.Module):
    """Pools at both ends, one of them dilated: the input is pooled first, and the result is a pool's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.MaxPool2d(2, 1, padding=1, dilation=2)
        self.conv = nn.Conv2d(3, 6, 3)
        self.last = nn.MaxPool2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(self.first(x))).flatten(1)


class Padded(nn.Module):
    """Shortcuts of option A, in both spellings: every second pixel, channels of zeros around or behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.down1 = nn.Conv2d(5, 8, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.every_second = nn.AvgPool2d(1, 2)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.down1(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)))
        small = self.every_second(x)
        x = F.relu(self.down2(x) + torch.cat([small, small.mul(0)], 1))
        return self.fc(x.mean((2, 3)))


NETWORKS: dict[str, type[nn.Module]] = {
    network.__name__: network for network in (Residual, Concat, Mobile, Pools, Shared, Alias, Ends, Padded)
}


def make(name: str, seed: int = 0) -> nn.Module:
    """A network with seeded weights and batch-norm statistics that are not trivial, in eval mode."""
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network.eval()


def residual() -> nn.Module:
    """A factory as `file.py:factory` names it."""
    return make("Residual")


def padded() -> nn.Module:
    """One in which layers read sums."""
    return make("Padded")


def single() -> nn.Module:
    """A network of one output, whose cross-entropy is always 0."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 12 * 12, 1))


def gated() -> nn.Module:
    """A network that has no integer form."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 12 * 12, 2))


def broken() -> nn.Module:
    """A factory with a bug in it."""
    raise ValueError("no such configuration")


def samples() -> dict[str, Tensor]:
    """A data factory."""
    generator = torch.Generator().manual_seed(1)
    return {
        "calibration": torch.randn(16, 3, 12, 12, generator=generator),
        "evaluation": torch.randn(8, 3, 12, 12, generator=generator),
    }


def empty_samples() -> dict[str, Tensor]:
    """A calibration set without a sample."""
    return {**samples(), "calibration": torch.zeros(0, 3, 12, 12)}


def nan_samples() -> dict[str, Tensor]:
    """A calibration set with a hole in it."""
    found = samples()
    found["calibration"][3, 0, 0, 0] = float("nan")
    return found


def wrong_samples() -> dict[str, Tensor]:
    """Samples of another shape than the network's."""
    return {"calibration": torch.zeros(8, 1, 12, 12), "evaluation": torch.zeros(8, 1, 12, 12)}


def dead() -> nn.Module:
    """A network with a layer of zeros."""
    network = make("Residual")
    nn.init.zeros_(network.conv2.weight)
    return network
