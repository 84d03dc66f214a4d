"""Concatenations written in place: which values lie in the array of a value that they are a part of.

A branch that only the concatenation reads, and that it copies as it is, needs no memory of its own: its maker writes
it where the concatenation has it. Channels last, that is some channels of every pixel of a wider array
(`Storage.before`, `Storage.after`), in the frame of the whole. A concatenation may be a branch of another one.

Integerisation gives such branches the scale of the concatenation, so that it copies. One whose scale or type is its
own, as a max pool's that keeps its input's, lies apart, and the concatenation rescales it into its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hawq_tvm.core.ir import Graph, TensorType
from hawq_tvm.core.ops import Concat
from hawq_tvm.core.storage import Storage


def join_branches(graph: Graph, storages: Mapping[str, Storage]) -> tuple[dict[str, Storage], dict[str, str]]:
    """Give branches the storage of a part.

    Args:
        graph: the network.
        storages: of values beside the canonical one.

    Returns:
        The storages, those of branches replaced; and for each value that lies in an array with others, the
        concatenation whose array it is, which does so itself.
    """
    found, arrays = dict(storages), dict[str, str]()
    reads = Counter(name for node in graph for name in node.inputs)
    reads[graph.output] += 1
    for node in reversed(graph.nodes):  # a branch that is a concatenation learns where it lies before its own branches
        if not isinstance(node.op, Concat) or node.name not in found or found[node.name].order != "NHWC":
            continue
        start = 0
        for branch, name in enumerate(node.inputs):
            type = graph.types[name]
            if reads[name] == 1 and name in found and _copies(node.op, branch, type, node.type):
                part = _part(found[node.name], node.type, start, type, found[name])
                if part is not None:
                    found[name] = part
                    arrays[name] = arrays.setdefault(node.name, node.name)
            start += type.shape[0]
    return found, arrays


def _copies(op: Concat, branch: int, x: TensorType, y: TensorType) -> bool:
    """Whether a branch's integers are those of the result."""
    kept = op.rescale.lo <= x.dtype.lo and x.dtype.hi <= op.rescale.hi
    return kept and x.dtype.signed == y.dtype.signed and op.rescale.multiplier[branch] == 1 << op.rescale.shift


def _part(whole: Storage, type: TensorType, start: int, of: TensorType, alone: Storage) -> Storage | None:
    """Where a branch lies in the result; None where channels that fill it up would lie on another branch's."""
    last = start + of.shape[0] == type.shape[0]
    filled = alone.channels(of)
    if (filled > of.shape[0] and not last) or start + filled > whole.channels(type):
        return None
    return whole.part(type, start, of, alone.multiple)
