"""The emulator's own C++ and kernels, compiled by g++ or clang and kept in a cache that goes by content.

What is in the cache was written aside and renamed, so it is whole, and two processes may fill it at once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path

from hawq_tvm.core.aside import ASIDE
from hawq_tvm.core.errors import EmulatorError
from hawq_tvm.emulator.text import Kernel

CXX_COMPILERS = ("g++", "clang++", "c++")
"""The first that is there compiles, unless the environment names one in CXX."""

CPP = Path(__file__).parent / "cpp"

_COMMON = (
    "-std=c++17",
    "-fPIC",
    "-fno-semantic-interposition",
    "-march=native",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
)
_MACHINE = (*_COMMON, "-O3", "-Wall", "-Wextra", "-pthread", "-shared")
_KERNEL = (
    *_COMMON,
    "-O1",
    "-w",  # TVM's text is not ours to mend
    "-fwrapv",  # as integers of the GPU wrap around
    "-ftrivial-auto-var-init=pattern",  # registers that were never written hold nothing that looks right
    "-fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero,float-cast-overflow",
)
_CHECKED = ("-fsanitize=thread", "-DEMULATOR_CHECKED=true")
_QUICK = ("-DEMULATOR_CHECKED=false",)


def find_compiler() -> str | None:
    """The C++ compiler; None where there is none."""
    named = os.environ.get("CXX")
    return next((name for name in (named, *CXX_COMPILERS) if name and shutil.which(name)), None)


def cache_folder() -> Path:
    """Where compiled code is kept: ``hawq_tvm/emulator`` in XDG_CACHE_HOME, or in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "hawq_tvm" / "emulator"


def machine_library() -> Path:
    """The emulated machine as a shared library, compiled where it is not in the cache.

    Raises:
        EmulatorError: no C++ compiler, or it fails.
    """
    sources = sorted(CPP.glob("*.cpp"))
    content = "".join(path.read_text() for path in (*sources, *_headers()))
    return _build("machine", content, [*_MACHINE, *map(str, sources), f"-I{CPP}"], name="libhawq_emulator.so")


def compile_kernels(kernels: Iterable[Kernel], *, checked: bool) -> dict[str, Path]:
    """Shared libraries of kernels by name, compiled side by side where they are not in the cache.

    Args:
        kernels: of `hawq_tvm.emulator.text.split_kernels`.
        checked: whether every access to memory is checked, which is slower.

    Raises:
        EmulatorError: no C++ compiler, or it fails.
    """
    machine = machine_library()
    headers = "".join(path.read_text() for path in _headers())
    options = [*_KERNEL, *(_CHECKED if checked else _QUICK), f"-I{CPP}", f"-I{CPP / 'include'}"]

    def build(kernel: Kernel) -> Path:
        return _build(
            f"kernel {kernel.name}",
            headers + kernel.unit(),
            options,
            name=f"{kernel.name[:80]}.so",
            source=kernel.unit(),
            link=machine,
        )

    kernels = list(kernels)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip((kernel.name for kernel in kernels), pool.map(build, kernels), strict=True))


def _headers() -> list[Path]:
    return sorted(CPP.rglob("*.h"))


@cache
def _compiler_version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]


def _build(
    what: str, content: str, options: Sequence[str], *, name: str, source: str | None = None, link: Path | None = None
) -> Path:
    compiler = find_compiler()
    if compiler is None:
        raise EmulatorError(
            f"no C++ compiler found ({', '.join(CXX_COMPILERS)}), and the emulator compiles kernels with one; install "
            "one, as with apt install g++, or name it in the environment variable CXX"
        )
    key = sha256("\0".join((_compiler_version(compiler), *options, content, str(link))).encode()).hexdigest()
    folder = cache_folder() / key[:32]
    if (folder / name).exists():
        return folder / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, suffix=ASIDE) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        try:
            _compile([compiler, *options], made / name, source, link)
        except subprocess.CalledProcessError as error:
            raise EmulatorError(f"{compiler} cannot compile the emulator's {what}: {_first_error(error)}") from error
        try:
            os.rename(made, folder)
        except OSError:  # another process was faster
            if not (folder / name).exists():
                raise
    return folder / name


def _compile(command: list[str], library: Path, source: str | None, link: Path | None) -> None:
    """One step for the machine; for a kernel two, since linking with -fsanitize would ask for a sanitizer's library."""
    if source is None or link is None:
        _run([*command, "-o", str(library)])
        return
    text, code = library.with_suffix(".cpp"), library.with_suffix(".o")
    text.write_text(source)
    _run([*command, "-c", str(text), "-o", str(code)])
    _run([command[0], "-shared", str(code), str(link), f"-Wl,-rpath,{link.parent}", "-o", str(library)])
    code.unlink()


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)


def _first_error(error: subprocess.CalledProcessError) -> str:
    lines = [line for line in str(error.stderr).splitlines() if "error" in line] or str(error.stderr).splitlines()
    return lines[0] if lines else f"status {error.returncode}"
