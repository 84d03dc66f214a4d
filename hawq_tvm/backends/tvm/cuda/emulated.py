"""A GPU's library on a machine without that GPU: the same file, the same virtual machine, an emulated driver below.

`hawq_tvm.emulator` runs the CUDA text that lies beside the library, each kernel's in place of the image that was made
of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hawq_tvm.backends.tvm.cuda.device import check_device
from hawq_tvm.backends.tvm.cuda.texts import parse_texts
from hawq_tvm.backends.tvm.info import GpuInfo, LibraryInfo
from hawq_tvm.core.errors import RuntimeModuleError
from hawq_tvm.core.gpu import GpuFacts
from hawq_tvm.core.ir import Array
from hawq_tvm.core.targets import find_target
from hawq_tvm.emulator import Conditions, Image, Session, emulated_environment, emulated_session


def why_not_here(library: Path, gpu: GpuInfo) -> str | None:
    """Why this machine cannot run a GPU's library, named as in messages, in a sentence; None where it can."""
    try:
        check_device(library, gpu)
    except RuntimeModuleError as error:
        return str(error)
    return None


class EmulatedModule:
    """A library in a process that sees an emulated GPU; `emulated_module` makes one."""

    def __init__(self, session: Session, library: Path) -> None:
        from hawq_tvm.backends.tvm.runtime import CompiledModule

        self._module = session.create(CompiledModule, library)

    def run(self, x: Array) -> Array:
        """As `hawq_tvm.backends.tvm.runtime.CompiledModule.run`."""
        result: Array = self._module.call("run", x)
        return result

    def values(self, x: Array) -> dict[str, Array]:
        """As `hawq_tvm.backends.tvm.runtime.CompiledModule.values`."""
        result: dict[str, Array] = self._module.call("values", x)
        return result

    def stored(self, x: Array) -> dict[str, Array]:
        """As `hawq_tvm.backends.tvm.runtime.CompiledModule.stored`."""
        result: dict[str, Array] = self._module.call("stored", x)
        return result


@contextmanager
def emulated_module(library: Path, conditions: Conditions | None = None) -> Iterator[EmulatedModule]:
    """Load a GPU's library on an emulated GPU of its target.

    Args:
        library: path of the ``.so``; its JSON and its CUDA text lie beside it.
        conditions: how the emulated GPU works.

    Raises:
        RuntimeModuleError: as `CompiledModule`, or the text is missing or another one.
        EmulatorError: no C++ compiler, or a kernel that breaks a rule of the GPU.
    """
    with emulated_session(*_gpu_and_images(library), conditions) as session:
        yield EmulatedModule(session, library)


@contextmanager
def emulated_program(library: Path, *others: Path, conditions: Conditions | None = None) -> Iterator[dict[str, str]]:
    """The environment in which any program, in C++ too, loads a GPU's libraries on an emulated GPU.

    Args:
        library: as of `emulated_module`; its target is the GPU.
        others: further libraries that the program will load.
        conditions: how the emulated GPU works.

    Yields:
        Environment variables, complete; they hold until the context ends.

    Raises:
        RuntimeModuleError: as `emulated_module`, but for what the library itself is asked.
        EmulatorError: as `emulated_module`.
    """
    facts, images = _gpu_and_images(library)
    images += [image for other in others for image in _gpu_and_images(other)[1]]
    once = {image.sha256: image for image in images}  # libraries may share kernels
    with emulated_environment(facts, once.values(), conditions) as environment:
        yield environment


def _gpu_and_images(library: Path) -> tuple[GpuFacts, list[Image]]:
    """The GPU that a library is for, and what it holds for it."""
    info = LibraryInfo.read(library)
    facts = find_target(info.target).gpu
    if info.gpu is None or facts is None:
        raise RuntimeModuleError(f"{library} is not for a GPU; it runs here as it is")
    return facts, _images(library, info.gpu)


def _images(library: Path, gpu: GpuInfo) -> list[Image]:
    path = LibraryInfo.text_beside(library)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RuntimeModuleError(
            f"{path} cannot be read ({error.strerror or error}), and an emulated GPU runs the text in it; "
            "compile the library again"
        ) from error
    if hashlib.sha256(text).hexdigest() != gpu.text_sha256:
        raise RuntimeModuleError(f"{path} is not the text that the library was made of; compile the library again")
    return [Image(kernel.image, kernel.text) for kernel in parse_texts(text.decode())]
