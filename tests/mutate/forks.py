"""Work in forked processes: each with limits of its own, several at a time, and an answer from each."""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

MEMORY_BYTES = 6 * 2**30
"""What a child may take beyond what it starts with: a wrong shape can ask for all there is."""


@dataclass(frozen=True)
class Task:
    """Something to do in a child.

    Attributes:
        key: names the task in the answer.
        work: run in the child; its result is sent as JSON.
        seconds: of the clock, after which the child is killed; generous, since CPU time is what `limit_cpu` bounds.
    """

    key: Any
    work: Callable[[], Any]
    seconds: float


@dataclass(frozen=True)
class Answer:
    """What came of a task.

    Attributes:
        key: the task's.
        result: what `work` returned; None where the child ended otherwise.
        end: empty, or how the child ended: a signal, a status, ``no answer in time``.
        cpu_seconds: of the child and of its children that ended.
    """

    key: Any
    result: Any
    end: str
    cpu_seconds: float


@dataclass
class _Child:
    task: Task
    pid: int
    pipe: int
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    late: bool = False


def run_tasks(tasks: Iterable[Task], jobs: int) -> Iterator[Answer]:
    """Run the tasks, `jobs` at a time, and give each answer as it comes."""
    waiting = iter(tasks)
    running: dict[int, _Child] = {}
    with selectors.DefaultSelector() as selector:
        while True:
            while len(running) < jobs and (task := next(waiting, None)) is not None:
                child = _start(task)
                running[child.pipe] = child
                selector.register(child.pipe, selectors.EVENT_READ)
            if not running:
                return
            for key, _ in selector.select(timeout=0.5):
                child = running[key.fd]
                part = os.read(child.pipe, 1 << 16)
                child.received += part
                if not part:
                    selector.unregister(child.pipe)
                    del running[child.pipe]
                    yield _end(child)
            for child in running.values():
                if time.monotonic() > child.deadline and not child.late:
                    child.late = True
                    _kill(child)


def limit_cpu(seconds: float) -> None:
    """From now on this process may use so many more seconds of the CPU; then it is killed.

    And after 10 times as long, and a minute, by the clock: what waits for other processes uses nothing itself.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_REAL, 60 + 10 * seconds)


def _start(task: Task) -> _Child:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return _Child(task, pid, reading, time.monotonic() + task.seconds)
    status = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.close(reading)
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        _limit_memory()
        try:
            answer = {"result": task.work()}
        except BaseException:
            answer = {"trouble": traceback.format_exc()}
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
        status = 0
    finally:
        os._exit(status)


def _limit_memory() -> None:
    with open("/proc/self/statm") as stream:
        pages = int(stream.read().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _kill(child: _Child) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _end(child: _Child) -> Answer:
    os.close(child.pipe)
    _, status, usage = os.wait4(child.pid, 0)
    _kill(child)  # what it started and left behind
    cpu = usage.ru_utime + usage.ru_stime
    code = os.waitstatus_to_exitcode(status)
    if child.late:
        return Answer(child.task.key, None, "no answer in time", cpu)
    if code < 0:
        return Answer(child.task.key, None, signal.Signals(-code).name, cpu)
    try:
        answer = json.loads(child.received)
    except ValueError:
        return Answer(child.task.key, None, f"status {code}", cpu)
    if "trouble" in answer:
        return Answer(child.task.key, None, answer["trouble"], cpu)
    return Answer(child.task.key, answer["result"], "", cpu)
