"""One layer's work, as a simulator sees it: sizes alone, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from hawq_tvm.core.float_ir import FloatGraph, FloatNode


@dataclass(frozen=True)
class Workload:
    """A convolution or a fully connected layer, of one sample.

    A fully connected layer is a convolution of one pixel.

    Attributes:
        in_channels: of all groups.
        out_channels: of all groups.
        kernel: height and width of the window.
        output: height and width of the result.
        stride: of the window, down and across.
        groups: of channels that do not see one another.

    >>> Workload(3, 32, kernel=(3, 3), output=(112, 112), stride=(2, 2)).macs
    10838016
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    output: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        sizes = (self.in_channels, self.out_channels, *self.kernel, *self.output, *self.stride, self.groups)
        assert all(size >= 1 for size in sizes), self
        assert self.in_channels % self.groups == 0 and self.out_channels % self.groups == 0, self

    def __str__(self) -> str:
        """For messages."""
        kind = f"a {self.kernel[0]}x{self.kernel[1]} convolution" if self.pixels > 1 else "a layer of one pixel"
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"{kind} of {self.in_channels} to {self.out_channels} channels{groups}"

    @property
    def pixels(self) -> int:
        """Of the result."""
        return prod(self.output)

    @property
    def window(self) -> int:
        """What one result is summed over."""
        return self.in_channels // self.groups * prod(self.kernel)

    @property
    def weights(self) -> int:
        return self.out_channels * self.window

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.weights * self.pixels

    @property
    def is_depthwise(self) -> bool:
        """Whether each input channel has results of its own."""
        return self.groups == self.in_channels > 1


def workload_of(node: FloatNode) -> Workload:
    """The work of a layer of a captured network, ``conv2d`` or ``linear``."""
    assert node.weight is not None, node.name
    shape = node.weight.shape
    if node.window is None:
        return Workload(shape[1], shape[0])
    height, width = node.shape[1:]
    return Workload(
        shape[1] * node.groups,
        shape[0],
        kernel=(shape[2], shape[3]),
        output=(height, width),
        stride=node.window.strides,
        groups=node.groups,
    )


def workloads(graph: FloatGraph) -> dict[str, Workload]:
    """The work of every layer of a captured network, by the layer's name."""
    return {node.name: workload_of(node) for node in graph.layers}
