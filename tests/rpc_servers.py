"""TVM's own RPC tracker and server on loopback, in processes that end with the test, whatever happens."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

needs_tracker = pytest.mark.skipif(
    find_spec("tornado") is None, reason="TVM's tracker needs tornado: pip install hawq_tvm[rpc]"
)

_PORTS = 20
"""How many ports a server may try: another process may take the first one meanwhile."""

_START_SECONDS = 600.0  # of a server, on a machine that does other things too

_SERVER = """
import os, sys, tvm, tvm_ffi
from tvm.rpc.server import PopenRPCServerState
host, port, key, first, last = sys.argv[1:]
tracker = (host, int(port)) if host else None
{before}
state = PopenRPCServerState("127.0.0.1", int(first), int(last), tracker_addr=tracker, key=key)
"""
_OTHER_VERSION = """
tvm_ffi.registry.remove_global_func("vm.builtin.shape_of")
"""
_MORTAL = """
evaluator, left = tvm_ffi.get_global_func("runtime.RPCTimeEvaluator"), {evaluations}

@tvm_ffi.register_global_func("runtime.RPCTimeEvaluator", override=True)
def evaluate_or_die(*arguments):
    global left
    left -= 1
    return evaluator(*arguments) if left >= 0 else os._exit(0)
"""


@dataclass(frozen=True)
class Served:
    """A tracker or server.

    Attributes:
        address: ``HOST:PORT``.
        process: its first process; the others are of its group.
    """

    address: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End it and all that it started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def tracker() -> Iterator[Served]:
    """TVM's tracker."""
    with _served([sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1"], None) as found:
        yield found


@contextmanager
def server(
    tracker: Served | None = None, key: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """TVM's server; with a tracker, the context begins when it is there to be asked for."""
    command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1"]
    if tracker is not None:
        command += ["--tracker", tracker.address, "--key", key]
    with _served(command, environment) as found:
        if tracker is not None:
            _wait_until_listed(tracker, key)
        yield found


@contextmanager
def server_of_another_version() -> Iterator[Served]:
    """A server whose virtual machine lacks a function that ours has."""
    with _served_by_script(None, "", _OTHER_VERSION) as found:
        yield found


@contextmanager
def mortal_server(tracker: Served, key: str, *, evaluations: int) -> Iterator[Served]:
    """A server whose sessions die when they are to time something for the next time after so many."""
    with _served_by_script(tracker, key, _MORTAL.format(evaluations=evaluations)) as found:
        _wait_until_listed(tracker, key)
        yield found


@contextmanager
def _served_by_script(tracker: Served | None, key: str, before: str) -> Iterator[Served]:
    host, _, port = tracker.address.partition(":") if tracker else ("", "", "")
    command = [sys.executable, "-c", _SERVER.format(before=before), host, port, key]
    with _served(command, None, options=False) as found:
        yield found


@contextmanager
def silent_listener() -> Iterator[str]:
    """The address of something that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return min(port, 2**16 - 1 - _PORTS)


@contextmanager
def _served(command: Sequence[str], environment: Mapping[str, str] | None, *, options: bool = True) -> Iterator[Served]:
    port = free_port()
    ports = [str(port), str(port + _PORTS)]
    ports = ["--port", ports[0], "--port-end", ports[1]] if options else ports
    given = {**(os.environ if environment is None else environment)}
    with tempfile.TemporaryDirectory() as folder:
        # TVM would load PyTorch, which a device need not have and which takes seconds.
        (Path(folder) / "torch.py").write_text("raise ImportError('there is no torch on a device')\n")
        given["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, given.get("PYTHONPATH"))))
        said = Path(folder) / "said"
        with said.open("wb") as stream:
            process = subprocess.Popen([*command, *ports], env=given, cwd=folder, stderr=stream, start_new_session=True)
        served = Served("", process)
        try:
            yield Served(_bound(process, said), process)
        finally:
            served.kill()


def _bound(process: subprocess.Popen[bytes], said: Path) -> str:
    """The address that it says it listens at."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"bind to (\S+:\d+)", said.read_text())
        if found:
            return found[1]
        time.sleep(0.1)
    pytest.fail(f"the server did not start: {said.read_text()}")


def _wait_until_listed(tracker: Served, key: str) -> None:
    from tvm import rpc

    host, _, port = tracker.address.partition(":")
    session = rpc.connect_tracker(host, int(port))
    deadline = time.monotonic() + _START_SECONDS
    while not session.summary()["queue_info"].get(key, {}).get("free"):
        assert time.monotonic() < deadline, f"no server of {key} came"
        time.sleep(0.1)
    session.close()
