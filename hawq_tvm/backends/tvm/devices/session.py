"""A job on a device, done by a process of its own (`worker`) within limits of time, and what goes wrong in sentences.

Nothing waits for ever:

- the tracker or server must take a connection within `CONNECT_SECONDS`;
- every step there (an upload, one kernel) must be answered within `ANSWER_SECONDS`, or the process is ended;
- a server that is busy is waited for up to `WAIT_SECONDS`;
- the server is asked to end the session after `session_seconds`, so that a client which vanished does not hold it.
"""

from __future__ import annotations

import os
import pickle
import platform
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf

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
from hawq_tvm.core.devices import Device
from hawq_tvm.core.errors import DeviceError
from hawq_tvm.core.targets import TARGETS, Target

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 120.0
WAIT_SECONDS = 600.0

_SESSION_SECONDS = 120.0  # of a session, for all but the timing
_KERNEL_SECONDS = 20.0  # beside that, for a kernel: its upload, and `worker.KERNEL_SECONDS` of timing

_NEARLY_ALL = 0.95  # TVM's own rule for what is taken to be the end of a session's time

_KEPT = "; what was timed is kept, and the same command goes on from there"


def check_kind(device: Device, target: Target) -> None:
    """A device of this machine is of the target's kind.

    Raises:
        DeviceError: a CPU for a GPU's kernels, or the other way round.
    """
    if not device.is_remote and device.cuda != (target.gpu is not None):
        kinds = ("a CPU", "a GPU")
        raise DeviceError(
            f"target '{target.name}' is {kinds[target.gpu is not None]}, and the device {device} is "
            f"{kinds[device.cuda]}; give --target and --device of one kind"
        )


def check_fit(device: Device, facts: DeviceFacts, target: Target, cpu: str) -> None:
    """What is timed is what would be deployed: kernels chosen for this kind of device.

    Args:
        device: for messages.
        facts: what it is.
        target: what kernels are chosen for.
        cpu: LLVM's name of the CPU that they are compiled for; empty for any of this machine's architecture.

    Raises:
        DeviceError: a GPU of another architecture, or a CPU that does not run the code.
    """
    if target.gpu is not None:
        wanted = target.gpu.architecture.sm
        if facts.architecture != wanted:
            fitting = [
                name
                for name, other in TARGETS.items()
                if other.gpu is not None and other.gpu.architecture.sm == facts.architecture
            ]
            advice = f"give --target {' or '.join(fitting)}" if fitting else "no target is of its architecture"
            raise DeviceError(
                f"{device} is {facts.name} ({facts.architecture}), and target '{target.name}' is for {wanted}; {advice}"
            )
        return
    check_cpu(device, facts, target, cpu)


def check_cpu(device: Device, facts: DeviceFacts, target: Target, cpu: str) -> None:
    """A CPU runs what was compiled for the target; arguments and error as of `check_fit`."""
    if cpu and facts.name != cpu:
        there = facts.name or "a CPU that does not tell its name (TVM's compiler is not loaded there)"
        raise DeviceError(
            f"{device} is {there}, and target '{target.name}' compiles for this machine's {cpu}; "
            "give --target llvm/portable, or profile on that machine"
        )
    architecture = facts.triple.partition("-")[0]
    if architecture and architecture != platform.machine():
        raise DeviceError(
            f"{device} is a CPU of {architecture}, and target '{target.name}' compiles for {platform.machine()}; "
            "profile on that machine"
        )


def look(
    device: Device, *, gpu: bool, threads: int | None = None, note: Callable[[str], None] = lambda text: None
) -> DeviceFacts:
    """What a device says of itself.

    Args:
        device: where.
        gpu: whether its GPU is meant, or its CPU.
        threads: of a CPU; None for as many as TVM gives there.
        note: as of `perform`.

    Raises:
        DeviceError: as `perform`.
    """
    job = Job(device, gpu, threads, _SESSION_SECONDS)
    (facts,) = (answer for answer in perform(job, note) if isinstance(answer, DeviceFacts))
    return facts


def session_seconds(work: Kernels | Network) -> float:
    """After how long a server may end the session."""
    if isinstance(work, Kernels):
        return _SESSION_SECONDS + _KERNEL_SECONDS * len(work.functions)
    return _SESSION_SECONDS + 2 * work.seconds


