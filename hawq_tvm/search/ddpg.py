"""Deep deterministic policy gradient for one action in 0..1, as HAQ sets it: actor, critic, their targets, replay.

    critic    Q(s, a) is drawn to r - b + gamma * Q'(s', mu'(s')), the second part 0 where an episode ends
    actor     mu(s) ascends Q(s, mu(s))
    targets   each update moves them by tau to their networks
    b         moving average of the rewards of the batches, a baseline
    noise     normal about mu(s), truncated to 0..1, its deviation falling with every episode

No kept library serves: those that run on this PyTorch store each step's reward when it is taken, while HAQ gives all
steps of an episode its last reward, with this baseline and this noise.

Source: Lillicrap et al., Continuous control with deep reinforcement learning (arXiv 1509.02971), algorithm 1; HAQ
(arXiv 1811.08886), section 4, and its published agent for what the paper leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class AgentSettings:
    """HAQ's hyperparameters; the defaults are those of its published search script.

    Attributes:
        hidden: units of the two hidden layers; the paper names (400, 300).
        actor_rate: Adam's learning rate of the actor.
        critic_rate: the same of the critic.
        discount: gamma.
        tau: how far each update moves the targets.
        batch: transitions of an update.
        baseline: how far each batch moves the baseline.
        deviation: of the noise in the first episode after the warm-up.
        decay: what each further episode multiplies it by.
    """

    hidden: tuple[int, int] = (300, 300)
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    discount: float = 1.0
    tau: float = 0.01
    batch: int = 64
    baseline: float = 0.5
    deviation: float = 0.5
    decay: float = 0.99


@dataclass(frozen=True)
class Transition:
    """One step of an episode.

    Attributes:
        state: what the agent saw.
        action: what it did, 0..1.
        then: what it saw next.
        ends: whether the episode ended with it.
    """

    state: Sequence[float]
    action: float
    then: Sequence[float]
    ends: bool


class _Critic(nn.Module):
    """Q of states [N, D] and actions [N, 1]: both enter the first hidden layer."""

    def __init__(self, width: int, hidden: tuple[int, int]) -> None:
        super().__init__()
        self.state = nn.Linear(width, hidden[0])
        self.action = nn.Linear(1, hidden[0])
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(*hidden), nn.ReLU(), nn.Linear(hidden[1], 1))

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        value: Tensor = self.rest(self.state(states) + self.action(actions))
        return value


class Replay:
    """The last transitions, with the reward of their episode; the oldest go first."""

    def __init__(self, capacity: int, width: int) -> None:
        """Make room.

        Args:
            capacity: transitions kept.
            width: numbers of a state.
        """
        self._rows = torch.zeros(capacity, 2 * width + 3)  # state, then, action, reward, whether it goes on
        self._width = width
        self._seen = 0

    def state(self) -> dict[str, Any]:
        return {"rows": self._rows, "seen": self._seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._rows.copy_(state["rows"])
        self._seen = state["seen"]

    def __len__(self) -> int:
        return min(self._seen, len(self._rows))

    def add(self, step: Transition, reward: float) -> None:
        row = [*step.state, *step.then, step.action, reward, 0.0 if step.ends else 1.0]
        self._rows[self._seen % len(self._rows)] = torch.tensor(row, dtype=torch.float32)
        self._seen += 1

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """States and next states [N, D], actions, rewards and whether it goes on [N, 1], drawn with replacement."""
        drawn = self._rows[torch.randint(len(self), (count,), generator=generator)]
        return torch.split(drawn, [self._width, self._width, 1, 1, 1], dim=1)


class Agent:
    """Acts, and learns from what its acts led to."""

    def __init__(self, width: int, settings: AgentSettings, *, capacity: int, seed: int) -> None:
        """Begin.

        Args:
            width: numbers of a state.
            settings: of learning.
            capacity: transitions that are kept.
            seed: of the networks' first weights, of the noise and of the batches; PyTorch's own generator is left as
                it is.
        """
        self._settings = settings
        self._generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first, second = settings.hidden
            self._actor = nn.Sequential(
                *(nn.Linear(width, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()),
                *(nn.Linear(second, 1), nn.Sigmoid()),
            )
            self._critic = _Critic(width, settings.hidden)
        self._networks = (self._actor, self._critic)
        self._targets = deepcopy(self._networks)
        self._actor_steps = torch.optim.Adam(self._actor.parameters(), settings.actor_rate, fused=True)
        self._critic_steps = torch.optim.Adam(self._critic.parameters(), settings.critic_rate, fused=True)
        self._replay = Replay(capacity, width)
        self._baseline: float | None = None

    def explore(self) -> float:
        """An action at random, for the warm-up."""
        return float(torch.rand((), generator=self._generator))

    @torch.no_grad()
    def act(self, state: Sequence[float], episode: int) -> float:
        """The actor's action with its noise.

        Args:
            state: what it sees.
            episode: how many have passed since the warm-up.
        """
        mean = self._actor(torch.tensor(state, dtype=torch.float32)[None]).double()
        deviation = self._settings.deviation * self._settings.decay**episode
        return truncated_normal(float(mean), deviation, self._generator)

    def observe(self, steps: Sequence[Transition], reward: float, *, learns: bool) -> None:
        """Keep an episode, all of its steps with its last reward; after each one update, where it learns."""
        for step in steps:
            self._replay.add(step, reward)
            if learns:
                self._update()

    def state(self) -> dict[str, Any]:
        """All that the next act and the next update depend on, as `torch.save` takes it."""
        return {
            "learned": [part.state_dict() for part in self._learned],
            "replay": self._replay.state(),
            "baseline": self._baseline,
            "generator": self._generator.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` of an agent of the same settings gave."""
        for part, kept in zip(self._learned, state["learned"], strict=True):
            part.load_state_dict(kept)
        self._replay.restore(state["replay"])
        self._baseline = state["baseline"]
        self._generator.set_state(state["generator"])

    @property
    def _learned(self) -> tuple[nn.Module | torch.optim.Optimizer, ...]:
        return (*self._networks, *self._targets, self._actor_steps, self._critic_steps)

    def _update(self) -> None:
        settings = self._settings
        states, then, actions, rewards, goes_on = self._replay.sample(settings.batch, self._generator)
        mean = float(rewards.mean())
        self._baseline = (
            mean if self._baseline is None else self._baseline + settings.baseline * (mean - self._baseline)
        )
        actor, critic = self._targets
        with torch.no_grad():
            wanted = rewards - self._baseline + settings.discount * goes_on * critic(then, actor(then))
        _descend(self._critic_steps, F.mse_loss(self._critic(states, actions), wanted))
        _descend(self._actor_steps, -self._critic(states, self._actor(states)).mean())
        with torch.no_grad():
            old, new = (_parameters(networks) for networks in (self._targets, self._networks))
            torch._foreach_lerp_(old, new, settings.tau)


def _parameters(networks: tuple[nn.Module, nn.Module]) -> list[Tensor]:
    return [parameter for network in networks for parameter in network.parameters()]


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step; gradients of other networks that it leaves behind are cleared before those take theirs."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def truncated_normal(mean: float, deviation: float, generator: torch.Generator) -> float:
    """A draw of a normal distribution held to 0..1, by the inverse of its distribution function.

    Args:
        mean: 0..1.
        deviation: above 0.
        generator: of the draw.
    """
    ends = torch.special.ndtr((torch.tensor([0.0, 1.0], dtype=torch.float64) - mean) / deviation)
    uniform = torch.rand((), dtype=torch.float64, generator=generator)
    drawn = mean + deviation * torch.special.ndtri(ends[0] + uniform * (ends[1] - ends[0]))
    return float(drawn.clamp(0.0, 1.0))
