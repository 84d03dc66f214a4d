"""What a compiled library holds, read from the JSON beside it: needs neither TVM nor the library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from hawq_tvm.backends.tvm.records import TunedLayer
from hawq_tvm.core.errors import RuntimeModuleError
from hawq_tvm.core.ir import IntType, TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.core.strict_json import JsonReader

MAIN, REALS, TAPPED = "main", "reals", "tapped"
"""The functions of a library: integers to integers; of a CPU also float32 to float32, what stands before and behind
included; of a GPU also the one that calls every kernel by itself."""

FORMAT = 5
"""Of a library. It is raised when a field of the description or a function comes or goes, so that libraries from before
are compiled again."""


@dataclass(frozen=True)
class ValueInfo:
    """One value of the graph: its integer type, the shape of a sample, its scale, and how its kernel stores it."""

    dtype: str
    shape: tuple[int, ...]
    scale: float
    storage: Storage

    def __post_init__(self) -> None:
        self.storage.check(self.type)  # GraphError where dtype is none, or cannot be stored so

    @property
    def type(self) -> TensorType:
        return TensorType(IntType.parse(self.dtype), self.shape, self.scale)


@dataclass(frozen=True)
class ImageInput:
    """How an image becomes the input, before it is quantised: torchvision's evaluation transform.

    Attributes:
        resize: the short side after a bilinear resize, in pixels.
        crop: the side of the centre crop.
        mean: subtracted per channel (red, green, blue), after division by 255.
        std: divided by per channel.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class ConversionInfo:
    """A call that copies a value into another storage, and the kernel that does."""

    value: str
    storage: Storage
    kernel: str


@dataclass(frozen=True)
class GpuKernelInfo:
    """One kernel of a GPU, on the GPU that it was chosen for.

    Attributes:
        function: what the virtual machine calls to launch it.
        grid: blocks in x, y and z.
        block: threads of a block in x, y and z.
        registers: 32-bit registers of a thread.
        shared_bytes: shared memory of a block.
        stack_bytes: local memory of a thread: arrays that are not in registers.
        spill_bytes: registers that a thread spills to local memory.
        blocks_per_sm: blocks that a multiprocessor holds at once.
        occupancy: the share of its warps that they are.
        tensor_core: the tensor core instructions in its machine code; None where no disassembler was at hand.
        image: SHA-256 of its image in the library.
    """

    function: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int
    blocks_per_sm: int
    occupancy: float
    tensor_core: tuple[str, ...] | None
    image: str


@dataclass(frozen=True)
class PredictedCall:
    """What a call is predicted to take.

    Attributes:
        us: microseconds, its launch in a CUDA graph included.
        bound: the part of the GPU that keeps it longest.
    """

    us: float
    bound: str


@dataclass(frozen=True)
class PredictedTimes:
    """What `hawq_tvm.core.gpu_model` says of a library on the GPU that its kernels were chosen for.

    Attributes:
        clock_mhz: the clock that the GPU is taken to hold while it runs these calls over and over.
        calls: by the names in `LibraryInfo.calls`.
    """

    clock_mhz: float
    calls: Mapping[str, PredictedCall]

    @property
    def us(self) -> float:
        """Microseconds of all calls together."""
        return sum(call.us for call in self.calls.values())


@dataclass(frozen=True)
class GpuInfo:
    """What a library holds for GPUs.

    Attributes:
        architectures: those that it has machine code for: ``sm_75``.
        ptx: the PTX that drivers of newer GPUs compile: ``compute_75``.
        compiler: what compiled it.
        functions: what the virtual machine calls, by the names in `LibraryInfo.calls`.
        kernels: by symbol, in the order of their functions.
        device_bytes: memory that a call takes: constants, activations and the input.
        text_sha256: of the file with the kernels' CUDA text beside the library.
        predicted: how long the calls take, as a model says.
    """

    architectures: tuple[str, ...]
    ptx: str
    compiler: str
    functions: Mapping[str, str]
    kernels: Mapping[str, GpuKernelInfo]
    device_bytes: int
    text_sha256: str
    predicted: PredictedTimes

    def launched_by(self, call: str) -> dict[str, GpuKernelInfo]:
        """The kernels that a call launches."""
        return {name: kernel for name, kernel in self.kernels.items() if kernel.function == self.functions[call]}


