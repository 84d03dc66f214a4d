"""What an allocator may use beside the problem, and the book that it keeps of what it tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.reporter import Advance
from hawq_tvm.ilp import Problem
from hawq_tvm.search.memory import Evaluate, remembered


def _silent(done: int, total: int | None) -> None:
    """No progress is shown."""


@dataclass(frozen=True)
class Resources:
    """What an allocator may use beside the problem.

    Attributes:
        evaluate: measures a configuration, the same each time; None where no samples are at hand.
        question: names all else that decides what it measures: network, ranges, samples, rounding. What was measured
            is then kept for the user, and how far a search came. Empty: nothing is kept.
        evaluations: how often it may be asked.
        seed: of everything random.
        states: what HAQ's agent sees of each layer, by name (`hawq_tvm.search.states`); empty where the network is not
            at hand.
        curvatures: the top eigenvalue of each layer's Hessian, by name, which HAWQ ranks by; empty where none is known.
        advance: told of each evaluation.
        gap: relative, how far above the least sensitivity the program's answer may be.
        seconds: that the program may take.
    """

    evaluate: Evaluate | None = None
    question: str = ""
    evaluations: int = 600
    seed: int = 0
    states: Mapping[str, Sequence[float]] = field(default_factory=dict)
    curvatures: Mapping[str, float] = field(default_factory=dict)
    advance: Advance = _silent
    gap: float = 0.0
    seconds: float = inf

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise AllocationError(f"a search measures at least 1 configuration, got {self.evaluations}")


class Trials:
    """The configurations that a search has measured: it asks here, and the best is kept.

    Attributes:
        done: how many were measured, one that was asked for twice counted twice.
        best: the picks of the highest accuracy, of those the first; None before the first.
        accuracy: of the best.
    """

    def __init__(self, name: str, problem: Problem, resources: Resources) -> None:
        """Open the book.

        Args:
            name: of the allocator, for messages and for the origin of its bits.
            problem: whose limits every measured configuration is within.
            resources: with something that measures.

        Raises:
            AllocationError: nothing measures.
        """
        if resources.evaluate is None:
            raise AllocationError(
                f"the allocator '{name}' measures accuracy, and the network and its samples are not at hand; give the "
                "run directory, or choose another --solver"
            )
        self._name, self._problem, self._resources = name, problem, resources
        self._measure = remembered(resources.evaluate, resources.question)
        self._known: dict[tuple[int, ...], float] = {}
        self.done = 0
        self.best: tuple[int, ...] | None = None
        self.accuracy = float("-inf")

    @property
    def left(self) -> int:
        """How many may still be measured."""
        return self._resources.evaluations - self.done

    @property
    def origin(self) -> str:
        """What the bits of the best say of themselves."""
        if self.best is None:
            return f"{self._name}: the program's bits, as none of {self.done} measured was within the budgets"
        return f"{self._name}, the best of {self.done} measured: {self.accuracy:.4f}"

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from."""
        return {"done": self.done, "best": self.best, "accuracy": self.accuracy}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier book of the same search."""
        self.done, self.best, self.accuracy = state["done"], state["best"], state["accuracy"]
        self._resources.advance(self.done, self._resources.evaluations)

    def accuracy_of(self, picks: Sequence[int]) -> float:
        """Measure a configuration, which need not be within the limits; only one that is can become the best."""
        key = tuple(picks)
        if key not in self._known:
            self._known[key] = self._measure(self._problem.config(picks, self._name))
        self.done += 1
        self._resources.advance(self.done, self._resources.evaluations)
        found = self._known[key]
        if (self.best is None or found > self.accuracy) and self._problem.meets(picks):
            self.best, self.accuracy = key, found
        return found
