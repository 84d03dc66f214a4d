"""Programs that see an emulated GPU: what a library needs to run whole where there is no GPU.

TVM's CUDA runtime is linked with ``libcuda.so.1`` and ``libcudart.so.13``. The emulated libraries of those names lie in
a folder of their own; a program that starts with that folder on the loader's path (LD_LIBRARY_PATH) finds them before
any others, in Python as in C++. The environment variable HAWQ_TVM_EMULATOR names the file that describes the GPU and
says which CUDA text, compiled for the CPU, stands for which image in the library. `Image.sha256` is that of the bytes
that ``cuModuleLoadData`` gets, as many as the image's own header says.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hawq_tvm.core.errors import EmulatorError
from hawq_tvm.core.gpu import GpuFacts
from hawq_tvm.core.machine import usable_cores
from hawq_tvm.emulator.text import split_kernels
from hawq_tvm.emulator.toolchain import compile_kernels, driver_folder
from hawq_tvm.emulator.worker import Call, Create, Failed, send


@dataclass(frozen=True)
class Image:
    """An image that a library holds, and the CUDA text that it was made of.

    Attributes:
        sha256: of the image: a fatbin, a cubin or PTX; hexadecimal.
        text: CUDA C++.
    """

    sha256: str
    text: str


@dataclass(frozen=True)
class Conditions:
    """How the emulated GPU works.

    Attributes:
        checked: whether every access of a kernel is checked.
        order: of threads, as of `hawq_tvm.emulator.launch.run`.
        workers: blocks that run side by side; all usable cores if None.
        trouble: a CUDA error that every call returns, such as `NO_DEVICE`; 0 for none.
    """

    checked: bool = True
    order: int = 0
    workers: int | None = None
    trouble: int = 0


NO_DEVICE = 100
DRIVER_TOO_OLD = 35
"""CUDA's error numbers (``driver_types.h``)."""


@contextmanager
def emulated_environment(
    gpu: GpuFacts, images: Iterable[Image], conditions: Conditions | None = None
) -> Iterator[dict[str, str]]:
    """The environment in which a program sees an emulated GPU; it holds until the context ends.

    Args:
        gpu: what the GPU says about itself.
        images: of the libraries that will be loaded.
        conditions: how it works; `Conditions()` if None.

    Yields:
        Environment variables, complete.

    Raises:
        EmulatorError: no C++ compiler, or a text that the emulator does not understand.
    """
    conditions = conditions or Conditions()
    folder = driver_folder()
    kernels = [(image.sha256, kernel) for image in images for kernel in split_kernels(image.text).values()]
    libraries = compile_kernels((kernel for _, kernel in kernels), checked=conditions.checked)
    with tempfile.TemporaryDirectory(prefix="hawq-tvm-emulator-") as scratch:
        description = Path(scratch) / "gpu.txt"
        lines = [f"{key} {value}" for key, value in _facts(gpu, conditions).items()]
        lines += [
            f"kernel {image} {kernel.name} {library}"
            for (image, kernel), library in zip(kernels, libraries, strict=True)
        ]
        description.write_text("\n".join(lines) + "\n")
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH"))))
        yield {**os.environ, "LD_LIBRARY_PATH": path, "HAWQ_TVM_EMULATOR": str(description)}


def _facts(gpu: GpuFacts, conditions: Conditions) -> Mapping[str, object]:
    major, minor = gpu.architecture.compute_capability
    return {
        "name": f"{gpu.name} (emulated)",
        "compute_capability": f"{major} {minor}",
        "multiprocessors": gpu.sms,
        "memory_bytes": gpu.memory_bytes,
        "shared_bytes_per_block": gpu.architecture.shared_bytes_per_block,
        "l2_bytes": gpu.l2_bytes,
        "clock_khz": gpu.boost_clock_mhz * 1000,
        "order": conditions.order,
        "workers": conditions.workers or usable_cores(),
        "trouble": conditions.trouble,
    }


class Remote:
    """An object in the process that sees the emulated GPU."""

    def __init__(self, session: Session, number: int) -> None:
        self._session = session
        self._number = number

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method; arguments and result are pickled.

        Raises:
            EmulatorError: the process ended, or raised something that cannot be pickled.
            Exception: what the method raises.
        """
        return self._session.ask(Call(self._number, method, arguments))


class Session:
    """A process that sees an emulated GPU; `emulated_session` makes one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def create(self, factory: Callable[..., Any], *arguments: Any) -> Remote:
        """Make an object there.

        Args:
            factory: a class or function that can be imported; it must not need PyTorch.
            arguments: pickled.

        Raises:
            EmulatorError: as `Remote.call`.
            Exception: what the factory raises.
        """
        return Remote(self, self.ask(Create(factory, arguments)))

    def ask(self, request: Create | Call) -> Any:
        """Send a request and wait for its answer."""
        assert self._process.stdin and self._process.stdout
        try:
            send(self._process.stdin, request)
            result = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise EmulatorError(f"the process with the emulated GPU {_end(self._process)}") from error
        if isinstance(result, Failed):
            raise result.error or EmulatorError(result.text)
        return result


def _end(process: subprocess.Popen[bytes]) -> str:
    status = process.wait()
    if status >= 0:
        return f"ended with status {status}"
    hint = ", as where memory runs out" if status == -signal.SIGKILL else ""
    return f"was ended by signal {-status} ({signal.strsignal(-status)}){hint}"


@contextmanager
def emulated_session(gpu: GpuFacts, images: Iterable[Image], conditions: Conditions | None = None) -> Iterator[Session]:
    """A process that sees an emulated GPU, for as long as the context holds.

    Args:
        gpu: as of `emulated_environment`; so are the other two.
        images: of the libraries that will be loaded.
        conditions: how it works.

    Raises:
        EmulatorError: as `emulated_environment`.
    """
    with emulated_environment(gpu, images, conditions) as environment:
        command = [sys.executable, "-P", "-c", "from hawq_tvm.emulator.worker import main; main()"]
        paths = [entry for entry in sys.path if entry]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdin
            send(process.stdin, paths)
            try:
                yield Session(process)
            finally:
                with suppress(BrokenPipeError):  # it has ended already
                    process.stdin.close()
