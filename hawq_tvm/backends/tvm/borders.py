"""What lies between layers of different bits: copies at other bits and in other storages, and what they cost.

A kernel writes what its reader asks for, so packing and unpacking is mostly a part of kernels. What is left belongs to
a *border*, the pair of a layer and the nearest layer before it: a copy at fewer bits of a value that is stored at more,
a copy in another storage, and what a kernel takes longer because it writes for a reader of other bits than its own.
These are kernels like any other, and get their microseconds as those of layers do: timed, or by a target's cost model.

Bits of weights say nothing of a border, and layers that read each other alternate. So two configurations show every
border of two widths: layers of even depth at one width and those of odd depth at the other, and the opposite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from hawq_tvm.backends.tvm.chosen import Candidates, ChosenKernel, Planned
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.specs import BitConfig, Bits, Border, BorderCost
from hawq_tvm.kernels import ConvertRequest


@dataclass(frozen=True)
class Taken:
    """Microseconds of a kernel.

    Attributes:
        us: of a call.
        spread_us: tenth and ninetieth percentile of what was measured; None of what was not.
    """

    us: float
    spread_us: tuple[float, float] | None = None


Price = Callable[[ChosenKernel], Taken]
"""What a kernel takes, timed or predicted."""


@dataclass(frozen=True, eq=False)
class Crossing:
    """What a border runs at two widths.

    Attributes:
        copies: made for the second layer alone; one that layers share is the first reader's.
        writes: the first layer's kernel as it writes here, and as it writes where all have its width, where the second
            reads just that; None where something lies between them.
    """

    copies: tuple[ChosenKernel, ...]
    writes: tuple[ChosenKernel, ChosenKernel] | None

    @property
    def rewrites(self) -> bool:
        """Whether the first layer's kernel is another one here than where all have its width."""
        return self.writes is not None and self.writes[0].code != self.writes[1].code

    @property
    def kernels(self) -> Iterator[ChosenKernel]:
        """All that it takes to know what it costs."""
        yield from self.copies
        if self.writes is not None and self.rewrites:
            yield from self.writes

    def cost(self, price: Price) -> BorderCost:
        """Microseconds of the copies, and those that the first layer's kernel takes longer.

        What a kernel saves by writing fewer bits is not counted, nor a difference between two times that lies within
        their spreads: a border costs nothing at least.
        """
        parts = [price(copy) for copy in self.copies]
        if self.writes is not None and self.rewrites:
            parts += _longer(*map(price, self.writes))
        spreads = [part.spread_us for part in parts if part.spread_us is not None]
        low, high = (sum(spread[end] for spread in spreads) for end in (0, 1))
        return BorderCost(
            latency_us=sum(part.us for part in parts),
            latency_spread_us=(low, high) if spreads else None,
        )


def _longer(here: Taken, alone: Taken) -> list[Taken]:
    """What the one took longer than the other; nothing where it did not, or where that may be chance."""
    if here.spread_us is None or alone.spread_us is None:
        return [Taken(here.us - alone.us)] if here.us > alone.us else []
    low, high = here.spread_us[0] - alone.spread_us[1], here.spread_us[1] - alone.spread_us[0]
    return [Taken(here.us - alone.us, (low, high))] if low > 0 else []


@dataclass(frozen=True, eq=False)
class BorderKernels:
    """What runs between a layer and the nearest before it, by the widths of what the two read.

    Attributes:
        first: the layer before.
        second: the layer.
        crossings: by the activation bits of the first and of the second.
    """

    first: str
    second: str
    crossings: Mapping[tuple[int, int], Crossing]

    def priced(self, pairs: Iterable[Bits], price: Price, how: str) -> Border:
        """With microseconds.

        Args:
            pairs: candidates.
            price: of each kernel.
            how: where those come from, a word.
        """
        costs = {}
        for (one, other), crossing in self.crossings.items():
            cost = crossing.cost(price)
            if cost.latency_us > 0:
                ours, theirs = ([pair for pair in pairs if pair.activation == width] for width in (one, other))
                costs.update({(p, q): cost for p in ours for q in theirs})
        return Border(self.first, self.second, costs, self._source(how, costs=bool(costs)))

    def _source(self, how: str, *, costs: bool) -> str:
        """What runs here, and where its microseconds come from."""
        copies = dict.fromkeys(copied(copy) for each in self.crossings.values() for copy in each.copies)
        rewrites = any(each.rewrites for each in self.crossings.values())
        parts = [f"{self.second} reads {', '.join(copies)}"] if copies else []
        if rewrites:
            longer = "takes longer" if costs or copies else "takes no longer, as far as that can be told,"
            parts.append(f"{self.first} {longer} where it writes for a reader of other bits")
        if not parts:
            return f"nothing runs there at any bits, {self.second} reads what is written"
        return f"{how}: {', and '.join(parts)}"


