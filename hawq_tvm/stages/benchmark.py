"""Latency of the library: beside its peers on this machine, or by itself on a device."""

from __future__ import annotations

from hawq_tvm.backends.onnx.io import load_model
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.core.devices import Device
from hawq_tvm.core.reporter import Advance
from hawq_tvm.measure.bench import BenchReport
from hawq_tvm.measure.device_bench import benchmark_on_device
from hawq_tvm.measure.peers import benchmark_library
from hawq_tvm.runs.artifacts import FLOAT_GRAPH, MODEL, bench_file, library_files
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def benchmark_where_it_runs(work: Work) -> Stage | None:
    """As `benchmark`, or nothing where the target's GPU is not here: nothing else would be timed.

    A device behind RPC may be gone by now, and a run shall not fail for it at its end: that is a verb of its own.
    """
    device = work.settings.device
    if device is not None and device.is_remote:
        work.reporter.note(
            f"hawq-tvm bench {work.run.name} --target {work.target.name} --device {device} times the whole network"
        )
        return None
    why = work.why_not_here
    if why is None:
        return benchmark(work)
    work.reporter.note(f"{why}; latency was not measured")
    return None


def benchmark(work: Work) -> Stage:
    """The library beside fp32 PyTorch and ONNX Runtime, interleaved; on a device behind RPC, by itself."""
    target, settings = work.target, work.settings
    device = work.device if work.device is not None and work.device.is_remote else None

    def make(advance: Advance) -> None:
        report = _here(work, advance) if device is None else _there(work, device, advance)
        work.run.write_json(bench_file(target), report.to_json())

    return Stage(
        f"benchmark {target.name}",
        "benchmarking" if device is None else f"benchmarking on {device}",
        make,
        options={
            "seconds": settings.bench_seconds,
            "threads": work.threads if device is None else settings.threads,
            "machine": cpu_name() if device is None else str(device),
        },
        reads=(MODEL, FLOAT_GRAPH, *library_files(target)),
        writes=(bench_file(target),),
        timing=True,
    )


def _here(work: Work, advance: Advance) -> BenchReport:
    return benchmark_library(
        work.artifacts.library(work.target),
        work.artifacts.float_graph,
        work.run.read(MODEL, load_model),
        threads=work.threads,
        seconds=work.settings.bench_seconds,
        seed=work.settings.seed,
        previous=work.artifacts.last_benchmark(work.target),
        progress=advance,
    )


def _there(work: Work, device: Device, advance: Advance) -> BenchReport:
    return benchmark_on_device(
        work.artifacts.library_path(work.target),
        work.run.read(MODEL, load_model),
        device,
        threads=work.settings.threads,
        seconds=work.settings.bench_seconds,
        seed=work.settings.seed,
        previous=work.artifacts.last_benchmark(work.target),
        progress=advance,
        note=work.reporter.note,
    )
