"""The compiler on one page: from a network and samples to a verified library, one stage after the other.

    1 capture     PyTorch network -> float graph
    2 calibrate   float graph + samples -> ranges
    3 profile     float graph + ranges + samples -> sensitivities, a stage for each metric
    4 cost        -> cost table: sensitivity, bytes, BOPS, microseconds
    5 allocate    cost table + budgets -> bits
    6 round       float graph + ranges + bits + samples -> integers, scales and biases of every layer
    7 integerize  all of that -> integer graph, ONNX file, overflow proofs, golden tensors
    8 evaluate    accuracy of both networks
    9 fidelity    what is left of every value in integers, and why where that is little
    10 compile    ONNX file -> library
    11 verify     every tensor of every layer, four executors
    12 benchmark  latency beside peers
    - debug       which layers cause the loss: asked for alone
    - tune        the fastest kernel of each layer on this machine: asked for alone, taken by compile
    - compare     which sensitivities order layers as the loss does: asked for alone

A stage is a value (`hawq_tvm.stages.stage.Stage`) that a step makes from the work at hand; `perform` makes those that
are not done. Every stage leaves files in the run directory and is skipped while they are up to date. A new stage is a
file in `hawq_tvm/stages` and its name in one of the lists below.
"""

from __future__ import annotations

from hawq_tvm.stages.allocate import allocate, within_reach
from hawq_tvm.stages.benchmark import benchmark, benchmark_where_it_runs
from hawq_tvm.stages.calibrate import calibrate, known_ranges
from hawq_tvm.stages.capture import capture, known_names
from hawq_tvm.stages.compare import comparison
from hawq_tvm.stages.compile import compile
from hawq_tvm.stages.cost import cost
from hawq_tvm.stages.debug import debug
from hawq_tvm.stages.evaluate import evaluate
from hawq_tvm.stages.fidelity import fidelity
from hawq_tvm.stages.integerize import integerize
from hawq_tvm.stages.profile import profiles
from hawq_tvm.stages.round import round
from hawq_tvm.stages.stage import Stage, Step
from hawq_tvm.stages.tune import tune
from hawq_tvm.stages.verify import verify, verify_where_it_runs
from hawq_tvm.stages.work import Work

PROFILE: tuple[Step, ...] = (capture, known_names, within_reach, calibrate, *profiles, cost)
ALLOCATE: tuple[Step, ...] = (allocate,)
INTEGERIZE: tuple[Step, ...] = (known_ranges, round, integerize, evaluate, fidelity)
QUANTIZE: tuple[Step, ...] = (*PROFILE, *ALLOCATE, *INTEGERIZE)
COMPILE: tuple[Step, ...] = (compile,)
VERIFY: tuple[Step, ...] = (verify,)
BENCHMARK: tuple[Step, ...] = (benchmark,)
DEBUG: tuple[Step, ...] = (debug,)
TUNE: tuple[Step, ...] = (tune,)
COMPARE: tuple[Step, ...] = (comparison,)
RUN: tuple[Step, ...] = (*QUANTIZE, *COMPILE, verify_where_it_runs, benchmark_where_it_runs)
"""What each verb does, in order; a step that makes no stage checks something, or finds nothing to do."""


def perform(work: Work, steps: tuple[Step, ...], *, force: bool = False) -> None:
    """Make the stages of `steps` that are not done, in order.

    Args:
        work: what they work on.
        steps: one of the lists above.
        force: make them even if they are done.
    """
    for step in steps:
        stage = step(work)
        if stage is not None:
            _make(work, stage, force=force or stage.always)


def _make(work: Work, stage: Stage, *, force: bool) -> None:
    """Make a stage with its title shown, or say that it was done before."""

    def draw() -> None:
        with work.reporter.stage(stage.title, timing=stage.timing) as advance:
            stage.make(advance)

    made = work.run.stage(stage.name, draw, options=stage.options, reads=stage.reads, writes=stage.writes, force=force)
    if not made:
        work.reporter.skipped(stage.title)
