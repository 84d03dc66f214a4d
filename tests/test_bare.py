"""Compiled libraries run by a C program without TVM: on this machine, and whole networks for Arm under QEMU.

What runs is `examples/bare` as a user builds it, and libraries as `build_library` writes them. Integers and reals are
the interpreter's.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.host import architecture, find_c_compiler
from hawq_tvm.backends.tvm.info import MAIN, REALS
from hawq_tvm.backends.tvm.lower import Machine, lower
from hawq_tvm.core import interpreter
from hawq_tvm.core.cpu import AARCH64
from hawq_tvm.core.ir import Array, Graph
from hawq_tvm.core.targets import TARGETS, Target
from hawq_tvm.sources.zoo.mobilenet import mobilenet_v1
from hawq_tvm.sources.zoo.resnet import resnet20, resnet20_cifar

from .builders import integers_of, integers_of_module, noise_for
from .cpus import CPUS
from .emulated_cpu import system_of, why_not
from .networks import NETWORKS

EXAMPLE = Path(__file__).parent.parent / "examples" / "bare"

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or find_c_compiler() is None, reason="the example is built by make and a C compiler"
)

_FOLDER = TemporaryDirectory()

INT8, MIXED = ("w8a8",), ("w8a8", "w4a4", "w4a8")


class InvertedResiduals(nn.Module):
    """MobileNet-V2's blocks: wide depthwise convolutions between narrow sums without a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.expand = nn.ModuleList(nn.Conv2d(16, 96, 1) for _ in range(3))
        self.depthwise = nn.ModuleList(nn.Conv2d(96, 96, 3, s, 1, groups=96) for s in (1, 1, 2))
        self.project = nn.ModuleList(nn.Conv2d(96, 16 * s, 1) for s in (1, 1, 2))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        for expand, depthwise, project in zip(self.expand, self.depthwise, self.project, strict=True):
            y = project(F.relu6(depthwise(F.relu6(expand(x)))))
            x = x + y if y.shape == x.shape else y
        return self.fc(x.mean((2, 3)))


class Inception(nn.Module):
    """Branches of 1x1, 3x3 and 5x5 convolutions and of pools, side by side, over a stem with a max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, stride=2, padding=3)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.one, self.reduce = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 24, 1)
        self.three, self.five = nn.Conv2d(24, 32, 3, padding=1), nn.Conv2d(24, 16, 5, padding=2)
        self.average, self.pooled = nn.AvgPool2d(3, 1, padding=1), nn.Conv2d(32, 16, 1)
        self.reduction = nn.Conv2d(80, 48, 3, stride=2)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem(x)))
        y = F.relu(self.reduce(x))
        branches = self.one(x), self.three(y), self.five(y), self.pooled(self.average(x))
        x = F.relu(torch.cat(branches, 1))
        x = torch.cat((F.relu(self.reduction(x)), F.max_pool2d(x, 3, 2)), 1)
        return self.fc(x.mean((2, 3)))


ZOO: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (resnet20, 32),
    "resnet20_cifar": (resnet20_cifar, 32),
    "mobilenet_v1": (lambda: mobilenet_v1(10, 0.25), 64),
    "inverted_residuals": (InvertedResiduals, 32),
    "inception": (Inception, 48),
}
"""Whole networks, and the size of their images."""


@functools.cache
def graph_of(name: str, pairs: tuple[str, ...]) -> Graph:
    return integers_of_module(name, *ZOO[name], pairs) if name in ZOO else integers_of(name, pairs)


def c_compiler(machine: str) -> str:
    """What links libraries may be a C++ compiler, which takes C for C++; its sibling does not."""
    return (find_c_compiler(machine) or "").replace("clang++", "clang").replace("g++", "gcc")


def example(machine: str, openmp: str) -> list[str]:
    """The command that runs the example, built for an architecture; its emulator's in front where that is not ours."""
    return [*([] if machine == architecture() else system_of(machine)), str(built(c_compiler(machine), openmp))]


@functools.cache
def built(compiler: str, openmp: str = "", flags: str = "-O1 -Werror") -> Path:
    """The example as `make` makes it."""
    folder = Path(mkdtemp(dir=_FOLDER.name))
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("run"), dirs_exist_ok=True)
    make(folder, compiler, openmp, flags)
    return folder / "run"


