"""The GPU that a library is to run on: there, new enough, and one that its machine code is for.

TVM's CUDA runtime fails to load without a word where the driver or the CUDA runtime is missing. Here each of what may
be missing is a sentence. The standard library alone; TVM is loaded by whoever calls.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from hawq_tvm.backends.tvm.cuda.packages import package_roots
from hawq_tvm.backends.tvm.info import GpuInfo
from hawq_tvm.core.errors import RuntimeModuleError

DRIVER, RUNTIME = "libcuda.so.1", "libcudart.so.13"
"""What TVM's CUDA runtime is linked with."""

_TOO_OLD, _NO_DEVICE = 35, 100  # cudaErrorInsufficientDriver, cudaErrorNoDevice (driver_types.h)
_MAJOR, _MINOR = 75, 76  # cudaDevAttrComputeCapabilityMajor and -Minor


def check_device(library: Path, gpu: GpuInfo, index: int = 0) -> None:
    """Look whether a GPU of this machine runs a library, before TVM is asked to.

    Args:
        library: for messages.
        gpu: what the library holds.
        index: of the GPU.

    Raises:
        RuntimeModuleError: no driver, one that is too old, no GPU, one that the library's machine code is not for, or
            too little memory on it.
    """
    runtime = check_driver(library, index)
    major, minor = (_attribute(runtime, attribute, index) for attribute in (_MAJOR, _MINOR))
    if not runs_on(gpu, major, minor):
        held = ", ".join(gpu.architectures)
        raise RuntimeModuleError(
            f"{library} holds machine code for {held} and PTX for {gpu.ptx}, which this GPU (sm_{major}{minor}) cannot "
            "run; compile for a target of its architecture"
        )
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0 and total.value < gpu.device_bytes:
        raise RuntimeModuleError(
            f"{library} needs {gpu.device_bytes / 1e9:.2f} GB of device memory, and this GPU has "
            f"{total.value / 1e9:.2f} GB; compile for a smaller --batch"
        )


def check_driver(user: object, index: int = 0) -> ctypes.CDLL:
    """Look whether there is a GPU at all.

    Args:
        user: what needs it, for messages.
        index: of the GPU.

    Returns:
        The CUDA runtime.

    Raises:
        RuntimeModuleError: no driver, one that is too old, or no GPU.
    """
    _load_driver(user)
    runtime = _load_runtime(user)
    count = ctypes.c_int()
    status = runtime.cudaGetDeviceCount(ctypes.byref(count))
    if status == _TOO_OLD:
        raise RuntimeModuleError(
            f"{user} needs an NVIDIA driver for CUDA 13, release 580 or newer, and this one is older; update it"
        )
    if status == _NO_DEVICE or (status == 0 and count.value <= index):
        raise RuntimeModuleError(f"{user} needs an NVIDIA GPU, and the driver finds none")
    if status:
        said = _say(runtime, status)
        raise RuntimeModuleError(f"{user} needs an NVIDIA GPU, and CUDA fails with error {status} ({said})")
    return runtime


def runs_on(gpu: GpuInfo, major: int, minor: int) -> bool:
    """Whether a GPU of that compute capability can run what a library holds.

    It runs machine code of its own major version and no higher minor one, and PTX of no higher version ("CUDA C++
    Programming Guide", "Binary Compatibility" and "PTX Compatibility").
    """
    codes = [divmod(_number(name), 10) for name in gpu.architectures]
    native = any(code[0] == major and code[1] <= minor for code in codes)
    return native or _number(gpu.ptx) <= 10 * major + minor


def _load_driver(user: object) -> None:
    try:
        ctypes.CDLL(DRIVER, ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise RuntimeModuleError(
            f"{user} runs on an NVIDIA GPU, and there is no driver here ({DRIVER}: {_reason(error)}); take it to a "
            "machine that has one"
        ) from error


def _load_runtime(user: object) -> ctypes.CDLL:
    """The CUDA runtime: of the system, or of PyPI's package."""
    candidates = [RUNTIME, *(str(root / "lib" / RUNTIME) for root in package_roots())]
    for candidate in candidates:
        try:
            return ctypes.CDLL(candidate, ctypes.RTLD_GLOBAL)
        except OSError as error:
            reason = _reason(error)
    raise RuntimeModuleError(
        f"{user} runs on an NVIDIA GPU, and the CUDA 13 runtime is missing ({RUNTIME}: {reason}); "
        "pip install nvidia-cuda-runtime"
    )


def _attribute(runtime: ctypes.CDLL, attribute: int, index: int) -> int:
    value = ctypes.c_int()
    runtime.cudaDeviceGetAttribute(ctypes.byref(value), attribute, index)
    return value.value


def _say(runtime: ctypes.CDLL, status: int) -> str:
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    text: bytes | None = runtime.cudaGetErrorString(status)
    return (text or b"unknown").decode()


def _reason(error: OSError) -> str:
    """What the loader says, without the library's name, which stands before it."""
    return str(error).partition(": ")[2] or str(error)


def _number(name: str) -> int:
    """75 of ``sm_75`` and ``compute_75``."""
    digits = re.search(r"\d+$", name)
    return int(digits[0]) if digits else 0
