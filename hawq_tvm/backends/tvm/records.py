"""What tuning found, as JSON: read and written without TVM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.strict_json import JsonReader


@dataclass(frozen=True)
class TunedLayer:
    """The fastest way to compute a layer on one machine.

    Attributes:
        layer: the layer, or the first of those that are computed by the same code.
        kernel: the kernel's name.
        parameters: of the kernel, as `hawq_tvm.kernels.Offer.parameters`.
        us: median microseconds of a call, made as within the network.
        untuned_us: of what the kernels choose by themselves, in the same rounds.
        timed: how many ways were timed.
    """

    layer: str
    kernel: str
    parameters: Mapping[str, int]
    us: float
    untuned_us: float
    timed: int


@dataclass(frozen=True)
class Tuning:
    """What was found for a network; a run's `tuned.<target>.json`.

    Attributes:
        cpu: where, as its maker calls it.
        threads: of a call.
        network_bytes: what other layers bring through the caches between two calls of one.
        layers: by the key of what is computed (`hawq_tvm.backends.tvm.tuned.Conditions.key`).
    """

    cpu: str
    threads: int
    network_bytes: int
    layers: Mapping[str, TunedLayer]

    @property
    def us(self) -> float:
        """Microseconds of all distinct layers."""
        return sum(found.us for found in self.layers.values())

    @property
    def untuned_us(self) -> float:
        """Of the same ones, untuned."""
        return sum(found.untuned_us for found in self.layers.values())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, name: str = "what tuning found") -> Tuning:
        """Read what `to_json` wrote.

        Args:
            data: as `JsonReader` parses it.
            name: of the file, for messages.

        Raises:
            CompileError: anything else.
        """
        found: Tuning = JsonReader(name, CompileError, "make it again with hawq-tvm tune, or remove it").take(data, cls)
        return found
