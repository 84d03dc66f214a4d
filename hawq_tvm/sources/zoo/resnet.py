"""Residual networks; parameters are named as those name them whose state dicts load.

ResNet-18 and ResNet-50 are torchvision's (v1.5: the stride of a bottleneck is in its 3x3 convolution); `resnet50_v1` is
the paper's own, with the stride in the first 1x1 convolution, under the same names. ResNet-20 is the
CIFAR network of He et al. with projection shortcuts, under the same names. `resnet20_cifar` and the deeper ones have
the paper's padded shortcuts, under the names of akamaster/pytorch_resnet_cifar10.

Source: He et al., Deep Residual Learning (arXiv 1512.03385).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class PaddedShortcut(nn.Module):
    """Every second pixel, and channels of zeros on both sides: option A of He et al., which has no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A 1x1 convolution and its batch norm: option B."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


Shortcut = Callable[[int, int, int], nn.Module]
"""Makes the module that brings a block's input to the shape of its output: input and output channels, stride."""


def _shortcut(make: Shortcut, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return make(in_channels, out_channels, stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut = _projection) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(shortcut, in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        result: Tensor = self.relu(y + shortcut)
        return result


class Bottleneck(nn.Module):
    """1x1 to fewer channels, 3x3, which has the stride, 1x1 to four times as many, and the shortcut."""

    expansion = 4
    stride_in_3x3 = True

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut = _projection) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        in_1x1, in_3x3 = (1, stride) if self.stride_in_3x3 else (stride, 1)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, in_1x1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, in_3x3, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(shortcut, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        result: Tensor = self.relu(y + shortcut)
        return result


class BottleneckV1(Bottleneck):
    """The stride in the first 1x1 convolution, as He et al. have it: fewer operations, and pixels that nothing sees."""

    stride_in_3x3 = False


Block = type[BasicBlock] | type[Bottleneck]


def _stage(
    block: Block, in_channels: int, channels: int, count: int, stride: int, shortcut: Shortcut = _projection
) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for index in range(count):
        blocks.append(block(in_channels, channels, stride if index == 0 else 1, shortcut))
        in_channels = channels * block.expansion
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """The ImageNet network: 7x7 stem, max-pool, four stages."""

    def __init__(self, block: Block, counts: Sequence[int], num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(block, 64, 64, counts[0], 1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, counts[1], 2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, counts[2], 2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, counts[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class CifarResNet(nn.Module):
    """The CIFAR network: 3x3 stem, three stages of 16, 32 and 64 channels."""

    def __init__(self, count: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(BasicBlock, 16, 16, count, 1)
        self.layer2 = _stage(BasicBlock, 16, 32, count, 2)
        self.layer3 = _stage(BasicBlock, 32, 64, count, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class PaddedCifarResNet(nn.Module):
    """The CIFAR network as He et al. had it, its shortcuts without parameters.

    Parameters are named as in akamaster/pytorch_resnet_cifar10, whose checkpoints load.
    """

    def __init__(self, count: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(BasicBlock, 16, 16, count, 1, PaddedShortcut)
        self.layer2 = _stage(BasicBlock, 16, 32, count, 2, PaddedShortcut)
        self.layer3 = _stage(BasicBlock, 32, 64, count, 2, PaddedShortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def resnet20(num_classes: int = 10) -> CifarResNet:
    """ResNet-20 for images of about 32 x 32; 0.27 M parameters."""
    return CifarResNet(3, num_classes)


def resnet20_cifar(num_classes: int = 10) -> PaddedCifarResNet:
    """ResNet-20 with padded shortcuts; 0.27 M parameters."""
    return PaddedCifarResNet(3, num_classes)


def resnet32_cifar(num_classes: int = 10) -> PaddedCifarResNet:
    """ResNet-32 with padded shortcuts; 0.46 M parameters."""
    return PaddedCifarResNet(5, num_classes)


def resnet44_cifar(num_classes: int = 10) -> PaddedCifarResNet:
    """ResNet-44 with padded shortcuts; 0.66 M parameters."""
    return PaddedCifarResNet(7, num_classes)


def resnet56_cifar(num_classes: int = 10) -> PaddedCifarResNet:
    """ResNet-56 with padded shortcuts; 0.85 M parameters."""
    return PaddedCifarResNet(9, num_classes)


def resnet110_cifar(num_classes: int = 10) -> PaddedCifarResNet:
    """ResNet-110 with padded shortcuts; 1.7 M parameters."""
    return PaddedCifarResNet(18, num_classes)


def resnet18(num_classes: int = 1000) -> ResNet:
    """ResNet-18; 11.7 M parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def resnet50(num_classes: int = 1000) -> ResNet:
    """ResNet-50 v1.5; 25.6 M parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes)


def resnet50_v1(num_classes: int = 1000) -> ResNet:
    """ResNet-50 as the paper has it; 25.6 M parameters, 6% fewer operations than v1.5."""
    return ResNet(BottleneckV1, (3, 4, 6, 3), num_classes)
