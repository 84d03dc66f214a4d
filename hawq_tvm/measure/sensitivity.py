"""How much the loss rises when one layer is rounded, as `sensitivity.METRIC.json` holds it: one table a metric.

Whatever the metric, a layer has a value for its weights at each width and one for its input at each width, each with
its standard error, and a pair of bits costs the sum of two. Weights are judged on the scales and the rounding that they
will be deployed with, on float inputs, as the other layers' bits are not chosen yet.

    omega        `hawq_tvm.measure.curvature`      mean Hessian trace x squared error (HAWQ-V2, HAWQ-V3)
    eigenvalue   the same file                     top Hessian eigenvalue x squared error (HAWQ)
    fisher       `hawq_tvm.measure.information`    mean trace of the empirical Fisher x squared error (FIT)
    fisher-form  the same file                     the Fisher information's quadratic form of the change
    kl           `hawq_tvm.measure.losses`         divergence of the network's result, measured (ZeroQ)
    loss         the same file                     rise of the loss against the labels, measured
    sqnr         the same file                     error over signal of the layer's own result
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hawq_tvm.calibration import Estimate
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.quantizer import LayerWeights
from hawq_tvm.posttraining.fisher import Moves
from hawq_tvm.posttraining.simulate import Grid

Alone = Mapping[str, Mapping[WeightFormat, LayerWeights]]
"""What each layer would be deployed with, by name and format: of `hawq_tvm.posttraining.alone.round_alone`."""

Grids = Mapping[str, Mapping[int, Grid]]
"""What each layer's first input is brought to, by name and width; empty where all candidates have the same bits."""


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer under one metric.

    Attributes:
        weights: by format.
        inputs: by bits; empty where inputs were not looked at.
        order: what the metric's paper ranks layers by, at no width; None where it has nothing of the kind.
        facts: what else is known, for the reader: JSON values by name.
    """

    weights: Mapping[WeightFormat, Estimate]
    inputs: Mapping[int, Estimate]
    order: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def relative_error(self) -> float | None:
        """Standard error per value at the fewest bits, of weights and input together; None where the value is 0."""
        parts = [self.weights[fewest(self.weights)]] if self.weights else []
        parts += [self.inputs[min(self.inputs)]] if self.inputs else []
        value, error = sum(abs(part.value) for part in parts), sum(part.error for part in parts)
        return error / value if value else (None if error else 0.0)

    def to_json(self) -> dict[str, Any]:
        table: dict[str, Any] = {**self.facts, "order": self.order, "relative_error": self.relative_error}
        weights = {str(format): estimate for format, estimate in self.weights.items()}
        inputs = {str(bits): estimate for bits, estimate in self.inputs.items()}
        for part, row in (("weights", weights), ("inputs", inputs)):
            if row:
                table[part] = {width: estimate.value for width, estimate in row.items()}
                table[f"{part}_error"] = {width: estimate.error for width, estimate in row.items()}
        return table


def sensitivity_table(
    metric: str, method: str, layers: Mapping[str, LayerSensitivity], *, note: str | None = None, **facts: Any
) -> dict[str, Any]:
    """The JSON of a metric.

    Args:
        metric: its name.
        method: how the values were obtained, for the reader.
        layers: by name, in the network's order.
        note: what to know of them, a sentence; None for nothing.
        **facts: what else is known.
    """
    rows = {name: layer.to_json() for name, layer in layers.items()}
    return {"metric": metric, "method": method, **facts, "note": note, "layers": rows}


def fewest(formats: Iterable[WeightFormat]) -> WeightFormat:
    """The format of the fewest bits; of two, that without a codebook."""
    return min(formats)


def squared_errors(graph: FloatGraph, weights: Alone) -> dict[str, dict[WeightFormat, float]]:
    """``||Q(W) - W||^2`` of every layer in every format."""
    trained = {node.name: node.weight for node in graph.layers if node.weight is not None}
    return {
        name: {bits: float(np.square(found.restored - trained[name]).sum()) for bits, found in row.items()}
        for name, row in weights.items()
    }


def moves_of(graph: FloatGraph, weights: Alone) -> Moves:
    """``Q(W) - W`` of every layer in every format, float32."""
    trained = {node.name: node.weight for node in graph.layers if node.weight is not None}
    return {
        name: {
            bits: torch.from_numpy((found.restored - trained[name]).astype(np.float32)) for bits, found in row.items()
        }
        for name, row in weights.items()
    }
