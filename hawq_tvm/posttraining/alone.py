"""Each layer rounded by itself, on the float network's values: what a sensitivity looks at before bits are chosen.

The methods are those of `hawq_tvm.posttraining.walk`, which rounds once more when the bits of all layers are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule, weighted
from hawq_tvm.backends.pytorch.threads import one_thread, run_pieces
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.float_ir import WEIGHTED, FloatGraph, FloatNode
from hawq_tvm.core.hashing import own_seed
from hawq_tvm.core.quantizer import FloatArray, LayerWeights
from hawq_tvm.posttraining.layer import LayerPiece, LayerSearch, weight_of
from hawq_tvm.settings import RoundingSettings


@torch.no_grad()
@one_thread()
def round_alone(
    graph: FloatGraph,
    samples: Iterable[Tensor],
    formats: Iterable[WeightFormat],
    settings: RoundingSettings,
    *,
    scales: Mapping[str, FloatArray | None] | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[WeightFormat, LayerWeights]]:
    """Round every layer on float inputs, towards its own float results.

    Args:
        graph: from capture.
        samples: float32 [N, ...] pieces, at least one.
        formats: of weights.
        settings: how weights are rounded.
        scales: of weights, float64 [out] by layer, to be taken as they are; None where they are to be found.
        seed: of the choice of output positions.
        threads: pieces that run side by side.
        progress: called with the number of layers done.

    Returns:
        What each layer would be deployed with, by name and format.
    """
    values: list[dict[str, Tensor]] = [{graph.input_name: x} for x in samples]
    network = FloatModule(graph)
    found: dict[str, dict[WeightFormat, LayerWeights]] = {}
    for node, ends in zip(graph, graph.last_reads, strict=True):
        if node.kind in WEIGHTED:
            pieces = run_pieces(partial(_arrive, node), values, threads)
            search = LayerSearch(node, pieces, settings, seed=own_seed(seed, len(found)), threads=threads)
            given = (scales or {}).get(node.name)
            found[node.name] = {format: search.find(format, given).deployed(node) for format in sorted(set(formats))}
            if progress is not None:
                progress(len(found))
        run_pieces(partial(_pass, network, node), values, threads)
        for value in ends:
            for piece in values:
                del piece[value]
    return found


def _arrive(node: FloatNode, piece: dict[str, Tensor]) -> LayerPiece:
    x = piece[node.inputs[0]]
    residuals = [(piece[value], piece[value]) for value in node.inputs[1:]]
    return LayerPiece(
        reads=x, wanted=weighted(node, x, weight_of(node), None), residual=residuals[0] if residuals else None
    )


def _pass(network: FloatModule, node: FloatNode, piece: dict[str, Tensor]) -> None:
    piece[node.name] = network.result(node, [piece[value] for value in node.inputs])
