"""Which kernel computes each node and how each value is stored: one choice over the whole network.

Kernels offer (`hawq_tvm.kernels.interface`); neighbours need not agree, since a value can be copied into another
storage by a conversion, made once and shared by all readers that want it. `choose_offers` finds the least total cost,
conversions included. A greedy choice would go wrong at joins: a residual or a concatenation reads values whose makers
do not know of one another.

It is a dynamic program over the nodes in order. The state is the set of storages in which each value that is still read
exists; of all ways to one state only the cheapest goes on. A state is also left out where the cheapest state could make
all of its storages by conversions and still cost no more, which loses nothing as long as values have two storages to
choose from. What remains is small for chains and residual networks; where very many values are alive at once (the lists
of a DenseNet) only the `MAX_STATES` cheapest states go on, and the plan says that it is not proved to be the least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hawq_tvm.backends.tvm.joins import join_branches
from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.ir import Graph, Node, TensorType
from hawq_tvm.core.ops import AvgPool2d, Conv2d, Flatten, MaxPool2d
from hawq_tvm.core.storage import Storage
from hawq_tvm.core.targets import Target
from hawq_tvm.kernels import ConvertRequest, Decline, Offer, Request, collect_offers, offer_conversion, unit_of
from hawq_tvm.kernels.cuda.storages import channels_last as gpu_channels_last
from hawq_tvm.kernels.dot.conv2d import pixels_save_steps
from hawq_tvm.kernels.x86.amx_storages import blocked
from hawq_tvm.kernels.x86.amx_tiles import AMX_INT8

MAX_STATES = 500
"""States that go on from a node."""

PALETTES = ("all", "canonical", "channels_last")
"""What may be chosen from: everything; NCHW alone; channels last wherever a kernel offers it. The last two are for
comparison and tests."""


@dataclass(frozen=True, eq=False)
class Step:
    """A node to choose an offer for: its value's name, the values that it reads, its offers by kernel."""

    name: str
    inputs: tuple[str, ...]
    offers: Mapping[str, Offer]


@dataclass(frozen=True)
class Conversion:
    """A copy of a value in another storage, made before the node `reader` runs; the output's own has no reader."""

    value: str
    source: Storage
    to: Storage
    reader: str | None


@dataclass(frozen=True, eq=False)
class Choice:
    """The outcome of `choose_offers`.

    Attributes:
        kernels: the chosen offer's kernel, by node.
        conversions: in the order in which they are made.
        cost: of all offers and conversions.
        exact: whether no cheaper choice exists; False where states were left out for their number alone.
    """

    kernels: Mapping[str, str]
    conversions: tuple[Conversion, ...]
    cost: float
    exact: bool


ConversionCost = Callable[[str, Storage, Storage], float]
"""What it costs to copy a value, by name, from one storage into another; infinite where nothing can."""

_Exists = tuple[Storage, ...]  # a value's storages, sorted, so that equal sets are equal


class _Path(NamedTuple):
    """How a state was reached: the last node's kernel and conversions, and what came before."""

    cost: float
    kernel: str
    conversions: tuple[Conversion, ...]
    before: _Path | None


