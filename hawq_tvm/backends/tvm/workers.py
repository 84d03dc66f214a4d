"""TVM's worker threads: how many a call takes, which cores they run on, and how long they look for work.

Every thread that calls a library has a pool of its own, which TVM starts at its first call and ends with it. TVM reads
from the environment how many threads a pool has, and counts half of the cores where it suspects hyper-threads;
importing this module sets TVM_NUM_THREADS to all usable cores, unless the environment says otherwise. It also sets
TVM_THREAD_POOL_SPIN_COUNT, how often a worker looks for work before it sleeps: TVM's 300,000 keep a core busy for 0.1 s
after every call, and for seconds where threads that called have ended, whose workers then get in one another's way.

By itself TVM binds worker i to the i-th core of the machine, whichever cores the process may use, and moves the caller
off its own. So this module names the cores, of those that the caller may use:

- *As many threads as cores*: a thread a core, and the caller keeps to the first while it is in a call. Left alone it
  runs on a worker's core, too, and two that wait for one another take turns there.
- *Fewer, or more*: all may use all of the caller's cores. Bound, those of several callers and processes would meet on
  the same cores while others idle.

TVM_BIND_THREADS=0, which TVM reads too, binds none. A library whose kernels share no work starts no workers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import tvm_ffi

from hawq_tvm.backends.tvm.host import usable_cores
from hawq_tvm.core.errors import RuntimeModuleError

os.environ.setdefault("TVM_NUM_THREADS", str(usable_cores()))
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "20000")

_LAUNCH = b"__TVMBackendParallelLaunch"
_BINDS = hasattr(os, "sched_setaffinity") and os.environ.get("TVM_BIND_THREADS", "1") == "1"
_ONE_A_CORE, _SHARED = -2, -3
"""``ThreadGroup::AffinityMode`` of TVM's ``runtime/threading_backend.h``."""


class _Workers(threading.local):
    """The calling thread's pool.

    TVM keeps the number of threads of a call for each calling thread, so each takes over the one that is wanted.
    """

    taken_over: tuple[int | None, frozenset[int]] | None = None
    """The number and the caller's cores that the pool was told last."""
    own: frozenset[int] = frozenset()
    """The core that the caller keeps to in a call; none where it may run on all."""
    inside = False


class _Threads:
    """All pools. The workers do not survive a fork, and a call that waits for one would wait for ever."""

    def __init__(self) -> None:
        self._count: int | None = None  # None: as many as TVM gives
        self._workers = _Workers()
        self._started = False
        self._lost = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lost = self._lost or self._started

    def enter(self) -> None:
        """Called before every call of a library, in the thread that makes it.

        Raises:
            RuntimeModuleError: this process was forked from one in which a library had run.
        """
        if self._lost:
            raise RuntimeModuleError(
                "this process was forked from one in which a compiled library had run, whose threads stayed behind; "
                'start processes with multiprocessing.get_context("spawn"), or fork before the first call'
            )
        self._started = True

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Run kernels on a CPU meanwhile, with as many threads as are wanted, each where it should be.

        What the caller may use is as before afterwards, since threads that it starts take that over.

        Raises:
            RuntimeModuleError: as `enter`.
        """
        self.enter()
        if self._workers.inside:
            yield
            return
        before = _usable()
        self._take_over(before)
        own = self._workers.own
        if own:
            os.sched_setaffinity(0, own)
        self._workers.inside = True
        try:
            yield
        finally:
            self._workers.inside = False
            if own:
                os.sched_setaffinity(0, before)

    def _take_over(self, cores: frozenset[int]) -> None:
        """Tell the calling thread's pool what is wanted, unless it knows."""
        workers = self._workers
        if workers.taken_over == (self._count, cores):
            return
        granted = _granted()
        wanted = self._count or granted
        each = _BINDS and wanted == len(cores) > 1
        named = [str(core) for core in sorted(cores)]
        tvm_ffi.get_global_func("runtime.config_threadpool")(_ONE_A_CORE if each else _SHARED, wanted, named)
        workers.own = frozenset({min(cores)}) if each else frozenset()
        workers.taken_over = self._count, cores

    def configure(self, count: int) -> None:
        before, self._count = self._count, count
        self.enter()
        self._take_over(_usable())
        granted = _granted()
        if granted != count:
            self._count = before
            raise RuntimeModuleError(
                f"TVM grants {granted} threads instead of {count}; set TVM_NUM_THREADS={count} before Python starts"
            )


def _granted() -> int:
    """Threads of a call; the first question starts the pool, as large as TVM_NUM_THREADS says."""
    return int(tvm_ffi.get_global_func("runtime.NumThreads")())


def _usable() -> frozenset[int]:
    """The cores that the calling thread may use; all that there are where the system does not tell."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


_THREADS = _Threads()


def configure_threads(count: int) -> None:
    """Let compiled libraries use `count` threads a call from now on, whichever thread calls.

    Raises:
        RuntimeModuleError: more than TVM_NUM_THREADS, which bounds the pools; or as `CompiledModule.run` after a fork.
    """
    _THREADS.configure(count)


def shares_work(library: Path) -> bool:
    """Whether a library has a kernel that workers take part in: it then names the function that calls them."""
    return _LAUNCH in library.read_bytes()


def check_not_forked() -> None:
    """Called before a library is, in the thread that does it.

    Raises:
        RuntimeModuleError: this process was forked from one in which a library had run.
    """
    _THREADS.enter()


def placed_threads() -> AbstractContextManager[None]:
    """Run a CPU's kernels meanwhile, in this thread and its workers, each on the cores that it should have.

    Raises:
        RuntimeModuleError: as `check_not_forked`.
    """
    return _THREADS.placed()
