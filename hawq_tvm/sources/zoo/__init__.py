"""Networks that come with hawq_tvm, one row each; PyTorch is loaded when one is made."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ZooEntry:
    """A network that comes with hawq_tvm.

    Attributes:
        builder: the function that builds it, as ``file.function`` of this package.
        input_shape: the sample shape that it was made for.
        weights: a checkpoint in this package, or None.
        trained_on: what those weights were trained on.
    """

    builder: str
    input_shape: tuple[int, ...]
    weights: Path | None = None
    trained_on: str = ""

    def make(self) -> nn.Module:
        """The network with random weights."""
        file, function = self.builder.split(".")
        module: nn.Module = getattr(import_module(f"{__name__}.{file}"), function)()
        return module


ZOO: dict[str, ZooEntry] = {
    "resnet20": ZooEntry(
        "resnet.resnet20", (3, 16, 16), Path(__file__).parent / "resnet20_digits.safetensors", "scikit-learn's digits"
    ),
    "resnet18": ZooEntry("resnet.resnet18", (3, 224, 224)),
    "resnet50": ZooEntry("resnet.resnet50", (3, 224, 224)),
    "resnet50_v1": ZooEntry("resnet.resnet50_v1", (3, 224, 224)),
    "mobilenet_v1": ZooEntry("mobilenet.mobilenet_v1", (3, 224, 224)),
    **{
        name: ZooEntry(f"resnet.{name}", (3, 32, 32))
        for name in (f"resnet{depth}_cifar" for depth in (20, 32, 44, 56, 110))
    },
}
"""Every network by its name."""
