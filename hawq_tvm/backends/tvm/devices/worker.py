"""The process that talks to a device: it connects, uploads a library, runs and times it there, and tells of each step.

TVM's RPC client waits for ever for a machine that went away, and ends its process in some of the ways that a
connection can break. Here that harms nobody: `session` ends this process where it is silent for too long. The device's
own clock is read, by TVM's time evaluator, so that the network in between is not in the times.

This machine's GPU is timed by the same calls, through TVM's local session.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tvm_ffi
from tvm import rpc
from tvm.error import RPCError, RPCSessionTimeoutError
from tvm.runtime import tensor
from tvm.runtime.vm import VirtualMachine

from hawq_tvm.backends.tvm.cuda.device import check_driver
from hawq_tvm.backends.tvm.devices.messages import (
    Answer,
    Computed,
    DeviceFacts,
    Doing,
    Done,
    Failed,
    Job,
    Kernels,
    Network,
    Refused,
    Timed,
    Waiting,
)
from hawq_tvm.backends.tvm.info import MAIN
from hawq_tvm.backends.tvm.runtime import load_cuda_runtime
from hawq_tvm.core.errors import HawqError

REPEATS = 15
"""How often a kernel is timed; its median is taken."""

REPEAT_SECONDS = 10e-3
"""A repeat is as many calls as fill this."""

KERNEL_SECONDS = 3.0
"""How long a slow kernel is timed at most, as far as three repeats of one call allow."""

_LEAST_REPEATS, _MOST_CALLS = 3, 10_000
_PRIORITY = 1  # TVM's own default at a tracker: who asks first is served first
_ROUND_SECONDS = 1.0  # of a network, between two signs of life

Tell = Callable[[Answer], None]


class _RefusedError(Exception):
    """Becomes a `Refused`; the text is a sentence about the device, without its name."""


def main() -> None:
    """Do one job, and tell of it; without a clean-up, in which objects of a lost device would be waited for."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed does not come between the answers

    def tell(answer: Answer) -> None:
        pickle.dump(answer, answers, protocol=5)
        answers.flush()

    tell(outcome(pickle.load(sys.stdin.buffer), tell))
    os._exit(0)


def outcome(job: Job, tell: Tell) -> Done | Refused | Failed:
    """Do a job."""
    try:
        _perform(job, tell)
    except _RefusedError as error:
        return Refused(f"{job.device} {error}")
    except HawqError as error:
        return Refused(str(error))
    except Exception as error:  # TVM raises many unrelated kinds
        # What was raised there comes as RPCError; whatever else TVM raises is about the session.
        passed_on = isinstance(error, RPCError) and not isinstance(error, RPCSessionTimeoutError)
        return Failed(_last_line(error), lost=job.device.is_remote and not passed_on)
    return Done()


def _perform(job: Job, tell: Tell) -> None:
    session = _connect(job, tell)
    tell(Doing("looking at it"))
    lacking = _lacking(session) if job.device.is_remote else []
    if lacking:
        raise _RefusedError(
            f"runs another version of TVM than {_version()}: its runtime has no {lacking[0]}; "
            f"pip install apache-tvm=={_version()} there"
        )
    if not job.gpu:
        _take_threads(session, job.threads)
    facts = _facts(session, gpu=job.gpu)
    tell(facts)
    device = session.cuda(0) if job.gpu else session.cpu()
    if isinstance(job.work, Kernels):
        _time_kernels(session, device, job.work, tell, once=facts.is_emulated)
    elif isinstance(job.work, Network):
        _run_network(session, device, job.work, tell, once=facts.is_emulated)


def _connect(job: Job, tell: Tell) -> Any:
    device = job.device
    if not device.is_remote:
        if job.gpu:
            check_driver(f"the device {device}")
            load_cuda_runtime()
        return rpc.LocalSession()
    if not device.key:
        with _refusing("is no RPC server that takes a session; of a tracker, say the key too: rpc:HOST:PORT/KEY"):
            return rpc.connect(device.host, device.port, session_timeout=job.session_seconds)
    with _refusing("is no RPC tracker; of a server alone, say rpc:HOST:PORT"):
        tracker = rpc.connect_tracker(device.host, device.port)
        found = tracker.summary()
    offered = sorted({info["key"].partition(":")[2] for info in found["server_info"]})
    if device.key not in offered:
        others = f"; the tracker has {', '.join(offered)}" if offered else ", nor of any other key"
        raise _RefusedError(
            f"has no server of that key{others}; on the device, start one with python -m tvm.exec.rpc_server "
            f"--tracker {device.address} --key {device.key}"
        )
    if not found["queue_info"].get(device.key, {}).get("free"):
        tell(Waiting())
    with _refusing("names a server that takes no session; is it cut off, or reachable from its tracker alone?"):
        # Once: a second request would wait for a further server where the first one has died.
        return tracker.request(device.key, priority=_PRIORITY, session_timeout=job.session_seconds, max_retry=1)


