"""What the integer graph says of its layers, as JSON: a run is inspected without reading its ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from hawq_tvm.core.errors import RunError
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.core.specs import Bits, parsed_bits
from hawq_tvm.core.strict_json import JsonReader


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
        """Weights x bits / 8, with a codebook where there is one."""
        return self.bits.format.size_bytes(self.parameters)

    @property
    def stored_bytes(self) -> int:
        """Of the weights as the file stores them: 4 bits for up to 4, else 8; a codebook beside its indexes."""
        codebook = 2**self.bits.weight if self.bits.codebook else 0
        return codebook + ((self.parameters + 1) // 2 if self.bits.weight <= 4 else self.parameters)

    @property
    def bops(self) -> int:
        """Bit operations a sample."""
        return self.macs * self.bits.operations


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
                    "bits": repr(Bits(node.op.format.bits, source.bits, node.op.format.codebook)),
                    "input": repr(source),
                    "output": repr(node.type),
                    "parameters": int(node.op.weight.size),
                    "macs": node.op.macs(node.type),
                    "accumulator_bound": bounds[node.name].accumulator,
                }
            )
    return {"layers": rows}


class _LayerRow(TypedDict):
    """The JSON of a `LayerFacts`."""

    name: str
    kind: str
    bits: str
    input: str
    output: str
    parameters: int
    macs: int
    accumulator_bound: int


class _LayersFile(TypedDict):
    layers: tuple[_LayerRow, ...]


def read_layers(data: Any, name: str = "layers.json") -> tuple[LayerFacts, ...]:
    """Read what `describe_layers` made.

    Args:
        data: as `JsonReader` parses it.
        name: of the file, for messages.

    Raises:
        RunError: anything else.
    """
    reader = JsonReader(name, RunError, "make it anew with hawq-tvm compile")
    rows = reader.take(data, _LayersFile)["layers"]
    return tuple(LayerFacts(**{**row, "bits": parsed_bits(reader, row["name"], row["bits"])}) for row in rows)
