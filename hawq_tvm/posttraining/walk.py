"""Rounding the weights of a network: one walk over its graph, float and quantised values side by side.

Each layer is rounded on the inputs that it will really see, those of the layers rounded before it, towards the outputs
of the float network, the error of its residual included; what is left in the mean and the spread of each channel is
corrected. So errors are made up for where they arise, and do not grow from layer to layer.

    for each layer:  moments of inputs and wanted outputs -> integers and scales -> slope and bias -> its results

The samples pass in pieces, which run side by side. A piece is as large as it is whatever the number of threads, runs on
one of them, and sums are taken in the pieces' order: the same samples give the same integers on any number of threads.
A layer is handed out as soon as it is found, and a walk that is given the layers of an earlier one does not find them
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import prod
from operator import add
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import clipped, evaluate, weighted
from hawq_tvm.backends.pytorch.threads import iterate_pieces, one_thread
from hawq_tvm.calibration.corrections import ResultSums, corrections
from hawq_tvm.calibration.moments import ROWS, MomentSums, outputs_at, patches, positions
from hawq_tvm.calibration.rounding import Rounded
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.float_ir import WEIGHTED, FloatGraph, FloatNode
from hawq_tvm.core.quantizer import FloatArray, LayerWeights
from hawq_tvm.posttraining.simulate import SimulatedNetwork
from hawq_tvm.posttraining.solve import LayerRounding, live_inputs
from hawq_tvm.settings import RoundingSettings

_T = TypeVar("_T")

PIECE = 8
"""Samples that pass at once."""

_MOST_BYTES = 4 << 30  # of the values of all samples


@dataclass(frozen=True)
class Found:
    """What was found for one layer.

    Attributes:
        integers: int8 [out, ...].
        scales: float64 [out], before the slope.
        slope: float64 [out], by which the scales are multiplied.
        offset: float64 [out], which is added to the bias.
    """

    integers: Tensor
    scales: Tensor
    slope: Tensor
    offset: Tensor

    @classmethod
    def of(cls, node: FloatNode, rounded: Rounded) -> Found:
        """A layer without corrections."""
        scales = rounded.scales.flatten()
        integers = rounded.integers.to(torch.int8).reshape(_weight(node).shape)
        return cls(integers, scales, torch.ones_like(scales), torch.zeros_like(scales))

    @property
    def weight(self) -> Tensor:
        """The reals that the integers stand for before the slope, float32 [out, ...]."""
        return (self.integers * self.scales.reshape(-1, *(1,) * (self.integers.dim() - 1))).float()

    def deployed(self, node: FloatNode, bits: int) -> LayerWeights:
        """The layer as it goes into the integer graph."""
        bias = (_bias(node).double() + self.offset).float()
        return LayerWeights(self.integers.numpy(), (self.scales * self.slope).numpy(), bias.numpy(), bits)


@dataclass
class _Piece:
    """Some of the samples on their way through the network.

    Attributes:
        index: which of the pieces.
        real: live values of the float network, float32 [N, ...].
        quantised: the same of the quantised one.
        wanted: of the layer at hand, its float results before bias, residual and clip.
        got: the same of its integers on quantised inputs, before the slope.
    """

    index: int
    real: dict[str, Tensor]
    quantised: dict[str, Tensor]
    wanted: Tensor = field(default_factory=lambda: torch.zeros(0))
    got: Tensor = field(default_factory=lambda: torch.zeros(0))

    def drift(self, node: FloatNode) -> Tensor | None:
        """What a layer is to make up for beside its own error: that of its residual; None where it has none."""
        residual = node.inputs[1:]
        return self.real[residual[0]] - self.quantised[residual[0]] if residual else None


@dataclass(frozen=True)
class _Seen:
    """What a layer is given: bool [C], which channels are not always 0; and sums, where they decide anything."""

    live: Tensor
    sums: MomentSums | None = None

    def __add__(self, other: _Seen) -> _Seen:
        sums = None if self.sums is None or other.sums is None else self.sums + other.sums
        return _Seen(self.live | other.live, sums)


class Walk:
    """Rounds every layer of a network, in its order."""

    def __init__(
        self,
        graph: FloatGraph,
        types: ActivationTypes,
        settings: RoundingSettings,
        *,
        scales: Mapping[str, FloatArray] | None = None,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        """Look at a network.

        Args:
            graph: from capture.
            types: of its values, under the bits that it will have.
            settings: how weights are rounded.
            scales: of weights, float64 [out] by layer, to be taken as they are.
            seed: of the choice of output positions.
            threads: pieces that run side by side.
        """
        self.graph = graph
        self._types = types
        self._settings = settings
        self._scales = scales or {}
        self._seed = seed
        self._threads = threads
        self._simulated = SimulatedNetwork(graph, types)
        self._index = {node.name: index for index, node in enumerate(graph)}

    @torch.no_grad()
    @one_thread()
    def run(
        self,
        samples: Iterable[Tensor],
        *,
        done: Mapping[str, Found] | None = None,
        keep: Callable[[str, Found], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, LayerWeights]:
        """Round every layer.

        Args:
            samples: float32 [N, ...] pieces, at least one, the same each time.
            done: what an earlier walk over them had found.
            keep: is given each layer as it is found.
            progress: called with the number of layers done.

        Returns:
            What each layer is deployed with.
        """
        start = self.graph.input_name
        pieces = [_Piece(i, {start: x}, {start: self._simulated.start(x)}) for i, x in enumerate(samples)]
        unread = {value: len(users) for value, users in self.graph.users.items()}
        deployed: dict[str, LayerWeights] = {}
        for node in self.graph:
            if node.kind in WEIGHTED:
                found = (done or {}).get(node.name)
                if found is None:
                    found = self._find(node, pieces)
                    if keep is not None:
                        keep(node.name, found)
                else:
                    _exhaust(self._multiply(node, pieces, found))
                deployed[node.name] = found.deployed(node, self._bits(node))
                self._finish(node, pieces, found, deployed[node.name])
                if progress is not None:
                    progress(len(deployed))
            else:
                self._pass(node, pieces)
            for value in node.inputs:
                unread[value] -= 1
                if unread[value] == 0 and value != self.graph.output:
                    for piece in pieces:
                        del piece.real[value], piece.quantised[value]
        return deployed

    def _bits(self, node: FloatNode) -> int:
        return self._types.bits.layers[node.name].weight

    def _each(self, pieces: Sequence[_Piece], work: Callable[[_Piece], _T]) -> Iterator[_T]:
        """What `work` makes of each piece, in order."""
        return iterate_pieces(work, pieces, self._threads)

    def _pass(self, node: FloatNode, pieces: Sequence[_Piece]) -> None:
        """Take the values past a node without weights."""
        counts = None if node.counts is None else torch.from_numpy(node.counts)

        def work(piece: _Piece) -> None:
            real = evaluate(node, [piece.real[value] for value in node.inputs], counts=counts)
            piece.real[node.name] = clipped(real, node.clip)
            piece.quantised[node.name] = self._simulated.node(node, [piece.quantised[value] for value in node.inputs])

        _exhaust(self._each(pieces, work))

    def _find(self, node: FloatNode, pieces: Sequence[_Piece]) -> Found:
        """Integers and corrections of one layer."""
        rounding = LayerRounding(node, self._bits(node), self._settings, scales=self._scales.get(node.name))
        rows = ROWS // sum(len(piece.real[node.inputs[0]]) for piece in pieces) if rounding.needs_moments else None
        seen = reduce(add, self._each(pieces, lambda piece: self._look(node, piece, rows)))
        rounded = rounding.solve(live_inputs(node, seen.live), None if seen.sums is None else seen.sums.moments())
        found = Found.of(node, rounded)
        sums = reduce(add, self._multiply(node, pieces, found))
        slope = self._settings.slope and not rounding.keeps_scales
        factor, offset = corrections(sums, slope=slope, bias=self._settings.bias)
        return replace(found, slope=factor, offset=offset)

    def _look(self, node: FloatNode, piece: _Piece, rows: int | None) -> _Seen:
        """Compute what a layer should give, and see what it is given.

        Args:
            node: the layer.
            piece: of the samples.
            rows: positions a sample that moments are taken over; None for no moments.
        """
        x = self._read(node, piece)
        piece.wanted = weighted(node, piece.real[node.inputs[0]], _weight(node), None)
        live = (x != 0).transpose(0, 1).flatten(1).any(1)
        if rows is None:
            return _Seen(live)
        at = positions(node, rows, np.random.default_rng((self._seed, self._index[node.name], piece.index)))
        drift = piece.drift(node)
        wanted = outputs_at(node, piece.wanted if drift is None else piece.wanted + drift, at)
        return _Seen(live, MomentSums.of(patches(node, x, at), wanted))

    def _read(self, node: FloatNode, piece: _Piece) -> Tensor:
        return self._simulated.reads(node, piece.quantised[node.inputs[0]])

    def _multiply(self, node: FloatNode, pieces: Sequence[_Piece], found: Found) -> Iterator[ResultSums]:
        """Compute what a layer gives, in integers and, where that is not done yet, in reals."""
        weight = found.weight

        def work(piece: _Piece) -> ResultSums:
            if not piece.wanted.numel():
                piece.wanted = weighted(node, piece.real[node.inputs[0]], _weight(node), None)
            piece.got = weighted(node, self._read(node, piece), weight, None)
            return ResultSums.of(piece.wanted, piece.got, piece.drift(node))

        return self._each(pieces, work)

    def _finish(self, node: FloatNode, pieces: Sequence[_Piece], found: Found, deployed: LayerWeights) -> None:
        """Both networks' results of a layer."""
        slope, step = found.slope.float(), deployed.scales * self._types.reads(node).scale
        bias = torch.from_numpy((np.floor(deployed.bias / step + 0.5) * step).astype(np.float32))

        def work(piece: _Piece) -> None:
            real = piece.wanted + _channels(_bias(node), piece.wanted)
            quantised = piece.got.mul_(_channels(slope, piece.got)).add_(_channels(bias, piece.got))
            for residual in node.inputs[1:]:
                real += piece.real[residual]
                quantised += piece.quantised[residual]
            piece.real[node.name] = clipped(real, node.clip)
            piece.quantised[node.name] = self._simulated.settle(node, quantised)
            piece.wanted = piece.got = torch.zeros(0)

        _exhaust(self._each(pieces, work))


def samples_that_fit(graph: FloatGraph) -> int:
    """How many samples a walk may keep the values of at one time, at least one."""
    shapes, unread = graph.shapes, {value: len(users) for value, users in graph.users.items()}
    live = most = prod(graph.input_shape)
    for node in graph:
        live += prod(node.shape)
        most = max(most, live + prod(node.shape))  # wanted and got results stand beside those of both networks
        for value in node.inputs:
            unread[value] -= 1
            if unread[value] == 0 and value != graph.output:
                live -= prod(shapes[value])
    return max(1, _MOST_BYTES // (2 * 4 * most))


def _weight(node: FloatNode) -> Tensor:
    assert node.weight is not None
    return torch.from_numpy(node.weight)


def _bias(node: FloatNode) -> Tensor:
    assert node.bias is not None
    return torch.from_numpy(node.bias)


def _channels(values: Tensor, like: Tensor) -> Tensor:
    """[out] as it stands beside [N, out, ...]."""
    return values.reshape(-1, *(1,) * (like.dim() - 2))


def _exhaust(results: Iterator[object]) -> None:
    for _ in results:
        pass
