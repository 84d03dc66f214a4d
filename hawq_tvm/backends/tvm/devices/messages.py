"""What the process that talks to a device is asked, and what it answers; both sides are ours, and it goes by pickle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hawq_tvm.core.devices import Device
from hawq_tvm.core.ir import Array

EMULATED = "(emulated)"
"""How the name of an emulated GPU ends (`hawq_tvm.emulator.session`)."""


@dataclass(frozen=True)
class DeviceFacts:
    """What a device says of itself; what it does not tell is empty or 0.

    Attributes:
        name: of a GPU, as its driver says; of a CPU, as LLVM does: ``znver5``.
        compute_capability: of a GPU: ``7.5``.
        multiprocessors: of a GPU.
        clock_mhz: of a GPU, the highest that its driver names. What it runs at is told by no function of TVM.
        memory_bytes: of a GPU, in all.
        triple: LLVM's name of a CPU's architecture and system: ``x86_64-linux-gnu``.
        threads: of a CPU, that TVM gives a kernel there.
    """

    name: str
    compute_capability: str = ""
    multiprocessors: int = 0
    clock_mhz: float = 0.0
    memory_bytes: int = 0
    triple: str = ""
    threads: int = 0

    @property
    def is_emulated(self) -> bool:
        """Whether no GPU is at work: its times say nothing."""
        return self.name.endswith(EMULATED)

    @property
    def architecture(self) -> str:
        """Of a GPU, ``sm_75``."""
        return f"sm_{self.compute_capability.replace('.', '')}"

    def __str__(self) -> str:
        if not self.compute_capability:
            return self.name or "a CPU that does not tell its name"
        clock = f", at most {self.clock_mhz:,.0f} MHz" if self.clock_mhz else ""
        return f"{self.name} ({self.architecture}, {self.multiprocessors} multiprocessors{clock})"


@dataclass(frozen=True)
class Kernel:
    """A function of a library.

    Attributes:
        name: its symbol.
        title: what it computes, for messages.
        arguments: a ``.npz`` whose arrays are passed in order.
    """

    name: str
    title: str
    arguments: Path


@dataclass(frozen=True)
class Kernels:
    """Time functions of a library, each by itself, in this order.

    Attributes:
        library: the ``.so`` here.
        functions: of the library.
    """

    library: Path
    functions: tuple[Kernel, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """Run the main function of a library once, then time it.

    Attributes:
        library: the ``.so`` here.
        x: the input, one batch.
        seconds: how long to time it.
    """

    library: Path
    x: Array
    seconds: float


@dataclass(frozen=True)
class Job:
    """What the process is to do.

    Attributes:
        device: where.
        gpu: whether its GPU is meant, or its CPU.
        threads: of a CPU; None for as many as TVM gives there.
        session_seconds: after which a server ends the session, whoever holds it.
        work: what to do there; None only looks.
    """

    device: Device
    gpu: bool
    threads: int | None
    session_seconds: float
    work: Kernels | Network | None = None


# ---- answers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Waiting:
    """All servers of the key are busy."""


@dataclass(frozen=True)
class Doing:
    """What begins now, for messages; a sign of life too."""

    what: str


@dataclass(frozen=True)
class Timed:
    """A function was timed.

    Attributes:
        name: of the function.
        seconds: of a call: the mean of each repeat.
        calls: in a repeat.
    """

    name: str
    seconds: tuple[float, ...]
    calls: int


@dataclass(frozen=True, eq=False)
class Computed:
    """What the network gives."""

    output: Array


@dataclass(frozen=True)
class Refused:
    """Nothing is done, and a sentence says why."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """It went wrong in the middle.

    Attributes:
        reason: what TVM says.
        lost: whether the session is gone.
    """

    reason: str
    lost: bool


@dataclass(frozen=True)
class Done:
    """All is done."""


Answer = DeviceFacts | Waiting | Doing | Timed | Computed | Refused | Failed | Done
