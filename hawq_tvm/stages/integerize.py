"""Float graph + ranges + bits + rounded weights -> integer graph: ONNX file, overflow proofs, golden tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from hawq_tvm.backends.onnx.io import to_onnx
from hawq_tvm.core.hashing import json_sha256
from hawq_tvm.core.integerize import integerize as integerize_graph
from hawq_tvm.core.ir import Array, Graph
from hawq_tvm.core.reporter import Advance
from hawq_tvm.runs.artifacts import BITS, BOUNDS, FLOAT_GRAPH, LAYERS, MODEL, RANGES
from hawq_tvm.runs.golden import GOLDEN, write_golden
from hawq_tvm.runs.layers import describe_layers
from hawq_tvm.stages.round import rounded_weights, weights_file
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def integerize(work: Work) -> Stage:
    """The network in integers, and what proves it."""

    def make(_: Advance) -> None:
        found = work.artifacts
        graph = integerize_graph(found.float_graph, found.ranges, found.bits, rounded_weights(work))
        model = to_onnx(graph)
        work.run.write(MODEL, lambda path: onnx.save(model, path))
        work.run.write_json(BOUNDS, describe_bounds(graph))
        work.run.write_json(LAYERS, describe_layers(graph))
        write_golden(work.run, graph, _golden_input(work, graph))

    return Stage(
        "integerize",
        "turning the network into integers",
        make,
        options={"data": work.data_key, "scales": json_sha256(dict(work.settings.scales))},
        reads=(FLOAT_GRAPH, RANGES, BITS, *weights_file(work)),
        writes=(MODEL, BOUNDS, LAYERS, GOLDEN),
    )


def _golden_input(work: Work, graph: Graph) -> Array:
    """The first evaluation sample as integers; random ones without samples at hand."""
    if work.has_data:
        return work.golden_input(graph)
    dtype = graph.input_type.dtype
    generator = np.random.default_rng(work.settings.seed)
    return generator.integers(dtype.lo, dtype.hi + 1, (1, *graph.input_type.shape)).astype(dtype.carrier)


def describe_bounds(graph: Graph) -> dict[str, Any]:
    """The overflow proofs, as they are stored with the run."""
    return {
        "limits": {"accumulator": "2^31", "dyadic_sum": "2^63", "rounded": "2^31"},
        "method": "interval arithmetic over the actual weights and the input type, positive and negative terms apart",
        "layers": {name: vars(bounds) for name, bounds in graph.bounds().items()},
    }
