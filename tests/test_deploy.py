"""The examples of a deployment, in Python and in C++: as a device would run them, with TVM's runtime alone.

Libraries for a GPU run under an emulated driver; their class and integers are the interpreter's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.cuda.emulated import emulated_program
from hawq_tvm.backends.tvm.info import ImageInput
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.core import interpreter
from hawq_tvm.core.ir import Array
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.sources.decoding import preprocess
from hawq_tvm.sources.options import Preprocessing

from .builders import SIZE, integers_of
from .emulated import needs_compiler
from .fake_cuda import use_fake_compiler
from .rpc_servers import needs_tracker, server, tracker

EXAMPLES = Path(__file__).parent.parent / "examples" / "deploy"
IMAGE = ImageInput(resize=SIZE + 3, crop=SIZE, mean=(0.4, 0.5, 0.6), std=(0.3, 0.25, 0.2))
BATCH = 2

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(shutil.which("make") is None, reason="the C++ example is built by make"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device: libraries with their JSON, images, and the examples; nothing else of ours."""
    folder = tmp_path_factory.mktemp("device")
    graph = integers_of("Residual", ("w8a8", "w4a4"))
    with pytest.MonkeyPatch.context() as patch:
        use_fake_compiler(patch)
        for target in ("llvm", "nvidia/t4"):
            lowered = lower(graph, TARGETS[target], batch=BATCH)
            build_library(lowered, folder / TARGETS[target].library_name, image=IMAGE)
    generator = np.random.default_rng(0)
    for name, size in (("wide.png", (31, 21, 3)), ("tall.png", (40, 19, 3)), ("square.png", (15, 15, 3))):
        Image.fromarray(generator.integers(0, 256, size, np.uint8)).save(folder / name)
    for file in ("deploy.py", "deploy.cpp", "Makefile"):
        shutil.copy(EXAMPLES / file, folder)
    absent = folder / "absent"
    absent.mkdir()
    for package in ("hawq_tvm", "torch", "onnx", "scipy", "sklearn"):
        (absent / f"{package}.py").write_text(f"raise ImportError('there is no {package} on a device')\n")
    return folder


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    """The C++ example, built."""
    made = subprocess.run(["make", f"PYTHON={sys.executable}"], cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "warning" not in made.stderr
    return folder / "deploy"


@pytest.fixture(scope="module")
def emulated(folder: Path) -> Iterator[Mapping[str, str]]:
    """The environment of a program that sees an emulated T4."""
    with emulated_program(folder / "model.nvidia-t4.so") as environment:
        yield environment


@pytest.fixture(scope="module")
def expected(folder: Path) -> Callable[[str], tuple[int, Array]]:
    """The interpreter's class and integers of an image, read and prepared as a run does."""
    graph = integers_of("Residual", ("w8a8", "w4a4"))

    def of(name: str) -> tuple[int, Array]:
        with Image.open(folder / name) as image:
            sample = preprocess(image.convert("RGB"), Preprocessing(**asdict(IMAGE)))
        integers = interpreter.run(graph, interpreter.quantize_input(sample[None], graph.input_type))[graph.output][0]
        return int(integers.argmax()), integers

    return of


def run(
    command: list[Any], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program on the device, which lacks all that stands in ``absent``."""
    given = {**(os.environ if environment is None else environment), "PYTHONPATH": str(folder / "absent")}
    return subprocess.run(list(map(str, command)), cwd=folder, env=given, capture_output=True, text=True, check=False)


def python(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Any:
    return run([sys.executable, "deploy.py", *arguments], folder, environment)


def answers(printed: str) -> list[tuple[str, int, list[int]]]:
    """Image, class and integers, in the order in which they are printed."""
    found = re.findall(r"^(\S+): class (\d+), logit -?[\d.]+\nintegers: ([-\d ]+)$", printed, re.MULTILINE)
    return [(name, int(number), list(map(int, integers.split()))) for name, number, integers in found]


@pytest.mark.parametrize("target", ["llvm", "nvidia/t4"])
def test_python_gives_the_interpreters_integers(
    target: str, folder: Path, emulated: Mapping[str, str], expected: Callable[[str], tuple[int, Array]]
) -> None:
    """Three images in batches of two: the last is filled up."""
    images = ("wide.png", "tall.png", "square.png")
    environment = emulated if target == "nvidia/t4" else None
    done = python(folder, TARGETS[target].library_name, *images, "--integers", "--runs", "1", environment=environment)
    assert done.returncode == 0, done.stderr
    found = answers(done.stdout)
    assert [name for name, _, _ in found] == list(images)
    for name, number, integers in found:
        wanted = expected(name)
        assert (number, integers) == (wanted[0], wanted[1].tolist())
    where = "Tesla T4 (emulated)" if target == "nvidia/t4" else "this CPU"
    times = re.findall(r"^(\d+\.\d{3}) ms a call of batch 2 on (.*), median of 1$", done.stdout, re.MULTILINE)
    assert len(times) == 2 and {place for _, place in times} == {where}


@pytest.mark.parametrize("target", ["llvm", "nvidia/t4"])
def test_cpp_gives_the_interpreters_integers(
    target: str,
    folder: Path,
    program: Path,
    emulated: Mapping[str, str],
    expected: Callable[[str], tuple[int, Array]],
) -> None:
    environment = emulated if target == "nvidia/t4" else None
    for image in ("wide.png", "tall.png"):
        assert python(folder, "model.llvm.so", image, "--write-ppm", "image.ppm").returncode == 0
        command = [program, TARGETS[target].library_name, "image.ppm", "--integers", "--runs", "1"]
        done = run(command, folder, environment)
        assert done.returncode == 0, done.stderr
        ((_, number, integers),) = answers(done.stdout)
        wanted = expected(image)
        assert (number, integers) == (wanted[0], wanted[1].tolist())
        assert re.search(r"^\d+\.\d{3} ms a call of batch 2 on ", done.stdout, re.MULTILINE)


@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: ())(0)) < 2, reason="needs two cores on Linux")
@pytest.mark.parametrize("language", ["python", "cpp"])
def test_threads_have_a_core_each(language: str, folder: Path, program: Path) -> None:
    """Of those that the process may use, as the system tells while it runs."""
    usable = sorted(os.sched_getaffinity(0))[:2]
    assert python(folder, "model.llvm.so", "wide.png", "--write-ppm", "image.ppm").returncode == 0
    commands = {
        "python": [sys.executable, "deploy.py", "model.llvm.so", "wide.png", "--runs", "10000000"],
        "cpp": [program, "model.llvm.so", "image.ppm", "--runs", "10000000"],
    }
    given = {**os.environ, "PYTHONPATH": str(folder / "absent"), "OMP_NUM_THREADS": "1"}
    given.pop("TVM_NUM_THREADS", None)
    found: list[set[int]] = []
    cores = ",".join(map(str, usable))
    running = subprocess.Popen(["taskset", "-c", cores, *commands[language]], cwd=folder, env=given)
    try:
        while len(found) < 2 or not all(len(threads) == 1 for threads in found):
            assert running.poll() is None, "it ended before its threads were placed"
            time.sleep(0.05)
            tasks = [int(task) for task in os.listdir(f"/proc/{running.pid}/task")]
            with suppress(OSError):  # a thread that has ended
                found = [os.sched_getaffinity(task) for task in tasks]
    finally:
        running.kill()
        running.wait()
    assert sorted(map(min, found)) == usable


def test_the_compiler_stays_unloaded(folder: Path) -> None:
    script = (
        "import deploy, tvm.base\n"
        "from pathlib import Path\n"
        "library = Path('model.llvm.so')\n"
        "deploy.Network(library, deploy.read_json(library.with_suffix('.json')))\n"
        "assert set(tvm.base._LOADED_LIBS) == {'tvm_runtime'}, tvm.base._LOADED_LIBS\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(folder / "absent"), str(folder)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("tracked", [False, pytest.param(True, marks=needs_tracker)])
def test_on_another_machine(
    tracked: bool, folder: Path, emulated: Mapping[str, str], expected: Callable[[str], tuple[int, Array]]
) -> None:
    """TVM's own RPC server, in an environment with an emulated GPU; the client has none."""
    environment = {**emulated, "PYTHONPATH": str(folder / "absent")}
    with ExitStack() as stack:
        known = stack.enter_context(tracker()) if tracked else None
        served = stack.enter_context(server(known, "t4", environment) if known else server(environment=environment))
        address = f"{known.address}/t4" if known else served.address
        done = python(folder, "model.nvidia-t4.so", "wide.png", "--rpc", address, "--integers", "--runs", "1")
        assert done.returncode == 0, done.stderr
        ((_, number, integers),) = answers(done.stdout)
        wanted = expected("wide.png")
        assert (number, integers) == (wanted[0], wanted[1].tolist())
        assert f"on {address}" in done.stdout
        if known:
            done = python(folder, "model.nvidia-t4.so", "wide.png", "--rpc", f"{known.address}/cat")
            assert done.returncode == 1
            assert done.stderr.endswith(f"error: the tracker at {known.address} has no server of the key 'cat'\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nothing.so", "wide.png"), r"error: nothing.json cannot be read .*; copy it with the library"),
        (("model.llvm.so", "deploy.py"), r"error: deploy.py is no image that can be read: "),
        (("model.llvm.so", "nothing.png"), r"error: nothing.png is no image that can be read: .*No such file"),
        (("model.llvm.so", "wide.png", "--rpc", "here"), r"error: --rpc takes HOST:PORT or HOST:PORT/KEY, got 'here'"),
        (("model.llvm.so", "wide.png", "--rpc", "127.0.0.1:1"), r"error: 127.0.0.1:1 does not take the library: .*"),
        (("bare.so", "wide.png"), r"error: the library's JSON does not say how an image becomes its input; compile"),
        (
            ("broken.so", "wide.png"),
            r"error: broken.so is corrupted or truncated: its sha256 is not the one in the JSON; copy it again",
        ),
    ],
)
def test_bad_input_in_python(arguments: tuple[str, ...], told: str, folder: Path) -> None:
    text = (folder / "model.llvm.json").read_text()
    (folder / "bare.json").write_text(json.dumps({**json.loads(text), "image": None}))
    (folder / "bare.so").write_bytes((folder / "model.llvm.so").read_bytes())
    (folder / "broken.json").write_text(text)
    (folder / "broken.so").write_bytes((folder / "model.llvm.so").read_bytes()[:4096])
    done = python(folder, *arguments)
    assert done.returncode == 1
    assert re.fullmatch(f"(.*\n)*?{told}.*\n", done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_bad_input_in_cpp(folder: Path, program: Path) -> None:
    def error(*arguments: str) -> str:
        done = run([program, *arguments], folder)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    (folder / "text.ppm").write_text("P3\n1 1\n255\n1 2 3\n")
    (folder / "cut.ppm").write_bytes(b"P6\n# made by hand\n15 15\n255\n" + bytes(7))
    (folder / "small.ppm").write_bytes(b"P6 8 8 255\n" + bytes(192))
    assert error("nothing.so", "text.ppm") == "error: nothing.json cannot be read\n"
    assert "text.ppm is no binary PPM of 8 bits; deploy.py --write-ppm writes one" in error("model.llvm.so", "text.ppm")
    assert "cut.ppm is truncated" in error("model.llvm.so", "cut.ppm")
    assert "short side has 8 pixels, and the network's images are resized to 15 first" in error(
        "model.llvm.so", "small.ppm"
    )
    (folder / "cut.json").write_text((folder / "model.llvm.json").read_text())
    (folder / "cut.so").write_bytes((folder / "model.llvm.so").read_bytes()[:-4096])
    assert error("cut.so", "small.ppm") == "error: cut.so is truncated or no library; copy it again\n"
    (folder / "odd.json").write_text("{")
    assert "odd.json is corrupted: " in error("odd.so", "small.ppm")
    done = run([program], folder)
    assert done.returncode == 2 and done.stderr.startswith("usage: ")


def test_without_a_driver_both_say_so(folder: Path, program: Path) -> None:
    """With a loader's path on which CUDA's libraries are files of no kind."""
    nowhere = folder / "nowhere"
    nowhere.mkdir()
    for library in ("libcuda.so.1", "libcudart.so.13"):
        (nowhere / library).write_text("not a library")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(nowhere)}
    assert python(folder, "model.llvm.so", "square.png", "--write-ppm", "square.ppm").returncode == 0
    for done in (
        python(folder, "model.nvidia-t4.so", "square.png", environment=environment),
        run([program, "model.nvidia-t4.so", "square.ppm"], folder, environment),
    ):
        assert done.returncode == 1
        assert "libcuda.so.1" in done.stderr and done.stderr.endswith("; see docs/t4.md\n")
