"""What every simulated accelerator answers: how long a layer takes at a pair of bits, and what energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hawq_tvm.ilp.simulators.workload import Workload


@dataclass(frozen=True)
class Simulated:
    """What one layer takes of an accelerator.

    Attributes:
        cycles: of the accelerator's clock, for one call, which is a whole batch.
        latency_us: the same in microseconds.
        energy_uj: microjoules a sample; None where nothing is published that it could be computed from.
    """

    cycles: int
    latency_us: float
    energy_uj: float | None


class Accelerator(Protocol):
    """A page of data, and the rules of its kind.

    Attributes:
        name: as its page calls it.
        batch: samples that it works on at once.
        origin: where its numbers come from, for a cost table's reader.
    """

    @property
    def name(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def origin(self) -> str: ...

    def simulate(self, workload: Workload, weight_bits: int, activation_bits: int) -> Simulated:
        """What a layer takes.

        Args:
            workload: of one sample.
            weight_bits: 1 to 8.
            activation_bits: 1 to 8, of the layer's input.
        """
        ...