def make(folder: Path, compiler: str, openmp: str = "", flags: str = "-O1 -Werror") -> None:
    command = ["make", f"CC={compiler}", f"OPENMP={openmp}", f"CFLAGS={flags}"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


def compile_c(source: str, path: Path, *options: str) -> Path:
    """A program or library of ours, from C."""
    command = [c_compiler(architecture()), "-std=c11", "-x", "c", "-", *options, "-o", str(path)]
    made = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return path


def has_flag(flag: str) -> bool:
    """Whether the C compiler makes programs with it that run."""
    with TemporaryDirectory() as folder:
        command = [c_compiler(architecture()), "-x", "c", flag, "-o", f"{folder}/probe", "-"]
        made = subprocess.run(command, input=b"int main(void) { return 0; }", capture_output=True, check=False)
        return made.returncode == 0 and subprocess.run([f"{folder}/probe"], check=False).returncode == 0


def run(command: list[str], *arguments: object, threads: int = 1) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )


def outputs(command: list[str], library: Path, function: str, x: Array, like: Array, threads: int = 1) -> Array:
    """What the library makes of samples, of which there are whole batches."""
    given, made = library.with_suffix(".in"), library.with_suffix(".out")
    x.tofile(given)
    done = run(command, library, function, given, made, threads=threads)
    assert done.returncode == 0, done.stderr
    return np.fromfile(made, like.dtype).reshape(like.shape)


def check(graph: Graph, target: Target, folder: Path, command: list[str], batch: int = 1, threads: int = 1) -> None:
    """Both functions of a library give what the interpreter gives."""
    library = folder / target.library_name
    build_library(lower(graph, target, batch=batch), library)
    x = noise_for(graph, 2)
    expected = interpreter.run(graph, x)[graph.output]
    assert np.array_equal(outputs(command, library, MAIN, x, expected, threads), expected)
    reals = interpreter.dequantize_output(x, graph.input_type)
    assert np.array_equal(interpreter.quantize_input(reals, graph.input_type), x)
    logits = interpreter.dequantize_output(expected, graph.output_type)
    assert np.array_equal(outputs(command, library, REALS, reals, logits, threads), logits)


@pytest.mark.parametrize("name", NETWORKS)
def test_on_this_machine(name: str, tmp_path: Path) -> None:
    check(graph_of(name, ("w8a8", "w4a4")), TARGETS["llvm"], tmp_path, example(architecture(), ""), batch=2)


