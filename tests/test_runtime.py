"""A loaded library under threads and processes, loaded again and again: right, refused by a sentence, never a crash."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from hawq_tvm.backends.tvm import runtime
from hawq_tvm.backends.tvm.runtime import CompiledModule
from hawq_tvm.backends.tvm.storage import PALETTES
from hawq_tvm.core import interpreter
from hawq_tvm.core.errors import DataError, RuntimeModuleError
from hawq_tvm.core.ir import Array, Graph

from .builders import compiled, integers_of, random_integers, same, samples

THREADS = 8
CALLS = 1000
GENEROUS = 600
"""Seconds after which a process that should have ended long ago is killed, and its test fails."""


@pytest.fixture(scope="module")
def graph() -> Graph:
    return integers_of("Residual", ("w8a8", "w4a4"))


@pytest.fixture(scope="module")
def module(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> CompiledModule:
    return compiled(graph, tmp_path_factory.mktemp("library"), batch=2)


def inputs_of(graph: Graph) -> list[Array]:
    """Another input for each thread; three samples, so that a call runs two batches."""
    return [random_integers(graph.input_type, 3, seed) for seed in range(THREADS)]


def python(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script from a file; it and all that it started are killed once they hang."""
    path = folder / "script.py"
    path.write_text(script)
    process = subprocess.Popen(
        [sys.executable, str(path)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=GENEROUS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


# reals


@pytest.mark.parametrize("name", ["Residual", "Concat", "Mobile", "Pools", "Shared", "Ends", "Padded"])
@pytest.mark.parametrize("storages", PALETTES)
def test_reals_give_what_integers_give(name: str, storages: str, tmp_path: Path) -> None:
    """Whatever the input's readers want; five samples are three batches, the last one filled up."""
    graph = integers_of(name, ("w8a8", "w4a4"))
    module = compiled(graph, tmp_path, batch=2, storages=storages)
    x = samples(5, seed=3).numpy()
    expected = interpreter.run(graph, interpreter.quantize_input(x, graph.input_type))[graph.output]
    found = module.logits(x)
    assert found.dtype == np.float32
    assert np.array_equal(found, interpreter.dequantize_output(expected, graph.output_type))
    one = module.logits(x[:1]).copy()
    x.flags.writeable = False
    apart = np.concatenate([np.zeros(1, np.float32), x.ravel()])[1:].reshape(x.shape)  # begins inside a cache line
    assert np.array_equal(module.logits(x), found) and np.array_equal(module.logits(apart), found)
    assert np.array_equal(one, found[:1])


def test_a_result_is_the_callers(graph: Graph, module: CompiledModule) -> None:
    """It lies where the library wrote it, and no later call writes there while it lives."""
    x, other = (random_integers(graph.input_type, 2, seed) for seed in (0, 1))
    first = module.run(x)
    expected = first.copy()
    results = [module.run(other) for _ in range(5)]
    assert np.array_equal(first, expected)
    first[...] = 0
    assert all(np.array_equal(found, interpreter.run(graph, other)[graph.output]) for found in results)


def test_reals_that_are_none_are_refused(graph: Graph, module: CompiledModule) -> None:
    x = samples(2).numpy()
    expected = module.logits(x)
    for wrong, sentence in (
        (x.astype(np.float64), "the input has dtype float64, expected float32"),
        (x[:, :2], "the input has the shape"),
        (x[:0], "the input holds no sample"),
        (np.where(np.arange(x.size).reshape(x.shape) == 700, np.float32("nan"), x), interpreter.NOT_FINITE),
        (np.where(np.arange(x.size).reshape(x.shape) == 3, np.float32("-inf"), x), interpreter.NOT_FINITE),
    ):
        with pytest.raises(DataError, match=sentence):
            module.logits(wrong)
    assert np.array_equal(module.logits(x), expected)


# threads


def test_eight_threads_call_one_module(graph: Graph, module: CompiledModule) -> None:
    inputs = inputs_of(graph)
    expected = [interpreter.run(graph, x)[graph.output] for x in inputs]
    together = Barrier(THREADS)

    def wrong(thread: int) -> int:
        together.wait()
        return sum(not np.array_equal(module.run(inputs[thread]), expected[thread]) for _ in range(CALLS))

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(wrong, range(THREADS))) == [0] * THREADS


@pytest.mark.parametrize(("given", "expected"), [(None, "20000"), ("7", "7")])
def test_workers_do_not_look_for_work_for_long(given: str | None, expected: str) -> None:
    """With TVM's own number a core is busy after a call, and workers of threads that ended ran on for seconds."""
    name = "TVM_THREAD_POOL_SPIN_COUNT"
    environment = {key: value for key, value in os.environ.items() if key != name}
    if given is not None:
        environment[name] = given
    script = f"import os, hawq_tvm.backends.tvm.runtime; print(os.environ[{name!r}])"
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == expected


def test_taps_see_their_own_call_alone(graph: Graph, module: CompiledModule) -> None:
    """Half of the threads tap every value and time every kernel while the others run the module plainly."""
    inputs = inputs_of(graph)
    expected = [interpreter.run(graph, x) for x in inputs]
    calls = list(module.info.calls)
    together = Barrier(THREADS)

    def wrong(thread: int) -> list[str]:
        together.wait()
        found = []
        prepared = module.prepare(inputs[thread][:2])
        for _ in range(40):
            if thread % 2:
                found += same(expected[thread], module.values(inputs[thread]))
                times = module.call_times(inputs[thread])
                found += [] if list(times) == calls and all(times.values()) else ["call_times"]
            else:
                prepared()
                out = module.run(inputs[thread])
                found += [] if np.array_equal(out, expected[thread][graph.output]) else ["run"]
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(wrong, range(THREADS))) == [[]] * THREADS


