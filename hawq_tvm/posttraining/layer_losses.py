"""The loss that one changed layer causes in a network: measured, not predicted.

The loss is how far the network's result moves from that of a reference, the float network, averaged over samples
(`hawq_tvm.posttraining.divergence`). It needs no labels.

Samples pass in pieces, each once through the network in its order. At a layer with changes, only the rest of the
network is run for each of them, from the values that are live there: on average half a network a change. Pieces run
side by side (`hawq_tvm.backends.pytorch.threads`), each keeps its live values alone, and sums are taken in the pieces'
order, so that the same samples give the same losses on any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import clipped, evaluate
from hawq_tvm.backends.pytorch.threads import iterate_pieces
from hawq_tvm.core.errors import SensitivityError
from hawq_tvm.core.float_ir import PASS_THROUGH, WEIGHTED, FloatGraph, FloatNode
from hawq_tvm.posttraining.divergence import output_divergence
from hawq_tvm.posttraining.simulate import Grid

Key = TypeVar("Key", bound=Hashable)

PIECE = 4
"""Samples that pass at once: their values stay in memory together, and more were not seen to be faster."""

_JOINING = (*PASS_THROUGH, "concat", "clip")
"""The kinds whose result is made of their inputs' elements as they are."""


class Network(Protocol):
    """A float graph that computes in some way: `RealNetwork`, or `hawq_tvm.posttraining.simulate.SimulatedNetwork`.

    Attributes:
        graph: from capture.
        weights: float32 by layer.
        biases: float32 [out] by layer.
    """

    graph: FloatGraph
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]

    def start(self, x: Tensor) -> Tensor:
        """The network's input as it is stored."""

    def reads(self, node: FloatNode, x: Tensor) -> Tensor:
        """What a layer with weights reads of its first input, as that is stored."""

    def settle(self, node: FloatNode, result: Tensor) -> Tensor:
        """A node's result, before its clip, as it is stored."""


class RealNetwork:
    """The float network: nothing is rounded."""

    def __init__(self, graph: FloatGraph) -> None:
        self.graph = graph
        self.weights = {node.name: torch.from_numpy(node.weight) for node in graph.layers if node.weight is not None}
        self.biases = {node.name: torch.from_numpy(node.bias) for node in graph.layers if node.bias is not None}

    def start(self, x: Tensor) -> Tensor:
        return x

    def reads(self, node: FloatNode, x: Tensor) -> Tensor:
        return x

    def settle(self, node: FloatNode, result: Tensor) -> Tensor:
        return clipped(result, node.clip)


@dataclass(frozen=True, eq=False)
class Change:
    """What is otherwise in one layer.

    Attributes:
        layer: its name.
        weight: float32 [out, ...] instead of the network's; None leaves it.
        bias: float32 [out] instead of the network's; None leaves it.
        reads: the grid that its first input is brought to; None leaves what the network makes it read.
        exact: whether it reads its first input as it was before it was rounded to be stored.
    """

    layer: str
    weight: Tensor | None = None
    bias: Tensor | None = None
    reads: Grid | None = None
    exact: bool = False


@dataclass(frozen=True)
class _Live:
    """The values that are live at some node, float32 [N, ...] by name: as they are stored, and before that."""

    stored: dict[str, Tensor]
    exact: dict[str, Tensor]


