"""Every tensor of every layer, compared between four executors."""

from __future__ import annotations

from hawq_tvm.backends.onnx.io import load_model
from hawq_tvm.backends.onnx.runner import OnnxRuntimeModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.core import interpreter
from hawq_tvm.core.reporter import Advance
from hawq_tvm.measure.verify import stronger
from hawq_tvm.measure.verify import verify as compare
from hawq_tvm.runs.artifacts import MODEL, library_files, verify_file
from hawq_tvm.runs.golden import GOLDEN_INDEX, check_golden
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def verify(work: Work) -> Stage:
    """Numpy = PyTorch = ONNX Runtime = the library, and the golden tensors with what the network computes.

    A proof over fewer samples does not take the place of a stronger one of the same library.
    """
    target = work.target
    if not work.has_data:
        work.reporter.note("the run's samples are not at hand; verifying on its golden input alone")
    total = min(work.settings.verify_samples, len(work.data.evaluation)) if work.has_data else 1

    def make(advance: Advance) -> None:
        graph = work.artifacts.graph
        check_golden(work.run, graph)
        executors = {
            "numpy": lambda x: interpreter.run(graph, x),
            "pytorch": IntegerModule(graph).run,
            "onnxruntime": OnnxRuntimeModule(work.run.read(MODEL, load_model), threads=work.threads).run,
            "tvm": work.artifacts.library(target).values,
        }
        samples = work.integer_batches(graph, total)
        report = compare(graph, executors, samples, progress=lambda done: advance(done, total))
        earlier = work.artifacts.verification(target) if work.run.is_fresh(verify_file(target)) else None
        kept, why = stronger(earlier, report)
        if why is not None:
            work.reporter.note(why)
        work.run.write_json(verify_file(target), kept.to_json())

    return Stage(
        f"verify {target.name}",
        "verifying every layer",
        make,
        options={"data": work.data_key if work.has_data else None, "samples": total},
        reads=(MODEL, GOLDEN_INDEX, *library_files(target)),
        writes=(verify_file(target),),
    )
