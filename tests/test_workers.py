"""Which cores a call's threads run on: what the system says of each thread, in processes of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch import Tensor, nn

from hawq_tvm.backends.tvm.workers import shares_work

from .builders import compiled, integers_of, integers_of_module
from .test_runtime import python

USABLE = sorted(getattr(os, "sched_getaffinity", lambda _: ())(0))

needs_two_cores = pytest.mark.skipif(len(USABLE) < 2, reason="needs two cores on Linux")

SCRIPT = """
import os, sys, threading
from pathlib import Path
import numpy as np, tvm_ffi
os.sched_setaffinity(0, {cores})
from hawq_tvm.backends.tvm.runtime import CompiledModule, configure_threads

module = CompiledModule(Path({library!r}))
x = np.zeros((2, *module.input_type.shape), module.input_type.dtype.carrier)
before = set(os.listdir("/proc/self/task"))

def in_a_call(use=module.run, given=x):
    "The caller's cores while kernels run, and its workers'."
    found, machine = [], module._machine
    class Watched:
        def __getitem__(self, name):
            real = machine()[name]
            def call(value):
                workers = sorted(set(os.listdir("/proc/self/task")) - before)
                found.append((os.sched_getaffinity(0), [os.sched_getaffinity(int(task)) for task in workers]))
                return real(value)
            return call
    module._idle.append(Watched())
    use(given)
    module._idle.clear()
    return found[0]
"""


class Wide(nn.Module):
    """Enough work for threads to share."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    graph = integers_of_module("wide", Wide, 16, ("w8a8",), channels=64)
    path = compiled(graph, tmp_path_factory.mktemp("workers")).path
    assert shares_work(path)
    return str(path)


def check(body: str, library: str, folder: Path, cores: list[int] | None = None, **environment: str) -> None:
    """The body's assertions hold in a process that may use these cores."""
    script = SCRIPT.format(cores=set(USABLE if cores is None else cores), library=library)
    result = python(f"{script}{body}\nprint('as it should be')\n", folder, **environment)
    assert result.stdout.split("\n") == ["as it should be", ""], result.stderr


def test_the_number_of_threads_holds_for_every_caller(library: str, tmp_path: Path) -> None:
    """TVM itself keeps it for the thread that configures, alone."""
    body = """
count, counts = tvm_ffi.get_global_func("runtime.NumThreads"), []
def call():
    module.run(x)
    counts.append(count())
def in_a_thread():
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
configure_threads(1)
in_a_thread()
configure_threads(2)
in_a_thread()
call()
assert counts == [1, 2, 2], counts
"""
    check(body, library, tmp_path, TVM_NUM_THREADS="2")


@needs_two_cores
@pytest.mark.parametrize("use", ["in_a_call()", "in_a_call(module.logits, x.astype(np.float32))"])
def test_as_many_threads_as_cores_have_one_each(use: str, library: str, tmp_path: Path) -> None:
    """The caller its own, too, in a call and no longer: on a worker's core it would take turns with it."""
    cores = USABLE[:2]
    body = f"""
for count in (None, 2):
    if count:
        configure_threads(count)
    caller, workers = {use}
    assert caller == {{{cores[0]}}} and workers == [{{{cores[1]}}}], (caller, workers)
    assert os.sched_getaffinity(0) == set({cores})
"""
    check(body, library, tmp_path, cores, TVM_NUM_THREADS="2")


@needs_two_cores
def test_every_caller_has_its_place(library: str, tmp_path: Path) -> None:
    cores = USABLE[:2]
    body = f"""
found = []
thread = threading.Thread(target=lambda: found.append((in_a_call()[0], os.sched_getaffinity(0))))
thread.start()
thread.join()
assert found == [({{{cores[0]}}}, set({cores}))], found
"""
    check(body, library, tmp_path, cores, TVM_NUM_THREADS="2")


@needs_two_cores
@pytest.mark.parametrize("core", USABLE[:2])
def test_a_process_that_has_one_core_stays_on_it(core: int, library: str, tmp_path: Path) -> None:
    """TVM would move it to the machine's first, where others may be."""
    body = f"""
for threads in (1, 2):
    configure_threads(threads)
    caller, workers = in_a_call()
    assert caller == {{{core}}} == os.sched_getaffinity(0), caller
    assert all(cores == {{{core}}} for cores in workers), workers
"""
    check(body, library, tmp_path, [core], TVM_NUM_THREADS="2")


@needs_two_cores
@pytest.mark.parametrize(("counts", "environment"), [((1, 3), {}), ((2,), {"TVM_BIND_THREADS": "0"})])
def test_others_share_the_cores(
    counts: tuple[int, ...], environment: dict[str, str], library: str, tmp_path: Path
) -> None:
    """Fewer threads than cores, more, and where the user wants none bound."""
    cores = USABLE[:2]
    body = f"""
for threads in {counts}:
    configure_threads(threads)
    caller, workers = in_a_call()
    assert caller == set({cores}) and len(workers) == 2, (caller, workers)
    assert all(found == set({cores}) for found in workers), workers
"""
    check(body, library, tmp_path, cores, TVM_NUM_THREADS="3", **environment)


@needs_two_cores
def test_a_process_that_is_moved_takes_its_workers_along(library: str, tmp_path: Path) -> None:
    first, second = USABLE[:2]
    body = f"""
assert in_a_call()[0] == {{{first}}}
os.sched_setaffinity(0, {{{second}}})
caller, workers = in_a_call()
assert caller == {{{second}}} and workers == [{{{second}}}], (caller, workers)
"""
    check(body, library, tmp_path, [first, second], TVM_NUM_THREADS="2")


def test_what_fails_in_a_call_leaves_the_caller_where_it_was(library: str, tmp_path: Path) -> None:
    body = """
from hawq_tvm.backends.tvm.workers import placed_threads
usable = os.sched_getaffinity(0)
try:
    with placed_threads(), placed_threads():
        raise KeyError
except KeyError:
    assert os.sched_getaffinity(0) == usable
"""
    check(body, library, tmp_path)


def test_a_library_starts_no_workers_before_it_needs_them(library: str, tmp_path: Path) -> None:
    """So that what was only loaded may be forked; one whose kernels share no work never does."""
    small = compiled(integers_of("Residual"), tmp_path).path
    assert not shares_work(small)
    body = f"""
module = CompiledModule(Path({str(small)!r}))
module.run(np.zeros((2, *module.input_type.shape), module.input_type.dtype.carrier))
assert set(os.listdir("/proc/self/task")) == before
"""
    check(body, library, tmp_path, TVM_NUM_THREADS="2")