class _Runner:
    """Runs a network, whole or from a node on, with one layer changed."""

    def __init__(self, network: Network, *, keeps_exact: bool = False) -> None:
        self.network = network
        self.nodes = network.graph.nodes
        self._keeps_exact = keeps_exact
        self._ends = network.graph.last_reads

    def _result(self, node: FloatNode, inputs: Sequence[Tensor], change: Change | None = None) -> Tensor:
        """A node's result before clip and storing, its first input as it is read."""
        weight, bias = self.network.weights.get(node.name), self.network.biases.get(node.name)
        if change is not None:
            weight = weight if change.weight is None else change.weight
            bias = bias if change.bias is None else change.bias
        counts = None if node.counts is None else torch.from_numpy(node.counts)
        return evaluate(node, inputs, weight, bias, counts)

    def _inputs(self, node: FloatNode, stored: Mapping[str, Tensor]) -> list[Tensor]:
        first, *rest = (stored[name] for name in node.inputs)
        return [self.network.reads(node, first) if node.kind in WEIGHTED else first, *rest]

    def changed(self, node: FloatNode, change: Change, live: _Live) -> Tensor:
        """The result of a changed layer, before clip and storing."""
        first, *rest = self._inputs(node, live.stored)
        first = live.exact[node.inputs[0]] if change.exact else first
        return self._result(node, [first if change.reads is None else change.reads.nearest(first), *rest], change)

    def walk(self, x: Tensor) -> Iterator[tuple[int, FloatNode, _Live]]:
        """Run the network, and stop before each layer with weights: its index, itself, and what is live."""
        start = self.network.graph.input_name
        live = _Live({start: self.network.start(x)}, {start: x} if self._keeps_exact else {})
        for index, node in enumerate(self.nodes):
            if node.kind in WEIGHTED:
                yield index, node, live
            result = self._result(node, self._inputs(node, live.stored))
            if self._keeps_exact:
                joined = node.kind in _JOINING
                exact = self._result(node, [live.exact[name] for name in node.inputs]) if joined else result
                live.exact[node.name] = clipped(exact, node.clip)
            live.stored[node.name] = self.network.settle(node, result)
            for name in self._ends[index]:
                live.stored.pop(name)
                live.exact.pop(name, None)

    def rest(self, index: int, result: Tensor, live: _Live) -> Tensor:
        """The network's result, where the node at `index` has the result `result` before clip and storing."""
        values = dict(live.stored)
        values[self.nodes[index].name] = self.network.settle(self.nodes[index], result)
        for name in self._ends[index]:
            del values[name]
        return self._onward(index + 1, values)

    def run(self, x: Tensor) -> Tensor:
        """The network's result."""
        return self._onward(0, {self.network.graph.input_name: self.network.start(x)})

    def _onward(self, index: int, values: dict[str, Tensor]) -> Tensor:
        """The network's result from the values that are live before the node at `index`, which are given up."""
        for node, ends in zip(self.nodes[index:], self._ends[index:], strict=True):
            values[node.name] = self.network.settle(node, self._result(node, self._inputs(node, values)))
            for name in ends:
                del values[name]
        return values[self.network.graph.output]


def _loss(wanted: Tensor, got: Tensor) -> float:
    """The loss of one piece, summed over its samples."""
    return float(output_divergence(wanted, got).sum())


