"""MobileNet-V1; parameters are named as in mit-han-lab/haq, whose state dicts load.

Source: Howard et al., MobileNets (arXiv 1704.04861), table 1.
"""

from __future__ import annotations

from torch import Tensor, nn

_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1),
)  # fmt: skip
"""Output channels and stride of each depthwise separable block."""


def _separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A depthwise 3x3 convolution, which has the stride, and a pointwise one."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU6(inplace=True),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class MobileNetV1(nn.Module):
    """A 3x3 convolution, thirteen depthwise separable blocks, global average pooling, a fully connected layer."""

    def __init__(self, num_classes: int = 1000, width: float = 1.0) -> None:
        super().__init__()
        channels = _scaled(32, width)
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        blocks = []
        for full, stride in _BLOCKS:
            out_channels = _scaled(full, width)
            blocks.append(_separable(channels, out_channels, stride))
            channels = out_channels
        self.features = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(channels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.conv1(x))
        logits: Tensor = self.classifier(self.avgpool(x).flatten(1))
        return logits


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def mobilenet_v1(num_classes: int = 1000, width: float = 1.0) -> MobileNetV1:
    """MobileNet-V1; 4.2 M parameters.

    Args:
        num_classes: of the classifier.
        width: factor on all channels, the paper's alpha.
    """
    return MobileNetV1(num_classes, width)
