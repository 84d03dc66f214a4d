"""Networks that come with hawq_tvm, one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hawq_tvm.sources.zoo.resnet import resnet18, resnet20, resnet50


@dataclass(frozen=True)
class ZooEntry:
    """A network that comes with hawq_tvm.

    Attributes:
        make: builds it with random weights.
        input_shape: the sample shape that it was made for.
        weights: a checkpoint in this package, or None.
        trained_on: what those weights were trained on.
    """

    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    weights: Path | None = None
    trained_on: str = ""


ZOO: dict[str, ZooEntry] = {
    "resnet20": ZooEntry(
        resnet20, (3, 16, 16), Path(__file__).parent / "resnet20_digits.safetensors", "scikit-learn's digits"
    ),
    "resnet18": ZooEntry(resnet18, (3, 224, 224)),
    "resnet50": ZooEntry(resnet50, (3, 224, 224)),
}
"""Every network by its name."""