def choose_offers(
    steps: Sequence[Step],
    inputs: Mapping[str, Storage],
    output: str,
    output_storage: Storage,
    conversion_cost: ConversionCost,
    *,
    max_states: int = MAX_STATES,
) -> Choice:
    """The offers of least total cost.

    A conversion starts from the storage, of those the value has by then, that costs least.

    Args:
        steps: in topological order.
        inputs: values that exist before, each with its storage.
        output: the value that must exist in `output_storage` in the end.
        output_storage: as users have it.
        conversion_cost: see `ConversionCost`.
        max_states: how many states may go on from a node.

    Raises:
        CompileError: offers disagree and nothing converts between their storages.
    """
    last_reader = {name: index for index, step in enumerate(steps) for name in step.inputs}
    last_reader[output] = len(steps)
    two = _of_two_storages(steps, inputs, output, output_storage)
    live: tuple[str, ...] = tuple(inputs)
    states: dict[tuple[_Exists, ...], _Path | None] = {tuple((inputs[name],) for name in live): None}
    exact = True
    for index, step in enumerate(steps):
        following = tuple(name for name in (*live, step.name) if last_reader.get(name, -1) > index)
        reached: dict[tuple[_Exists, ...], _Path] = {}
        for state, path in states.items():
            existing = dict(zip(live, state, strict=True))
            for kernel, offer in step.offers.items():
                made = _convert(existing, step.inputs, offer.reads, step.name, conversion_cost)
                if made is None:
                    continue
                have, conversions, conversions_cost = made
                have[step.name] = (offer.writes,)
                cost = (path.cost if path else 0.0) + offer.cost + conversions_cost
                key = tuple(have[name] for name in following)
                if key not in reached or cost < reached[key].cost:  # of equal ones the earlier row stays
                    reached[key] = _Path(cost, kernel, conversions, path)
        if not reached:
            raise CompileError(f"node '{step.name}' reads {step.inputs} in storages that nothing converts them to")
        live = following
        kept = _undominated(reached, live, two, conversion_cost)
        exact = exact and len(kept) <= max_states
        states = dict(kept[:max_states])
    ends: list[_Path] = []
    for state, path in states.items():
        made = _convert(dict(zip(live, state, strict=True)), (output,), (output_storage,), None, conversion_cost)
        if made is not None:
            ends.append(_Path((path.cost if path else 0.0) + made[2], "", made[1], path))
    if not ends:
        raise CompileError(f"nothing converts the output '{output}' to {output_storage}")
    return _trace(min(ends, key=lambda path: path.cost), steps, exact)


def _convert(
    existing: Mapping[str, _Exists],
    names: Sequence[str],
    storages: Sequence[Storage],
    reader: str | None,
    conversion_cost: ConversionCost,
) -> tuple[dict[str, _Exists], tuple[Conversion, ...], float] | None:
    """Make values exist in storages: all that then exist, what was converted, its cost; None where nothing can."""
    have, made, total = dict(existing), [], 0.0
    for name, storage in zip(names, storages, strict=True):
        if storage in have[name]:
            continue
        cost, source = min(((conversion_cost(name, known, storage), known) for known in have[name]), key=lambda p: p[0])
        if cost == float("inf"):
            return None
        total += cost
        made.append(Conversion(name, source, storage, reader))
        have[name] = tuple(sorted((*have[name], storage), key=str))
    return have, tuple(made), total


def _of_two_storages(
    steps: Sequence[Step], inputs: Mapping[str, Storage], output: str, output_storage: Storage
) -> set[str]:
    """The values that no offer makes or reads in more than two storages.

    Of those a conversion costs the same now or later; of others one made early could be the source of a cheaper one.
    """
    palettes = {name: {storage} for name, storage in inputs.items()}
    for step in steps:
        palettes[step.name] = {offer.writes for offer in step.offers.values()}
        for offer in step.offers.values():
            for name, storage in zip(step.inputs, offer.reads, strict=True):
                palettes[name].add(storage)
    palettes[output].add(output_storage)
    return {name for name, palette in palettes.items() if len(palette) <= 2}


def _undominated(
    reached: Mapping[tuple[_Exists, ...], _Path],
    live: Sequence[str],
    two: set[str],
    conversion_cost: ConversionCost,
) -> list[tuple[tuple[_Exists, ...], _Path]]:
    """States, cheapest first, without those whose storages the cheapest state can make and still cost no more."""
    ordered = sorted(reached.items(), key=lambda item: item[1].cost)
    best_state, best = ordered[0]
    kept = [ordered[0]]
    for state, path in ordered[1:]:
        cost = best.cost
        for name, has, wanted in zip(live, best_state, state, strict=True):
            if has == wanted:
                continue
            missing = [storage for storage in wanted if storage not in has]
            cost += sum(conversion_cost(name, has[0], storage) for storage in missing) if name in two else float("inf")
            if cost > path.cost:
                kept.append((state, path))
                break
    return kept


def _trace(end: _Path, steps: Sequence[Step], exact: bool) -> Choice:
    """Walk back from the end."""
    kernels: list[str] = []
    conversions: list[tuple[Conversion, ...]] = [end.conversions]
    path = end.before
    while path is not None:
        kernels.append(path.kernel)
        conversions.append(path.conversions)
        path = path.before
    names = [step.name for step in steps]
    return Choice(
        dict(zip(names, reversed(kernels), strict=True)),
        tuple(conversion for made in reversed(conversions) for conversion in made),
        end.cost,
        exact,
    )


