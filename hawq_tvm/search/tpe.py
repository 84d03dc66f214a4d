"""Optuna's tree-structured Parzen estimator, where Optuna is installed: a sampler of the field to compare with.

It proposes the bits of each group; the budgets are enforced as HAQ does it, and the accuracy of what comes out is what
the sampler is told of its proposal.

Source: Bergstra, Bardenet, Bengio, Kegl, Algorithms for hyper-parameter optimization (NIPS 2011); https://optuna.org.
"""

from __future__ import annotations

import time
from typing import Any

from hawq_tvm.core.errors import AllocationError
from hawq_tvm.ilp import Allocation, Problem
from hawq_tvm.search.picks import allocation, enforced, meeting
from hawq_tvm.search.resources import Resources, Trials


def allocate_by_optuna(problem: Problem, resources: Resources) -> Allocation:
    """The most accurate configuration that Optuna's TPE sampler proposes.

    Args:
        problem: see `hawq_tvm.ilp.formulate`.
        resources: with something that measures; their seed is the sampler's.

    Raises:
        InfeasibleBudget: no configuration meets the limits.
        AllocationError: nothing measures, or Optuna is not installed.
    """
    started = time.perf_counter()
    trials = Trials("optuna", problem, resources)
    optuna = _optuna()
    fallback = meeting(problem)

    def objective(trial: Any) -> float:
        picks = [trial.suggest_int(f"g{g}", 0, len(group.choices) - 1) for g, group in enumerate(problem.groups)]
        return trials.accuracy_of(enforced(problem, picks, fallback))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=resources.seed % 2**32)
    optuna.create_study(direction="maximize", sampler=sampler).optimize(objective, n_trials=trials.left)
    assert trials.best is not None
    return allocation(problem, trials.best, "optuna", started, trials.origin)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise AllocationError("the allocator 'optuna' needs the package optuna; pip install optuna") from error
    return optuna
