"""The folding passes of capture: from one node an ATen operator to one node a layer.

Each pass takes a float graph and returns one that computes the same function; `check` holds between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hawq_tvm.core.errors import CaptureError, UnsupportedOperator
from hawq_tvm.core.float_ir import WEIGHTED, FloatGraph, FloatNode
from hawq_tvm.core.ir import Shape, Window
from hawq_tvm.frontend.constant_channels import fold_constant_channels, weights_by_group

Pass = Callable[[FloatGraph], FloatGraph]

MOST_ROW_GROWTH = 2.0
"""How far folding an affine forward may let a reader's weight scales grow: one bit of its weights is lost there.

Seen at 8 bits, on 32 channels of noise, one of them weaker: a growth of 1.4, 1.9, 2.5, 5 and 10 leaves 38, 36, 34, 31
and 25 dB of the result, and the affine as a layer of its own 39 dB and more.
"""

_CLIPPABLE = (*WEIGHTED, "add", "concat", "avg_pool2d", "global_avg_pool2d", "clip")
"""The kinds whose integer form ends in a rescale, and so can clip for free."""


def simplify(graph: FloatGraph) -> FloatGraph:
    """Run every pass in order."""
    check(graph)
    for step in PASSES:
        graph = step(graph)
        check(graph)
    return graph


def check(graph: FloatGraph) -> None:
    """Names are unique, every value is made before it is read, the output is there: an assertion of ours."""
    known = {graph.input_name}
    for node in graph:
        assert node.name not in known, f"two values are named {node.name}"
        assert all(name in known for name in node.inputs), f"{node.name} reads {node.inputs} before they are made"
        known.add(node.name)
    assert graph.output in known, f"nothing makes the output {graph.output}"


def drop_dead(graph: FloatGraph) -> FloatGraph:
    """Remove nodes that the output does not depend on."""
    live = {graph.output}
    for node in reversed(graph.nodes):
        if node.name in live:
            live.update(node.inputs)
    return replace(graph, nodes=tuple(node for node in graph if node.name in live))


def merge_subsamples(graph: FloatGraph) -> FloatGraph:
    """Every k-th row, then every l-th column of those: one step, which copies once."""
    for name in _each(graph, "max_pool2d"):
        columns = graph.by_name[name]
        rows = graph.by_name.get(columns.inputs[0])
        if rows is None or not (_subsamples(rows) and _subsamples(columns)):
            continue
        if len(graph.users[rows.name]) > 1 or rows.name == graph.output:
            continue
        assert rows.window is not None and columns.window is not None
        (a, b), (c, d) = rows.window.strides, columns.window.strides
        graph = _merge(graph, rows, columns, replace(rows, shape=columns.shape, window=Window((1, 1), (a * c, b * d))))
    return graph


def _subsamples(node: FloatNode) -> bool:
    """Whether a node takes single pixels at even distances from the first one on, and nothing else."""
    window = node.window
    return node.kind == "max_pool2d" and window is not None and window == Window((1, 1), window.strides)


def fold_pads(graph: FloatGraph) -> FloatGraph:
    """A constant zero pad becomes the padding of the windows that read it.

    A max-pool pads with minus infinity, so there it folds only where values cannot be negative and every window sees
    one of them.
    """
    while (pad := next((node for node in graph if node.kind == "pad"), None)) is not None:
        nonnegative = graph.nonnegative()[pad.inputs[0]]
        shapes = graph.shapes
        readers = graph.users[pad.name]
        if pad.name == graph.output or not readers:
            raise _unfoldable_pad(pad)
        table = graph.by_name
        for reader in readers:
            if reader.kind not in ("conv2d", "avg_pool2d", "pad", "max_pool2d"):
                raise _unfoldable_pad(pad)
            window = _padded(reader.window, pad.window)
            if reader.kind == "max_pool2d" and not (nonnegative and _pools_values(window, shapes[pad.inputs[0]])):
                raise _unfoldable_pad(pad)
            table[reader.name] = replace(reader, inputs=pad.inputs, window=window)
        nodes = tuple(table[node.name] for node in graph if node.name != pad.name)
        graph = replace(graph, nodes=nodes)
    return graph


def _padded(window: Window | None, pad: Window | None) -> Window:
    assert window is not None and pad is not None
    top, left, bottom, right = (a + b for a, b in zip(window.pads, pad.pads, strict=True))
    return replace(window, pads=(top, left, bottom, right))


def _pools_values(window: Window | None, size: Shape) -> bool:
    """Whether every window of a max-pool sees an element of its input [C, H, W], and ONNX Runtime takes its pads.

    ONNX Runtime refuses pads of the kernel's size and more (core/providers/cpu/nn/pool_attributes.h).
    """
    assert window is not None
    fits = all(pad < window.kernel[side % 2] for side, pad in enumerate(window.pads))
    return fits and window.sees_input(*size[1:])


def refuse_padded_windows(graph: FloatGraph) -> FloatGraph:
    """A window wholly in a max-pool's padding has no largest element; dilation and ceil_mode can make one."""
    shapes = graph.shapes
    for node in graph:
        if node.kind == "max_pool2d" and not _pools_values(node.window, shapes[node.inputs[0]]):
            raise UnsupportedOperator(
                "aten.max_pool2d",
                node.name,
                f"its padding reaches its kernel's size or holds whole windows ({node.window}); pad less",
            )
    return graph


