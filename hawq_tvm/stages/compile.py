"""ONNX file -> compiled library."""

from __future__ import annotations

from dataclasses import asdict

from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.cuda.disassembly import find_disassembler
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.backends.tvm.info import FORMAT, ImageInput
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.core.reporter import Advance
from hawq_tvm.runs.artifacts import MODEL, library_files, text_files, tuning_file
from hawq_tvm.runs.provenance import stored_preprocessing
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def compile(work: Work) -> Stage:
    """The library for the target, at the batch of the settings, as tuning found best where the run was tuned."""
    target, batch, also = work.target, work.settings.batch, work.also
    how = stored_preprocessing(work.run)
    tuned = [name for name in (tuning_file(target),) if name in work.run]
    image = None if how is None else ImageInput(**asdict(how))

    def make(_: Advance) -> None:
        tuning = work.artifacts.tuning(target)
        lowered = lower(work.artifacts.graph, target, batch=batch, tuning=tuning)
        if tuning is not None and tuning.layers and not lowered.tuned:
            work.reporter.note(
                f"{tuning_file(target)} is of other layers, another version or another CPU than this one (it is of "
                f"{tuning.cpu}); none of it is taken, and hawq-tvm tune makes it anew"
            )
        build_library(lowered, work.run.path / target.library_name, also=also, image=image)

    return Stage(
        f"compile {target.name}",
        f"compiling for {target.name}",
        make,
        options={
            "batch": batch,
            "format": FORMAT,
            "cpu": cpu_name() if target.host_cpu else "",
            **({"also": [other.name for other in also]} if also else {}),
            **({} if how is None else {"image": asdict(how)}),
            **({"disassembler": find_disassembler() is not None} if target.gpu is not None else {}),
        },
        reads=(MODEL, *tuned),
        writes=(*library_files(target), *text_files(target)),
    )
