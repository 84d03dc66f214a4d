"""Compiling in a process of its own: the same bytes as in one, and however LLVM ends, an error that says so."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
import tvm
import tvm_ffi
from tvm import relax
from tvm_ffi.serialization import from_json_graph_str, to_json_graph_str

from hawq_tvm.backends.onnx.io import to_onnx
from hawq_tvm.backends.tvm import build, codegen
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.host import find_c_compiler
from hawq_tvm.backends.tvm.latency import measure_latency
from hawq_tvm.backends.tvm.lower import Lowered, lower
from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.specs import Bits
from hawq_tvm.core.targets import TARGETS

from . import networks
from .builders import candidates_of, integers_of

KIB = 2**10
LLVM_GIVES_UP = "print('LLVM ERROR: IO failure on output stream: File too large', file=sys.stderr); sys.exit(1)"


@pytest.fixture
def lowered() -> Lowered:
    return lower(integers_of("Residual", ("w8a8", "w4a4")), TARGETS["llvm"])


@contextmanager
def no_file_longer_than(limit: int) -> Iterator[None]:
    """A write past the limit fails, in this process and those it starts, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def codegen_that(does: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the code generator's place, a process that does something else."""
    monkeypatch.setattr(build, "_codegen_command", lambda: [sys.executable, "-c", f"import os, sys, time\n{does}"])


@pytest.mark.parametrize("name", ["Residual", "Mobile"])
def test_the_library_is_byte_for_byte_what_tvm_makes_in_one_process(name: str, tmp_path: Path) -> None:
    made = lower(integers_of(name, ("w8a8", "w4a4")), TARGETS["llvm"])
    build_library(made, tmp_path / "model.so")
    pipeline = tvm.transform.Sequential([])
    executable = relax.build(made.module, made.machine.tvm_target, relax_pipeline=pipeline)
    executable.export_library(str(tmp_path / "here.so"), cc=find_c_compiler())
    assert (tmp_path / "model.so").read_bytes() == (tmp_path / "here.so").read_bytes()


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_functions_arrive_as_they_were_sent(name: str) -> None:
    made = lower(integers_of(name), TARGETS["llvm"])
    target = made.machine.tvm_target
    functions = build._lower_functions(made.module, target)
    arrived, for_target = from_json_graph_str(to_json_graph_str([functions, target]))
    assert tvm_ffi.structural_equal(functions, arrived, map_free_vars=True)
    assert str(for_target) == str(target)


@pytest.mark.parametrize("limit", [4 * KIB, 16 * KIB, 64 * KIB, 110 * KIB])
def test_a_file_that_cannot_be_written_is_an_error(limit: int, lowered: Lowered, tmp_path: Path) -> None:
    """At the smaller limits TVM or LLVM fails, at the largest the linker; LLVM in this process would end the tests."""
    with no_file_longer_than(limit), pytest.raises(CompileError, match=r"^compiling model\.so failed: \S+"):
        build_library(lowered, tmp_path / "model.so")
    assert list(tmp_path.iterdir()) == []
    assert build_library(lowered, tmp_path / "model.so").sha256


def test_llvm_that_gives_up_is_an_error_that_tells_how(lowered: Lowered, tmp_path: Path) -> None:
    """The limit lets the graph through and stops LLVM at the functions, where it ends its process with status 1."""
    with no_file_longer_than(64 * KIB), pytest.raises(CompileError) as caught:
        build_library(lowered, tmp_path / "model.so")
    assert "LLVM's process ended with status 1: LLVM ERROR: IO failure on output stream: File too large" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("does", "told"),
    [
        (LLVM_GIVES_UP, "LLVM's process ended with status 1: LLVM ERROR: IO failure on output stream: File too large"),
        ("os.kill(os.getpid(), 9)", "LLVM's process ended with signal 9 (Killed), as where memory runs out"),
        ("os.kill(os.getpid(), 11)", "LLVM's process ended with signal 11 (Segmentation fault)"),
        ("sys.stdin.read(); print('UNREACHABLE executed at X.cpp:1!', file=sys.stderr); os.abort()",
         "LLVM's process ended with signal 6 (Aborted): UNREACHABLE executed at X.cpp:1!"),
        ("sys.exit(7)", "LLVM's process ended with status 7"),
        (f"print('no such intrinsic', file=sys.stderr); sys.exit({codegen.REPORTED})", "no such intrinsic"),
        (f"sys.exit({codegen.REPORTED})", "RuntimeError"),
        ("print('done')", "LLVM's process left nothing behind"),
    ],
)  # fmt: skip
def test_however_llvm_ends_the_error_says_so(
    does: str, told: str, lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codegen_that(does, monkeypatch)
    with pytest.raises(CompileError) as caught:
        build_library(lowered, tmp_path / "model.so")
    assert str(caught.value) == f"compiling model.so failed: {told}"
    assert list(tmp_path.iterdir()) == []


def test_what_tvm_says_against_the_functions_is_told(
    lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that TVM raises in the other process, not an end of it: functions that no pass has lowered."""
    monkeypatch.setattr(build, "_lower_functions", lambda module, _: module)
    with pytest.raises(CompileError, match=r"^compiling model\.so failed: (?!LLVM's process)\S+"):
        build_library(lowered, tmp_path / "model.so")


def test_an_interpreter_that_cannot_be_started(
    lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(CompileError, match="compiling model.so failed: .*No such file or directory: .*no-python"):
        build_library(lowered, tmp_path / "model.so")


def test_kernels_that_are_timed_are_compiled_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    codegen_that(LLVM_GIVES_UP, monkeypatch)
    with pytest.raises(CompileError, match="^a kernel does not compile for target 'llvm': LLVM's process .*too large$"):
        measure_latency(candidates_of("Residual", Bits(8, 8)), TARGETS["llvm"])


SCRIPT = """
import sys
from pathlib import Path
from hawq_tvm.backends.onnx.io import read_onnx
from hawq_tvm.backends.tvm import build
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.core.targets import TARGETS

folder = Path(sys.argv[1])
print("main", flush=True)
lowered = lower(read_onnx(folder / "model.onnx"), TARGETS["llvm"])
"""


def start(body: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    """A script that has lowered a network, in a folder with modules that no one should import."""
    onnx.save(to_onnx(integers_of("Residual")), folder / "model.onnx")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for name in ("tvm_ffi", "ctypes", "json", "numpy"):
        (elsewhere / f"{name}.py").write_text("raise SystemExit('imported from the current folder')\n")
    (folder / "script.py").write_text(SCRIPT + body)
    return subprocess.Popen(
        [sys.executable, str(folder / "script.py"), str(folder)],
        text=True,
        stdout=subprocess.PIPE,
        cwd=elsewhere,
        preexec_fn=heed_interrupts,
        **options,
    )


def heed_interrupts() -> None:
    """Tests that a shell started in the background inherit that SIGINT is ignored, which Python then keeps."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_script_needs_no_guard_and_keeps_its_input(tmp_path: Path) -> None:
    """The other process imports no ``__main__`` of the user's, nothing from the current folder, and reads no input."""
    body = """build.build_library(lowered, folder / "model.so")\nprint(sys.stdin.read())\n"""
    process = start(body, tmp_path, stdin=subprocess.PIPE)
    out, _ = process.communicate("left alone")
    assert out == "main\nleft alone\n"
    assert process.returncode == 0
    assert (tmp_path / "model.so").exists()


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that no one has asked for; one that was just killed is given a minute."""
    for _ in range(600):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("whom", ["one process", "the whole group"])
def test_control_c_ends_both_processes(whom: str, tmp_path: Path) -> None:
    (tmp_path / "wait.py").write_text(
        "import os, pathlib, time\n"
        "pathlib.Path(__file__).with_name('pid').write_text(str(os.getpid()))\n"
        "time.sleep(10000)\n"
    )
    body = """
build._codegen_command = lambda: [sys.executable, str(folder / "wait.py")]
try:
    build.build_library(lowered, folder / "model.so")
except KeyboardInterrupt:
    print("interrupted")
"""
    process = start(body, tmp_path, start_new_session=True)
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text().strip()):
        assert process.poll() is None
    other = int(pid.read_text())
    if whom == "one process":
        process.send_signal(signal.SIGINT)
    else:
        os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate()
    assert out == "main\ninterrupted\n"
    assert ended(other)
    assert not list(tmp_path.glob(".compile-*"))
    assert not (tmp_path / "model.so").exists()