def _unfoldable_pad(node: FloatNode) -> UnsupportedOperator:
    return UnsupportedOperator(
        "aten.pad",
        node.name,
        "a zero pad folds only into the convolutions or pools that read it; move it before one (a max-pool takes it "
        "only after a ReLU, where it is smaller than the kernel and every window sees a value)",
    )


def fold_affines(graph: FloatGraph) -> FloatGraph:
    """A batch norm, or a constant factor or offset per channel, folds into the layer that alone feeds it."""
    for name in _each(graph, "affine"):
        affine = graph.by_name[name]
        producer = graph.by_name.get(affine.inputs[0])
        foldable = producer is not None and producer.kind in (*WEIGHTED, "affine") and producer.clip is None
        if producer is None or not foldable or len(graph.users[producer.name]) > 1 or producer.name == graph.output:
            continue
        assert affine.weight is not None and affine.bias is not None
        assert producer.weight is not None and producer.bias is not None
        factor = affine.weight.astype(np.float64)
        weight = producer.weight * factor.reshape(-1, *(1,) * (producer.weight.ndim - 1))
        bias = producer.bias * factor + affine.bias
        merged = replace(producer, weight=weight.astype(np.float32), bias=bias.astype(np.float32))
        graph = _merge(graph, producer, affine, merged)
    return graph


def fold_affines_forward(graph: FloatGraph) -> FloatGraph:
    """An affine that nothing before it took, such as a network's own normalisation, folds into the layers that read it.

    ``W (f x + o) + b = (W f) x + (W o + b)``. A convolution pads its input with zeros, which the affine would have
    moved to ``o``: with padding an offset does not fold, and the affine stays. It stays too where its factors lie so
    far apart that a reader's weights would (`_row_growth`); on a vector nothing else has integers, and it folds.
    """
    for name in reversed(_each(graph, "affine")):
        affine = graph.by_name[name]
        readers = graph.users[name]
        assert affine.bias is not None
        padded = any(reader.window is not None and any(reader.window.pads) for reader in readers)
        layers_alone = bool(readers) and all(reader.kind in WEIGHTED for reader in readers)
        if name == graph.output or not layers_alone or (padded and affine.bias.any()):
            continue
        if len(affine.shape) == 3 and any(_row_growth(reader, affine) > MOST_ROW_GROWTH for reader in readers):
            continue
        table = graph.by_name
        for reader in readers:
            table[reader.name] = _absorb(reader, affine)
        graph = replace(graph, nodes=tuple(table[node.name] for node in graph if node.name != name))
    return graph


def _row_growth(layer: FloatNode, affine: FloatNode) -> float:
    """By how much more than the factors themselves a layer's weight scales would grow, were the affine folded into it.

    A row of weights, an output channel's, has one scale, which its largest weight sets, and the row's rounding errors
    grow with it. The factor that most of the row could do with is the lower quartile, those of 0 left out: dead
    channels, whose factors are huge, may be more than half. Returned is the root mean square over the rows.
    """
    assert layer.weight is not None and affine.weight is not None
    rows = weights_by_group(layer)
    factors = np.abs(affine.weight.astype(np.float64)).reshape(layer.groups, -1)
    before, after = (np.abs(part).max(axis=(2, 3)) for part in (rows, rows * factors[:, None, :, None]))
    typical = [np.quantile(row[row > 0], 0.25, method="lower") if row.any() else 1.0 for row in factors]
    growth = np.divide(after, before * np.array(typical)[:, None], out=np.zeros_like(after), where=before > 0)
    return float(np.sqrt(np.square(growth).mean()))


