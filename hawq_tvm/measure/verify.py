"""Equality of every tensor of every layer between executors; never a tolerance.

An executor is a function from integer inputs to every value's integers. The four of a run are the numpy interpreter,
the PyTorch integer model, ONNX Runtime on the exported file and the compiled library, tapped while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hawq_tvm.core.errors import DataError, RunError
from hawq_tvm.core.ir import Array, Graph
from hawq_tvm.core.specs import counted
from hawq_tvm.core.strict_json import JsonReader

Executor = Callable[[Array], Mapping[str, Array]]

ON_GPU, EMULATED = "tvm on the GPU", "tvm on an emulated GPU"
"""What a GPU's library is called in a report, by where it runs."""


@dataclass(frozen=True)
class Mismatch:
    """A layer on which executors differ.

    Attributes:
        layer: the layer's name.
        kind: its operator.
        elements: how many elements differ between at least two executors.
        total: how many were compared.
        index: of the first that differs: (sample, channel, row, column) or (sample, feature).
        values: what each executor has there; None where it has no such tensor, or one of another shape or dtype.
        alone: the executor that differs from all the others, which agree; None where there is no such one.
    """

    layer: str
    kind: str
    elements: int
    total: int
    index: tuple[int, ...] | None
    values: Mapping[str, int | None]
    alone: str | None

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value}" for name, value in self.values.items())
        where = "" if self.index is None else f", first at {list(self.index)}: {values}"
        alone = "" if self.alone is None else f"; {self.alone} is alone"
        return f"layer '{self.layer}' ({self.kind}): {self.elements} of {self.total} elements differ{where}{alone}"


@dataclass(frozen=True)
class VerifyReport:
    """The outcome over all samples.

    Attributes:
        executors: their names.
        samples: inputs compared.
        layers: values compared, layer by layer.
        elements: integers compared between each pair of neighbours.
        mismatches: layers that differ, in the graph's order; the first is the culprit, since its inputs agree.
    """

    executors: tuple[str, ...]
    samples: int
    layers: int
    elements: int
    mismatches: tuple[Mismatch, ...]

    @property
    def ok(self) -> bool:
        return not self.mismatches

    def covers(self, other: VerifyReport) -> bool:
        """Whether this one compared at least as much: as many samples, every executor, and the GPU emulated there."""
        compared = {*self.executors, *((EMULATED,) if ON_GPU in self.executors else ())}
        return self.samples >= other.samples and compared >= set(other.executors)

    def __str__(self) -> str:
        return "\n".join([self._head(), *(f"  {mismatch}" for mismatch in self.mismatches[:1])])

    def _head(self) -> str:
        return (
            f"{len(self.mismatches)} mismatches over {counted(self.layers, 'layer')}, "
            f"{counted(self.samples, 'sample')}, {self.elements:,} integers, "
            f"{' = '.join(self.executors) if self.ok else ', '.join(self.executors)}"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "executors": list(self.executors),
            "samples": self.samples,
            "layers": self.layers,
            "elements": self.elements,
            "mismatches": [
                {**vars(mismatch), "index": mismatch.index and list(mismatch.index), "values": dict(mismatch.values)}
                for mismatch in self.mismatches
            ],
        }

    @classmethod
    def from_json(cls, data: Any, name: str = "the verification") -> VerifyReport:
        """Read what `to_json` wrote.

        Args:
            data: as `JsonReader` parses it.
            name: of the file, for messages.

        Raises:
            RunError: anything else.
        """
        reader = JsonReader(name, RunError, "make it again with hawq-tvm verify")
        found: VerifyReport = reader.take(data, cls, signed=("values",))
        return found


