"""The float graph: what capture makes of a PyTorch network, and what every later stage starts from.

One node here becomes one node of the integer graph, under the same name: batch norms are folded, clips and residuals
fused. It holds numpy arrays alone, so that it can be stored in a run directory and read back without PyTorch code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.ir import Shape, Window

WEIGHTED = ("conv2d", "linear")
"""The kinds that carry weights: the layers that are given bits."""

PASS_THROUGH = ("max_pool2d", "flatten")
"""The kinds whose output has the type and scale of their input."""


@dataclass(frozen=True)
class Clip:
    """Bounds on a real value: (0, inf) is a ReLU, (0, 6) a ReLU6, (-1, 1) a hardtanh."""

    lo: float
    hi: float

    def after(self, other: Clip | None) -> Clip:
        """The one clip that does what the other and then this one do: this one applied to the other's bounds.

        >>> Clip(8.0, 9.0).after(Clip(0.0, 6.0))  # every result of the first lies under 8
        Clip(lo=8.0, hi=8.0)
        """
        if other is None:
            return self
        lo, hi = (min(max(bound, self.lo), self.hi) for bound in (min(other.lo, other.hi), other.hi))
        return Clip(lo, hi)


@dataclass(frozen=True, eq=False)
class FloatNode:
    """One operator on reals.

    Attributes:
        name: the module path it came from, unique; the layer's name from here on.
        kind: a key of `hawq_tvm.core.ops.OPS`, or ``clip``, ``pad`` and ``affine``, which the passes of capture fold
            away (a ``clip`` that nothing can take stays, and becomes a requantize).
        inputs: names of values; a fused residual comes second.
        shape: of one output sample.
        weight: float32 [out, in / groups, kh, kw] or [out, in]; of an ``affine`` its factor [C].
        bias: float32 [out]; of an ``affine`` its offset [C].
        window: of convolutions, pools and ``pad`` (its pads alone).
        groups: of convolutions.
        counts: float32 [OH, OW], of ``avg_pool2d``: how many elements each window's sum is divided by.
        clip: applied to the result, after a residual.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: Shape
    weight: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None
    window: Window | None = None
    groups: int = 1
    counts: NDArray[np.float32] | None = None
    clip: Clip | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates a sample."""
        if self.weight is None or self.kind not in WEIGHTED:
            return 0
        return prod(self.shape) * prod(self.weight.shape[1:])


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """A captured network: one input, one output, nodes in topological order."""

    name: str
    input_name: str
    input_shape: Shape
    nodes: tuple[FloatNode, ...]
    output: str

    def __iter__(self) -> Iterator[FloatNode]:
        return iter(self.nodes)

    @property
    def by_name(self) -> dict[str, FloatNode]:
        return {node.name: node for node in self.nodes}

    @property
    def layers(self) -> tuple[FloatNode, ...]:
        """The nodes with weights, in order: what the allocator gives bits to."""
        return tuple(node for node in self.nodes if node.kind in WEIGHTED)

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every value, the input's too, of one sample."""
        return {self.input_name: self.input_shape, **{node.name: node.shape for node in self.nodes}}

    @property
    def users(self) -> dict[str, list[FloatNode]]:
        """Who reads each value, once per read."""
        table: dict[str, list[FloatNode]] = {self.input_name: [], **{node.name: [] for node in self.nodes}}
        for node in self.nodes:
            for name in node.inputs:
                table[name].append(node)
        return table

    def source(self, value: str) -> str:
        """The value that `value` is a view of, through max-pools and flattens."""
        table = self.by_name
        while value in table and table[value].kind in PASS_THROUGH:
            value = table[value].inputs[0]
        return value

    def nonnegative(self) -> dict[str, bool]:
        """Which values cannot be negative, whatever the input: those that follow a ReLU, through pools and sums.

        An ``affine`` keeps the sign if neither its factors nor its offsets are negative, and a clip if its upper bound
        is not: ``min(x, -1)`` is negative for every x.
        """
        known = {self.input_name: False}
        for node in self.nodes:
            keeps = node.kind not in WEIGHTED and all(known[name] for name in node.inputs)
            if node.kind == "affine":
                keeps = keeps and all(part is not None and (part >= 0).all() for part in (node.weight, node.bias))
            clip = node.clip or Clip(-np.inf, np.inf)
            known[node.name] = bool(clip.hi >= 0 and (clip.lo >= 0 or keeps))
        return known

    def tied_groups(self) -> tuple[tuple[str, ...], ...]:
        """Layers whose bits must agree.

        Those that read the same value, so that it is stored once. A normalisation of the input that capture could not
        fold counts as a part of the layer that reads it: what holds the first layer holds both.
        """
        readers: dict[str, list[str]] = {}
        normalisations = []
        for node in self.layers:
            source = self.source(node.inputs[0])
            readers.setdefault(source, []).append(node.name)
            if source == self.input_name and _scales_channels(node):
                normalisations.append(node.name)
        for name in normalisations:
            if name in readers:
                readers[name].insert(0, name)
        return tuple(tuple(names) for names in readers.values() if len(names) > 1)


def _scales_channels(node: FloatNode) -> bool:
    """Whether a layer multiplies each channel by its own factor, as a normalisation does."""
    if node.kind != "conv2d" or node.weight is None or len(node.inputs) != 1:
        return False
    return node.weight.shape == (node.groups, 1, 1, 1) and node.window == Window((1, 1))
