"""The kernels that a network gets with its layers at some bits, as values that can be priced or timed one by one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.backends.tvm.storage import Plan, plan_storages
from hawq_tvm.backends.tvm.timing import TimedKernel
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Array, Graph, TensorType
from hawq_tvm.core.ops import Conv2d, Requantize, WeightedOperator
from hawq_tvm.core.quantizer import RangeTable
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.core.storage import Storage, pack
from hawq_tvm.kernels import BuiltKernel, ConvertRequest, Offer, Request, collect_offers


@dataclass(frozen=True, eq=False)
class ChosenKernel:
    """A kernel: what was asked of it, and what it offered.

    Attributes:
        request: a node to compute, or a value to copy into another storage.
        kernel: its name.
        offer: the one that was taken.
    """

    request: Request | ConvertRequest
    kernel: str
    offer: Offer

    @classmethod
    def of_node(cls, plan: Plan, name: str) -> ChosenKernel:
        """The one that computes a node."""
        return cls(plan.requests[name], plan.kernels[name], plan.offers[name])

    def reading(self, reads: Sequence[Storage]) -> ChosenKernel | None:
        """The same kernel of the same node, writing the same, where it reads its inputs in these storages.

        Returns:
            None where it does not take them.
        """
        if tuple(reads) == self.offer.reads:
            return self
        if not isinstance(self.request, Request):
            return None
        in_play = zip(self.request.node.inputs, reads, self.request.canonical()[0], strict=True)
        asked = {name: storage for name, storage, canonical in in_play if storage != canonical}
        request = replace(self.request, alternatives={**self.request.alternatives, **asked})
        offer = collect_offers(request)[self.kernel]
        if isinstance(offer, str) or (offer.reads, offer.writes) != (tuple(reads), self.offer.writes):
            return None
        return ChosenKernel(request, self.kernel, offer)

    @property
    def title(self) -> str:
        """How a message names what is computed."""
        if isinstance(self.request, ConvertRequest):
            return f"a copy as {self.request.to} ({self.kernel})"
        node = self.request.node
        if isinstance(node.op, Requantize):
            return f"a copy at {node.type.dtype.bits} bits ({self.kernel})"
        return f"layer '{node.name}' ({node.op.kind})"

    @property
    def inputs(self) -> tuple[TensorType, ...]:
        return (self.request.type,) if isinstance(self.request, ConvertRequest) else self.request.inputs

    @property
    def output(self) -> TensorType:
        return self.request.type if isinstance(self.request, ConvertRequest) else self.request.node.type

    @cached_property
    def code(self) -> Hashable:
        """What two kernels share that are of the same machine code, but for numbers in it and in its constants."""
        kind: tuple[Hashable, ...] = ("convert",)
        if isinstance(self.request, Request):
            op = self.request.node.op
            kind = (op.kind,)
            if isinstance(op, WeightedOperator):
                kind = (op.kind, op.weight.shape, (op.window, op.groups) if isinstance(op, Conv2d) else None)
        values = tuple((x.shape, x.dtype.carrier) for x in (*self.inputs, self.output))
        return kind, values, self.kernel, self.offer.reads, self.offer.writes, self.offer.decided()

    def arguments(self, built: BuiltKernel, generator: np.random.Generator) -> list[Array]:
        """What it is called with: random inputs of its types, its constants, and room for its output."""
        batch, writes = self.request.batch, self.offer.writes
        inputs = [
            _random(x, storage, batch, generator) for x, storage in zip(self.inputs, self.offer.reads, strict=True)
        ]
        output = np.zeros(writes.shape(self.output, batch), writes.dtype(self.output))
        return [*inputs, *built.constants, output]

    def timed(self, built: BuiltKernel) -> TimedKernel:
        """It, with what it is called with."""
        return TimedKernel(built.function, self.arguments(built, np.random.default_rng(0)), len(self.inputs))


def _random(type: TensorType, storage: Storage, batch: int, generator: np.random.Generator) -> Array:
    return pack(generator.integers(type.dtype.lo, type.dtype.hi + 1, (batch, *type.shape)), type, storage)


@dataclass(frozen=True, eq=False)
class Planned:
    """A configuration's integer graph, and how it is computed.

    Attributes:
        graph: the integer graph.
        plan: a kernel for each of its nodes, and the conversions between them.
        machine: what for.
        batch: samples a call.
    """

    graph: Graph
    plan: Plan
    machine: Machine
    batch: int

    @property
    def conversions(self) -> Iterator[tuple[str | None, ChosenKernel]]:
        """The copies in other storages, each with the node that asks for it."""
        machine, types = self.machine, self.graph.types
        for made, (converter, offer) in zip(self.plan.conversions, self.plan.converters, strict=True):
            request = ConvertRequest(
                types[made.value],
                made.source,
                made.to,
                self.batch,
                machine.target,
                machine.vector_bits,
                machine.features,
            )
            yield made.reader, ChosenKernel(request, converter, offer)


@dataclass(frozen=True, eq=False)
class Candidates:
    """A network and the bits that it may get.

    Attributes:
        graph: from capture.
        ranges: from calibration.
        pairs: that each layer may have.
        stored: a configuration with the bits at which values are stored, as for deployment.
        batch: samples a call.
    """

    graph: FloatGraph
    ranges: RangeTable
    pairs: tuple[Bits, ...]
    stored: Callable[[BitConfig], BitConfig] = lambda bits: bits
    batch: int = 1

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.graph.layers)

    @property
    def weight_bytes(self) -> int:
        """Of all layers, a byte a weight."""
        return sum(layer.weight.size for layer in self.graph.layers if layer.weight is not None)

    def planned(self, bits: BitConfig, machine: Machine) -> Planned:
        """What would be deployed with these bits: kernels and storages of least cost for the whole network."""
        integers = integerize(self.graph, self.ranges, self.stored(bits))
        plan = plan_storages(integers, machine.target, machine.vector_bits, batch=self.batch, features=machine.features)
        return Planned(integers, plan, machine, self.batch)
