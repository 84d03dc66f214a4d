"""Integer networks with random weights: for what depends on their shapes and bits alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.calibration import make_observer, observe_ranges
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.given import stored_bits_of
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.quantizer import RangeTable
from hawq_tvm.core.specs import RESIDUAL_BITS, BitConfig, Bits
from hawq_tvm.frontend.capture import capture
from hawq_tvm.sources.models import load_model


@cache
def captured(name: str, weights: str | None = None) -> tuple[FloatGraph, RangeTable]:
    """A network that knows the shape of its samples, and its ranges on noise.

    Args:
        name: as ``hawq-tvm run`` takes it.
        weights: as ``--weights`` of it, for what depends on how weights are spread.
    """
    loaded = load_model(name, weights=weights)
    assert loaded.input_shape is not None, name
    images = torch.randn(1, *loaded.input_shape, generator=torch.Generator().manual_seed(0))
    graph = capture(loaded.module, images, name=name)
    network = FloatModule(graph)
    return graph, observe_ranges(lambda x, tap: network(x, tap=tap), [images], make_observer("max"))


def integers(
    name: str,
    pairs: Sequence[str],
    *,
    residual: int = RESIDUAL_BITS,
    stored: Mapping[str, int] | None = None,
    weights: str | None = None,
) -> Graph:
    """That network in integers, its first and last layer at 8 bits.

    Args:
        name: as of `captured`.
        pairs: bits of the other layers, which take them in turn.
        residual: bits of values that a sum reads.
        stored: bits of single values, by names or patterns, as ``--stored-bits`` takes them.
        weights: as of `captured`.
    """
    graph, ranges = captured(name, weights)
    first, *inner, last = (layer.name for layer in graph.layers)
    bits = {layer: Bits.parse(pairs[index % len(pairs)]) for index, layer in enumerate(inner)}
    ends = Bits(8, 8)
    config = BitConfig({first: ends, **bits, last: ends}, residual=residual, stored=stored_bits_of(stored or {}, graph))
    return integerize(graph, ranges, config)
