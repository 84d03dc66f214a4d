"""The search for the fastest way, with times that are made up; and what is made of what it found."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hawq_tvm
from hawq_tvm.backends.tvm import lower as lowering
from hawq_tvm.backends.tvm import tuning
from hawq_tvm.backends.tvm.cache import cache_folder
from hawq_tvm.backends.tvm.lower import Machine, lower
from hawq_tvm.backends.tvm.records import TunedLayer, Tuning
from hawq_tvm.backends.tvm.storage import plan_storages
from hawq_tvm.backends.tvm.tuned import Conditions, exchangeable, with_tuned
from hawq_tvm.backends.tvm.tuning import Way, check_tunable, search, tune_layers
from hawq_tvm.core import interpreter
from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.storage import Storage
from hawq_tvm.core.targets import TARGETS, Target
from hawq_tvm.kernels import BuiltKernel, Offer

from .builders import compiled, integer_samples, integers_of, same
from .conftest import Run
from .cpus import HOST, machine_of

VNNI = machine_of("avx512vnni")
CONDITIONS = Conditions("a target", "a CPU", 2, 1000)


@dataclass(frozen=True)
class Free:
    """Three free parameters."""

    tile: int
    ahead: int
    threads: bool


def offer_of(own: Free, *, price: float = 1.0) -> Offer:
    """An offer of all tiles from 1 to 8 and three distances, that is never built."""

    def build(_: Free) -> BuiltKernel:
        raise AssertionError("nothing is built where times are made up")

    every = [own, *(Free(*choice) for choice in product(range(1, 9), range(3), (True, False)))]
    storages = (Storage(),), Storage()
    return replace(Offer.of_candidates(storages, 1.0, own, lambda: list(dict.fromkeys(every)), build), price=price)


def times_by(cost: Callable[[Way], float]) -> tuning.Timer:
    return lambda ways, rounds: [cost(way) for way in ways]


@given(
    tiles=st.lists(st.floats(1, 100), min_size=8, max_size=8),
    aheads=st.lists(st.floats(1, 100), min_size=3, max_size=3),
    serial=st.floats(1, 100),
    own=st.builds(Free, st.integers(1, 8), st.integers(0, 2), st.booleans()),
)
def test_what_adds_up_is_searched_to_its_least(
    tiles: list[float], aheads: list[float], serial: float, own: Free
) -> None:
    """Of costs that are a sum over the parameters, coordinate descent finds the least; small gains are left."""

    def cost(way: Way) -> float:
        found = way.parameters
        return tiles[found["tile"] - 1] + aheads[found["ahead"]] + (0 if found["threads"] else serial)

    found = search("layer", {"kernel": offer_of(own)}, times_by(cost), threads=2)
    least = min(tiles) + min(aheads)
    assert found.us <= found.untuned_us
    assert found.us == pytest.approx(least) or found.untuned_us * (1 - tuning.LEAST_GAIN) < least
    assert found.timed == 1 + 7 + 2 + 1


def test_with_one_thread_sharing_is_left_as_it_is() -> None:
    own = Free(4, 1, True)
    found = search("layer", {"kernel": offer_of(own)}, times_by(lambda way: 5.0 + way.parameters["threads"]), threads=1)
    assert (found.parameters, found.timed) == ({"tile": 4, "ahead": 1, "threads": 1}, 1 + 7 + 2)


@pytest.mark.parametrize(("unpacked_us", "taken"), [(8.0, "bytes"), (9.5, "packed")])
def test_memory_has_its_price_when_times_are_compared(unpacked_us: float, taken: str) -> None:
    own = Free(4, 1, True)
    offers = {"packed": offer_of(own), "bytes": offer_of(own, price=1.1)}
    cost = times_by(lambda way: 10.0 if way.kernel == "packed" else unpacked_us)
    found = search("layer", offers, cost, threads=1)
    assert found.kernel == taken
    assert found.untuned_us == 10.0
    assert found.us == (10.0 if taken == "packed" else unpacked_us), "told as it was measured, without the price"


def test_a_gain_that_the_last_comparison_does_not_show_is_none() -> None:
    """Noise: what was fastest while it was searched is not so afterwards."""
    own = Free(4, 1, True)

    def noisy(ways: Sequence[Way], rounds: int) -> list[float]:
        searched = rounds == tuning.SEARCH_ROUNDS
        return [10.0 if way.parameters["tile"] == 4 or not searched else 5.0 for way in ways]

    found = search("layer", {"kernel": offer_of(own)}, noisy, threads=1)
    assert (found.parameters["tile"], found.us, found.untuned_us) == (4, 10.0, 10.0)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Tuning for a CPU with VNNI, where the smallest tile is fastest; the layers that were timed, and a cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Machine, "resolve", lambda target: VNNI)
    timed: list[str] = []

    def time(request: Any, machine: Machine, conditions: Conditions, ways: Sequence[Way], rounds: int) -> list[float]:
        timed.append(request.node.name)
        return [10.0 + way.parameters.get("tile", 50) for way in ways]

    monkeypatch.setattr(tuning, "_time", time)
    return timed


def tuned(graph: Graph, **changes: Any) -> Tuning:
    return tune_layers(graph, TARGETS["llvm"], **{"batch": 1, "threads": 1, **changes})


def test_every_distinct_layer_is_searched_once_and_kept(made_up: list[str]) -> None:
    graph = integers_of("Mobile", ("w8a8", "w4a8"))
    told: list[tuple[int, int]] = []
    first = tuned(graph, progress=lambda done, total: told.append((done, total)))
    assert (
        {row.layer for row in first.layers.values()}
        == set(made_up)
        == {"stem", "depthwise", "project", "grouped", "wide"}
    )
    assert told == [(done, len(made_up_layers(first))) for done in range(1, len(first.layers) + 1)]
    made_up.clear()
    assert tuned(graph) == first
    assert made_up == [], "all of it was kept"
    assert tuned(graph, threads=2) != first
    assert made_up, "other threads are another question"


def made_up_layers(found: Tuning) -> list[str]:
    return [row.layer for row in found.layers.values()]


def test_after_a_kill_it_goes_on(made_up: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    graph = integers_of("Mobile")

    def killed(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(graph, progress=killed)
    before = set(made_up)
    made_up.clear()
    found = tuned(graph)
    assert set(made_up) == set(made_up_layers(found)) - before
    assert len(before) == 2


def test_damaged_records_are_made_anew(made_up: list[str]) -> None:
    graph = integers_of("Mobile")
    first = tuned(graph)
    made_up.clear()
    kept = [path for path in cache_folder("tuned").rglob("*") if path.is_file()]
    assert len(kept) == len(first.layers)
    kept[0].write_bytes(kept[0].read_bytes()[:-3] + b"xyz")
    assert tuned(graph) == first
    assert len(set(made_up)) == 1


def test_what_was_found_is_what_is_built(made_up: list[str]) -> None:
    graph = integers_of("Mobile", ("w8a8", "w4a8"))
    found = tuned(graph)
    lowered = lower(graph, TARGETS["llvm"], tuning=found)
    assert set(lowered.tuned) == set(exchangeable(lowered.plan))
    for name, row in lowered.tuned.items():
        assert lowered.plan.kernels[name] == row.kernel
        assert lowered.plan.offers[name].parameters == row.parameters
        tiles = {variant.parameters["tile"] for variant in lowered.plan.offers[name].variants()}
        assert row.parameters["tile"] == min(tiles)


def test_what_was_found_elsewhere_is_not_taken(made_up: list[str]) -> None:
    graph = integers_of("Mobile")
    plan = plan_storages(graph, HOST.target, 512, batch=1, features=VNNI.features)
    choices = exchangeable(plan)
    rows = {
        CONDITIONS.key(offers, plan.kernels[name]): TunedLayer(
            name, plan.kernels[name], plan.offers[name].parameters, 1.0, 2.0, 3
        )
        for name, offers in choices.items()
    }
    unknown = replace(next(iter(rows.values())), kernel="of another version")
    there = Tuning("a CPU", 2, 1000, rows)
    assert set(with_tuned(plan, there, CONDITIONS)[1]) == set(choices), "there it is taken"
    for conditions in (
        replace(CONDITIONS, cpu="another CPU"),
        replace(CONDITIONS, target="another target"),
        replace(CONDITIONS, threads=1),
        replace(CONDITIONS, network_bytes=1001),
    ):
        assert with_tuned(plan, there, conditions)[1] == {}
    assert with_tuned(plan, replace(there, layers=dict.fromkeys(rows, unknown)), CONDITIONS)[1] == {}
    illegal = {key: replace(row, parameters={"tile": 99}) for key, row in rows.items()}
    assert with_tuned(plan, replace(there, layers=illegal), CONDITIONS)[1] == {}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (TARGETS["nvidia/t4"], "'nvidia/t4' is a GPU, for which a model chooses them"),
        (TARGETS["llvm/portable"], "'llvm/portable' is compiled for others too; tune --target llvm"),
    ],
)
def test_other_targets_are_refused(target: Target, said: str) -> None:
    with pytest.raises(CompileError, match=said):
        check_tunable(target)


def test_it_is_written_and_read(made_up: list[str]) -> None:
    found = tuned(integers_of("Mobile"))
    assert Tuning.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(CompileError, match="make it again with hawq-tvm tune"):
        Tuning.from_json({"cpu": 3})


def test_a_tuned_library_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed on this machine, whatever it has."""
    graph = integers_of("Mobile", ("w8a8", "w4a8"))
    monkeypatch.setattr(tuning, "SEARCH_ROUNDS", 1)
    found = tune_layers(graph, TARGETS["llvm"], batch=1, threads=1)
    assert all(row.us > 0 for row in found.layers.values())
    module = compiled(graph, tmp_path, tuning=found)
    assert set(module.info.tuned) == set(exchangeable(lower(graph, TARGETS["llvm"]).plan))
    x = integer_samples(graph)
    expected = interpreter.run(graph, x)
    assert same(expected, module.values(x)) == []
    assert np.array_equal(module.run(x), expected[graph.output])