def test_taps_are_gone_after_their_call(graph: Graph, module: CompiledModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call after a tapped one is not slowed down by callbacks into Python."""
    seen: list[str] = []
    real = runtime.VirtualMachine.set_instrument
    monkeypatch.setattr(
        runtime.VirtualMachine,
        "set_instrument",
        lambda self, callback: real(self, lambda *a: (seen.append(str(a[1])), callback(*a))[1]),
    )
    x = inputs_of(graph)[0]
    module.values(x)
    assert seen
    seen.clear()
    module.run(x)
    assert seen == []


# processes

SCRIPT = """
import multiprocessing, os, sys, threading
from pathlib import Path
import numpy as np
from hawq_tvm.backends.tvm.runtime import CompiledModule, configure_threads
from hawq_tvm.core.errors import DataError, RuntimeModuleError

LIBRARY, IO = {library!r}, {io!r}

def wrong(module):
    "Calls from four threads that come out wrong."
    io = np.load(IO)
    found = []
    def work():
        for _ in range(50):
            found.append(np.array_equal(module.run(io["x"]), io["y"]))
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [len(found), found.count(False)]

def in_child(work):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            work()
        except RuntimeModuleError as error:
            print(error)
        sys.exit(0)
    print("status", os.waitpid(child, 0)[1])

if __name__ == "__main__":
    module = CompiledModule(Path(LIBRARY))
    x = np.load(IO)["x"]
"""


@pytest.fixture
def script(graph: Graph, module: CompiledModule, tmp_path: Path) -> str:
    x = inputs_of(graph)[0]
    np.savez(tmp_path / "io.npz", x=x, y=interpreter.run(graph, x)[graph.output])
    return SCRIPT.format(library=str(module.path), io=str(tmp_path / "io.npz"))


REFUSAL = (
    "this process was forked from one in which a compiled library had run, whose threads stayed behind; "
    'start processes with multiprocessing.get_context("spawn"), or fork before the first call'
)


USES = (
    "module.run(x)",
    "module.values(x)",
    "module.call_times(x)",
    "module.prepare(x[:2])()",
    "CompiledModule(Path(LIBRARY)).run(x)",
    "configure_threads(1)",
)


def test_a_fork_after_a_call_is_refused_by_a_sentence(script: str, tmp_path: Path) -> None:
    children = [f"    in_child(lambda: {use})\n" for use in USES]
    body = "".join(["    module.run(x)\n", *children, "    print(wrong(module))\n"])
    result = python(script + body, tmp_path, TVM_NUM_THREADS="2")
    assert result.stdout.splitlines() == [REFUSAL, "status 0"] * len(USES) + ["[200, 0]"], result.stderr


def test_a_fork_before_the_first_call_works(script: str, tmp_path: Path) -> None:
    """What servers do that load once, then fork their workers."""
    result = python(script + "    in_child(lambda: print(wrong(module)))\n", tmp_path, TVM_NUM_THREADS="2")
    assert result.stdout.splitlines() == ["[200, 0]", "status 0"], result.stderr


def test_a_pool_of_forked_processes_is_refused_and_spawn_works(script: str, tmp_path: Path) -> None:
    body = """
    print(wrong(module))
    try:
        multiprocessing.get_context("fork").Pool(2).map(module.run, [x])
    except RuntimeModuleError as error:
        print(error)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(wrong, [module] * 4))
"""
    result = python(script + body, tmp_path, TVM_NUM_THREADS="2")
    assert result.stdout.splitlines() == ["[200, 0]", REFUSAL, str([[200, 0]] * 4)], result.stderr


def test_a_module_is_pickled_as_the_library_that_it_is(tmp_path: Path) -> None:
    graph = integers_of("Residual")
    module = compiled(graph, tmp_path)
    x = inputs_of(graph)[0]
    data = pickle.dumps(module)
    assert len(data) < 1000, "the path, not the constants"
    assert np.array_equal(pickle.loads(data).run(x), module.run(x))
    compiled(integers_of("Residual", ("w4a4",)), tmp_path)
    with pytest.raises(RuntimeModuleError, match="was compiled anew since this module was pickled"):
        pickle.loads(data)


# memory


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
def test_a_library_is_unloaded_with_its_module(graph: Graph, module: CompiledModule) -> None:
    """Loading 200 times kept 200 copies mapped, of some 80 KiB each."""
    x = inputs_of(graph)[0]

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(module.path.name)

    def load(times: int) -> None:
        for _ in range(times):
            loaded = CompiledModule(module.path)
            loaded.run(x)
            loaded.values(x)
            del loaded
        gc.collect()

    load(10)
    before, resident = mapped(), resident_bytes()
    load(200)
    assert mapped() == before
    assert resident_bytes() - resident < 4 * 2**20


def test_a_call_outlives_the_name_of_its_module(graph: Graph, module: CompiledModule) -> None:
    """What `prepare` returns keeps the library loaded."""
    x = inputs_of(graph)[0]
    call = CompiledModule(module.path).prepare(x[:2])
    gc.collect()
    call()