# A network's choice


@dataclass(frozen=True, eq=False)
class Plan:
    """How a network is computed.

    Attributes:
        requests: what was asked, by node; a flatten asks nothing.
        offers: the chosen offer, by node, of a flatten too.
        kernels: the chosen kernel, by node; a flatten has none.
        offered: all that was offered, by node and kernel.
        declines: why kernels that stand earlier in the table were not taken, by node.
        storages: how each value is made.
        arrays: the concatenation in whose array a value in that storage lies, itself among them.
        conversions: in the order in which they are made.
        converters: the converter and its offer of each conversion.
        cost: estimated microseconds of one thread.
        exact: whether no cheaper choice exists among what was offered.
    """

    requests: Mapping[str, Request]
    offers: Mapping[str, Offer]
    kernels: Mapping[str, str]
    offered: Mapping[str, Mapping[str, Offer]]
    declines: Mapping[str, tuple[Decline, ...]]
    storages: Mapping[str, Storage]
    arrays: Mapping[tuple[str, Storage], str]
    conversions: tuple[Conversion, ...]
    converters: tuple[tuple[str, Offer], ...]
    cost: float
    exact: bool


def plan_storages(
    graph: Graph,
    target: Target,
    vector_bits: int,
    *,
    batch: int,
    palette: str = "all",
    features: frozenset[str] = frozenset(),
) -> Plan:
    """Ask the kernels and choose.

    Args:
        graph: a checked graph; its input and output stay canonical.
        target: the machine.
        vector_bits: how wide its vector registers are.
        batch: samples a call.
        palette: one of `PALETTES`.
        features: the instruction sets of the CPU compiled for, as in `Request`.

    Raises:
        CompileError: no kernel takes a node, or an unknown palette.
    """
    if palette not in PALETTES:
        raise CompileError(f"unknown palette of storages '{palette}'; known: {', '.join(PALETTES)}")
    types = graph.types
    alternatives = {} if palette == "canonical" else alternatives_of(graph, target, vector_bits, features)
    arrays: Mapping[str, str] = {}
    if target.gpu is None:  # a GPU's kernels write whole arrays
        alternatives, arrays = join_branches(graph, alternatives)
    requests: dict[str, Request] = {}
    answers: dict[str, dict[str, Offer | str]] = {}
    steps: list[Step] = []
    for node in graph:
        if isinstance(node.op, Flatten):
            steps.append(Step(node.name, node.inputs, {_VIEW: _view(node, types)}))
            continue
        inputs = tuple(types[name] for name in node.inputs)
        request = Request(node, inputs, batch, target, vector_bits, alternatives, features)
        requests[node.name] = request
        answers[node.name] = collect_offers(request)
        offers = {kernel: answer for kernel, answer in answers[node.name].items() if isinstance(answer, Offer)}
        if palette == "channels_last":
            offers = {kernel: offer for kernel, offer in offers.items() if not _all_canonical(offer)} or offers
        steps.append(Step(node.name, node.inputs, offers))

    known: dict[tuple[str, Storage, Storage], tuple[str, Offer] | None] = {}

    def converter(value: str, source: Storage, to: Storage) -> tuple[str, Offer] | None:
        key = (value, source, to)
        if key not in known:
            request = ConvertRequest(types[value], source, to, batch, target, vector_bits, features)
            known[key] = offer_conversion(request)
        return known[key]

    def conversion_cost(value: str, source: Storage, to: Storage) -> float:
        found = converter(value, source, to)
        return float("inf") if found is None else found[1].cost

    canonical = {name: Storage.canonical(type) for name, type in types.items()}
    start = {graph.input_name: canonical[graph.input_name]}
    choice = choose_offers(steps, start, graph.output, canonical[graph.output], conversion_cost)
    chosen = {step.name: step.offers[choice.kernels[step.name]] for step in steps}
    converters = [converter(item.value, item.source, item.to) for item in choice.conversions]
    return Plan(
        requests=requests,
        offers=chosen,
        kernels={name: choice.kernels[name] for name in requests},
        offered={step.name: step.offers for step in steps},
        declines={name: _earlier(choice.kernels[name], given) for name, given in answers.items()},
        storages={**start, **{name: offer.writes for name, offer in chosen.items()}},
        arrays={(name, alternatives[name]): whole for name, whole in arrays.items()},
        conversions=choice.conversions,
        converters=tuple(found for found in converters if found is not None),
        cost=choice.cost,
        exact=choice.exact,
    )


