"""NVIDIA's INT4 ResNet-50 with the ranges that it was trained with: our integers beside plain fake quantisation.

The reference is written without any part of hawq_tvm but the network's definition: weights as the checkpoint has them,
which lie on 15 levels a channel, and every activation rounded to its grid where NVIDIA's kernels store it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.nvidias_network import checkpoint, quantized, ranges
from benchmarks.runs import kept
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.runs.rundir import read_run
from hawq_tvm.runs.summary import summarize
from hawq_tvm.sources.data import load_data
from hawq_tvm.sources.models import load_model
from hawq_tvm.sources.options import DataOptions
from hawq_tvm.sources.samples import Data
from hawq_tvm.sources.splits import Images, Split

_BATCH = 10
_INPUT_LIMIT, _STORED_LIMIT, _LAST_LIMIT = 127, 15, 127  # signed 8 bits; unsigned 4 bits; unsigned 7 bits


class Joined:
    """Two splits, one after the other."""

    def __init__(self, first: Split, second: Split) -> None:
        self.first = first
        self.second = second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def sample(self, index: int) -> tuple[Images, int | None]:
        split, at = (self.first, index) if index < len(self.first) else (self.second, index - len(self.first))
        return split.sample(at)


def images(data: Path) -> Data:
    """100 images to calibrate on, and all 1,000 to measure on: the ranges are the network's own, not found on any."""
    options = DataOptions(calibration_samples=100)
    found = load_data(f"imagefolder:{data / 'imagenet_sample.zip'}", options)
    return replace(found, evaluation=Joined(found.calibration, found.evaluation), note="")


def known_answer(data: Path) -> dict[str, Any]:
    """Accuracy of the integers, their verification, and how often fake quantisation gives the same answer."""
    samples = images(data)
    network = quantized(samples, data)
    network.compile()
    network.verify(samples=32)
    reference = FakeQuantized(
        load_model("resnet50", str(checkpoint(data))).module, json.loads(ranges(data).read_text())["range"]
    )
    ours = IntegerModule(network.graph)
    right = same = 0
    for start in range(0, len(samples.evaluation), _BATCH):
        batch = [samples.evaluation.sample(index) for index in range(start, start + _BATCH)]
        x = torch.stack([torch.from_numpy(image) for image, _ in batch])
        expected = reference(x).argmax(1)
        right += int((expected == torch.tensor([label for _, label in batch])).sum())
        same += int((expected == ours(x).argmax(1)).sum())
    count = len(samples.evaluation)
    summary = read_run(network.path, summarize).to_json()
    return {**kept(summary), "fake_quant": {"top1": right / count, "agreement": same / count}}


class FakeQuantized(nn.Module):
    """ResNet-50 in float32, its activations on their grids."""

    def __init__(self, network: nn.Module, ranges: dict[str, float]) -> None:
        super().__init__()
        self.network = network.eval()
        self.ranges = ranges

    def stored(self, x: Tensor, name: str, limit: int = _STORED_LIMIT) -> Tensor:
        """An activation after its ReLU, as unsigned integers up to `limit` hold it."""
        scale = self.ranges[name] / limit
        return torch.floor(x / scale + 0.5).clamp(0, limit) * scale

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        net: Any = self.network
        scale = self.ranges["input"] / _INPUT_LIMIT
        x = torch.floor(x / scale + 0.5).clamp(-_INPUT_LIMIT - 1, _INPUT_LIMIT) * scale
        x = net.maxpool(self.stored(net.bn1(net.conv1(x)), "conv1"))
        for stage in (1, 2, 3, 4):
            for index, block in enumerate(getattr(net, f"layer{stage}")):
                name = f"layer{stage}.{index}"
                y = self.stored(block.bn1(block.conv1(x)), f"{name}.conv1")
                y = self.stored(block.bn2(block.conv2(y)), f"{name}.conv2")
                shortcut = x if block.downsample is None else block.downsample(x)  # 8 bits: as good as real
                limit = _LAST_LIMIT if name == "layer4.2" else _STORED_LIMIT
                x = self.stored(block.bn3(block.conv3(y)) + shortcut, f"{name}.conv3", limit)
        logits: Tensor = net.fc(torch.flatten(net.avgpool(x), 1))
        return logits