def stronger(earlier: VerifyReport | None, latest: VerifyReport) -> tuple[VerifyReport, str | None]:
    """The report that a run keeps, of two on the same library.

    A difference found now always counts. Otherwise the latest replaces what it covers; a weaker one replaces nothing:
    neither a proof over more samples nor a difference that more samples showed. Over however few samples, a proof on
    the GPU is stronger than one on an emulated GPU, and never the other way round.

    Args:
        earlier: what is stored of this very library; None where there is nothing.
        latest: what was found now.

    Returns:
        The report to keep, and the sentence that says so where it is not the latest.
    """
    if earlier is None or not latest.ok or latest.covers(earlier):
        return latest, None
    if earlier.ok and EMULATED in earlier.executors and ON_GPU in latest.executors:
        return latest, None
    why = "is the stronger proof" if earlier.ok else "found a difference that these samples do not show"
    where = " on the GPU" if ON_GPU in earlier.executors else ""
    return earlier, (
        f"compared {latest.samples} samples now, and the run keeps its report over {earlier.samples} samples, "
        f"which {why}: {earlier._head()}; verify at least as many samples{where} to replace it"
    )


def verify(
    graph: Graph,
    executors: Mapping[str, Executor],
    batches: Iterable[Array],
    *,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Run all executors on the same integers and compare every value.

    Args:
        graph: names and orders the values.
        executors: at least two, by name.
        batches: [N, ...] in the carrier dtype of the graph's input.
        progress: called with the number of samples done.

    Returns:
        The report; nothing is raised for a difference.

    Raises:
        DataError: fewer than two executors, or no sample: nothing was compared.
    """
    names = tuple(executors)
    if len(names) < 2:
        raise DataError(f"verification compares at least two executors, got {len(names)}: {', '.join(names) or 'none'}")
    found: dict[str, Mismatch] = {}
    samples = 0
    for x in batches:
        results = {name: executors[name](x) for name in names}
        for node in graph:
            tensors = {name: results[name].get(node.name) for name in names}
            mismatch = _compare(node.name, node.op.kind, tensors, node.type.dtype.carrier, samples)
            if mismatch is not None:
                found[node.name] = _merge(found.get(node.name), mismatch)
        samples += len(x)
        if progress is not None:
            progress(samples)
    if not samples:
        raise DataError("verification got no samples, so nothing was compared; give it at least one")
    totals = {node.name: samples * int(np.prod(node.type.shape)) for node in graph}
    ordered = tuple(replace(found[name], total=total) for name, total in totals.items() if name in found)
    return VerifyReport(names, samples, len(graph.nodes), sum(totals.values()), ordered)


def _compare(layer: str, kind: str, tensors: Mapping[str, Array | None], carrier: str, offset: int) -> Mismatch | None:
    """The difference between one value's tensors in one batch, or None."""
    whole = {name: x for name, x in tensors.items() if x is not None and x.dtype == np.dtype(carrier)}
    shapes = {x.shape for x in whole.values()}
    if len(whole) < len(tensors) or len(shapes) > 1:
        counts = list(shapes)
        usual = max(counts, key=[x.shape for x in whole.values()].count) if counts else ()
        odd = [name for name in tensors if name not in whole or whole[name].shape != usual]
        total = int(np.prod(usual))
        return Mismatch(layer, kind, total, total, None, dict.fromkeys(tensors), odd[0] if len(odd) == 1 else None)
    first = next(iter(whole.values()))
    different = np.zeros(first.shape, bool)
    for x in whole.values():
        different |= x != first
    count = int(different.sum())
    if count == 0:
        return None
    position = tuple(int(i) for i in np.unravel_index(int(different.argmax()), different.shape))
    values = {name: int(x[position]) for name, x in whole.items()}
    index = (position[0] + offset, *position[1:])
    return Mismatch(layer, kind, count, first.size, index, values, _alone(whole))


def _alone(tensors: Mapping[str, Array]) -> str | None:
    """The executor whose tensor differs while all others agree; needs three."""
    if len(tensors) < 3:
        return None
    for name in tensors:
        first, *rest = (x for other, x in tensors.items() if other != name)
        if all(np.array_equal(first, x) for x in rest):
            return name
    return None


def _merge(earlier: Mismatch | None, later: Mismatch) -> Mismatch:
    """One mismatch over two batches: counts add up, the first place stays."""
    if earlier is None:
        return later
    alone = earlier.alone if earlier.alone == later.alone else None
    return replace(earlier, elements=earlier.elements + later.elements, alone=alone)
