"""The integer graph: a small, frozen, topologically ordered list of nodes, each of which makes one value.

A value has its node's name. Its `TensorType` says which integers it may hold, the shape of one sample (the batch axis
comes first and is never counted) and, as metadata that no kernel reads, the scale that turns it back into reals. What
a node computes is its `Operator`; the rows are in `hawq_tvm.core.ops`. `Graph.check()` holds between passes.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.dyadic import ACCUMULATOR_LIMIT, DYADIC_LIMIT, MULTIPLIER_LIMIT, ROUNDED_LIMIT, SHIFT_RANGE
from hawq_tvm.core.errors import GraphError, OverflowRefused

Array = NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class IntType:
    """An integer type of 2 to 8 bits, or the 32-bit type of the network's output.

    >>> IntType(4, signed=False), IntType(4, signed=False).hi, IntType(8, signed=True).carrier
    (u4, 15, 'int8')
    """

    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 8 or (self.bits == 32 and self.signed)):
            raise GraphError(f"integer types have 2 to 8 bits, or 32 signed; got {self.bits} bits, {self.signed=}")

    @property
    def lo(self) -> int:
        """The smallest value; -2^31 is left out of s32, as no accumulator may reach it."""
        if not self.signed:
            return 0
        return -(1 << (self.bits - 1)) + (self.bits == 32)

    @property
    def hi(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def magnitude(self) -> int:
        """The largest absolute value."""
        return max(self.hi, -self.lo)

    @property
    def carrier(self) -> str:
        """The numpy dtype that holds the values: ``int8``, ``uint8`` or ``int32``."""
        if self.bits == 32:
            return "int32"
        return "int8" if self.signed else "uint8"

    def __repr__(self) -> str:
        return f"{'s' if self.signed else 'u'}{self.bits}"

    @classmethod
    def parse(cls, text: str) -> IntType:
        """The inverse of `repr`: ``u4``, ``s8``, ``s32``."""
        if len(text) not in (2, 3) or text[0] not in "su" or not text[1:].isdecimal():
            raise GraphError(f"an integer type is written like u4 or s8, got {text!r}")
        return cls(int(text[1:]), signed=text[0] == "s")


OUTPUT_TYPE = IntType(32, signed=True)

SILENT_WHERE_NONE = MappingProxyType({"silent": True})
"""Metadata of a field that a fingerprint leaves out where it is None: networks from before it keep theirs."""


@dataclass(frozen=True)
class TensorType:
    """What a value may hold: integers of `dtype`, `shape` a sample, worth `scale` each."""

    dtype: IntType
    shape: Shape
    scale: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        object.__setattr__(self, "scale", float(self.scale))

    def __repr__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Window:
    """How a convolution or a pooling window slides: sizes are (height, width), pads (top, left, bottom, right).

    Raises:
        GraphError: a size, stride or dilation under 1, or a negative pad.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, tuple(map(int, getattr(self, field.name))))
        kernel, strides, pads, dilations = self.kernel, self.strides, self.pads, self.dilations
        if min(*kernel, *strides, *dilations) < 1 or min(pads) < 0:
            raise GraphError(
                f"a window needs a kernel, strides and dilations of at least 1 and pads of at least 0, "
                f"got {kernel=}, {strides=}, {dilations=}, {pads=}"
            )

    @property
    def reach(self) -> tuple[int, int]:
        """How many rows and columns it spans, from its first tap to its last."""
        (kh, kw), (dy, dx) = self.kernel, self.dilations
        return dy * (kh - 1) + 1, dx * (kw - 1) + 1

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The spatial size of the output for an input of `height` x `width`.

        >>> Window((3, 3), (2, 2), (0, 0, 1, 1)).output_size(224, 224)
        (112, 112)
        """
        top, left, bottom, right = self.pads
        sizes = []
        for axis, padded in enumerate((height + top + bottom, width + left + right)):
            if padded < self.reach[axis]:
                raise GraphError(f"a window {self} does not fit an input of {height}x{width}")
            sizes.append((padded - self.reach[axis]) // self.strides[axis] + 1)
        return sizes[0], sizes[1]

    def sees_input(self, height: int, width: int) -> bool:
        """Whether every window holds an element of an input of `height` x `width`, and not padding alone.

        Windows are products of rows and columns, so each axis is looked at alone; under dilation the taps count, not
        the reach.

        >>> Window((2, 2), (2, 2), (0, 0, 2, 2)).sees_input(4, 4)
        False
        """
        outputs = self.output_size(height, width)
        for axis, size in enumerate((height, width)):
            starts = np.arange(outputs[axis]) * self.strides[axis] - self.pads[axis]
            first = np.maximum(0, -(starts // self.dilations[axis]))  # the first tap that does not lie before the input
            if np.any((first >= self.kernel[axis]) | (starts + first * self.dilations[axis] >= size)):
                return False
        return True

    def __str__(self) -> str:
        parts = [f"{self.kernel[0]}x{self.kernel[1]}"]
        if self.strides != (1, 1):
            parts.append(f"stride {self.strides[0]},{self.strides[1]}")
        if any(self.pads):
            parts.append("pads " + ",".join(map(str, self.pads)))
        if self.dilations != (1, 1):
            parts.append(f"dilation {self.dilations[0]},{self.dilations[1]}")
        return " ".join(parts)


def frozen_array(values: Any, dtype: str) -> Array:
    """A read-only, contiguous array: what a frozen node may hold.

    Raises:
        GraphError: a value that `dtype` cannot hold, or that is not whole.
    """
    given = np.asarray(values)
    try:
        with np.errstate(invalid="ignore"):  # NaN is told by the comparison
            array = np.ascontiguousarray(given, dtype=dtype)
    except OverflowError as error:
        raise GraphError(f"{dtype} cannot hold all values of {values!r}") from error
    if not np.array_equal(array, given):
        limits = np.iinfo(dtype)
        raise GraphError(
            f"{dtype} holds whole numbers in {limits.min}..{limits.max}, got {given.dtype} values "
            f"in {given.min()}..{given.max()}"
        )
    if array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array


@dataclass(frozen=True, eq=False)
class Rescale:
    """The dyadic rescale that ends an operator: see `hawq_tvm.core.dyadic`.

    Attributes:
        multiplier: int64; the operator says what its axis is: one per output channel, per input, per position, or one.
        shift: 1 to 62.
        lo: smallest result; a ReLU is ``lo = 0``.
        hi: largest result; a ReLU6 is ``hi = round(6 / scale)`` where that is under the type's own bound.
        residual: int64 [1] or [channels], or None: the multiplier of a fused residual.
    """

    multiplier: Array
    shift: int
    lo: int
    hi: int
    residual: Array | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "multiplier", frozen_array(self.multiplier, "int64"))
        if self.residual is not None:
            object.__setattr__(self, "residual", frozen_array(self.residual, "int64"))

    def check(self, output: TensorType) -> None:
        """Raise `GraphError` unless multipliers, shift and clip keep the contract."""
        for name, values in (("multiplier", self.multiplier), ("residual multiplier", self.residual)):
            if values is not None and (values.min() < 0 or values.max() >= MULTIPLIER_LIMIT):
                raise GraphError(f"a {name} must lie in [0, 2^31), got {values.min()} to {values.max()}")
        if not SHIFT_RANGE[0] <= self.shift <= SHIFT_RANGE[1]:
            raise GraphError(f"a shift must lie in {SHIFT_RANGE}, got {self.shift}")
        if not output.dtype.lo <= self.lo <= self.hi <= output.dtype.hi:
            raise GraphError(f"clip bounds {self.lo}..{self.hi} do not fit an output of type {output.dtype}")

    def __str__(self) -> str:
        text = f">> {self.shift} clip {self.lo}..{self.hi}"
        return text if self.residual is None else f"+ residual {text}"


@dataclass(frozen=True)
class Bounds:
    """Proved magnitudes: no order of summation, partial sums included, leaves them.

    Attributes:
        accumulator: of the int32 accumulator with its bias, must stay under 2^31.
        dyadic_sum: of the int64 sum that is shifted, rounding term included, must stay under 2^63.
        rounded: of the shifted sum before its clip, must stay under 2^31: a 32-bit result never saturates, and the
            clip is one of 32-bit numbers (ONNX Runtime 1.31's int64 Clip is wrong beyond them on AVX-512).
    """

    accumulator: int
    dyadic_sum: int
    rounded: int

    @classmethod
    def of(cls, accumulator: int, total: int, shift: int) -> Bounds:
        """From the magnitudes of the accumulator and of the sum that is shifted, its rounding term left out."""
        dyadic_sum = total + (1 << (shift - 1))
        return cls(accumulator, dyadic_sum, dyadic_sum >> shift)

    def check(self, layer: str) -> None:
        """Raise `OverflowRefused` where a bound reaches its limit."""
        for quantity, bound, limit in (
            ("accumulator", self.accumulator, ACCUMULATOR_LIMIT),
            ("dyadic sum", self.dyadic_sum, DYADIC_LIMIT),
            ("rounded result", self.rounded, ROUNDED_LIMIT),
        ):
            if bound >= limit:
                raise OverflowRefused(layer, quantity, bound, limit)


@dataclass(frozen=True, eq=False)
class Operator(ABC):
    """What a node computes: shape rule, numpy reference, cost and proof. One subclass an operator, in `ops`."""

    kind: ClassVar[str]
    """The operator's name, the key in the tables of every back end."""

    @abstractmethod
    def output_shape(self, inputs: Sequence[TensorType]) -> Shape:
        """The shape of one output sample; raises `GraphError` for inputs that do not fit."""

    @abstractmethod
    def evaluate(self, inputs: Sequence[Array]) -> Array:
        """The numpy reference: int64 [N, ...] arrays in, int64 out, exact."""

    @abstractmethod
    def bounds(self, inputs: Sequence[TensorType]) -> Bounds | None:
        """The proof of no overflow; None where nothing is accumulated."""

    @property
    def rescale_or_none(self) -> Rescale | None:
        """The dyadic rescale, where the operator has one."""
        return getattr(self, "rescale", None)

    def macs(self, output: TensorType) -> int:
        """Multiply-accumulates a sample; 0 for operators without weights."""
        return 0

    def check_parameters(self, inputs: Sequence[TensorType], output: TensorType) -> None:
        """Raise `GraphError` where weights, bias or rescale break the contract."""
        if self.rescale_or_none is not None:
            self.rescale_or_none.check(output)

    def describe(self) -> str:
        """The parameters as they stand in the printed graph."""
        parts = [getattr(self, "window", None), self.rescale_or_none]
        return " ".join(str(part) for part in parts if part is not None)


@dataclass(frozen=True, eq=False)
class Node:
    """One operator applied to values; its own value has its name.

    Attributes:
        name: the module path of the layer it came from, unique in the graph.
        op: the operator with its weights.
        inputs: names of values; a fused residual comes second.
        type: the value's type.
    """

    name: str
    op: Operator
    inputs: tuple[str, ...]
    type: TensorType

    def __str__(self) -> str:
        arguments = ", ".join(self.inputs)
        return f"{self.name}: {self.type} = {self.op.kind}({arguments}) {self.op.describe()}".rstrip()


@dataclass(frozen=True, eq=False)
class Graph:
    """An integer-only network with one input and one output.

    Attributes:
        name: the network's name.
        input_name: the input value's name.
        input_type: its type; `hawq_tvm.core.interpreter.quantize_input` makes it from floats.
        nodes: in topological order.
        output: the name of the value that is the result.
    """

    name: str
    input_name: str
    input_type: TensorType
    nodes: tuple[Node, ...]
    output: str

    @property
    def types(self) -> dict[str, TensorType]:
        """Every value's type, by name, the input's first."""
        return {self.input_name: self.input_type, **{node.name: node.type for node in self.nodes}}

    @property
    def output_type(self) -> TensorType:
        return self.types[self.output]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def node(self, name: str) -> Node:
        """The node of that name."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise GraphError(f"graph '{self.name}' has no node '{name}'")

    def replace_node(self, name: str, **changes: Any) -> Graph:
        """A copy in which the node of that name has some fields changed; not checked."""
        self.node(name)
        nodes = tuple(replace(node, **changes) if node.name == name else node for node in self.nodes)
        return replace(self, nodes=nodes)

    def check(self) -> None:
        """Raise `GraphError` unless the graph is whole and keeps the numeric contract, proofs included."""
        types: dict[str, TensorType] = {self.input_name: self.input_type}
        _check_scale(f"the input '{self.input_name}'", self.input_type)
        for node in self.nodes:
            if node.name in types:
                raise GraphError(f"two values are named '{node.name}'")
            missing = [name for name in node.inputs if name not in types]
            if missing:
                raise GraphError(f"node '{node.name}' reads {missing}, which no earlier node makes")
            inputs = [types[name] for name in node.inputs]
            try:
                self._check_node(node, inputs)
            except OverflowRefused:
                raise
            except GraphError as error:
                raise GraphError(f"node '{node.name}' ({node.op.kind}): {error}") from error
            types[node.name] = node.type
        if self.output not in types:
            raise GraphError(f"the output '{self.output}' is made by no node")

    @staticmethod
    def _check_node(node: Node, inputs: Sequence[TensorType]) -> None:
        shape = node.op.output_shape(inputs)
        if shape != node.type.shape:
            raise GraphError(f"its output is {shape} by the shape rule and {node.type.shape} by its type")
        _check_scale("its result", node.type)
        node.op.check_parameters(inputs, node.type)
        bounds = node.op.bounds(inputs)
        if bounds is not None:
            bounds.check(node.name)

    def bounds(self) -> dict[str, Bounds]:
        """The proof of every node that accumulates, by name."""
        types = self.types
        proofs = ((node.name, node.op.bounds([types[name] for name in node.inputs])) for node in self.nodes)
        return {name: bounds for name, bounds in proofs if bounds is not None}

    def fingerprint(self) -> str:
        """sha256 over everything that decides the network's integers and their meaning, hexadecimal."""
        digest = hashlib.sha256()
        for part in _canonical(self):
            digest.update(part)
        return digest.hexdigest()

    def __str__(self) -> str:
        head = f"{self.name}({self.input_name}: {self.input_type}) -> {self.output}"
        return "\n".join([head, *(f"  {node}" for node in self.nodes)])


def _check_scale(what: str, type: TensorType) -> None:
    if not (np.isfinite(type.scale) and type.scale > 0):
        raise GraphError(f"{what} must have a positive and finite scale, got {type.scale}")


def _canonical(value: Any) -> Iterator[bytes]:
    """The bytes of a value, unambiguous: every piece carries its type and length."""
    if isinstance(value, np.ndarray):
        yield f"array {value.dtype} {value.shape};".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif is_dataclass(value):
        yield f"{type(value).__name__}(".encode()
        for field in fields(value):
            part = getattr(value, field.name)
            if part is None and field.metadata == SILENT_WHERE_NONE:
                continue
            yield f"{field.name}=".encode()
            yield from _canonical(part)
        yield b")"
    elif isinstance(value, tuple | list):
        yield f"tuple {len(value)};".encode()
        for item in value:
            yield from _canonical(item)
    elif isinstance(value, Mapping):
        raise AssertionError("graphs hold no mappings")
    else:
        yield f"{type(value).__name__} {value!r};".encode()