def copied(copy: ChosenKernel) -> str:
    """A copy in words."""
    if isinstance(copy.request, ConvertRequest):
        return f"a copy as {copy.request.to} ({copy.kernel})"
    return f"a copy at {copy.output.dtype.bits} bits ({copy.kernel})"


def find_borders(candidates: Candidates, machine: Machine) -> tuple[BorderKernels, ...]:
    """What every border runs at every two candidate widths, in the network's order."""
    top: dict[int, Bits] = {}  # the pair of each width with the most weight bits: a border knows nothing of weights
    for pair in sorted(candidates.pairs):
        top[pair.activation] = pair
    neighbours = _neighbours(candidates.graph)
    depth = _depths(candidates.graph, neighbours)

    def planned(even: int, odd: int) -> Planned:
        widths = {name: odd if deep % 2 else even for name, deep in depth.items()}
        return candidates.planned(BitConfig({name: top[width] for name, width in widths.items()}), machine)

    made = {(even, odd): planned(even, odd) for even in top for odd in top}

    def crossing(border: _Neighbours, one: int, other: int) -> Crossing:
        mixed = made[(one, other) if depth[border.first] % 2 == 0 else (other, one)]
        writes = None
        if border.is_direct:
            here, alone = (ChosenKernel.of_node(it.plan, border.first) for it in (mixed, made[one, one]))
            writes = here, alone
        return Crossing(_copies(candidates, mixed, border.second), writes)

    return tuple(
        BorderKernels(
            border.first, border.second, {(one, other): crossing(border, one, other) for one in top for other in top}
        )
        for border in neighbours
    )


def _copies(candidates: Candidates, planned: Planned, layer: str) -> tuple[ChosenKernel, ...]:
    """The copies that are made for a layer alone."""
    name = next(node.inputs[0] for node in planned.graph if node.name == layer)
    found, readers = list[ChosenKernel](), {layer}
    is_copy = name in planned.plan.requests and name not in candidates.graph.by_name
    if is_copy and _first_reader(planned, name) == layer:
        found.append(ChosenKernel.of_node(planned.plan, name))
        readers.add(name)
    found += [copy for reader, copy in planned.conversions if reader in readers]
    return tuple(found)


def _first_reader(planned: Planned, value: str) -> str:
    return next(node.name for node in planned.graph if value in node.inputs)


@dataclass(frozen=True)
class _Neighbours:
    """A layer and the nearest before it; whether it reads just what that one makes, through pools and the like."""

    first: str
    second: str
    is_direct: bool


def _neighbours(graph: FloatGraph) -> list[_Neighbours]:
    """By layer that has one, the nearest before it along first inputs."""
    nodes = graph.by_name
    layers = {layer.name for layer in graph.layers}
    found = []
    for layer in graph.layers:
        value = layer.inputs[0]
        while value in nodes and value not in layers:
            value = nodes[value].inputs[0]
        if value in layers:
            found.append(_Neighbours(value, layer.name, graph.source(layer.inputs[0]) == value))
    return found


def _depths(graph: FloatGraph, neighbours: Iterable[_Neighbours]) -> Mapping[str, int]:
    """How many layers stand before each; layers that read the same value have the same before them."""
    before = {border.second: border.first for border in neighbours}
    depth: dict[str, int] = {}
    for layer in graph.layers:
        depth[layer.name] = depth[before[layer.name]] + 1 if layer.name in before else 0
    return depth
