"""Which layers cause a network's loss, as it is stored and shown; `hawq_tvm.measure.debug` measures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hawq_tvm.core.errors import RunError
from hawq_tvm.core.specs import Bits, parsed_bits
from hawq_tvm.core.strict_json import JsonReader


@dataclass(frozen=True)
class LayerCause:
    """What one layer costs. Losses are those of `hawq_tvm.posttraining.layer_losses`, a mean over samples.

    Attributes:
        name: the layer.
        bits: its pair, as ``w4a8``.
        parameters: number of weights.
        macs: multiply-accumulates a sample.
        weights: loss of the float network with this layer's weights quantised, as they are deployed.
        input: the same with the layer's first input on its grid.
        both: the same with both.
        without: loss of the quantised network with this layer in float.
    """

    name: str
    bits: str
    parameters: int
    macs: int
    weights: float
    input: float
    both: float
    without: float

    @property
    def pair(self) -> Bits:
        return Bits.parse(self.bits)


@dataclass(frozen=True)
class DebugReport:
    """Layers by what they cost.

    Attributes:
        samples: how many it was measured on.
        loss: of the quantised network beside the float one.
        layers: the costliest alone first.
        advice: what to try, a sentence each.
        data: the name of the samples.
        rounded: whether weights are as rounding left them; else they are the nearest integers.
    """

    samples: int
    loss: float
    layers: tuple[LayerCause, ...]
    advice: tuple[str, ...]
    data: str = ""
    rounded: bool = True

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "layers": [vars(layer) for layer in self.layers], "advice": list(self.advice)}

    @classmethod
    def from_json(cls, data: Any, name: str = "the causes") -> DebugReport:
        """Read what `to_json` wrote.

        Args:
            data: as `JsonReader` parses it.
            name: of the file, for messages.

        Raises:
            RunError: anything else.
        """
        reader = JsonReader(name, RunError, "make it again with hawq-tvm debug")
        found: DebugReport = reader.take(data, cls)
        for layer in found.layers:
            parsed_bits(reader, layer.name, layer.bits)
        return found

    def __str__(self) -> str:
        worst = ", ".join(f"{layer.name} {layer.both:.3g}" for layer in self.layers[:3])
        return f"loss {self.loss:.3g} on {self.samples} samples; alone: {worst}"
