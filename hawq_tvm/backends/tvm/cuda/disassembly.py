"""Which tensor core instructions a cubin holds, where NVIDIA's disassembler is.

``pip install nvidia-cuda-nvdisasm`` brings it, and so does the CUDA toolkit.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from hawq_tvm.backends.tvm.cuda.packages import TOOLKIT, package_roots

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_TENSOR_CORE = re.compile(r"(?:I|H|B|D|Q|O|IG|HG|QG|BG)MMA\b.*")


@cache
def find_disassembler() -> str | None:
    """The path of nvdisasm: of ``PATH``, ``CUDA_HOME``, ``/usr/local/cuda`` or Python's packages; None without one."""
    folders = [TOOLKIT, *(f"{root}/bin" for root in package_roots())]
    if os.environ.get("CUDA_HOME"):
        folders.insert(0, f"{os.environ['CUDA_HOME']}/bin")
    return shutil.which("nvdisasm") or shutil.which("nvdisasm", path=os.pathsep.join(folders))


def tensor_core_instructions(cubin: bytes) -> tuple[str, ...] | None:
    """The distinct tensor core instructions, such as ``IMMA.8816.S8.S8``, sorted.

    Returns:
        None where no disassembler is there, or it is too old for the cubin.
    """
    command = find_disassembler()
    if command is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        result = subprocess.run([command, "-c", str(path)], capture_output=True, text=True, check=False)
    if result.returncode:
        return None
    return tuple(sorted({name for name in _INSTRUCTION.findall(result.stdout) if _TENSOR_CORE.fullmatch(name)}))