@torch.no_grad()
def layer_losses(
    network: Network,
    changes: Mapping[Key, Change],
    pieces: Iterable[Tensor],
    *,
    reference: Network,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[Key, float]:
    """What the network loses with each change alone, as a mean over samples.

    Args:
        network: that is changed.
        changes: by any key.
        pieces: float32 [N, ...] samples.
        reference: whose results are wanted.
        threads: pieces that run side by side.
        progress: called with the number of samples done.

    Raises:
        SensitivityError: no samples, or a result that is not finite.
    """
    runner = _Runner(network, keeps_exact=any(change.exact for change in changes.values()))
    wanted = _Runner(reference)
    by_layer = _by_layer(changes)

    def losses(x: Tensor) -> tuple[int, dict[Key, float]]:
        expected, found = wanted.run(x), dict[Key, float]()
        for index, node, live in runner.walk(x):
            for key, change in by_layer.get(node.name, ()):
                got = runner.rest(index, runner.changed(node, change, live), live)
                found[key] = _loss(expected, got)
        return len(x), found

    sums, total = dict.fromkeys(changes, 0.0), 0
    for count, found in iterate_pieces(losses, pieces, threads):
        total += count
        for key, loss in found.items():
            sums[key] += loss
        if progress is not None:
            progress(total)
    _check(total, {changes[key].layer: loss for key, loss in sums.items()})
    return {key: loss / total for key, loss in sums.items()}


@torch.no_grad()
def network_loss(network: Network, pieces: Iterable[Tensor], *, reference: Network, threads: int = 1) -> float:
    """What a network loses beside a reference, as a mean over samples.

    Args:
        network: with all that is rounded in it.
        pieces: float32 [N, ...] samples.
        reference: whose results are wanted.
        threads: pieces that run side by side.

    Raises:
        SensitivityError: no samples, or a result that is not finite.
    """
    runner, wanted = _Runner(network), _Runner(reference)
    total, loss = 0, 0.0
    for count, found in iterate_pieces(lambda x: (len(x), _loss(wanted.run(x), runner.run(x))), pieces, threads):
        total, loss = total + count, loss + found
    _check(total, {network.graph.output: loss})
    return loss / total


@torch.no_grad()
def mean_results(
    network: Network, changes: Mapping[Key, Change], pieces: Iterable[Tensor], *, threads: int = 1
) -> dict[Key, Tensor]:
    """Each output channel's mean over samples and positions, residual included, before clip and storing.

    Args:
        network: that is changed.
        changes: by any key; each alone.
        pieces: float32 [N, ...] samples.
        threads: pieces that run side by side.

    Returns:
        float64 [out] by key.

    Raises:
        SensitivityError: no samples.
    """
    runner = _Runner(network, keeps_exact=any(change.exact for change in changes.values()))
    by_layer = _by_layer(changes)

    def means(x: Tensor) -> tuple[int, dict[Key, Tensor]]:
        found = dict[Key, Tensor]()
        for _, node, live in runner.walk(x):
            for key, change in by_layer.get(node.name, ()):
                result = runner.changed(node, change, live)
                over = tuple(dim for dim in range(result.dim()) if dim != 1)
                found[key] = result.double().mean(over) * len(x)
        return len(x), found

    sums, total = dict[Key, Tensor](), 0
    for count, found in iterate_pieces(means, pieces, threads):
        total += count
        for key, mean in found.items():
            sums[key] = sums[key] + mean if key in sums else mean
    _check(total, {})
    return {key: mean / total for key, mean in sums.items()}


def with_means_of(
    reference: Network,
    network: Network,
    changes: Mapping[Key, Change],
    pieces: Callable[[], Iterable[Tensor]],
    *,
    threads: int = 1,
) -> dict[Key, Change]:
    """The same changes, with the biases that give each channel its mean in the reference: rounding corrects them so.

    Args:
        reference: the float network.
        network: that is changed; what its other layers do to a layer's input is made up for too.
        changes: by any key.
        pieces: gives the samples, float32 [N, ...], each time that it is called.
        threads: pieces that run side by side.
    """
    layers = {change.layer: Change(change.layer) for change in changes.values()}
    wanted = mean_results(reference, layers, pieces(), threads=threads)
    got = mean_results(network, changes, pieces(), threads=threads)
    corrected = {}
    for key, change in changes.items():
        bias = network.biases[change.layer] if change.bias is None else change.bias
        corrected[key] = replace(change, bias=(bias.double() + wanted[change.layer] - got[key]).float())
    return corrected


def _by_layer(changes: Mapping[Key, Change]) -> dict[str, list[tuple[Key, Change]]]:
    table: dict[str, list[tuple[Key, Change]]] = {}
    for key, change in changes.items():
        table.setdefault(change.layer, []).append((key, change))
    return table


def _check(samples: int, losses: Mapping[str, float]) -> None:
    if not samples:
        raise SensitivityError("there are no samples to measure losses on; give at least one")
    for name, loss in losses.items():
        if not torch.isfinite(torch.tensor(loss)):
            raise SensitivityError(
                f"the network's result is not finite where '{name}' is quantised; check its weights and the samples"
            )
