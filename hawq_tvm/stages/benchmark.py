"""Latency of the library beside its peers."""

from __future__ import annotations

from hawq_tvm.backends.onnx.io import load_model
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.core.reporter import Advance
from hawq_tvm.measure.peers import benchmark_library
from hawq_tvm.runs.artifacts import FLOAT_GRAPH, MODEL, bench_file, library_files
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def benchmark_where_it_runs(work: Work) -> Stage | None:
    """As `benchmark`, or nothing where the target's GPU is not here: nothing else would be timed."""
    why = work.why_not_here
    if why is None:
        return benchmark(work)
    work.reporter.note(f"{why}; latency was not measured")
    return None


def benchmark(work: Work) -> Stage:
    """The library beside fp32 PyTorch and ONNX Runtime, interleaved."""
    target, seconds = work.target, work.settings.bench_seconds

    def make(advance: Advance) -> None:
        report = benchmark_library(
            work.artifacts.library(target),
            work.artifacts.float_graph,
            work.run.read(MODEL, load_model),
            threads=work.threads,
            seconds=seconds,
            seed=work.settings.seed,
            previous=work.artifacts.last_benchmark(target),
            progress=advance,
        )
        work.run.write_json(bench_file(target), report.to_json())

    return Stage(
        f"benchmark {target.name}",
        "benchmarking",
        make,
        options={"seconds": seconds, "threads": work.threads, "machine": cpu_name()},
        reads=(MODEL, FLOAT_GRAPH, *library_files(target)),
        writes=(bench_file(target),),
        timing=True,
    )
