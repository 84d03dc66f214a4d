"""Rounding the weights of a network: one walk over its graph, float and quantised values side by side.

Each layer is rounded on the inputs that it will really see, those of the layers rounded before it, towards the outputs
of the float network, the error of its residual included; what is left in the mean and the spread of each channel is
corrected. So errors are made up for where they arise, and do not grow from layer to layer.

    for each layer:  moments of inputs and wanted outputs -> integers and scales -> slope and bias -> its results

A layer is handed out as soon as it is found, and a walk that is given the layers of an earlier one does not find them
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule, clipped, weighted
from hawq_tvm.backends.pytorch.threads import one_thread, run_pieces
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.dyadic import round_half_up
from hawq_tvm.core.float_ir import WEIGHTED, FloatGraph, FloatNode
from hawq_tvm.core.hashing import own_seed
from hawq_tvm.core.integerize import least_scales
from hawq_tvm.core.quantizer import FloatArray, LayerWeights
from hawq_tvm.posttraining.layer import Found, LayerPiece, LayerSearch, beside, bias_of, weight_of
from hawq_tvm.posttraining.simulate import SimulatedNetwork
from hawq_tvm.settings import RoundingSettings

_T = TypeVar("_T")

PIECE = 8
"""Samples that pass at once."""

_MOST_BYTES = 4 << 30  # of the values of all samples


@dataclass
class _Piece:
    """Some of the samples on their way through the network: live values, float32 [N, ...].

    Attributes:
        real: of the float network.
        quantised: of the quantised one.
    """

    real: dict[str, Tensor]
    quantised: dict[str, Tensor]


class Walk:
    """Rounds every layer of a network, in its order."""

    def __init__(
        self,
        graph: FloatGraph,
        types: ActivationTypes,
        settings: RoundingSettings,
        *,
        scales: Mapping[str, FloatArray | None] | None = None,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        """Look at a network.

        Args:
            graph: from capture.
            types: of its values, under the bits that it will have.
            settings: how weights are rounded.
            scales: of weights, float64 [out] by layer, to be taken as they are; None where they are to be found.
            seed: of the choice of output positions.
            threads: pieces that run side by side.
        """
        self.graph = graph
        self._types = types
        self._settings = settings
        self._scales = scales or {}
        self._seed = seed
        self._threads = threads
        self._float = FloatModule(graph)
        self._simulated = SimulatedNetwork(graph, types)

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
        pieces = [_Piece({start: x}, {start: self._simulated.start(x)}) for x in samples]
        deployed: dict[str, LayerWeights] = {}
        for node, ends in zip(self.graph, self.graph.last_reads, strict=True):
            if node.kind in WEIGHTED:
                known = (done or {}).get(node.name)
                at_layer = self._each(pieces, partial(self._arrive, node))
                found = self._find(node, at_layer, len(deployed)) if known is None else known
                if known is None and keep is not None:
                    keep(node.name, found)
                deployed[node.name] = self._pass_layer(node, pieces, at_layer, found)
                if progress is not None:
                    progress(len(deployed))
            else:
                self._each(pieces, partial(self._pass, node))
            for value in ends:
                for piece in pieces:
                    del piece.real[value], piece.quantised[value]
        return deployed

    def _each(self, pieces: Iterable[_Piece], work: Callable[[_Piece], _T]) -> list[_T]:
        return run_pieces(work, pieces, self._threads)

    def _pass(self, node: FloatNode, piece: _Piece) -> None:
        """Take the values past a node without weights."""
        piece.real[node.name] = self._float.result(node, [piece.real[value] for value in node.inputs])
        piece.quantised[node.name] = self._simulated.node(node, [piece.quantised[value] for value in node.inputs])

    def _arrive(self, node: FloatNode, piece: _Piece) -> LayerPiece:
        """What a layer reads and owes."""
        source = node.inputs[0]
        residuals = [(piece.real[value], piece.quantised[value]) for value in node.inputs[1:]]
        return LayerPiece(
            reads=self._simulated.reads(node, piece.quantised[source]),
            wanted=weighted(node, piece.real[source], weight_of(node), None),
            residual=residuals[0] if residuals else None,
        )

    def _find(self, node: FloatNode, pieces: Sequence[LayerPiece], index: int) -> Found:
        search = LayerSearch(node, pieces, self._settings, seed=own_seed(self._seed, index), threads=self._threads)
        return search.find(self._format(node), self._scales.get(node.name))

    def _format(self, node: FloatNode) -> WeightFormat:
        return self._types.bits.layers[node.name].format

    def _pass_layer(
        self, node: FloatNode, pieces: Sequence[_Piece], at_layer: Sequence[LayerPiece], found: Found
    ) -> LayerWeights:
        """Take the values past a layer."""
        input_scale = self._types.reads(node).scale
        found = found.with_room(least_scales(found.bias(node).numpy(), input_scale), node)
        deployed = found.deployed(node)
        step = deployed.scales * input_scale
        bias = torch.from_numpy((round_half_up(deployed.bias / step) * step).astype(np.float32))
        slope = found.slope.float()

        def work(item: tuple[_Piece, LayerPiece]) -> None:
            piece, layer = item
            real = layer.wanted + beside(bias_of(node), layer.wanted)
            quantised = layer.got(node, found)
            quantised = quantised.mul_(beside(slope, quantised)).add_(beside(bias, quantised))
            for residual in node.inputs[1:]:
                real += piece.real[residual]
                quantised += piece.quantised[residual]
            piece.real[node.name] = clipped(real, node.clip)
            piece.quantised[node.name] = self._simulated.settle(node, quantised)

        run_pieces(work, zip(pieces, at_layer, strict=True), self._threads)
        return deployed


def samples_that_fit(graph: FloatGraph) -> int:
    """How many samples a walk may keep the values of at one time, at least one."""
    shapes = graph.shapes
    live = most = prod(graph.input_shape)
    for node, ends in zip(graph, graph.last_reads, strict=True):
        live += prod(node.shape)
        most = max(most, live + prod(shapes[node.inputs[0]]))  # what a layer reads and owes stands beside
        live -= sum(prod(shapes[value]) for value in ends)
    return max(1, _MOST_BYTES // (2 * 4 * most))