class Wide(nn.Module):
    """Enough work for threads: in its convolutions, and in quantising its input.

    Where the CPU has AVX512-VNNI, each thread transforms all weights of the second convolution for itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.fc = nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(64, 64, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.inner(F.relu(self.conv(x)))).mean((2, 3)))


@pytest.mark.parametrize(("openmp", "threads"), [("", 1), ("-fopenmp", 1), ("-fopenmp", 2), ("-fopenmp", 5)])
def test_with_threads_and_without(openmp: str, threads: int, tmp_path: Path) -> None:
    """Kernels whose rows are shared among tasks."""
    if openmp and not has_flag(openmp):
        pytest.skip("the C compiler has no OpenMP")
    graph, target = integers_of_module("wide", Wide, 192, INT8), TARGETS["llvm"]
    check(graph, target, tmp_path, example(architecture(), openmp), threads=threads)
    assert b"__TVMBackendParallelLaunch" in (tmp_path / target.library_name).read_bytes()


def on_arm(cpu: str) -> tuple[Target, list[str]]:
    """A target and how its libraries run here."""
    machine = Machine.resolve(CPUS[cpu])
    reason = why_not(machine, ())
    if machine.architecture != architecture() and reason is not None:
        pytest.skip(reason)
    return CPUS[cpu], example(AARCH64, "")


@pytest.mark.parametrize(
    ("cpu", "name", "pairs"),
    [
        *(("neoverse-n1", name, INT8) for name in ZOO),
        *(("neoverse-v1", name, MIXED) for name in ZOO),
        ("neoverse-n1", "resnet20", MIXED),
        ("neoverse-v1", "resnet20", INT8),
    ],
)
def test_whole_networks_for_arm(cpu: str, name: str, pairs: tuple[str, ...], tmp_path: Path) -> None:
    """Dot products (sdot), and matrices and dot products of mixed signs (smmla, usdot)."""
    target, command = on_arm(cpu)
    check(graph_of(name, pairs), target, tmp_path, command)


@pytest.mark.parametrize("cpu", ["cortex-a76", "neoverse-v2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_all_kinds_of_layers_for_arm(cpu: str, name: str, tmp_path: Path) -> None:
    target, command = on_arm(cpu)
    check(graph_of(name, ("w8a8", "w4a4")), target, tmp_path, command, batch=2)


@pytest.mark.parametrize(("cpu", "units"), [("neoverse-n1", {"sdot"}), ("neoverse-v1", {"i8mm", "usdot"})])
def test_units_of_arm_are_used(cpu: str, units: set[str]) -> None:
    """What the two tests above say that they run."""
    kernels = lower(graph_of("mobilenet_v1", INT8), CPUS[cpu]).plan.kernels.values()
    assert {kernel.rpartition("_")[2] for kernel in kernels if kernel.startswith("conv2d")} == units


# What cannot be run is refused in a sentence


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bare") / "model.so"
    build_library(lower(graph_of("Residual", INT8), TARGETS["llvm"]), path)
    return path


def test_what_it_says(library: Path, tmp_path: Path) -> None:
    graph, given = graph_of("Residual", INT8), tmp_path / "in"
    noise_for(graph, 1).tofile(given)
    done = run(example(architecture(), ""), library, MAIN, given, tmp_path / "out", 3)
    assert done.stdout.startswith("input: int8 [1, 3, 12, 12]\noutput: int32 [1, 5]\n")
    assert done.stdout.endswith(" ms a call, median of 3\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nothing.so", "main", "in", "out"), "nothing.so: cannot open shared object file"),
        (("model.so", "backwards", "in", "out"), "the library has no function 'backwards'"),
        (("model.so", "main", "nothing", "out"), "nothing: No such file or directory"),
        (("model.so", "main", "in", "no/where"), "no/where: No such file or directory"),
        (("model.so", "main", "short", "out"), "short: does not hold whole batches"),
        (("model.so", "main", "empty", "out"), "empty: does not hold whole batches"),
        (("model.so", "reals", "nan", "out"), "nan: ValueError: the input holds NaN or infinity"),
        (("other.so", "main", "in", "out"), "other.so was not compiled by hawq_tvm for a CPU with TVM 0.27"),
        (("foreign.so", "main", "in", "out"), "foreign.so was not compiled by hawq_tvm for a CPU with TVM 0.27"),
        (("model.so", "main", "folder", "out"), "folder: Is a directory"),
        (("model.so", "main", "in", "in"), "in: is the input too"),
        (("model.so", "main", "in", "link"), "link: is the input too"),
        (("model.so", "main", "new.part", "new"), "new.part: is the input, and where the output is until it is whole"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], told: str, library: Path, tmp_path: Path) -> None:
    """A library of another version of TVM's program, a library of something else, inputs of a wrong size."""
    shutil.copy(library, tmp_path / "model.so")
    magic, version = bytes.fromhex("1e1514422fde25d2"), (4).to_bytes(8, "little") + b"0.14"
    whole = library.read_bytes()
    assert whole.count(magic + version) == 1
    (tmp_path / "other.so").write_bytes(whole.replace(magic + version, magic + version[:-1] + b"5"))
    sample = noise_for(graph_of("Residual", INT8), 1).tobytes()
    compile_c("int nothing;", tmp_path / "foreign.so", "-shared", "-fPIC")
    contents = {"in": sample, "new.part": sample, "short": sample + b"\0", "empty": b"", "out": b"old"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("in")
    np.array([0, np.nan], np.float32).repeat(len(sample)).tofile(tmp_path / "nan")  # the second batch is refused
    found = [name if name in ("main", "reals", "backwards") else tmp_path / name for name in arguments]
    files = sorted(tmp_path.iterdir())
    done = run(example(architecture(), ""), *found)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and told in done.stderr and done.stderr.count("\n") == 1
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents
    assert sorted(tmp_path.iterdir()) == files


def test_names_without_a_folder(library: Path, tmp_path: Path) -> None:
    """As the documentation calls it: all lies where one stands."""
    shutil.copy(library, tmp_path / "model.so")
    noise_for(graph_of("Residual", INT8), 2).tofile(tmp_path / "in")
    command = [*example(architecture(), ""), "model.so", MAIN, "in", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"model.so", "in", "out"}
    assert (tmp_path / "out").stat().st_size == 2 * 5 * 4


def test_what_is_no_file_is_written_as_it_stands(library: Path, tmp_path: Path) -> None:
    noise_for(graph_of("Residual", INT8), 1).tofile(tmp_path / "in")
    (tmp_path / "link").symlink_to("real")
    done = run(example(architecture(), ""), library, MAIN, tmp_path / "in", tmp_path / "link")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").stat().st_size == 5 * 4


@pytest.mark.parametrize("runs", ["abc", "3x", "0", "-1", "", "99999999999"])
def test_calls_to_time_are_a_number(runs: str, library: Path, tmp_path: Path) -> None:
    done = run(example(architecture(), ""), library, MAIN, tmp_path / "in", tmp_path / "out", runs)
    assert done.returncode == 2 and done.stderr.startswith("usage: ")


def test_made_for_another_compiler_it_is_built_anew(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "bare", ignore=shutil.ignore_patterns("run"))
    make(tmp_path / "bare", c_compiler(architecture()))
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\ntouch asked\n")
    other.chmod(0o755)
    make(tmp_path / "bare", str(other))
    assert (tmp_path / "bare" / "asked").exists()


# What fails within a run


RUNS = """
#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include "network.h"

static void tell(int status) { printf("%d '%s'\\n", status, network_error()); }

int main(int argc, char **argv) {
  Network *network = network_open(argv[1], argv[2]);
  tell(network == NULL);
  if (!network) return 1;
  if (argc > 3) {
    float *reals = network_input(network)->data;
    reals[0] = NAN;
    network_run(network);
    size_t before = mallinfo2().uordblks;
    for (int i = 0; i < 1000; ++i) network_run(network);
    printf("%zu\\n", mallinfo2().uordblks - before);
  }
  tell(network_run(network));
  *(float *)network_input(network)->data = 0;
  tell(network_run(network));
  network_close(network);
}
"""
"""Opens a library and runs it. A third argument: first it refuses NaN a thousand times, and counts what that keeps."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("the C library does not count its memory (mallinfo2)")
    options = ("-O1", "-rdynamic", f"-I{EXAMPLE}", str(EXAMPLE / "network.c"), "-ldl", "-lm")
    return [str(compile_c(RUNS, tmp_path_factory.mktemp("runs") / "runs", *options))]


def test_a_refused_run_keeps_no_memory(runs: list[str], library: Path) -> None:
    assert b"__TVMBackendAllocWorkspace" in library.read_bytes()  # what its kernels take on the way
    done = run(runs, library, REALS, "nan")
    opened, kept, refused, accepted = done.stdout.splitlines()
    assert opened == accepted == "0 ''"
    assert int(kept) < 1000 * 64  # less than a line a run: malloc holds some itself, and counts it
    assert refused.startswith("-1 'ValueError: the input holds NaN or infinity")


def program_of(library: Path) -> bytes:
    """A library's program for the virtual machine; its length stands before it."""
    whole = library.read_bytes()
    start = whole.index(bytes.fromhex("1e1514422fde25d2"))
    (length,) = struct.unpack_from("<Q", whole, start - 8)
    return whole[start : start + length]


def test_a_kernel_that_fails_without_a_word(runs: list[str], library: Path, tmp_path: Path) -> None:
    """The library's own program, with kernels that fail."""
    kind, program = b"relax.VMExecutable", program_of(library)
    held = struct.pack("<4QQ", 2, 0, 0, 0, len(kind)) + kind + struct.pack("<Q", len(program)) + program
    names = set(re.findall(rb"__tvm_ffi_(?!_library_bin)\w+", library.read_bytes()))
    packed = ",".join(map(str, struct.pack("<Q", len(held)) + held))
    source = f"const unsigned char __tvm_ffi__library_bin[] = {{{packed}}};\n"
    source += "".join(f"int {name.decode()}(void) {{ return -1; }}\n" for name in sorted(names))
    silent = compile_c(source, tmp_path / "silent.so", "-shared", "-fPIC")
    assert run(runs, silent, MAIN).stdout.splitlines() == ["0 ''", *["-1 'a kernel failed'"] * 2]


SANITIZERS = "-fsanitize=address,undefined"

WORDS = (0, 1, 1 << 32, 1 << 40, 1 << 60, (1 << 61) + 1, 1 << 63, (1 << 64) - 1)
"""Sizes and places that no program has; eight times some of them is small again."""


def test_damaged_programs_are_refused_or_run(library: Path, tmp_path: Path) -> None:
    """Words of a library's program that say something else: nothing is read or written beside what it holds."""
    if not has_flag(SANITIZERS):
        pytest.skip("the C compiler has no sanitizers of addresses and undefined behaviour")
    command = [str(built(c_compiler(architecture()), flags=f"-O1 -g {SANITIZERS} -fno-sanitize-recover=all"))]
    whole, program = library.read_bytes(), program_of(library)
    start = whole.index(program)
    noise_for(graph_of("Residual", INT8), 1).tofile(tmp_path / "in")
    random, statuses = Random(0), set()
    environment = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1:max_allocation_size_mb=512"}
    for case in range(60):
        damaged = bytearray(whole)
        place = start + random.randrange(len(program) - 8)
        if case % 2:
            damaged[place] = random.randrange(256)
        else:
            damaged[place : place + 8] = struct.pack("<Q", random.choice(WORDS))
        (tmp_path / "model.so").write_bytes(damaged)
        done = subprocess.run(
            [*command, "./model.so", MAIN, "in", "out"], cwd=tmp_path, env=environment, capture_output=True, check=False
        )
        said = done.stderr.decode(errors="replace")
        lines = [line for line in said.splitlines() if "WARNING: AddressSanitizer failed to allocate" not in line]
        assert done.returncode in (0, 1) and all(line.startswith("error: ") for line in lines), (case, place, said)
        statuses.add(done.returncode)
    assert statuses == {0, 1}


def test_usage() -> None:
    done = run(example(architecture(), ""))
    assert done.returncode == 2 and done.stderr.startswith("usage: ")
