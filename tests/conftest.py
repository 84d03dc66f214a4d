"""Runs of the command line that several files of tests look at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker a core: PyTorch's threads would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from hawq_tvm.backends.tvm.cuda.compiler import CudaCompiler, find_cuda_compiler
from hawq_tvm.cli.app import main
from hawq_tvm.core.errors import CompileError

_given = settings()  # as `tests.mutate` and Hypothesis in CI have it
settings.register_profile(
    "no limit of time",
    _given,
    deadline=None,
    suppress_health_check={*_given.suppress_health_check, HealthCheck.too_slow},
)
settings.load_profile("no limit of time")  # a machine that others use too may take any time

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


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled kernels are kept for these tests alone, and nothing of the user's is taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def cuda_compiler() -> CudaCompiler:
    """The CUDA compiler of this machine."""
    try:
        return find_cuda_compiler()
    except CompileError as error:
        pytest.skip(str(error))


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
