"""Each call of a library beside what the machine could do at most: the roofline model.

A call with so many operations takes no less than they take at the peak, and one that moves so many bytes no less than
reading them takes (Williams, Waterman, Patterson: Roofline, CACM 2009). The longer of the two bounds the call. Weights
are read once a call from wherever a network of its size lies; what layers hand on to one another comes from a cache
that holds all activations. Both bandwidths are measured with buffers of those sizes.

Operations are those of the convolution as it is defined, whatever computes it. A kernel that needs fewer
multiplications (`conv2d_winograd_...`) may therefore pass the peak, and its share of it 100 %.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hawq_tvm.backends.tvm.info import LibraryInfo
from hawq_tvm.core.ir import Graph, Node
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.core.storage import Storage
from hawq_tvm.measure.ceilings import Ceilings, measure_ceilings

_FOR_OTHER_LAYERS = re.compile(r": stores weights in \d bits, these have \d$|: takes one group a channel, got 1 ")
"""Kernels of packed weights decline bytes so, and depthwise ones a layer whose channels are all in one group."""


@dataclass(frozen=True)
class CallRoofline:
    """One kernel call.

    Attributes:
        name: the layer, or the conversion.
        kernel: what computes it.
        writes: how its result lies in memory.
        us: its median within the running network.
        macs: multiply-accumulates of a call, all samples of the batch; 0 where it has no weights.
        weight_bytes: weights, biases and multipliers as the kernel packs them.
        activation_bytes: what it reads and writes beside them.
        compute_us: of its multiply-accumulates at the machine's peak; None where that is not known.
        memory_us: of its bytes at the machine's bandwidths.
        declines: why kernels that stand earlier in the table were not taken.
        weight_bits: what a weight takes in memory; None where there are none.
        tuned: the parameters that tuning found; None where the kernel chose them by itself.
    """

    name: str
    kernel: str
    writes: str
    us: float
    macs: int
    weight_bytes: int
    activation_bytes: int
    compute_us: float | None
    memory_us: float
    declines: tuple[str, ...]
    weight_bits: int | None = None
    tuned: Mapping[str, int] | None = None

    @property
    def gops(self) -> float:
        """10^9 operations a second, two a multiply-accumulate."""
        return 2 * self.macs / self.us / 1e3

    @property
    def floor_us(self) -> float:
        """The least that the call can take on this machine."""
        return max(self.compute_us or 0.0, self.memory_us)

    @property
    def bound_by(self) -> str:
        """Which of the two is longer."""
        return "compute" if (self.compute_us or 0.0) > self.memory_us else "memory"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "gops": self.gops, "floor_us": self.floor_us, "bound_by": self.bound_by}


@dataclass(frozen=True)
class Roofline:
    """All calls of a library, and what they are compared with.

    Attributes:
        ceilings: of as many threads as were timed.
        calls: in order.
    """

    ceilings: Ceilings
    calls: tuple[CallRoofline, ...]

    @property
    def share_of_peak(self) -> float | None:
        """What the calls with weights reach of the peak, all together; None where there is no peak or no such call."""
        weighted = [call for call in self.calls if call.compute_us]
        if not weighted:
            return None
        return sum(call.compute_us or 0.0 for call in weighted) / sum(call.us for call in weighted)

    def share(self, call: CallRoofline) -> float | None:
        """What a call reaches of the peak."""
        return None if not call.compute_us else call.compute_us / call.us

    @property
    def declines(self) -> dict[str, list[str]]:
        """The calls by each reason why a kernel that stands earlier in the table was not taken."""
        found: dict[str, list[str]] = {}
        for call in self.calls:
            for reason in call.declines:
                found.setdefault(reason, []).append(call.name)
        return found

    def to_json(self) -> dict[str, Any]:
        return {"ceilings": asdict(self.ceilings), "calls": [call.to_json() for call in self.calls]}


def measure_roofline(layers_us: Mapping[str, float], info: LibraryInfo, graph: Graph, threads: int) -> Roofline:
    """As `roofline`, with the ceilings of this machine, measured now.

    Raises:
        CompileError: there is no C compiler.
    """
    ceilings = measure_ceilings(threads, [_all_bytes(info), max(1, info.planned_bytes)])
    return Roofline(ceilings, roofline(layers_us, info, graph, ceilings))


def roofline(
    layers_us: Mapping[str, float], info: LibraryInfo, graph: Graph, ceilings: Ceilings
) -> tuple[CallRoofline, ...]:
    """Every call of a library.

    Args:
        layers_us: median microseconds of each call, as `BenchReport.layers_us`.
        info: the library's.
        graph: that it was compiled from.
        ceilings: of as many threads as were timed, with the bandwidths of a buffer of all that a call of the library
            touches, and of one of its activations.
    """
    weights_gbs, activations_gbs = ceilings.read_gbs[_all_bytes(info)], ceilings.read_gbs[max(1, info.planned_bytes)]
    nodes = {node.name: node for node in graph}
    rows = []
    for name, kernel in info.call_kernels.items():
        node = None if name in info.conversions else nodes[name]
        macs = 0
        if node is not None and isinstance(node.op, WeightedOperator):
            macs = node.op.macs(node.type) * info.batch
        writes, activation_bytes = _traffic(info, name, node)
        compute_us = None if ceilings.peak_gops is None else 2 * macs / ceilings.peak_gops / 1e3
        memory_us = (info.constants[name] / weights_gbs + activation_bytes / activations_gbs) / 1e3
        declines = () if node is None else _worth_telling(info.declines[name], node.op.kind)
        rows.append(
            CallRoofline(
                name,
                kernel,
                str(writes),
                layers_us[name],
                macs,
                info.constants[name],
                activation_bytes,
                compute_us,
                memory_us,
                declines,
                info.weight_bits.get(name),
                info.tuned[name].parameters if name in info.tuned else None,
            )
        )
    return tuple(rows)


def _traffic(info: LibraryInfo, name: str, node: Node | None) -> tuple[Storage, int]:
    """How a call's result is stored, and the bytes of all that it reads and writes beside constants.

    Args:
        info: the library's.
        name: of the call.
        node: that it computes; None for a conversion.
    """
    if node is None:
        copy = info.conversions[name]
        return copy.storage, sum(_stored_bytes(info, copy.value, storage) for storage in (None, copy.storage))
    return info.values[name].storage, sum(_stored_bytes(info, value) for value in (*node.inputs, name))


def _worth_telling(declines: Sequence[str], kind: str) -> tuple[str, ...]:
    """The declines of kernels that compute such layers; that the others do not tells nothing."""
    return tuple(
        reason for reason in declines if not (reason.endswith(f", not {kind}") or _FOR_OTHER_LAYERS.search(reason))
    )


def _stored_bytes(info: LibraryInfo, name: str, storage: Storage | None = None) -> int:
    """Of a value as its kernel stores it, or in another storage."""
    value = info.values[name]
    return (storage or value.storage).size_bytes(value.type, info.batch)


def _all_bytes(info: LibraryInfo) -> int:
    """What one call of the library touches."""
    return max(1, sum(info.constants.values()) + info.planned_bytes)
