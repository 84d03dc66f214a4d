"""The fastest way to compute each layer of a network on this machine, found by timing.

For each distinct layer the kernels that may stand for one another are timed, then what the fastest of them is free to
choose is searched one parameter after the other, the others held (coordinate descent): a tile, an order of loops, how
far ahead memory is fetched, whether threads share the work. All ways of a step are compiled into one library and called
in turns, as within the network (`hawq_tvm.backends.tvm.timing`). What was found for a layer is kept in the user's cache
as soon as it is known, so that a search that is cut off goes on where it was, and a network of the same layers searches
nothing.

TVM's MetaSchedule has runners and a database of this kind. They are not used: its records are traces of schedules,
which these kernels are not, and its runner times candidates one after the other, in a process and a library each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from hawq_tvm.backends.tvm.cache import read_entry, write_entry
from hawq_tvm.backends.tvm.chosen import ChosenKernel
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.backends.tvm.lower import Machine, build_kernel
from hawq_tvm.backends.tvm.records import TunedLayer, Tuning
from hawq_tvm.backends.tvm.storage import plan_storages
from hawq_tvm.backends.tvm.timing import ROUNDS, time_kernels
from hawq_tvm.backends.tvm.tuned import Conditions, exchangeable
from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.core.targets import Target
from hawq_tvm.kernels import BuiltKernel, Offer, Parameters, Request

LEAST_GAIN = 0.02
"""A way that is faster by less than this share stays untaken: it may be noise, and the kernels' own choice is known."""

SEARCH_ROUNDS = 12
"""How often each way is called while it is searched; the last comparison takes `ROUNDS`."""

THREADS = "threads"
"""The parameter that says whether threads share the work; with one thread there is nothing to find out about it."""

_CACHE = "tuned"


@dataclass(frozen=True, eq=False)
class Way:
    """A way to compute a layer: a kernel and its parameters.

    Attributes:
        kernel: by its name.
        offer: the kernel's.
        parameters: what is chosen.
        build: makes the function so.
    """

    kernel: str
    offer: Offer
    parameters: Parameters
    build: Callable[[], BuiltKernel]

    def neighbours(self, name: str) -> list[Way]:
        """The legal ways that differ in the parameter of that name alone."""
        others = {key: value for key, value in self.parameters.items() if key != name}
        return [
            replace(self, parameters=variant.parameters, build=variant.build)
            for variant in self.offer.variants()
            if variant.parameters[name] != self.parameters[name]
            and {key: value for key, value in variant.parameters.items() if key != name} == others
        ]


Timer = Callable[[Sequence[Way], int], Sequence[float]]
"""Median microseconds of ways to compute one layer, called in turns for so many rounds."""


def check_tunable(target: Target) -> None:
    """Refuse targets whose kernels this machine's CPU says nothing about.

    Raises:
        CompileError: a GPU, or a CPU that is not the one of this machine.
    """
    if target.gpu is not None:
        raise CompileError(
            f"tuning times kernels on this machine's CPU, and '{target.name}' is a GPU, for which a model chooses them "
            "(docs/gpu-model.md); tune --target llvm"
        )
    if not target.host_cpu:
        raise CompileError(
            f"tuning is for the CPU of this machine, and '{target.name}' is compiled for others too; tune --target llvm"
        )


def tune_layers(
    graph: Graph,
    target: Target,
    *,
    batch: int,
    threads: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tuning:
    """Search the best way for every layer, but for those whose best is kept.

    Args:
        graph: as read from the ONNX file.
        target: this machine's CPU.
        batch: samples a call.
        threads: of a call.
        progress: called with layers done and layers in all.

    Raises:
        CompileError: a target that cannot be tuned for, or a kernel that does not compile.
    """
    check_tunable(target)
    machine = Machine.resolve(target)
    plan = plan_storages(graph, target, machine.vector_bits, batch=batch, features=machine.features)
    size_bytes = sum(node.op.weight.size for node in graph if isinstance(node.op, WeightedOperator))
    conditions = Conditions(str(machine.tvm_target), cpu_name(), threads, size_bytes)
    choices = exchangeable(plan)
    keys: dict[str, str] = {}  # the first layer of each distinct one
    for name, offers in choices.items():
        keys.setdefault(conditions.key(offers, plan.kernels[name]), name)
    found: dict[str, TunedLayer] = {}
    for key, name in keys.items():
        kept = read_layer(key)
        if kept is None:
            timer = partial(_time, plan.requests[name], machine, conditions)
            kept = search(name, choices[name], timer, threads=threads)
            write_layer(key, kept)
        found[key] = replace(kept, layer=name)
        progress(len(found), len(keys))
    return Tuning(conditions.cpu, threads, size_bytes, found)


def search(layer: str, offers: Mapping[str, Offer], time: Timer, *, threads: int) -> TunedLayer:
    """The fastest way to compute a layer that coordinate descent finds.

    Args:
        layer: its name.
        offers: by kernel, what may stand for one another, first the one that is taken untuned.
        time: times ways of this layer.
        threads: of a call.
    """
    ways = [Way(kernel, offer, offer.parameters, offer.build) for kernel, offer in offers.items()]
    untuned, timed = ways[0], len(ways)

    def fastest(ways: Sequence[Way]) -> Way:
        if len(ways) == 1:
            return ways[0]
        times = time(ways, SEARCH_ROUNDS)
        return min(zip(ways, times, strict=True), key=lambda pair: pair[0].offer.price * pair[1])[0]

    best = fastest(ways)
    for name in best.parameters:
        if name == THREADS and threads == 1:
            continue
        others = best.neighbours(name)
        timed += len(others)
        best = fastest([best, *others])
    if best is untuned:
        (us,) = time([untuned], ROUNDS)
        return TunedLayer(layer, untuned.kernel, untuned.parameters, us, us, timed)
    before, after = time([untuned, best], ROUNDS)
    if best.offer.price * after > (1 - LEAST_GAIN) * untuned.offer.price * before:
        best, after = untuned, before
    return TunedLayer(layer, best.kernel, best.parameters, after, before, timed)


def _time(request: Request, machine: Machine, conditions: Conditions, ways: Sequence[Way], rounds: int) -> list[float]:
    """A `Timer` of this machine."""
    kernels = []
    for way in ways:
        chosen = ChosenKernel(request, way.kernel, way.offer)
        kernels.append(chosen.timed(build_kernel(chosen.title, way.kernel, way.build, machine.target)))
    times = time_kernels(
        kernels, machine, threads=conditions.threads, network_bytes=conditions.network_bytes, rounds=rounds
    )
    return [taken.median_us for taken in times]


def read_layer(key: str) -> TunedLayer | None:
    """What was found before; None where there is nothing, or something damaged."""
    parts = read_entry(_CACHE, key)
    if parts is None:
        return None
    reader = JsonReader("what tuning found", CompileError, "remove it")
    try:
        found: TunedLayer = reader.take(reader.parse(parts[0]), TunedLayer)
    except CompileError:
        return None
    return found


def write_layer(key: str, found: TunedLayer) -> None:
    """Keep what was found for a layer, as far as the cache can be written."""
    write_entry(_CACHE, key, json.dumps(asdict(found)).encode())
