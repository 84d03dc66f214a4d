"""A GPU's library where there is no GPU: loaded and run in a process that sees an emulated one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from hawq_tvm.backends.tvm.cuda.texts import parse_texts
from hawq_tvm.backends.tvm.info import LibraryInfo
from hawq_tvm.backends.tvm.runtime import CompiledModule
from hawq_tvm.core.errors import RuntimeModuleError
from hawq_tvm.core.hashing import file_sha256
from hawq_tvm.core.ir import Array
from hawq_tvm.core.targets import find_target
from hawq_tvm.emulator import Conditions, Image, Remote, emulated_session


class EmulatedModule:
    """A `CompiledModule` in another process; `emulated_module` makes one. Its methods do what they do there."""

    def __init__(self, module: Remote, info: LibraryInfo) -> None:
        self._module = module
        self.info = info

    def run(self, x: Array) -> Array:
        """See `CompiledModule.run`."""
        return cast(Array, self._module.call("run", x))

    def values(self, x: Array) -> dict[str, Array]:
        """See `CompiledModule.values`."""
        return cast(dict[str, Array], self._module.call("values", x))

    def stored(self, x: Array) -> dict[str, Array]:
        """See `CompiledModule.stored`."""
        return cast(dict[str, Array], self._module.call("stored", x))


@contextmanager
def emulated_module(library: Path, conditions: Conditions | None = None) -> Iterator[EmulatedModule]:
    """Load a library on an emulated GPU of its target; the process ends with the context.

    The kernels run are those of the CUDA text beside the library, each in place of the image that was made of it.

    Args:
        library: path of the ``.so``; its JSON and its CUDA text lie beside it.
        conditions: how the GPU works; every access checked if None.

    Raises:
        RuntimeModuleError: a library for a CPU, or its text is missing or another one; or as `CompiledModule`.
        EmulatorError: no C++ compiler, a text that the emulator does not understand, or the process ended.
    """
    info = LibraryInfo.read(library)
    gpu = find_target(info.target).gpu
    if gpu is None or info.gpu is None:
        raise RuntimeModuleError(f"{library} is for {info.target}, which runs here without an emulated GPU")
    text = LibraryInfo.text_beside(library)
    if not text.exists() or file_sha256(text) != info.gpu.text_sha256:
        raise RuntimeModuleError(
            f"{text} is missing or is not the CUDA text of {library.name}, and the emulated GPU runs that text; "
            "compile it again"
        )
    images = [Image(kernel.image, kernel.text) for kernel in parse_texts(text.read_text())]
    with emulated_session(gpu, images, conditions) as session:
        yield EmulatedModule(session.create(CompiledModule, library), info)