@contextmanager
def _refusing(sentence: str) -> Iterator[None]:
    """What goes wrong is told so, TVM's reason behind it."""
    try:
        yield
    except Exception as error:  # TVM raises many unrelated kinds
        raise _RefusedError(f"{sentence} ({_last_line(error)})") from error


def _last_line(error: Exception) -> str:
    """TVM's messages end with what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _version() -> str:
    from tvm import __version__

    return str(__version__)


def _lacking(session: Any) -> list[str]:
    """What TVM's virtual machine here can and there cannot: between versions it changes; nothing tells a version."""
    names = [name for name in tvm_ffi.registry.list_global_func_names() if name.startswith("vm.")]
    return [name for name in sorted(names) if _function(session, name) is None]


def _function(session: Any, name: str) -> Any:
    """A global function there; None where there is none of that name."""
    try:
        return session.get_function(name)
    except AttributeError:
        return None


def _take_threads(session: Any, threads: int | None) -> None:
    if threads is None:
        return
    session.get_function("runtime.config_threadpool")(1, threads)
    granted = session.get_function("runtime.NumThreads")()
    if granted != threads:
        raise _RefusedError(f"grants {granted} threads instead of {threads}; set TVM_NUM_THREADS={threads} there")


def _facts(session: Any, *, gpu: bool) -> DeviceFacts:
    if not gpu:
        asked = (_function(session, f"target.llvm_get_system_{what}") for what in ("cpu", "triple"))
        cpu, triple = ("" if function is None else str(function()) for function in asked)
        return DeviceFacts(cpu, triple=triple, threads=session.get_function("runtime.NumThreads")())
    device = session.cuda(0)
    if not device.exist:
        raise _RefusedError(
            "sees no NVIDIA GPU: the driver, CUDA's runtime or TVM's part for GPUs is missing there; see docs/t4.md"
        )
    return DeviceFacts(
        name=str(device.device_name),
        compute_capability=str(device.compute_version),
        multiprocessors=int(device.multi_processor_count),
        clock_mhz=float(device.max_clock_rate or 0) / 1e3,
        memory_bytes=int(device.total_global_memory or 0),
    )


def _time_kernels(session: Any, device: Any, work: Kernels, tell: Tell, *, once: bool) -> None:
    """Each function in turn, and the first one again, which shows whether the clock held."""
    tell(Doing("uploading the kernels"))
    session.upload(str(work.library))
    library = session.load_module(work.library.name)
    for kernel in [*work.functions, *([] if once else work.functions[:1])]:
        tell(Doing(f"timing {kernel.title}"))
        with np.load(kernel.arguments) as arrays:
            arguments = [tensor(arrays[name], device) for name in arrays.files]
        calls, repeats = 1, 1
        seconds = library.time_evaluator(kernel.name, device, number=1, repeat=1)(*arguments).results
        if not once:
            calls, repeats = plan_repeats(seconds[0])
            seconds = library.time_evaluator(kernel.name, device, number=calls, repeat=repeats)(*arguments).results
        tell(Timed(kernel.name, tuple(seconds), calls))


def plan_repeats(seconds: float) -> tuple[int, int]:
    """Calls in a repeat, and repeats, of a kernel that takes so long.

    >>> plan_repeats(10e-6), plan_repeats(0.5), plan_repeats(0.0)
    ((1000, 15), (1, 6), (10000, 15))
    """
    calls = min(_MOST_CALLS, max(1, round(REPEAT_SECONDS / max(seconds, 1e-9))))
    repeats = int(KERNEL_SECONDS / max(calls * seconds, 1e-9))
    return calls, min(REPEATS, max(_LEAST_REPEATS, repeats))


def _run_network(session: Any, device: Any, work: Network, tell: Tell, *, once: bool) -> None:
    """The main function, from resident input to output; on a GPU the first call records its CUDA graph."""
    tell(Doing("uploading the library"))
    session.upload(str(work.library))
    machine = VirtualMachine(session.load_module(work.library.name), device)
    tell(Doing("running the network"))
    machine.set_input(MAIN, tensor(work.x, device))
    machine.invoke_stateful(MAIN)
    tell(Computed(machine.get_outputs(MAIN).numpy()))

    def timed(calls: int, repeats: int) -> tuple[float, ...]:
        tell(Doing("timing the network"))
        timer = machine.time_evaluator("invoke_stateful", device, number=calls, repeat=repeats)
        seconds = tuple(timer(MAIN).results)
        tell(Timed(MAIN, seconds, calls))
        return seconds

    begun = time.perf_counter()
    (pace,) = timed(1, 1)
    while not once and time.perf_counter() - begun + pace < work.seconds:
        repeats = max(1, int(min(_ROUND_SECONDS, work.seconds - (time.perf_counter() - begun)) / max(pace, 1e-6)))
        pace = float(np.median(timed(1, min(repeats, 100))))
