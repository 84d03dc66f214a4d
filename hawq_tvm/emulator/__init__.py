"""An emulated GPU: runs the CUDA text that TVM generates, with a C++ compiler and no GPU.

`run` runs one kernel on arrays (`launch`). `emulated_session` and `emulated_environment` run a whole library under
emulated CUDA libraries (`session`). `docs/emulator.md` tells what is checked and what is not modelled.
"""

from hawq_tvm.emulator.launch import CompiledKernel, load_kernel, run
from hawq_tvm.emulator.session import (
    DRIVER_TOO_OLD,
    NO_DEVICE,
    Conditions,
    Image,
    Remote,
    Session,
    emulated_environment,
    emulated_session,
)

__all__ = [
    "DRIVER_TOO_OLD",
    "NO_DEVICE",
    "CompiledKernel",
    "Conditions",
    "Image",
    "Remote",
    "Session",
    "emulated_environment",
    "emulated_session",
    "load_kernel",
    "run",
]