def perform(job: Job, note: Callable[[str], None] = lambda text: None) -> Iterator[DeviceFacts | Timed | Computed]:
    """Do a job; what is found comes as it is found, what the device is first.

    Args:
        job: what is asked for.
        note: told where a device is waited for.

    Raises:
        DeviceError: no such device, none that is free, one of another version of TVM, or one that is lost, fails or
            falls silent in the middle.
    """
    _knock(job.device)
    kept = _KEPT if isinstance(job.work, Kernels) else ""
    doing, begun, waiting = "connecting", inf, False
    with _Worker(job) as worker:
        while True:
            patience = WAIT_SECONDS if waiting else ANSWER_SECONDS
            try:
                answer = worker.answers.get(timeout=patience)
            except queue.Empty:
                if waiting:
                    raise DeviceError(f"no server of {job.device} was free for {patience:.0f} s; try later") from None
                raise DeviceError(
                    f"{job.device} did not answer for {patience:.0f} s while {doing}; is it busy, or cut off?{kept}"
                ) from None
            waiting = isinstance(answer, Waiting)
            match answer:
                case Waiting():
                    note(f"{job.device} is busy; waiting until it is free")
                case Doing():
                    doing, begun = answer.what, min(begun, time.monotonic())
                case Done():
                    return
                case Refused():
                    raise DeviceError(answer.reason)
                case None | Failed():
                    failed = answer or Failed(worker.end(), lost=True)
                    raise DeviceError(f"{_sentence(job, failed, doing, time.monotonic() - begun)}{kept}")
                case _:
                    yield answer


def _knock(device: Device) -> None:
    """Someone is there: TVM would ask again for a minute where nobody is."""
    if not device.is_remote:
        return
    try:
        socket.create_connection((device.host, device.port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        who = "RPC tracker" if device.key else "RPC server"
        raise DeviceError(
            f"no {who} answers at {device.address} ({error.strerror or error}); start it with "
            f"python -m tvm.exec.{who.lower().replace(' ', '_')}, or check the address of {device}"
        ) from error


class _Worker(subprocess.Popen[bytes]):
    """The process that does a job; whatever happens, it is gone when the context ends.

    Attributes:
        answers: what it says, as it says it; None where it ends.
    """

    def __init__(self, job: Job) -> None:
        environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        # Without PyTorch, which TVM would load: it takes seconds.
        script = (
            "import sys; sys.modules['torch'] = None; from hawq_tvm.backends.tvm.devices.worker import main; main()"
        )
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed below, in __exit__
        super().__init__(
            [sys.executable, "-P", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
        )
        self.answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.stdin
        with suppress(BrokenPipeError):  # it has ended already, which its missing answer tells
            pickle.dump(job, self.stdin, protocol=5)
            self.stdin.close()

    def _read(self) -> None:
        assert self.stdout
        try:
            while True:
                self.answers.put(pickle.load(self.stdout))
        except Exception:  # cut off, in whatever state
            self.answers.put(None)

    def end(self) -> str:
        """How it ended, and its last words."""
        status = self.wait()
        end = f"status {status}" if status >= 0 else f"signal {-status}, {signal.strsignal(-status)}"
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        return f"TVM's client ended with {end}" + (f": {lines[-1]}" if lines else "")

    def __exit__(self, *raised: object) -> None:
        self.kill()
        self.wait()
        self._reader.join()
        self._said.close()
        for stream in (self.stdin, self.stdout):
            assert stream
            with suppress(BrokenPipeError):
                stream.close()


def _sentence(job: Job, failed: Failed, doing: str, seconds: float) -> str:
    """What went wrong, after so many seconds of the session.

    A session whose time is over ends in several ways: the server's last words may come in the middle of an answer.
    """
    if failed.lost and seconds > _NEARLY_ALL * job.session_seconds:
        return f"{job.device} ended the session after {job.session_seconds:.0f} s while {doing}: it is slower than that"
    if failed.lost:
        return f"{job.device} was lost while {doing} ({failed.reason})"
    return f"{job.device} failed while {doing}: {failed.reason}"
