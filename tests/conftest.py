"""Runs of the command line that several files of tests look at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker a core: PyTorch's threads would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from hawq_tvm.cli.app import main

HERE = Path(__file__).parent
NETWORKS = HERE / "networks.py"
QUICK = ("--hessian-samples", "8", "--hessian-probes", "4", "--bench-seconds", "0.2")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line; returns status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's network at mixed 4/8 bits, profiled with latencies."""
    path = tmp_path_factory.mktemp("runs") / "mixed"
    arguments = ["run", "resnet20", "--data", "digits", "--budget-size", "50%", "--latency", "-o", path, *QUICK]
    assert main([str(argument) for argument in arguments]) == 0
    return path


@pytest.fixture
def scratch(mixed: Path, tmp_path: Path) -> Path:
    """A copy of that run to change."""
    return Path(shutil.copytree(mixed, tmp_path / "run"))
