"""What lies between layers of different bits: copies at other bits and in other storages, and what they cost.

A kernel writes what its reader asks for, so packing and unpacking is mostly a part of kernels. What is left belongs to
a *border*, the pair of a layer and the nearest layer before it: a copy at fewer bits of a value that is stored at more,
a copy in another storage, and what a kernel takes longer because it writes for a reader of other bits than its own.
Layers that read the same value have the same bits (`FloatGraph.tied_groups`), so what is made or written once for all
of them is the first one's. These are kernels like any other, and get their microseconds as those of layers do: timed,
or by a target's cost model. What a layer takes longer whose result is read behind a join or an average is not counted.

Bits of weights say nothing of a border, and layers that read each other alternate. So two configurations show every
border of two widths: layers of even depth at one width and those of odd depth at the other, and the opposite.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from hawq_tvm.backends.tvm.chosen import Candidates, ChosenKernel, Planned
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.specs import BitConfig, Bits, Border, BorderCost


@dataclass(frozen=True)
class Taken:
    """Microseconds of a kernel.

    Attributes:
        us: of a call.
        spread_us: how far that may lie off, as of `BorderCost`; None of what was not measured.
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
        writes: the first layer's kernel as it writes here, and as it writes where all have its width; both read alike.
            None where it writes alike, and where the second is not the first to read just what it writes.
    """

    copies: tuple[ChosenKernel, ...]
    writes: tuple[ChosenKernel, ChosenKernel] | None = None

    @property
    def kernels(self) -> Iterator[ChosenKernel]:
        """All that it takes to know what it costs."""
        yield from (*self.copies, *(self.writes or ()))

    def cost(self, price: Price) -> BorderCost:
        """Microseconds of the copies, and those that the first layer's kernel takes longer.

        What a kernel saves by writing fewer bits is not counted, nor a difference between two times that lies within
        their spreads: a border costs nothing at least.
        """
        parts = [*map(price, self.copies), *self.longer(price)]
        spreads = [part.spread_us for part in parts if part.spread_us is not None]
        low, high = (sum(spread[end] for spread in spreads) for end in (0, 1))
        return BorderCost(
            latency_us=sum(part.us for part in parts),
            latency_spread_us=(low, high) if spreads and len(spreads) == len(parts) else None,
        )

    def longer(self, price: Price) -> list[Taken]:
        """What the first layer's kernel takes longer here, if it does."""
        return [] if self.writes is None else _longer(*map(price, self.writes))


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
        costs, longer = {}, False
        for (one, other), crossing in self.crossings.items():
            cost = crossing.cost(price)
            longer = longer or bool(crossing.longer(price))
            if cost.latency_us > 0:
                ours, theirs = ([pair for pair in pairs if pair.activation == width] for width in (one, other))
                costs.update({(p, q): cost for p in ours for q in theirs})
        return Border(self.first, self.second, costs, self._source(how, longer))

    def _source(self, how: str, longer: bool) -> str:
        """What runs here, and where its microseconds come from."""
        copies = dict.fromkeys(copy.title for each in self.crossings.values() for copy in each.copies)
        parts = [f"{self.second} reads {', '.join(copies)}"] if copies else []
        if any(each.writes is not None for each in self.crossings.values()):
            takes = "takes longer" if longer else "takes no longer, as far as that can be told,"
            parts.append(f"{self.first} {takes} where it writes for a reader of other bits")
        if not parts:
            return f"nothing runs there at any bits, {self.second} reads what is written"
        return f"{how}: {', and '.join(parts)}"


def find_borders(candidates: Candidates, machine: Machine) -> tuple[BorderKernels, ...]:
    """What every border runs at every two candidate widths, in the network's order."""
    top: dict[int, Bits] = {}  # the pair of each width with the most weight bits: a border knows nothing of weights
    for pair in sorted(candidates.pairs):
        top[pair.activation] = pair
    neighbours = _neighbours(candidates.graph)
    depth = _depths(candidates.graph, neighbours)
    alone: dict[tuple[str, int], ChosenKernel] = {}  # of each layer and width, where all have that
    known: dict[Hashable, ChosenKernel] = {}  # one of each code and cost, since every graph has weights of its own
    found: dict[tuple[str, int, int], Crossing] = {}

    def kept(kernel: ChosenKernel) -> ChosenKernel:
        return known.setdefault((kernel.code, kernel.offer.cost), kernel)

    for even, odd in sorted(product(top, repeat=2), key=lambda widths: widths[0] != widths[1]):  # uniform ones first
        widths = {name: odd if deep % 2 else even for name, deep in depth.items()}
        planned = candidates.planned(BitConfig({name: top[width] for name, width in widths.items()}), machine)
        for border in neighbours:
            one, other = widths[border.first], widths[border.second]
            writes = None
            if border.reads_first:
                here = ChosenKernel.of_node(planned.plan, border.first)
                if one == other:
                    alone[border.first, one] = kept(here)
                again = _writing(here, alone[border.first, one])
                writes = None if again is None else (kept(again), alone[border.first, one])
            found[border.second, one, other] = Crossing(_copies(candidates, planned, border.second), writes)
    return tuple(
        BorderKernels(
            border.first,
            border.second,
            {(one, other): found[border.second, one, other] for one, other in product(top, repeat=2)},
        )
        for border in neighbours
    )


def _writing(here: ChosenKernel, alone: ChosenKernel) -> ChosenKernel | None:
    """A layer's kernel as it writes at a border, reading what it reads where all have its width.

    What it reads may differ too: a residual has the frame that another of its readers asked for. That is nothing of the
    border behind it.

    Returns:
        None where both write alike, or where the one here cannot read what the other reads.
    """
    return None if here.offer.writes == alone.offer.writes else here.reading(alone.offer.reads)


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
    """A layer and the nearest before it.

    Attributes:
        first: the layer before.
        second: the layer.
        reads_first: whether it reads just what that one makes, through pools and the like, before any other layer does.
    """

    first: str
    second: str
    reads_first: bool


def _neighbours(graph: FloatGraph) -> list[_Neighbours]:
    """By layer that has one, the nearest before it along first inputs."""
    nodes = graph.by_name
    layers = {layer.name for layer in graph.layers}
    found, read = list[_Neighbours](), set[str]()
    for layer in graph.layers:
        value = layer.inputs[0]
        while value in nodes and value not in layers:
            value = nodes[value].inputs[0]
        if value in layers:
            source = graph.source(layer.inputs[0])
            found.append(_Neighbours(value, layer.name, source == value and source not in read))
            read.add(source)
    return found


def _depths(graph: FloatGraph, neighbours: Iterable[_Neighbours]) -> Mapping[str, int]:
    """How many layers stand before each; layers that read the same value have the same before them."""
    before = {border.second: border.first for border in neighbours}
    depth: dict[str, int] = {}
    for layer in graph.layers:
        depth[layer.name] = depth[before[layer.name]] + 1 if layer.name in before else 0
    return depth
