"""What compiled kernels take of their GPU: refused where it cannot hold them, described where it can."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from hawq_tvm.backends.tvm.cache import cache_key, read_entry, write_entry
from hawq_tvm.backends.tvm.cuda.disassembly import find_disassembler, tensor_core_instructions
from hawq_tvm.backends.tvm.cuda.fatbin import ELF, read_fatbin
from hawq_tvm.backends.tvm.cuda.images import KernelImage
from hawq_tvm.backends.tvm.cuda.lowering import DeviceKernel
from hawq_tvm.backends.tvm.cuda.texts import KernelText
from hawq_tvm.backends.tvm.host import usable_cores
from hawq_tvm.backends.tvm.info import GpuInfo, GpuKernelInfo
from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.gpu import ARCHITECTURES, GpuFacts

CompiledKernel = tuple[DeviceKernel, KernelImage]


def check_kernels(kernels: Sequence[CompiledKernel]) -> None:
    """Every kernel fits on a multiprocessor of every architecture that it was compiled for, and spills nothing.

    Raises:
        CompileError: one does not; the message says what it wants and what there is.
    """
    for kernel, image in kernels:
        for number, use in image.uses.items():
            architecture = ARCHITECTURES[number]
            name = f"kernel '{kernel.name}' on {architecture.sm}"
            shared = use.shared_bytes + kernel.launch.dynamic_shared_bytes
            if shared > architecture.shared_bytes_per_block:
                raise CompileError(
                    f"{name} wants {shared:,} bytes of shared memory a block, and there are "
                    f"{architecture.shared_bytes_per_block:,}; its tile must be smaller"
                )
            if image.spill_bytes[number]:
                raise CompileError(
                    f"{name} spills {image.spill_bytes[number]} bytes of registers a thread to memory at "
                    f"{use.registers} registers and {kernel.launch.threads} threads; its tile must be smaller"
                )
            if not architecture.resident_blocks(kernel.launch.threads, use.registers, shared):
                raise CompileError(
                    f"{name} wants {kernel.launch.threads} threads of {use.registers} registers, and a multiprocessor "
                    f"has {architecture.registers_per_sm:,}; its tile must be smaller"
                )


def kernel_texts(kernels: Sequence[CompiledKernel]) -> Iterator[KernelText]:
    """The kernels as they stand in the file beside the library."""
    for kernel, image in kernels:
        launch = kernel.launch
        yield KernelText(
            kernel.name, _sha256(image), launch.grid, launch.block, launch.dynamic_shared_bytes, kernel.text
        )


def gpu_info(
    kernels: Sequence[CompiledKernel],
    gpu: GpuFacts,
    architectures: Sequence[int],
    *,
    functions: Mapping[str, str],
    device_bytes: int,
    compiler: str,
    text: str,
) -> GpuInfo:
    """Describe a library's kernels.

    Args:
        kernels: all of them.
        gpu: the GPU that the kernels were chosen for.
        architectures: all that they were compiled for.
        functions: what each call of the virtual machine calls, by the call's name.
        device_bytes: memory that a call takes.
        compiler: what compiled them.
        text: the content of the file with their CUDA text.
    """
    number = gpu.architecture.number
    with ThreadPoolExecutor(usable_cores()) as pool:
        instructions = list(pool.map(lambda compiled: _tensor_core(compiled[1], number), kernels))
    return GpuInfo(
        architectures=tuple(f"sm_{number}" for number in architectures),
        ptx=f"compute_{min(architectures)}",
        compiler=compiler,
        functions=dict(functions),
        kernels={
            kernel.name: _kernel_info(kernel, image, gpu, found)
            for (kernel, image), found in zip(kernels, instructions, strict=True)
        },
        device_bytes=device_bytes,
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def _kernel_info(
    kernel: DeviceKernel, image: KernelImage, gpu: GpuFacts, tensor_core: tuple[str, ...] | None
) -> GpuKernelInfo:
    architecture = gpu.architecture
    use = image.uses[architecture.number]
    shared = use.shared_bytes + kernel.launch.dynamic_shared_bytes
    taken = (kernel.launch.threads, use.registers, shared)
    return GpuKernelInfo(
        function=kernel.function,
        grid=kernel.launch.grid,
        block=kernel.launch.block,
        registers=use.registers,
        shared_bytes=shared,
        stack_bytes=use.stack_bytes,
        spill_bytes=image.spill_bytes[architecture.number],
        blocks_per_sm=architecture.resident_blocks(*taken),
        occupancy=round(architecture.occupancy(*taken), 4),
        tensor_core=tensor_core,
        image=_sha256(image),
    )


def _tensor_core(image: KernelImage, number: int) -> tuple[str, ...] | None:
    """The tensor core instructions of one architecture's code, asked for once."""
    disassembler = find_disassembler()
    if disassembler is None:
        return None
    key = cache_key("tensor core instructions", disassembler, _sha256(image), str(number))
    kept = read_entry("cuda", key)
    if kept is not None:
        return tuple(part.decode() for part in kept)
    code = next(entry.code for entry in read_fatbin(image.data) if (entry.kind, entry.architecture) == (ELF, number))
    found = tensor_core_instructions(code)
    if found is not None:
        write_entry("cuda", key, *(name.encode() for name in found))
    return found


def _sha256(image: KernelImage) -> str:
    return hashlib.sha256(image.data).hexdigest()
