"""HAQ: an agent gives every layer its bits, one action at a time, and is rewarded with the network's accuracy.

Layer by layer the agent is asked for the bits of the weights, then for those of the activation. When all are given,
the budgets are enforced (`hawq_tvm.search.picks.enforced`), the accuracy is measured, and the episode's reward is

    r = 0.1 * (accuracy - accuracy at the most bits), in percent

The agent is `hawq_tvm.search.ddpg`. Tied layers act as one, seen as the first of them; layers without a choice, as
those that are pinned, are passed over.

Everything random comes from the seed. After each episode all that the next one depends on is kept, the agent's
networks, its optimizers and its replay among it (`hawq_tvm.search.progress`): a search that was cut off goes on there,
and ends as it would have ended.

Source: HAQ: Hardware-aware automated quantization with mixed precision (arXiv 1811.08886), section 3, and its
published environment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from hawq_tvm.backends.pytorch.threads import one_thread
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.errors import AllocationError
from hawq_tvm.ilp import Allocation, Problem
from hawq_tvm.ilp.problem import Group
from hawq_tvm.search.ddpg import Agent, AgentSettings, Transition
from hawq_tvm.search.picks import Picks, allocation, enforced, highest, meeting
from hawq_tvm.search.progress import Progress
from hawq_tvm.search.resources import Resources, Trials
from hawq_tvm.search.states import FIXED

WARM_UP = 20
"""Episodes that act at random and learn nothing; a third of all where that is fewer."""

EPISODES = 600
"""Episodes of the published search."""

T = TypeVar("T", int, WeightFormat)

_REPLAY = 128  # transitions kept for each layer
_PERCENT = 100.0
_MOST_BITS = 8.0


def search_haq(problem: Problem, resources: Resources, settings: AgentSettings | None = None) -> Allocation:
    """The most accurate configuration that the agent comes upon.

    Args:
        problem: see `hawq_tvm.ilp.formulate`.
        resources: with something that measures, and the layers' states; an episode takes one measurement.
        settings: of the agent; None for HAQ's, with noise that falls as far as in HAQ's episodes, however many there
            are.

    Raises:
        InfeasibleBudget: no configuration meets the limits.
        AllocationError: nothing measures, or the layers' states are not known.
    """
    started = time.perf_counter()
    trials = Trials("ddpg", problem, resources)
    _check_states(problem, resources.states)
    fallback = meeting(problem)
    warm_up = min(WARM_UP, resources.evaluations // 3)
    learning = max(1, resources.evaluations - warm_up)
    if settings is None:
        settings = AgentSettings()
        settings = replace(settings, decay=settings.decay ** ((EPISODES - WARM_UP) / learning))
    free = sum(len(group.choices) > 1 for group in problem.groups)
    agent = Agent(FIXED + 2, settings, capacity=_REPLAY * max(1, free), seed=resources.seed)
    progress = Progress(resources.question, "ddpg", (problem, resources.evaluations, resources.seed, settings))
    origin = progress.restore(agent, trials)
    if origin is None:
        origin = trials.accuracy_of(highest(problem))
    with one_thread():
        while trials.left:
            episode = trials.done - 1 - warm_up  # the first measurement was no episode
            asked = _ask(problem, resources.states, agent, episode)
            accuracy = trials.accuracy_of(enforced(problem, asked.picks, fallback))
            reward = 0.1 * _PERCENT * (accuracy - origin)
            agent.observe(asked.steps, reward, learns=episode >= 0)
            progress.keep(agent, trials, origin)
    picks = fallback if trials.best is None else trials.best
    return allocation(problem, picks, "ddpg", started, trials.origin)


@dataclass(frozen=True)
class _Asked:
    """What an agent answered in one episode."""

    picks: Picks
    steps: list[Transition]


def _ask(problem: Problem, states: Mapping[str, Sequence[float]], agent: Agent, episode: int) -> _Asked:
    """One episode: every group's weights, then its activation, where there is a choice."""
    act: Callable[[Sequence[float]], float] = (
        (lambda state: agent.act(state, episode)) if episode >= 0 else (lambda state: agent.explore())
    )
    last, seen, actions = 1.0, list[tuple[float, ...]](), list[float]()

    def choose(group: Group, widths: Sequence[T], weights: bool) -> T:
        nonlocal last
        if len(widths) == 1:
            return widths[0]
        seen.append((*states[group.layers[0]], last, float(weights)))
        actions.append(act(seen[-1]))
        chosen = width_of(actions[-1], widths)
        last = (chosen.bits if isinstance(chosen, WeightFormat) else chosen) / _MOST_BITS
        return chosen

    picks = []
    for group in problem.groups:
        pairs = [choice.bits for choice in group.choices]
        format = choose(group, sorted({bits.format for bits in pairs}), True)
        activation = choose(group, sorted({bits.activation for bits in pairs if bits.format == format}), False)
        picks.append(next(k for k, bits in enumerate(pairs) if (bits.format, bits.activation) == (format, activation)))
    follows = [*seen[1:], *seen[-1:]]
    steps = [
        Transition(state, action, then, ends=index == len(seen) - 1)
        for index, (state, action, then) in enumerate(zip(seen, actions, follows, strict=True))
    ]
    return _Asked(picks, steps)


def width_of(action: float, widths: Sequence[T]) -> T:
    """The bits that an action in 0..1 stands for: equal parts of it for each width.

    HAQ's ``round((most - least + 1) * action + least - 0.5)`` where the widths leave none out.

    >>> [width_of(action, range(2, 9)) for action in (0.0, 0.5, 1.0)]
    [2, 5, 8]
    """
    return widths[min(int(action * len(widths)), len(widths) - 1)]


def _check_states(problem: Problem, states: Mapping[str, Sequence[float]]) -> None:
    missing = next((group.layers[0] for group in problem.groups if group.layers[0] not in states), None)
    if missing is not None:
        raise AllocationError(
            f"the allocator 'ddpg' looks at the network, and knows nothing of the layer '{missing}'; give the run "
            "directory, or choose another --solver"
        )