_VIEW = "view"


def _view(node: Node, types: Mapping[str, TensorType]) -> Offer:
    """A flatten is the same bytes under another shape, as long as they are canonical."""

    def build() -> None:
        raise AssertionError("a view is not built")

    reads = (Storage.canonical(types[node.inputs[0]]),)
    return Offer(reads, Storage.canonical(node.type), 0.0, build)  # type: ignore[arg-type]


def _all_canonical(offer: Offer) -> bool:
    return all(storage.order == "NCHW" and storage.block == 1 for storage in (*offer.reads, offer.writes))


def _earlier(chosen: str, answers: Mapping[str, Offer | str]) -> tuple[Decline, ...]:
    """Why the kernels before the chosen one were not taken: they declined, or the network is faster without them."""
    taken = answers[chosen]
    assert isinstance(taken, Offer)
    found = []
    for kernel, answer in answers.items():
        if kernel == chosen:
            break
        if isinstance(answer, Offer):
            answer = (
                f"offers {answer.writes} at {answer.cost:.1f} us; {taken.writes} at {taken.cost:.1f} us was chosen for "
                "the whole network, conversions counted"
            )
        found.append(Decline(kernel, answer))
    return tuple(found)


def alternatives_of(
    graph: Graph, target: Target, vector_bits: int, features: frozenset[str] = frozenset()
) -> dict[str, Storage]:
    """The storage of each value that is in play beside the canonical one, by name.

    Here a target's instructions decide: each family of kernels says how it wants values to lie.
    """
    if target.kind == "cuda":
        found = {name: gpu_channels_last(type) for name, type in graph.types.items()}
        return {name: storage for name, storage in found.items() if storage is not None}
    if features >= AMX_INT8:
        return blocked(graph)
    unit = unit_of(features)
    if unit is None:
        return channels_last(graph, vector_bits // 32)
    last = channels_last(graph, unit.channels, signed_offset=unit.signed_offset)
    return {
        name: replace(storage, multiple=1) if pixels_save_steps(graph, name, unit) else storage
        for name, storage in last.items()
    }


def channels_last(graph: Graph, multiple: int, *, signed_offset: int = 0) -> dict[str, Storage]:
    """The channels-last storage of each value that may have one: every narrow image of more than one pixel.

    Channels are filled up to a `multiple`, or to the power of two that holds them all. The frame is as wide
    as the widest padding that a reader asks for, so that all readers share it. Signed values are stored with
    `signed_offset` added.
    """
    frames = dict.fromkeys(graph.types, (0, 0, 0, 0))
    for node in graph:
        pads = _padding(node, graph.types)
        for side, pad in enumerate(pads):
            frame = list(frames[node.inputs[0]])
            frame[side] = max(frame[side], pad)
            frames[node.inputs[0]] = (frame[0], frame[1], frame[2], frame[3])
    found = {}
    for name, type in graph.types.items():
        if type.dtype.bits <= 8 and len(type.shape) == 3 and type.shape[1:] != (1, 1):
            filled = min(max(multiple, 4), max(4, 1 << (type.shape[0] - 1).bit_length()))
            offset = signed_offset if type.dtype.signed else 0
            found[name] = Storage("NHWC", multiple=filled, frame=frames[name], offset=offset)
    return found


def _padding(node: Node, types: Mapping[str, TensorType]) -> tuple[int, int, int, int]:
    """The zeros that a node wants around its first input."""
    op = node.op
    if isinstance(op, Conv2d | AvgPool2d) or (isinstance(op, MaxPool2d) and not types[node.inputs[0]].dtype.signed):
        return op.window.pads
    return (0, 0, 0, 0)