def _absorb(layer: FloatNode, affine: FloatNode) -> FloatNode:
    """The layer on the affine's input."""
    assert layer.weight is not None and layer.bias is not None
    assert affine.weight is not None and affine.bias is not None
    rows = weights_by_group(layer)
    of_columns = (layer.groups, 1, -1, 1)
    weight = (rows * affine.weight.reshape(of_columns)).reshape(layer.weight.shape)
    bias = layer.bias + (rows * affine.bias.reshape(of_columns)).sum(axis=(2, 3)).reshape(-1)
    return replace(layer, inputs=affine.inputs, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def expand_affines(graph: FloatGraph) -> FloatGraph:
    """What did not fold becomes a depthwise 1x1 convolution: the same function, in an operator that has integers."""
    nodes = []
    for node in graph:
        if node.kind == "affine":
            if len(node.shape) != 3:
                raise UnsupportedOperator(
                    "affine",
                    node.name,
                    "a batch norm or constant on a vector folds only into a linear layer next to it",
                )
            assert node.weight is not None
            weight = node.weight.reshape(-1, 1, 1, 1)
            node = replace(node, kind="conv2d", weight=weight, window=Window((1, 1)), groups=len(weight))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def fuse_clips(graph: FloatGraph) -> FloatGraph:
    """ReLU, ReLU6 and hardtanh become the clip bounds of the node that alone feeds them."""
    for name in _each(graph, "clip"):
        clip = graph.by_name[name]
        producer = graph.by_name.get(clip.inputs[0])
        if producer is None or producer.kind not in _CLIPPABLE:
            continue
        if len(graph.users[producer.name]) > 1 or producer.name == graph.output:
            continue
        assert clip.clip is not None
        graph = _merge(graph, producer, clip, replace(producer, clip=clip.clip.after(producer.clip)))
    return graph


def fuse_residuals(graph: FloatGraph) -> FloatGraph:
    """A sum becomes the residual of the later of its branches that is an unclipped layer read by nothing else.

    The layer moves to the place of the sum, where the other branch is there already.
    """
    for name in _each(graph, "add"):
        add = graph.by_name[name]
        position = {node.name: index for index, node in enumerate(graph)}
        users = graph.users
        branches = [graph.by_name.get(branch) for branch in add.inputs]
        layers = [
            node
            for node in branches
            if node is not None
            and node.kind in WEIGHTED
            and node.clip is None
            and len(node.inputs) == 1
            and len(users[node.name]) == 1
            and node.name != graph.output
        ]
        if not layers:
            continue
        layer = max(layers, key=lambda node: position[node.name])
        other = add.inputs[1] if add.inputs[0] == layer.name else add.inputs[0]
        merged = replace(layer, inputs=(*layer.inputs, other), clip=add.clip)
        graph = _merge(graph, layer, add, merged)
    return graph


def _each(graph: FloatGraph, kind: str) -> list[str]:
    """Names of the nodes of one kind: the nodes themselves change while earlier ones merge."""
    return [node.name for node in graph if node.kind == kind]


def _merge(graph: FloatGraph, producer: FloatNode, consumer: FloatNode, merged: FloatNode) -> FloatGraph:
    """Put `merged`, under the producer's name, in the place of the consumer; the producer goes."""
    name = producer.name
    nodes = []
    for node in graph:
        if node.name == producer.name:
            continue
        node = merged if node.name == consumer.name else node
        nodes.append(replace(node, inputs=tuple(name if x == consumer.name else x for x in node.inputs)))
    output = name if graph.output == consumer.name else graph.output
    return replace(graph, nodes=tuple(nodes), output=output)


def refuse_empty(graph: FloatGraph) -> FloatGraph:
    """A network without a convolution or linear layer has nothing to quantise."""
    if not graph.layers:
        raise CaptureError("the network has no convolution and no linear layer, so there is nothing to quantise")
    return graph


PASSES: tuple[Pass, ...] = (
    drop_dead,
    merge_subsamples,
    fold_pads,
    refuse_padded_windows,
    fold_affines,
    fold_constant_channels,
    fold_affines_forward,
    expand_affines,
    fuse_clips,
    fuse_residuals,
    refuse_empty,
)
