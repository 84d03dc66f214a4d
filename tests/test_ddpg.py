"""HAQ's agent: its actions, its noise, what it learns, and that a search that was cut off ends as it would have."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.core.budget import Budget
from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.specs import BitConfig, Bits, Cost, CostTable, LayerCosts
from hawq_tvm.ilp import Problem, formulate
from hawq_tvm.search import Resources
from hawq_tvm.search.ddpg import Agent, AgentSettings, Replay, Transition, truncated_normal
from hawq_tvm.search.haq import search_haq, width_of
from hawq_tvm.search.memory import remembered
from hawq_tvm.search.states import FIXED, layer_states

from .builders import captured
from .float_graphs import RELU, conv, graph, linear, node
from .test_search import resources, rows

SMALL = AgentSettings(hidden=(24, 16), actor_rate=1e-3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@given(action=st.floats(0, 1))
def test_actions_round_as_published(action: float) -> None:
    """Bits = round((max - min + 1) * a + min - 0.5), which numpy rounds half to even; ties aside they are equal."""
    scaled = 7 * action + 2 - 0.5
    published = int(np.clip(np.round(scaled), 2, 8))
    assert width_of(action, range(2, 9)) == published or abs(scaled - math.floor(scaled) - 0.5) < 1e-9


@pytest.mark.parametrize(("mean", "deviation"), [(0.5, 0.5), (0.0, 0.2), (0.97, 0.05), (1.0, 1e-3), (0.2, 1e-6)])
def test_noise_is_a_truncated_normal(mean: float, deviation: float) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = np.array([truncated_normal(mean, deviation, generator) for _ in range(4000)])
    assert draws.min() >= 0 and draws.max() <= 1

    def density(x: float) -> float:
        return math.exp(-0.5 * ((x - mean) / deviation) ** 2)

    grid = np.linspace(max(0.0, mean - 8 * deviation), min(1.0, mean + 8 * deviation), 4001)
    weights = np.array([density(x) for x in grid])
    expected = float((weights * grid).sum() / weights.sum())
    assert draws.mean() == pytest.approx(expected, abs=5 * deviation / 4000**0.5 + 1e-9)


def test_the_replay_forgets_the_oldest() -> None:
    replay = Replay(capacity=3, width=1)
    for i in range(5):
        replay.add(Transition([float(i)], 0.1 * i, [i + 1.0], ends=i == 4), reward=10.0 * i)
    states, then, actions, rewards, goes_on = replay.sample(200, torch.Generator().manual_seed(0))
    assert len(replay) == 3
    assert set(states.flatten().tolist()) == {2.0, 3.0, 4.0}
    assert torch.equal(then, states + 1)
    assert torch.allclose(actions, 0.1 * states) and torch.equal(rewards, 10 * states)
    assert torch.equal(goes_on, (states < 4).float())


@pytest.mark.parametrize("pays", [0.2, 0.8])
def test_the_agent_learns_which_action_pays(pays: float) -> None:
    """One state, one step: the reward falls with the distance from one action."""
    settings = AgentSettings(hidden=(64, 48), actor_rate=3e-4, critic_rate=3e-3)
    agent = Agent(2, settings, capacity=500, seed=0)
    state = [0.5, 0.5]
    for episode in range(-50, 250):
        action = agent.explore() if episode < 0 else agent.act(state, episode)
        agent.observe([Transition(state, action, state, ends=True)], -10 * (action - pays) ** 2, learns=episode >= 0)
    assert np.mean([agent.act(state, 1000) for _ in range(10)]) == pytest.approx(pays, abs=0.12)


def test_an_agent_that_is_taken_up_goes_on_as_the_first() -> None:
    first, second = (Agent(3, SMALL, capacity=50, seed=seed) for seed in (1, 2))
    step = Transition([0.1, 0.2, 0.3], 0.4, [0.2, 0.3, 0.4], ends=False)
    for _ in range(5):
        first.observe([step] * 3, 0.7, learns=True)
    second.restore(deepcopy(first.state()))
    for agent in (first, second):
        agent.observe([step] * 3, -0.2, learns=True)
    assert [first.act(step.state, 3) for _ in range(5)] == [second.act(step.state, 3) for _ in range(5)]
    assert first.explore() == second.explore()


class Killed(Exception):
    pass


def problem_and_resources(evaluations: int) -> tuple[Problem, Resources, CostTable]:
    table = CostTable(rows(5))
    problem = formulate(table, Budget(size="40%"))
    return problem, resources(table, evaluations=evaluations, question="a test's network"), table


@pytest.mark.parametrize("after", [1, 4, 9, 14])
def test_a_search_that_is_killed_goes_on_and_ends_as_it_would_have(after: int, tmp_path: Path) -> None:
    problem, whole, _ = problem_and_resources(20)
    expected = search_haq(problem, Resources(**{**vars(whole), "question": ""}), SMALL)
    asked: list[BitConfig] = []

    def counted(bits: BitConfig) -> float:
        if len(asked) == after:
            raise Killed
        asked.append(bits)
        assert whole.evaluate is not None
        return whole.evaluate(bits)

    with pytest.raises(Killed):
        search_haq(problem, Resources(**{**vars(whole), "evaluate": counted}), SMALL)
    first, after = list(asked), 10**6
    found = search_haq(problem, Resources(**{**vars(whole), "evaluate": counted}), SMALL)
    assert found.bits == expected.bits
    again = [bits.layers for bits in asked[len(first) :]]
    assert all(bits.layers not in again for bits in first), "nothing is measured twice"


def test_a_damaged_state_counts_as_absent(tmp_path: Path) -> None:
    problem, whole, _ = problem_and_resources(8)
    expected = search_haq(problem, whole, SMALL)
    kept = [path for path in (tmp_path / "hawq_tvm" / "searches").rglob("*") if path.is_file()]
    assert len(kept) == 1
    kept[0].write_bytes(kept[0].read_bytes()[:-7])
    assert search_haq(problem, whole, SMALL).bits == expected.bits


def test_what_was_measured_is_remembered_by_question_and_bits(tmp_path: Path) -> None:
    asked: list[str] = []

    def measure(bits: BitConfig) -> float:
        asked.append(repr(bits.layers["a"]))
        return 0.25

    four, eight = (BitConfig({"a": Bits(b, b)}, origin=f"of {b}") for b in (4, 8))
    for bits in (four, eight, four):
        assert remembered(measure, "one")(bits) == 0.25
    assert asked == ["w4a4", "w8a8"]
    remembered(measure, "two")(four)
    assert len(asked) == 3
    assert remembered(measure, "") is measure
    for path in (tmp_path / "hawq_tvm" / "accuracies").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    assert remembered(measure, "one")(four) == 0.25 and len(asked) == 4


def test_the_agent_beats_chance_where_layers_differ() -> None:
    """Depthwise layers cannot bear few bits, pointwise ones can; the agent is to see that from their states."""
    pairs = tuple(Bits(bits, 8) for bits in (2, 4, 8))
    fragile = [i % 2 == 0 for i in range(8)]
    layers = tuple(
        LayerCosts(f"l{i}", 100, 100, {b: Cost(0.0, 100 * b.weight / 8, 100 * b.operations) for b in pairs})
        for i in range(8)
    )
    states = {f"l{i}": (float(fragile[i]), *[i / 8] * 7) for i in range(8)}
    problem = formulate(CostTable(layers), Budget(size=400))  # half of all at 8

    def accuracy(bits: BitConfig) -> float:
        lost = sum((8 - bits.layers[f"l{i}"].weight) * (0.02 if fragile[i] else 0.001) for i in range(8))
        return 0.9 - lost

    found = search_haq(problem, Resources(accuracy, evaluations=150, states=states), AgentSettings(hidden=(64, 64)))
    by_kind = {
        kind: [found.bits.layers[f"l{i}"].weight for i in range(8) if fragile[i] == kind] for kind in (True, False)
    }
    assert np.mean(by_kind[True]) > np.mean(by_kind[False])


# states


def test_states_are_haqs_numbers_scaled_over_the_layers() -> None:
    net = graph(
        conv("first", "x", clip=RELU),
        conv("depthwise", "first", groups=4, clip=RELU),
        node("pool", "global_avg_pool2d", "depthwise", shape=(4, 1, 1)),
        node("flat", "flatten", "pool", shape=(4,)),
        linear("fc", "flat"),
    )
    states = layer_states(net)
    assert list(states) == ["first", "depthwise", "fc"] and all(len(state) == FIXED for state in states.values())
    depthwise, inputs, outputs, stride, kernel, weights, pixels, index = map(list, zip(*states.values(), strict=True))
    assert depthwise == [0, 1, 0] and index == [0, 0.5, 1]
    assert inputs == [4, 4, 4] and kernel == [1, 1, 1], "what is the same for all stays, as in the published code"
    assert outputs == [1, 1, 0] and stride == [1, 1, 0]
    assert weights == [1, 0, (12 - 4) / 12] and pixels == [1, 1, 0]


def test_states_of_a_captured_network() -> None:
    states = layer_states(captured("Mobile"))
    assert [name for name, state in states.items() if state[0] == 1.0] == ["depthwise", "wide"]


def test_the_agent_needs_the_network() -> None:
    table = CostTable(rows(2))
    with pytest.raises(AllocationError, match="knows nothing of the layer 'm0.conv'; give the run directory"):
        search_haq(formulate(table, Budget()), resources(table, states={}))
