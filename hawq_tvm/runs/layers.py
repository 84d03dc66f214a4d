"""What the integer graph says of its layers, as JSON: a run is inspected without reading its ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hawq_tvm.core.errors import AllocationError, RunError
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.core.specs import Bits

_TEXTS = ("name", "kind", "input", "output")
_COUNTS = ("parameters", "macs", "accumulator_bound")


@dataclass(frozen=True)
class LayerFacts:
    """One layer with weights.

    Attributes:
        name: the layer.
        kind: its operator.
        bits: of its weights and of its input activation.
        input: type of its input activation.
        output: type and shape of its result.
        parameters: number of weights.
        macs: multiply-accumulates a sample.
        accumulator_bound: proved magnitude of its accumulator.
    """

    name: str
    kind: str
    bits: Bits
    input: str
    output: str
    parameters: int
    macs: int
    accumulator_bound: int

    @property
    def size_bytes(self) -> float:
        """Weights x bits / 8."""
        return self.parameters * self.bits.weight / 8

    @property
    def stored_bytes(self) -> int:
        """Of the weights as the file stores them: 4 bits for up to 4, else 8."""
        return (self.parameters + 1) // 2 if self.bits.weight <= 4 else self.parameters

    @property
    def bops(self) -> int:
        """Bit operations a sample."""
        return self.macs * self.bits.weight * self.bits.activation


def describe_layers(graph: Graph) -> dict[str, Any]:
    """The table of layers, as `layers.json` holds it.

    Args:
        graph: the integer graph, read back from the ONNX file, so that the table tells of what was exported.
    """
    types, bounds = graph.types, graph.bounds()
    rows = []
    for node in graph:
        if isinstance(node.op, WeightedOperator):
            source = types[node.inputs[0]].dtype
            rows.append(
                {
                    "name": node.name,
                    "kind": node.op.kind,
                    "bits": repr(Bits(node.op.weight_bits, source.bits)),
                    "input": repr(source),
                    "output": repr(node.type),
                    "parameters": int(node.op.weight.size),
                    "macs": node.op.macs(node.type),
                    "accumulator_bound": bounds[node.name].accumulator,
                }
            )
    return {"layers": rows}


def read_layers(data: Any) -> tuple[LayerFacts, ...]:
    """Read what `describe_layers` made.

    Raises:
        RunError: anything else.
    """
    try:
        return tuple(_facts(row) for row in data["layers"])
    except (KeyError, TypeError, ValueError, AllocationError) as error:
        raise RunError(f"layers.json is not a table of layers ({error}); make it anew with hawq-tvm compile") from error


def _facts(row: Mapping[str, Any]) -> LayerFacts:
    texts = {key: row[key] for key in _TEXTS}
    counts = {key: row[key] for key in _COUNTS}
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError(f"{', '.join(_TEXTS)} are texts, got {texts}")
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts.values()):
        raise ValueError(f"{', '.join(_COUNTS)} are whole numbers of at least 0, got {counts}")
    return LayerFacts(bits=Bits.parse(row["bits"]), **texts, **counts)
