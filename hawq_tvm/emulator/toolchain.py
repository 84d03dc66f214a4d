"""The emulator's own C++ and kernels, compiled by g++ or clang and kept in a cache that goes by content.

What is in the cache was written aside and renamed, so it is whole, and two processes may fill it at once. Nobody sweeps
up what a killed process leaves there: another may be at work on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path

from hawq_tvm.core.errors import EmulatorError
from hawq_tvm.core.machine import cache_home, usable_cores
from hawq_tvm.emulator.text import Kernel

CXX_COMPILERS = ("g++", "clang++", "c++")
"""The first that is there compiles, unless the environment names one in CXX."""

CPP = Path(__file__).parent / "cpp"

_COMMON = ("-std=c++17", "-fPIC", "-fno-semantic-interposition", "-fno-strict-aliasing")
_MACHINE = (*_COMMON, "-O3", "-pthread")
_KERNEL = (
    *_COMMON,
    "-O1",
    "-w",  # TVM's text is not ours to mend
    "-fwrapv",  # as integers of the GPU wrap around
    "-ffp-contract=off",  # what is to be rounded once is written as fma
    "-fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero,float-cast-overflow",
)
_WHERE_KNOWN = (  # not by g++ before version 12
    "-fstack-clash-protection",  # arrays that are too large for a stack end in the page below it
    "-ftrivial-auto-var-init=pattern",  # registers that were never written hold nothing that looks right
)
_CHECKED = ("-fsanitize=thread", "-DEMULATOR_CHECKED=true")
_QUICK = ("-DEMULATOR_CHECKED=false",)

DRIVER = {"libcuda.so.1": (), "libcudart.so.13": (f"-Wl,--version-script={CPP / 'driver' / 'libcudart.map'}",)}
"""The emulated libraries of CUDA, as the loader looks for them, and how each is linked."""


def find_compiler() -> str | None:
    """The C++ compiler; None where there is none."""
    named = os.environ.get("CXX")
    return next((name for name in (named, *CXX_COMPILERS) if name and shutil.which(name)), None)


def cache_folder() -> Path:
    """Where compiled code is kept: ``$XDG_CACHE_HOME/hawq_tvm/emulator``, by default ``~/.cache/hawq_tvm/emulator``."""
    return cache_home() / "emulator"


@cache
def machine_library() -> Path:
    """The emulated machine as a shared library, compiled where it is not in the cache.

    Raises:
        EmulatorError: no C++ compiler, or it fails.
    """
    sources = [str(path) for path in sorted(CPP.glob("*.cpp"))]

    def make(folder: Path, compiler: str) -> None:
        _run([compiler, *_MACHINE, "-shared", *sources, f"-I{CPP}", "-ldl", "-o", str(folder / "libhawq_emulator.so")])

    return _in_cache("the emulated machine", _sources(), *_MACHINE, make=make) / "libhawq_emulator.so"


@cache
def driver_folder() -> Path:
    """A folder for the loader's path with the emulated ``libcuda.so.1`` and ``libcudart.so.13``.

    Raises:
        EmulatorError: as `machine_library`.
    """
    machine = machine_library()

    def make(folder: Path, compiler: str) -> None:
        for name, options in DRIVER.items():
            source = CPP / "driver" / f"{name.partition('.')[0]}.cpp"
            named = [f"-Wl,-soname,{name}", "-o", str(folder / name)]
            _run([compiler, *_MACHINE, "-shared", str(source), f"-I{CPP}", *_linked_with(machine), *options, *named])

    return _in_cache("the emulated driver", _sources(), *_MACHINE, str(machine), make=make)


def compile_kernels(kernels: Iterable[Kernel], *, checked: bool) -> list[Path]:
    """A shared library for each kernel, compiled side by side where they are not in the cache.

    Args:
        kernels: of `hawq_tvm.emulator.text.split_kernels`.
        checked: whether every access to memory is checked, which is slower.

    Raises:
        EmulatorError: no C++ compiler, or it fails.
    """
    machine = machine_library()
    options = [*_KERNEL, *(_CHECKED if checked else _QUICK), f"-I{CPP}", f"-I{CPP / 'include'}"]

    def build(kernel: Kernel) -> Path:
        name = f"{kernel.name[:80]}.so"

        def make(folder: Path, compiler: str) -> None:
            text, code = folder / "kernel.cpp", folder / "kernel.o"
            text.write_text(kernel.unit())
            known = [option for option in _WHERE_KNOWN if _knows(compiler, option)]
            # In two steps: linking with -fsanitize would ask for a sanitizer's library.
            _run([compiler, *options, *known, "-c", str(text), "-o", str(code)])
            _run([compiler, "-shared", str(code), *_linked_with(machine), "-o", str(folder / name)])
            code.unlink()

        return _in_cache(f"kernel '{kernel.name}'", kernel.unit(), *options, str(machine), make=make) / name

    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(build, kernels))


@cache
def _sources() -> str:
    return "\0".join(path.read_text() for path in sorted(CPP.rglob("*")) if path.is_file())


def _linked_with(library: Path) -> list[str]:
    return [str(library), f"-Wl,-rpath,{library.parent}"]


@cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


@cache
def _knows(compiler: str, option: str) -> bool:
    command = [compiler, option, "-fsyntax-only", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _in_cache(what: str, *content: str, make: Callable[[Path, str], None]) -> Path:
    """The folder of that content, which `make(folder, compiler)` fills where it is not there yet."""
    compiler = find_compiler()
    if compiler is None:
        raise EmulatorError(
            f"no C++ compiler found ({', '.join(CXX_COMPILERS)}), and the emulator compiles kernels with one; install "
            "one, as with apt install g++, or name it in the environment variable CXX"
        )
    folder = cache_folder() / sha256("\0".join((_version(compiler), *content)).encode()).hexdigest()[:32]
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            make(made, compiler)
            try:
                made.rename(folder)
            except OSError:  # another process was faster
                if not folder.exists():
                    raise
    except subprocess.CalledProcessError as error:
        raise EmulatorError(f"{compiler} cannot compile {what} for the emulator: {_first_error(error)}") from error
    except OSError as error:
        raise EmulatorError(f"the emulator cannot keep compiled code in {folder.parent}: {error.strerror}") from error
    return folder


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)


def _first_error(error: subprocess.CalledProcessError) -> str:
    lines = str(error.stderr).splitlines()
    return next((line for line in lines if "error" in line), f"status {error.returncode}")