def test_the_command_tunes_and_the_next_compile_takes_it(
    scratch: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time(request: Any, machine: Machine, conditions: Conditions, ways: Sequence[Way], rounds: int) -> list[float]:
        return [10.0 + way.parameters.get("tile", 50) for way in ways]

    monkeypatch.setattr(tuning, "_time", time)
    status, out, _ = cli("tune", scratch, "--threads", "1", "--json")
    assert status == 0
    found = Tuning.from_json(json.loads(out))
    if not found.layers:
        pytest.skip("this machine has no kernels with free parameters")
    assert cli("inspect", scratch)[0] == 0, "the library is still the one from before, which a note says"
    status, out, _ = cli("tune", scratch, "--threads", "1")
    assert status == 0
    assert f"{len(found.layers)} distinct layers" in out
    assert f"hawq-tvm compile {scratch} --target llvm takes it" in out
    assert cli("compile", scratch)[0] == 0
    assert cli("verify", scratch, "--samples", "4")[0] == 0
    calls = json.loads(cli("inspect", scratch, "--json")[1])["storages"]["llvm"]
    shown = [call for call in calls if call["tuned"] is not None]
    assert shown
    assert all(call["tuned"]["kernel"] == call["kernel"] for call in shown)
    assert "tile" in cli("inspect", scratch)[1]
    network = hawq_tvm.load(scratch)
    assert network.tune(threads=1) == found
    monkeypatch.setattr(lowering, "cpu_name", lambda: "another CPU")
    assert "tuned.llvm.json is of other layers" in cli("compile", scratch, "--batch", "2")[2]
    (scratch / "tuned.llvm.json").write_text("{}")
    status, _, err = cli("compile", scratch)
    assert status == 2
    assert "tuned.llvm.json is corrupted" in err
    (scratch / "tuned.llvm.json").unlink()
    assert cli("compile", scratch)[0] == 0, "removed, and the kernels choose by themselves again"
    calls = json.loads(cli("inspect", scratch, "--json")[1])["storages"]["llvm"]
    assert not [call for call in calls if call["tuned"] is not None]


def test_what_cannot_be_tuned_is_one_sentence(scratch: Path, cli: Run) -> None:
    for target, said in (("nvidia/t4", "is a GPU"), ("llvm/portable", "is compiled for others too")):
        status, _, err = cli("tune", scratch, "--target", target)
        assert status == 2
        assert said in err
    (scratch / "model.onnx").unlink()
    status, _, err = cli("tune", scratch)
    assert status == 2
    assert f"has no model.onnx; make it with hawq-tvm compile {scratch}" in err
