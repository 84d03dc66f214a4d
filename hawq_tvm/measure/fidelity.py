"""How much of the float network's signal is left in integers, as it is stored and shown; `sqnr` measures it.

Executors that agree on every integer prove that the deployed network is the integer one. Whether its integers still
mean what the float network computes is another question, and this is its answer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hawq_tvm.core.errors import RunError
from hawq_tvm.core.strict_json import JsonReader

RATIOS = (
    "dB alone: signal over error of a layer's result where that layer alone is in integers; dB all: of the integer "
    "network as a whole; 6 dB are a bit"
)
"""The two ratios of a layer, for the reader."""


@dataclass(frozen=True)
class ValueFidelity:
    """One value that a node makes, or the network's input.

    Ratios of signal to quantisation noise are in dB over all elements and samples, 6 dB a bit; None where there is no
    noise or no signal. `alone_db` is that of the node by itself, and the three after it are its parts.

    Attributes:
        name: the value.
        kind: of the integer operator, or ``input``.
        bits: that it is stored at; 32 for the network's result.
        weight_bits: of the layer; None where there are no weights.
        accumulated_db: of the integer network as a whole.
        alone_db: of this node in integers, on the float network's inputs, quantised at the types that it reads.
        inputs_db: the same, were only its inputs rounded.
        weights_db: the same, were only its weights and its bias rounded.
        output_db: the same, were only its result rounded and clipped to its range.
        clipped: share of elements that the range of its type clips; a ReLU's zeros and a ReLU6's sixes are the
            network's own and not among them.
        largest: magnitude.
        range_use: `largest` over the type's largest; above 1 where it clips; None of the result.
        effective_bits: of a type that would do for the 99.9% of its elements of least magnitude, those of exactly 0
            left out; None of the result.
        levels: share of the type's integers that were met; None of the result.
        channel_spread: root mean square of the strongest channel over that of the weakest, dead channels left out.
    """

    name: str
    kind: str
    bits: int
    weight_bits: int | None
    accumulated_db: float | None
    alone_db: float | None
    inputs_db: float | None
    weights_db: float | None
    output_db: float | None
    clipped: float
    largest: float
    range_use: float | None
    effective_bits: float | None
    levels: float | None
    channel_spread: float


@dataclass(frozen=True)
class Fidelity:
    """What is left of every value.

    Attributes:
        samples: that both networks were run on.
        values: in order; max-pools and flattens make none, since they choose or move integers.
        warnings: where it falls off, with the cause and what to try, a sentence each.
    """

    samples: int
    values: tuple[ValueFidelity, ...]
    warnings: tuple[str, ...]

    def of(self, name: str) -> ValueFidelity | None:
        """A value by its name."""
        return next((value for value in self.values if value.name == name), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "values": [asdict(value) for value in self.values],
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, data: Any, name: str = "the fidelity") -> Fidelity:
        """Read what `to_json` wrote.

        Args:
            data: as `JsonReader` parses it.
            name: of the file, for messages.

        Raises:
            RunError: anything else.
        """
        reader = JsonReader(name, RunError, "make it again with hawq-tvm compile")
        ratios = ("accumulated_db", "alone_db", "inputs_db", "weights_db", "output_db")
        found: Fidelity = reader.take(data, cls, signed=ratios)
        return found