@dataclass(frozen=True)
class LibraryInfo:
    """What a compiled library holds; the JSON beside it.

    Attributes:
        target: the target's name.
        cpu: LLVM's name of the CPU it was compiled for; empty for a portable one.
        architecture: of that CPU: ``x86_64`` or ``aarch64``.
        instruction_sets: what its code may use, by Linux's names; a machine without them must not run the library.
        batch: samples a call.
        input_name: the input value.
        output_name: the output value.
        values: every value.
        calls: every kernel call in order, by a name: the value that it makes, or a name of `conversions`.
        conversions: the calls that only copy a value into another storage.
        views: values that are views of another, by name.
        joins: concatenations whose branches were written in place: by name, the last call that writes into one.
        kernels: the kernel that makes each value.
        declines: why kernels that stand earlier in the table were not taken, by node.
        constants: bytes of weights, biases and multipliers as the kernels pack them, by call.
        weight_bits: what a weight takes in memory, by layer, where the kernel tells.
        tuned: what tuning found for the layers that are computed so, by name.
        exact_storages: whether the choice of storages is proved to cost least.
        planned_bytes: activation memory.
        fingerprint: of the integer graph.
        tvm: the version that compiled it.
        sha256: of the library file.
        gpu: what it holds for GPUs; None where it runs on a CPU alone.
        image: how an image becomes the input; None where the run's samples do not tell.
    """

    target: str
    cpu: str
    architecture: str
    instruction_sets: tuple[str, ...]
    batch: int
    input_name: str
    output_name: str
    values: Mapping[str, ValueInfo]
    calls: tuple[str, ...]
    conversions: Mapping[str, ConversionInfo]
    views: Mapping[str, str]
    joins: Mapping[str, str]
    kernels: Mapping[str, str]
    declines: Mapping[str, tuple[str, ...]]
    constants: Mapping[str, int]
    weight_bits: Mapping[str, int]
    tuned: Mapping[str, TunedLayer]
    exact_storages: bool
    planned_bytes: int
    fingerprint: str
    tvm: str
    sha256: str
    gpu: GpuInfo | None = None
    image: ImageInput | None = None

    @property
    def call_kernels(self) -> dict[str, str]:
        """The kernel of each call, by the names in `calls`."""
        conversions = {name: conversion.kernel for name, conversion in self.conversions.items()}
        return {name: conversions.get(name) or self.kernels[name] for name in self.calls}

    @staticmethod
    def path_beside(library: Path) -> Path:
        """Where the JSON of a library lies."""
        return library.with_suffix(".json")

    @staticmethod
    def text_beside(library: Path) -> Path:
        """Where the CUDA text of a library's kernels lies; see `hawq_tvm.backends.tvm.cuda.texts`."""
        return library.with_suffix(".cu")

    def write(self, library: Path) -> None:
        """Write the JSON beside the library."""
        self.path_beside(library).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, library: Path) -> LibraryInfo:
        """Read the JSON beside the library.

        Raises:
            RuntimeModuleError: it is missing or not ours.
        """
        path = cls.path_beside(library)
        if not path.exists():
            raise RuntimeModuleError(f"{path} is missing: a library needs the JSON file it was compiled with")
        reader = JsonReader(f"{path} is corrupted", RuntimeModuleError, "compile the library again")
        found: LibraryInfo = reader.take(reader.read(path), cls, signed=("offset", "mean"))
        copied = {item.value for item in found.conversions.values()}
        made = [name for name in found.calls if name not in found.conversions]
        named = {found.input_name, found.output_name, *made, *copied, *found.views, *found.views.values(), *found.joins}
        unknown = sorted(named - found.values.keys())
        if unknown:
            raise reader.fault(f"values holds no {unknown[0]!r}")
        bare = [name for name in made if name not in found.kernels or name not in found.declines]
        if bare:
            raise reader.fault(f"kernels and declines do not both name {bare[0]!r}")
        unmade = sorted(set(found.joins.values()) - set(found.calls))
        if unmade:
            raise reader.fault(f"joins names {unmade[0]!r}, which is no call")
        unpacked = sorted(set(found.calls) - found.constants.keys())
        if unpacked:
            raise reader.fault(f"constants does not name {unpacked[0]!r}")
        if found.gpu is not None:
            for where, told in (("functions", found.gpu.functions), ("predicted.calls", found.gpu.predicted.calls)):
                untold = sorted(set(found.calls) - told.keys())
                if untold:
                    raise reader.fault(f"gpu.{where} does not name {untold[0]!r}")
        if found.batch < 1:
            raise reader.fault("batch is 0, expected at least 1")
        return found
