"""The folding passes of capture: from one node an ATen operator to one node a layer.

Each pass takes a float graph and returns one that computes the same function; `check` holds between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hawq_tvm.errors import CaptureError, UnsupportedOperator
from hawq_tvm.float_ir import WEIGHTED, FloatGraph, FloatNode
from hawq_tvm.ir import Window

Pass = Callable[[FloatGraph], FloatGraph]

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


def fold_pads(graph: FloatGraph) -> FloatGraph:
    """A constant zero pad becomes the padding of the windows that read it.

    A max-pool pads with minus infinity, so there it folds only where values cannot be negative.
    """
    while (pad := next((node for node in graph if node.kind == "pad"), None)) is not None:
        nonnegative = graph.nonnegative()[pad.inputs[0]]
        readers = graph.users[pad.name]
        if pad.name == graph.output or not readers:
            raise _unfoldable_pad(pad)
        table = graph.by_name
        for reader in readers:
            foldable = reader.kind in ("conv2d", "avg_pool2d", "pad") or (reader.kind == "max_pool2d" and nonnegative)
            if not foldable:
                raise _unfoldable_pad(pad)
            table[reader.name] = replace(reader, inputs=pad.inputs, window=_padded(reader.window, pad.window))
        nodes = tuple(table[node.name] for node in graph if node.name != pad.name)
        graph = replace(graph, nodes=nodes)
    return graph


def _padded(window: Window | None, pad: Window | None) -> Window:
    assert window is not None and pad is not None
    top, left, bottom, right = (a + b for a, b in zip(window.pads, pad.pads, strict=True))
    return replace(window, pads=(top, left, bottom, right))


def _unfoldable_pad(node: FloatNode) -> UnsupportedOperator:
    return UnsupportedOperator(
        "aten.pad", node.name, "a zero pad folds only into the convolutions or pools that read it; move it before one"
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


def expand_affines(graph: FloatGraph) -> FloatGraph:
    """What did not fold becomes a depthwise 1x1 convolution: the same function, in an operator that has integers."""
    nodes = []
    for node in graph:
        if node.kind == "affine":
            if len(node.shape) != 3:
                raise UnsupportedOperator(
                    "affine", node.name, "a batch norm or constant on a vector folds only into a linear layer before it"
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
    fold_pads,
    fold_affines,
    expand_affines,
    fuse_clips,
    fuse_residuals,
    refuse_empty,
)
