"""NVRTC, run as a program of its own: kernels are compiled side by side, and a compiler that crashes is an error.

``python nvrtc.py LIBRARY BUILTINS architectures`` prints the architectures that it knows and its version;
``python nvrtc.py LIBRARY BUILTINS compile SOURCE CUBIN PTX OPTION...`` writes machine code and what it was made of,
and what the compiler says to standard error.

Standard library alone; `hawq_tvm.backends.tvm.cuda.compiler` starts it by its path. Source: NVRTC, "User Interface".
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


def _load(library: str, builtins: str) -> ctypes.CDLL:
    """NVRTC, which looks for its built-in functions by their file's name alone: loaded before, they are found."""
    ctypes.CDLL(builtins, ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(library)


def _supported(nvrtc: ctypes.CDLL) -> str:
    """Version, then architectures."""
    major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    architectures = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(architectures)
    return f"{major.value}.{minor.value} {' '.join(map(str, architectures))}"


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    """One of a program's texts: its log, PTX or cubin."""
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(max(size.value, 1))
    getattr(nvrtc, f"nvrtcGet{what}")(program, text)
    return text.raw[: size.value]


def _compile(nvrtc: ctypes.CDLL, source: Path, cubin: Path, ptx: Path, options: list[str]) -> int:
    program = ctypes.c_void_p()
    status = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None)
    if status == 0:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), given)
        sys.stderr.write(_text(nvrtc, program, "ProgramLog").rstrip(b"\0").decode(errors="replace"))
    if status == 0:
        cubin.write_bytes(_text(nvrtc, program, "CUBIN"))
        ptx.write_bytes(_text(nvrtc, program, "PTX").rstrip(b"\0"))
    return int(status != 0)


def main() -> int:
    """Do what the command line says."""
    library, builtins, verb, *arguments = sys.argv[1:]
    nvrtc = _load(library, builtins)
    if verb == "architectures":
        print(_supported(nvrtc))
        return 0
    source, cubin, ptx, *options = arguments
    return _compile(nvrtc, Path(source), Path(cubin), Path(ptx), options)


if __name__ == "__main__":
    sys.exit(main())
