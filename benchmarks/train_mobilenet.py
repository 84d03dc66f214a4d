"""Train a small MobileNetV1 on CIFAR-10, for `benchmarks.haq`: the paper's network at a size that a CPU trains.

    python -m benchmarks.train_mobilenet DATA --output FILE [--width 0.5] [--epochs 16] [--seed 0]

DATA is a folder that holds ``cifar10.zip``. Seeded; the checkpoint loads into
``benchmarks/train_mobilenet.py:mobilenet_v1``. The test images are not looked at until the end.

Source: Howard et al., MobileNets (arXiv 1704.04861), table 1, with one of its strides left out for images of 32 x 32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from hawq_tvm.sources.data import batches, load_data
from hawq_tvm.sources.options import DataOptions, Preprocessing

WIDTH = 0.5
BATCH = 128
PEAK_RATE = 0.2
IMAGES = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

PLAN = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), *((512, 1),) * 6, (1024, 2), (1024, 1))
"""Outputs at full width and stride of each pair of layers, depthwise and pointwise; the table's first of six at 512 has
stride 2 on images of 224 x 224."""


class Separable(nn.Module):
    """A depthwise 3x3 and a pointwise 1x1, each with its batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.pointwise(F.relu(self.norm1(self.depthwise(x))))))


class MobileNetV1(nn.Module):
    """Images float32 [N, 3, 32, 32] to logits [N, 10]."""

    def __init__(self, width: float = WIDTH) -> None:
        super().__init__()
        channels = [int(width * outputs) for outputs, _ in PLAN]
        stem = int(width * 32)
        self.stem = nn.Conv2d(3, stem, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(stem)
        inputs = [stem, *channels[:-1]]
        self.blocks = nn.Sequential(
            *(Separable(here, there, stride) for here, there, (_, stride) in zip(inputs, channels, PLAN, strict=True))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.blocks(F.relu(self.norm(self.stem(x))))).flatten(1))  # type: ignore[no-any-return]


def mobilenet_v1() -> nn.Module:
    """The network that `benchmarks.haq` names as ``benchmarks/train_mobilenet.py:mobilenet_v1``."""
    return MobileNetV1()


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image float32 [N, 3, 32, 32] moved by up to 4 pixels, every second batch mirrored."""
    down, right = (int(torch.randint(0, 9, (), generator=generator)) for _ in range(2))
    moved = F.pad(images, (4, 4, 4, 4))[:, :, down : down + 32, right : right + 32]
    return moved.flip(3) if torch.rand((), generator=generator) < 0.5 else moved


def loaded(data: Path, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test images, float16 to take half the memory, each with labels."""
    options = DataOptions(calibration_samples=50_000, preprocessing=IMAGES, seed=seed)
    found = load_data(f"cifar10:{data / 'cifar10.zip'}", options)

    def whole(split: str) -> tuple[Tensor, Tensor]:
        pieces = [(batch.images.half(), batch.labels) for batch in batches(getattr(found, split), 1000)]
        return torch.cat([images for images, _ in pieces]), torch.cat(
            [labels for _, labels in pieces if labels is not None]
        )

    return whole("calibration"), whole("evaluation")


def epochs(network: nn.Module, train: tuple[Tensor, Tensor], count: int, seed: int) -> Iterator[float]:
    """Train; the mean loss of each epoch."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = train
    optimizer = torch.optim.SGD(network.parameters(), PEAK_RATE, momentum=0.9, weight_decay=4e-5, nesterov=True)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=count * steps)
    for _ in range(count):
        network.train()
        total = 0.0
        for batch in torch.randperm(len(images), generator=generator)[: steps * BATCH].view(steps, BATCH):
            loss = F.cross_entropy(network(_inner(augmented(images[batch].float(), generator))), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        yield total / steps


def _inner(images: Tensor) -> Tensor:
    """Channels innermost in memory."""
    return images.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(network: nn.Module, samples: tuple[Tensor, Tensor]) -> float:
    """Share of right answers."""
    network.eval()
    right = [
        network(x.float()).argmax(1) == y for x, y in zip(*(torch.split(part, 500) for part in samples), strict=True)
    ]
    return float(torch.cat(right).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--width", type=float, default=WIDTH)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train, test = loaded(arguments.data, arguments.seed)
    torch.manual_seed(arguments.seed)
    network = MobileNetV1(arguments.width)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a CPU
    start = time.perf_counter()
    for number, loss in enumerate(epochs(network, train, arguments.epochs, arguments.seed), 1):
        seconds = time.perf_counter() - start
        print(f"epoch {number}/{arguments.epochs}  loss {loss:.4f}  {seconds:.0f} s", flush=True)
    state = network.state_dict()
    save_file({key: state[key].contiguous() for key in state if "num_batches" not in key}, arguments.output)
    print(f"test accuracy {accuracy(network, test):.4f}; wrote {arguments.output}")


if __name__ == "__main__":
    main()
