"""The float graph: what capture makes of a PyTorch network, and what every later stage starts from.

One node here becomes one node of the integer graph, under the same name: batch norms are folded, clips and residuals
fused. It holds numpy arrays alone, so that it can be stored in a run directory and read back without PyTorch code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan, prod

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.errors import GraphError
from hawq_tvm.core.ir import Shape, Window

WEIGHTED = ("conv2d", "linear")
"""The kinds that carry weights: the layers that are given bits."""

PASS_THROUGH = ("max_pool2d", "flatten", "pad_channels")
"""The kinds whose output has the type and scale of their input."""


MOST_ELEMENTS = 1 << 31
"""The most elements of one value of one sample."""


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
        channel_pads: of ``pad_channels``: how many channels of zeros stand before and after those of the input.
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
    channel_pads: tuple[int, int] | None = None

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

    def check(self) -> None:
        """Raise `GraphError` unless the graph is whole: what holds after capture, and of a file that is read back.

        Names are unique, every value is made before it is read, shapes are those that the operators give, and all
        constants are there, of float32, of the shapes that fit, and finite.
        """
        shapes = {self.input_name: self.input_shape}
        _check_size(self.input_name, self.input_shape)
        for node in self.nodes:
            if node.name in shapes:
                raise GraphError(f"two values are named {node.name!r}")
            missing = [name for name in node.inputs if name not in shapes]
            if missing:
                raise GraphError(f"node {node.name!r} reads {missing[0]!r}, which no earlier node makes")
            _check_size(node.name, node.shape)
            try:
                shape = _result_shape(node, [shapes[name] for name in node.inputs])
            except GraphError as error:
                raise GraphError(f"node {node.name!r} ({node.kind}): {error}") from error
            if shape != node.shape:
                raise GraphError(f"node {node.name!r} ({node.kind}) makes {shape} and is said to make {node.shape}")
            shapes[node.name] = shape
        if self.output not in shapes:
            raise GraphError(f"the output {self.output!r} is made by no node")

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

    @property
    def last_reads(self) -> tuple[tuple[str, ...], ...]:
        """For each node, the values that it is the last to read; the output, which outlives all, is none of them."""
        last = {name: index for index, node in enumerate(self.nodes) for name in node.inputs if name != self.output}
        ends: list[list[str]] = [[] for _ in self.nodes]
        for name, index in last.items():
            ends[index].append(name)
        return tuple(map(tuple, ends))

    def source(self, value: str) -> str:
        """The value whose integers `value` holds, through max-pools, flattens and channels of zeros."""
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


# what `check` holds a node to


def _check_size(name: str, shape: Shape) -> None:
    if not shape or min(shape) < 1 or prod(shape) > MOST_ELEMENTS:
        raise GraphError(f"value {name!r} has the shape {shape}, expected 1 to {MOST_ELEMENTS:,} elements a sample")


def _result_shape(node: FloatNode, inputs: list[Shape]) -> Shape:
    """The shape that a node makes of its inputs, its constants looked at on the way."""
    if node.clip is not None and (isnan(node.clip.lo) or isnan(node.clip.hi)):
        raise GraphError(f"it clips to {node.clip}")
    if node.kind not in _INPUTS:
        raise GraphError(f"it is of no known kind; known are {', '.join(_INPUTS)}")
    if len(inputs) not in _INPUTS[node.kind]:
        raise GraphError(f"it reads {len(inputs)} values")
    if node.kind in WEIGHTED:
        shape = _weighted_shape(node, inputs[0])
        if inputs[1:] not in ([], [shape]):
            raise GraphError(f"it adds {inputs[1]} to a result of {shape}")
        return shape
    if node.kind in ("add", "concat"):
        least = 0 if node.kind == "add" else 1  # the axis from which shapes agree
        if any(shape[least:] != inputs[0][least:] for shape in inputs):
            raise GraphError(f"it joins values of the shapes {inputs}")
        return inputs[0] if node.kind == "add" else (sum(shape[0] for shape in inputs), *inputs[0][1:])
    if node.kind == "flatten":
        return (prod(inputs[0]),)
    if node.kind == "clip":
        if node.clip is None:
            raise GraphError("it has no bounds")
        return inputs[0]
    channels, height, width = _image(inputs[0])
    if node.kind == "global_avg_pool2d":
        return channels, 1, 1
    if node.kind == "pad_channels":
        if node.channel_pads is None or min(node.channel_pads) < 0:
            raise GraphError(f"it adds channels {node.channel_pads}, expected two numbers of at least 0")
        return sum(node.channel_pads) + channels, height, width
    if node.window is None:
        raise GraphError("it has no window")
    sizes = node.window.output_size(height, width)
    if node.kind == "avg_pool2d":
        counts = _constant(node.counts, "counts", sizes)
        if not (counts > 0).all():
            raise GraphError("its counts are not all above 0")
    return channels, *sizes


def _weighted_shape(node: FloatNode, x: Shape) -> Shape:
    weight = _constant(node.weight, "weight")
    _constant(node.bias, "bias", weight.shape[:1])
    if node.kind == "linear":
        if weight.ndim != 2 or x != weight.shape[1:]:
            raise GraphError(f"its weight {weight.shape} does not fit an input of {x}")
        return weight.shape[:1]
    channels, height, width = _image(x)
    window, groups = node.window, node.groups
    if window is None or weight.ndim != 4 or weight.shape[2:] != window.kernel:
        raise GraphError(f"its weight {weight.shape} does not fit its window {window}")
    if groups < 1 or len(weight) % groups or channels != weight.shape[1] * groups:
        raise GraphError(f"its weight {weight.shape} in {groups} groups does not fit {channels} channels")
    return len(weight), *window.output_size(height, width)


def _image(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise GraphError(f"it takes [C, H, W], got {shape}")
    return shape[0], shape[1], shape[2]


def _constant(array: NDArray[np.float32] | None, what: str, shape: Shape | None = None) -> NDArray[np.float32]:
    if array is None or array.dtype != np.float32 or not array.size or (shape is not None and array.shape != shape):
        found = "none" if array is None else f"{array.dtype} {array.shape}"
        raise GraphError(f"its {what} is {found}, expected float32 {'' if shape is None else shape}".rstrip())
    if not np.isfinite(array).all():
        raise GraphError(f"its {what} holds NaN or infinity")
    return array


_ONE, _TWO = range(1, 2), range(2, 3)
_INPUTS: dict[str, range] = {
    **dict.fromkeys(WEIGHTED, range(1, 3)),  # the second is a fused residual
    "add": _TWO,
    "concat": range(1, 1 << 16),
    **dict.fromkeys((*PASS_THROUGH, "avg_pool2d", "global_avg_pool2d", "clip"), _ONE),
}
"""How many values each kind reads; ``pad`` and ``affine`` are folded before a graph is kept."""
