"""Every tensor of every layer, compared between four executors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hawq_tvm.backends.onnx.io import load_model
from hawq_tvm.backends.onnx.runner import OnnxRuntimeModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.backends.tvm.cuda.emulated import emulated_module
from hawq_tvm.core import interpreter
from hawq_tvm.core.reporter import Advance
from hawq_tvm.measure.verify import EMULATED, ON_GPU, Executor, stronger
from hawq_tvm.measure.verify import verify as compare
from hawq_tvm.runs.artifacts import MODEL, library_files, text_files, verify_file
from hawq_tvm.runs.golden import GOLDEN_INDEX, check_golden
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work

EMULATED_MACS = 5 * 10**8
"""Multiply-accumulates that are emulated unless a number of samples is asked for: a minute or two."""


def verify_where_it_runs(work: Work) -> Stage | None:
    """As `verify`, or nothing where the library is of a CPU that this machine is not; a GPU can be emulated."""
    if work.target.gpu is None and work.why_not_here is not None:
        work.reporter.note(f"{work.why_not_here}; the library was not run, and nothing verifies it")
        return None
    return verify(work)


def verify(work: Work) -> Stage:
    """Numpy = PyTorch = ONNX Runtime = the library, and the golden tensors with what the network computes.

    A GPU's library runs on an emulated one where its GPU is not here, which takes its time: unless a number of samples
    was asked for, there are at most as many as make `EMULATED_MACS`.

    A proof over fewer samples does not take the place of a stronger one of the same library.
    """
    target = work.target
    if not work.has_data:
        work.reporter.note("the run's samples are not at hand; verifying on its golden input alone")
    work.run.file(MODEL)  # a damaged one is told as such, before what was made from it is called stale
    why_emulated = work.why_not_here
    total = _samples(work, emulated=why_emulated is not None) if work.has_data else 1

    def make(advance: Advance) -> None:
        graph = work.artifacts.graph
        check_golden(work.run, graph)
        executors: dict[str, Executor] = {
            "numpy": lambda x: interpreter.run(graph, x),
            "pytorch": IntegerModule(graph).run,
            "onnxruntime": OnnxRuntimeModule(work.run.read(MODEL, load_model), threads=work.threads).run,
        }
        with _library(work, why_emulated) as (name, library):
            samples = work.integer_batches(graph, total)
            report = compare(graph, {**executors, name: library}, samples, progress=lambda done: advance(done, total))
        earlier = work.artifacts.verification(target) if work.run.is_fresh(verify_file(target)) else None
        kept, why = stronger(earlier, report)
        if why is not None:
            work.reporter.note(why)
        work.run.write_json(verify_file(target), kept.to_json())

    return Stage(
        f"verify {target.name}",
        "verifying every layer",
        make,
        options={
            "data": work.data_key if work.has_data else None,
            "samples": total,
            **({"emulated": why_emulated is not None} if target.gpu is not None else {}),
        },
        reads=(MODEL, GOLDEN_INDEX, *library_files(target)),
        writes=(verify_file(target),),
    )


@contextmanager
def _library(work: Work, why_emulated: str | None) -> Iterator[tuple[str, Executor]]:
    """The compiled library as an executor, with a name that tells where it runs; of a GPU, why on an emulated one."""
    target = work.target
    if target.gpu is None:
        yield "tvm", work.artifacts.library(target).values
        return
    if why_emulated is None:
        yield ON_GPU, work.artifacts.library(target).values
        return
    for name in text_files(target):  # before the library is, so that messages name the run
        work.run.fresh(name)
    work.reporter.note(f"{why_emulated}; verifying on an emulated {target.gpu.name}")
    with emulated_module(work.run.path / target.library_name) as module:
        yield EMULATED, module.values


def _samples(work: Work, emulated: bool) -> int:
    """How many evaluation samples are compared."""
    count = work.settings.verify_samples
    if emulated and not work.asked_samples:
        count = min(count, max(1, EMULATED_MACS // sum(layer.macs for layer in work.artifacts.layers)))
    return min(count, len(work.data.evaluation))
