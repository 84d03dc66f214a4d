"""Integer graph -> the fastest way to compute each of its layers on this machine."""

from __future__ import annotations

from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.backends.tvm.tuning import check_tunable, tune_layers
from hawq_tvm.core.reporter import Advance
from hawq_tvm.runs.artifacts import MODEL, tuning_file
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def tune(work: Work) -> Stage:
    """What `compile` takes from then on, for the batch and the threads of the settings.

    Raises:
        CompileError: the target's kernels cannot be timed here.
    """
    target, batch, threads = work.target, work.settings.batch, work.threads
    check_tunable(target)

    def make(advance: Advance) -> None:
        found = tune_layers(work.artifacts.graph, target, batch=batch, threads=threads, progress=advance)
        work.run.write_json(tuning_file(target), found.to_json())

    return Stage(
        f"tune {target.name}",
        "tuning every layer's kernel",
        make,
        options={"batch": batch, "threads": threads, "machine": cpu_name()},
        reads=(MODEL,),
        writes=(tuning_file(target),),
        timing=True,
    )
