"""Which integers each value of a network becomes: its bits, its sign, its scale.

Every value is stored at the most bits that a reader asks for; a layer that reads fewer gets a copy at its own. The
values of a concatenation share its quantiser where nothing else reads them, so that joining them copies integers. The
network's result keeps 32 bits. The integer graph and its simulation in reals both ask here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np

from hawq_tvm.core.errors import AllocationError, CalibrationError
from hawq_tvm.core.float_ir import PASS_THROUGH, WEIGHTED, FloatGraph, FloatNode
from hawq_tvm.core.ir import Shape, TensorType
from hawq_tvm.core.quantizer import RangeTable, activation_scale, activation_type, range_at
from hawq_tvm.core.specs import BitConfig

_LEAST_SCALE = float(np.finfo(np.float32).tiny)  # a value of a smaller scale is 0 in float32
_WIDENED = (*WEIGHTED, "add", "avg_pool2d", "global_avg_pool2d")


class ActivationTypes:
    """The type of every value of a graph under a bit configuration."""

    def __init__(self, graph: FloatGraph, ranges: RangeTable, bits: BitConfig) -> None:
        """Look at a network.

        Args:
            graph: from capture.
            ranges: of the input and of every value, by name.
            bits: of every layer.

        Raises:
            AllocationError: a layer without bits, or bits for a layer or a value that is not there.
        """
        names = [layer.name for layer in graph.layers]
        missing = [name for name in names if name not in bits.layers]
        unknown = [name for name in bits.layers if name not in names]
        if missing or unknown:
            what = f"no bits for layer '{missing[0]}'" if missing else f"bits for unknown layer '{unknown[0]}'"
            raise AllocationError(f"the bit configuration has {what}; the layers are {', '.join(names)}")
        self.graph = graph
        self.ranges = ranges
        self.bits = bits
        self.nonnegative = graph.nonnegative()
        self._users = graph.users
        unknown = [name for name in bits.stored if name not in self._users]
        if unknown:
            raise AllocationError(
                f"the bit configuration has stored bits for the unknown value '{unknown[0]}'; the values are "
                f"{', '.join(self._users)}"
            )

    @cached_property
    def wide(self) -> str | None:
        """The value that becomes the network's result and keeps 32 bits; None where a max-pool stands behind it."""
        table = self.graph.by_name
        node = table.get(self.graph.output)
        while node is not None and node.kind == "flatten":
            node = table.get(node.inputs[0])
        return node.name if node is not None and node.kind in _WIDENED else None

    @cached_property
    def stored_bits(self) -> dict[str, int]:
        """The most bits that any reader of a value asks for, or those that the configuration says."""
        stored: dict[str, int] = {}
        for name in self._backwards():
            wanted = [self._wanted(user, name, stored) for user in self._users[name]]
            stored[name] = self.bits.stored.get(name, max(wanted, default=8))
        return stored

    def _backwards(self) -> list[str]:
        return [*(node.name for node in reversed(self.graph.nodes)), self.graph.input_name]

    def _wanted(self, user: FloatNode, name: str, stored: Mapping[str, int]) -> int:
        if user.kind in WEIGHTED:
            residual = len(user.inputs) == 2 and user.inputs[1] == name
            activation = self.bits.layers[user.name].activation if user.inputs[0] == name else 0
            return max(activation, self.bits.residual if residual else 0)
        if user.kind == "add":
            return self.bits.residual
        return 8 if user.name == self.wide else stored[user.name]

    @cached_property
    def _owners(self) -> dict[str, str]:
        """For values that only a concatenation reads, that concatenation: they share its quantiser."""
        owners: dict[str, str] = {}
        for name in self._backwards():
            readers, value = self._users[name], name
            while len(readers) == 1 and readers[0].kind in PASS_THROUGH:
                value = readers[0].name
                readers = self._users[value]
            if len(readers) == 1 and readers[0].kind == "concat" and value != self.graph.output:
                owners[name] = owners.get(readers[0].name, readers[0].name)
        return owners

    def owner(self, name: str) -> str:
        """The value whose range `name` is quantised over: its own, or that of the concatenation that joins it."""
        return self._owners.get(name, name)

    def type(self, name: str, bits: int | None = None) -> TensorType:
        """The type of a value that has a quantiser.

        Args:
            name: the input or a node that is not in `PASS_THROUGH`, and not the network's result.
            bits: of a copy; None for those that it is stored at.

        Raises:
            CalibrationError: it has no range, or that of a dead layer.
        """
        owner = self.owner(name)
        bits = self.stored_bits[owner] if bits is None else bits
        dtype = activation_type(bits, self.nonnegative[owner])
        found = range_at(self.ranges, owner, bits)
        scale = activation_scale(found, dtype)
        if not scale > _LEAST_SCALE:
            raise CalibrationError(f"'{owner}' has the range {found}: a dead layer; check weights and data")
        return TensorType(dtype, self._shape(name), scale)

    def _shape(self, name: str) -> Shape:
        return self.graph.shapes[name]

    def reads(self, layer: FloatNode) -> TensorType:
        """The type that a layer with weights reads its first input at.

        Raises:
            CalibrationError: as `type`.
        """
        value = layer.inputs[0]
        source = self.graph.source(value)
        bits = min(self.bits.layers[layer.name].activation, self.stored_bits[self.owner(source)])
        return replace(self.type(source, bits), shape=self._shape(value))
