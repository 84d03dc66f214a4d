"""What a kernel is asked and what it answers.

A kernel *offers* to compute a node: it names the storage that it reads for each input, the one that it writes, and what
that costs; or it declines with a sentence. Which offers are taken, and thereby how every value is stored, is decided
over the whole network (`hawq_tvm.backends.tvm.storage`).

Costs are estimated microseconds of one thread with warm caches, so that offers of different kernels, and conversions
between them, can be added up and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

from hawq_tvm.core.gpu_model import Prediction
from hawq_tvm.core.ir import Array, Node, TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.core.targets import Target

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    P = TypeVar("P", bound=DataclassInstance)

LARGEST = 2**31 - 1
"""Elements of an array: a CPU's kernels count them in int32."""


@dataclass(frozen=True, eq=False)
class Request:
    """One node to compute.

    Attributes:
        node: the node, with its weights.
        inputs: the types of its inputs, in order.
        batch: how many samples a call takes.
        target: the machine.
        vector_bits: how wide its vector registers are.
        alternatives: the storage that is in play beside the canonical one, by name of the value; none where a value is
            stored canonically in any case.
        features: the instruction sets of the CPU compiled for, by LLVM's names, as ``avx512vnni``; empty for a GPU.
    """

    node: Node
    inputs: tuple[TensorType, ...]
    batch: int
    target: Target
    vector_bits: int
    alternatives: Mapping[str, Storage] = field(default_factory=dict)
    features: frozenset[str] = frozenset()

    def canonical(self) -> tuple[tuple[Storage, ...], Storage]:
        """The canonical storages of the inputs, and that of the result."""
        return tuple(Storage.canonical(x) for x in self.inputs), Storage.canonical(self.node.type)

    def channels_last(self, *, writes_canonical: bool = False) -> tuple[tuple[Storage, ...], Storage] | str:
        """The alternatives of the inputs and that of the result; or which of them is not in play, or too large.

        Args:
            writes_canonical: the result is canonical all the same.
        """
        node = self.node
        types = dict(zip((*node.inputs, node.name), (*self.inputs, node.type), strict=True))
        for name in node.inputs if writes_canonical else (*node.inputs, node.name):
            if name not in self.alternatives:
                return f"computes on channels last, in which '{name}' is not in play"
            x, storage = types[name], self.alternatives[name]
            if prod(storage.shape(x, self.batch)) > LARGEST:
                return f"addresses elements by 32 bits, {self.batch} samples of {x} in {storage} are more"
        writes = Storage.canonical(node.type) if writes_canonical else self.alternatives[node.name]
        return tuple(self.alternatives[name] for name in node.inputs), writes


@dataclass(frozen=True, eq=False)
class ConvertRequest:
    """One value to copy from one storage into another; attributes as those of `Request`."""

    type: TensorType
    source: Storage
    to: Storage
    batch: int
    target: Target
    vector_bits: int
    features: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class BuiltKernel:
    """A kernel made for one request.

    Attributes:
        function: a scheduled TIR PrimFunc; its parameters are the node's inputs, but for those that lie in the output's
            array, `constants`, and the output last.
        constants: weights, biases and multipliers as the function wants them packed.
    """

    function: Any
    constants: tuple[Array, ...]


Parameters = Mapping[str, int]
"""What a kernel is free to choose without changing what it computes or where that lies, by name: a tile, an order of
loops, how far ahead memory is fetched, whether threads share the work."""


@dataclass(frozen=True, eq=False)
class Variant:
    """One legal choice of a kernel's parameters.

    Attributes:
        parameters: the choice.
        build: makes the function so.
    """

    parameters: Parameters
    build: Callable[[], BuiltKernel]


@dataclass(frozen=True, eq=False)
class Offer:
    """How a kernel would compute a request.

    Attributes:
        reads: the storage of each input, in order.
        writes: the storage of the result, every element of it: frame and channels that fill up too, in every call. Of
            an array that other values lie in, too, no other element.
        cost: estimated microseconds, of one thread on a CPU, times `price`.
        build: makes the function.
        prediction: what the cost is made of, where a model of a GPU says it.
        price: what times are multiplied by where they are compared, for what an offer wastes beside them.
        weight_bits: what a weight takes in memory; None where there are none, or a GPU's kernel does not tell.
        parameters: those that `build` takes, which the kernel chose by itself.
        variants: all legal choices, for tuning to time; none where nothing is free.
        decided: what the numbers of a layer decide of its machine code, besides shapes and storages; None where that is
            nothing.
    """

    reads: tuple[Storage, ...]
    writes: Storage
    cost: float
    build: Callable[[], BuiltKernel]
    prediction: Prediction | None = None
    price: float = 1.0
    weight_bits: int | None = None
    parameters: Parameters = field(default_factory=dict)
    variants: Callable[[], tuple[Variant, ...]] = tuple
    decided: Callable[[], Hashable] = lambda: None

    @classmethod
    def of_candidates(
        cls,
        storages: tuple[tuple[Storage, ...], Storage],
        cost: float,
        own: P,
        candidates: Callable[[], Sequence[P]],
        build: Callable[[P], BuiltKernel],
        decided: Callable[[], Hashable] = lambda: None,
    ) -> Offer:
        """The offer of a kernel with free parameters.

        Args:
            storages: what it reads and writes.
            cost: as above, of its own choice.
            own: what the kernel chooses by itself, as a dataclass of integers.
            candidates: every legal choice, that one first.
            build: makes the function of one.
            decided: as above.
        """

        def variant(choice: P) -> Variant:
            return Variant({name: int(value) for name, value in asdict(choice).items()}, lambda: build(choice))

        def variants() -> tuple[Variant, ...]:
            return tuple(map(variant, candidates()))

        chosen = variant(own)
        return cls(*storages, cost, chosen.build, parameters=chosen.parameters, variants=variants, decided=decided)


@dataclass(frozen=True)
class Kernel:
    """A way to compute nodes.

    Attributes:
        name: says what it does, in the field's spirit: operator, operand types, technique.
        offer: what it offers for a request, or a sentence that says why it declines.
    """

    name: str
    offer: Callable[[Request], Offer | str]


@dataclass(frozen=True)
class Converter:
    """A way to copy values from one storage into another; as `Kernel`."""

    name: str
    offer: Callable[[ConvertRequest], Offer | str]


@dataclass(frozen=True)
class Decline:
    """Why a kernel was not taken that stands earlier in the table than the one that was."""

    kernel: str
    reason: str
