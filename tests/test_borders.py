"""What lies between layers: timed, by a target's cost model, and as users give it."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.tvm import latency
from hawq_tvm.backends.tvm.borders import BorderKernels, Crossing, Price, Taken, find_borders
from hawq_tvm.backends.tvm.chosen import Candidates, ChosenKernel, Planned
from hawq_tvm.backends.tvm.host import find_c_compiler
from hawq_tvm.backends.tvm.latency import LatencyTable, TableKernels, measure_latency, predict_latency
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.backends.tvm.timing import KernelTime, TimedKernel
from hawq_tvm.calibration import make_observer, observe_ranges
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ops import Requantize
from hawq_tvm.core.specs import BitConfig, Bits, BorderCost, CostTable
from hawq_tvm.core.targets import find_target
from hawq_tvm.frontend.capture import capture
from hawq_tvm.ilp import formulate, solve_ilp
from hawq_tvm.ilp.explain import explain
from hawq_tvm.kernels import ConvertRequest, Request
from hawq_tvm.measure.costing import cost_table, read_latency_table
from hawq_tvm.runs.artifacts import COSTS
from hawq_tvm.runs.explanations import sentences

from .builders import candidates_of, captured, compiled, uniform
from .conftest import NETWORKS, QUICK, Run

W4, W48, W8 = Bits(4, 4), Bits(4, 8), Bits(8, 8)
BATCH = 8
LLVM = find_target("llvm")

networks = pytest.mark.parametrize("network", ["Mobile", "Padded"])
"""In which a layer reads a sum, which is stored at 8 bits."""

compiles = pytest.mark.skipif(find_c_compiler() is None, reason="kernels that are timed are linked by a C compiler")


def others(candidates: Candidates, planned: Planned) -> float:
    """Microseconds of what no layer but the first causes: other operators, and what these and the first layer read."""
    graph, plan = candidates.graph, planned.plan
    layers, first = set(candidates.layers), candidates.layers[0]
    copies = {n.name for n in planned.graph if isinstance(n.op, Requantize) and n.name not in graph.by_name}
    copied = {n.inputs[0] for n in planned.graph if n.name == first} & copies
    found = sum(offer.cost for name, offer in plan.offers.items() if name not in layers | copies or name in copied)
    for reader, copy in planned.conversions:
        found += copy.offer.cost if reader not in layers | copies or reader in {first} | copied else 0.0
    return found


class Fire(nn.Module):
    """One value, stored at 4 bits in half a byte on a GPU, that two layers read: who writes 8 bits takes longer."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 64, 3, padding=1)
        self.one = nn.Conv2d(64, 64, 1)
        self.three = nn.Conv2d(64, 64, 3, padding=1)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return self.fc(torch.cat((F.relu(self.one(x)), F.relu(self.three(x))), 1).mean((2, 3)))


@cache
def fire() -> Candidates:
    torch.manual_seed(0)
    network, x = Fire().eval(), torch.randn(4, 3, 64, 64)
    graph = capture(network, x, name="fire")
    ranges = observe_ranges(lambda x, tap: FloatModule(graph)(x, tap=tap), [x], make_observer("max"))
    return Candidates(graph, ranges, (W4, W8), batch=BATCH)


@pytest.mark.parametrize("network", ["Mobile", "Padded", "Residual", "Concat", "Fire"])
@pytest.mark.parametrize("target", ["nvidia/t4", "llvm", "x86/sapphirerapids", "arm/neoverse-v1"])
def test_layers_and_borders_are_all_that_layers_cause(network: str, target: str) -> None:
    """Whatever layers have which widths: what the plan costs is that of layers, of borders and of other operators.

    Three of the networks fork: two layers read one value, in one of them through a pool. The table does not know what a
    kernel saves by writing fewer bits, nor what one takes longer whose result is read behind a join or an average.
    """
    candidates = fire() if network == "Fire" else candidates_of(network, W4, W8, batch=BATCH)
    machine = Machine.resolve(find_target(target))
    table = predict_latency(candidates, machine.target)
    tied = {name: group[0] for group in candidates.graph.tied_groups() for name in group}
    free = [name for name in candidates.layers if tied.get(name, name) == name]
    assert (len(free) < len(candidates.layers)) == (network in ("Residual", "Concat", "Fire"))
    read = {candidates.graph.source(layer.inputs[0]) for layer in candidates.graph.layers}
    for pairs in product((W4, W8), repeat=len(free)):
        by_group = dict(zip(free, pairs, strict=True))
        bits = {name: by_group[tied.get(name, name)] for name in candidates.layers}
        planned = candidates.planned(BitConfig(bits), machine)
        alone = {name: table.latency_us[name][pair] for name, pair in bits.items()}
        more = {name: planned.plan.offers[name].cost - us for name, us in alone.items()}
        unknown = sum(us for name, us in more.items() if us < 0 or name not in read)
        between = sum(cost.latency_us for border in table.borders if (cost := border.at(bits)) is not None)
        assert sum(alone.values()) + between + unknown + others(candidates, planned) == pytest.approx(planned.plan.cost)


def test_what_a_layer_takes_longer_is_counted_once_where_two_read_it() -> None:
    """At the first of them; a SqueezeNet has such a pair in every block."""
    borders = predict_latency(fire(), find_target("nvidia/t4")).borders
    found = {border.second: border for border in borders if border.first == "squeeze"}
    assert list(found) == ["one", "three"]
    assert set(found["one"].costs) == {(W4, W8)}
    assert found["one"].source == "predicted: squeeze takes longer where it writes for a reader of other bits"
    assert not found["three"].costs
    assert found["three"].source == "nothing runs there at any bits, three reads what is written"


@pytest.mark.parametrize("target", ["llvm", "x86/sapphirerapids", "arm/neoverse-v1"])
def test_what_a_layer_reads_is_nothing_of_the_border_behind_it(target: str) -> None:
    """The residual that `project` adds has a frame where `depthwise` reads 8 bits; what it writes is always the same.

    `stem` writes with that frame or without, and takes no longer: its border costs a copy.
    """
    table = predict_latency(candidates_of("Mobile", W4, W8), find_target(target))
    kernels = TableKernels.of(candidates_of("Mobile", W4, W8), Machine.resolve(find_target(target)))
    (border,) = (border for border in kernels.borders if border.first == "project")
    assert not any(list(crossing.kernels) for crossing in border.crossings.values())
    by_first = {border.first: border for border in table.borders}
    assert by_first["project"].source == "nothing runs there at any bits, grouped reads what is written"
    assert "stem takes no longer, as far as that can be told, where it writes" in by_first["stem"].source
    for each in kernels.borders:
        for here, alone in (crossing.writes for crossing in each.crossings.values() if crossing.writes is not None):
            assert here.offer.reads == alone.offer.reads
            assert here.offer.writes != alone.offer.writes


def test_a_kernel_is_had_with_what_another_form_of_it_reads() -> None:
    """`project` at 8 bits, its residual with a frame and without; and what it does not take is told."""
    machine = Machine.resolve(LLVM)
    candidates = candidates_of("Mobile", W4, W8)
    layers = uniform("Mobile", W8).layers
    plans = (candidates.planned(BitConfig({**layers, "depthwise": pair}), machine).plan for pair in (W8, W4))
    framed, bare = (ChosenKernel.of_node(plan, "project") for plan in plans)
    assert framed.offer.reads != bare.offer.reads
    for one, other in ((framed, bare), (bare, framed)):
        again = one.reading(other.offer.reads)
        assert again is not None
        assert again.code == other.code
        assert again.offer.cost == other.offer.cost
    assert framed.reading(framed.offer.reads) is framed
    assert framed.reading([replace(storage, multiple=2) for storage in bare.offer.reads]) is None


def test_borders_keep_one_kernel_of_each_code_not_one_of_each_two_widths() -> None:
    """Every configuration's graph has weights of its own; of five widths there are 25."""
    candidates = candidates_of("Padded", *(Bits(width, width) for width in (2, 3, 4, 6, 8)))
    kernels = [
        kernel
        for border in find_borders(candidates, Machine.resolve(LLVM))
        for crossing in border.crossings.values()
        for kernel in crossing.writes or ()
    ]
    graphs = {id(kernel.request.node.op) for kernel in kernels if isinstance(kernel.request, Request)}
    assert len(kernels) > len(graphs)
    assert len(graphs) == len({(kernel.code, kernel.offer.cost) for kernel in kernels})


@pytest.mark.parametrize(("cpu", "apart"), [("haswell", True), ("skylake-avx512", True), ("cascadelake", False)])
def test_bits_that_decide_instructions_tell_kernels_apart(cpu: str, apart: bool) -> None:
    """Two products of 4-bit activations always fit 16 bits, of 8-bit ones not; with VNNI it does not matter."""
    pairs = Bits(8, 4), Bits(8, 8)
    kernels = TableKernels.of(candidates_of("Mobile", *pairs), Machine.resolve(find_target(f"x86/{cpu}")))
    found = {}
    for name in captured("Mobile").by_name.keys() & {name for name, _ in kernels.layers}:
        narrow, wide = (kernels.layers[name, pair] for pair in pairs)
        used = [set(re.findall(r"llvm\.x86\.[\w.]+", it.offer.build().function.script())) for it in (narrow, wide)]
        found[name] = narrow.code != wide.code, used[0] != used[1]
    assert any(used for _, used in found.values()) == apart
    assert all(code for code, used in found.values() if used)


@networks
def test_borders_depend_on_the_bits_of_values_alone(network: str) -> None:
    target = find_target("nvidia/t4")
    borders = predict_latency(candidates_of(network, W4, W48, W8, batch=BATCH), target).borders
    names = list(candidates_of(network).layers)
    assert [border.second for border in borders] == names[1:], "every layer but the first has one before it"
    assert any(border.costs for border in borders)
    for border in borders:
        assert names.index(border.first) < names.index(border.second)
        for (one, other), cost in border.costs.items():
            assert cost.latency_us > 0
            for same in (W48, W8):
                if one.activation == 8:
                    assert border.costs[same, other] == cost
                if other.activation == 8:
                    assert border.costs[one, same] == cost
    for pair in (W4, W8):
        again = predict_latency(candidates_of(network, pair, batch=BATCH), target).borders
        costs = [set(border.costs) for border in again if border.costs]
        copied = sum((W4, W4) in border.costs for border in borders)
        assert costs == ([{(W4, W4)}] * copied if pair == W4 else []), "where all have 8 bits, nothing is copied"


# timed


def taking(times: dict[str, float], asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels take what is said, microseconds by their names' beginning, and 10 otherwise."""

    def take(kernels: Sequence[TimedKernel], *_: Any, **__: Any) -> list[KernelTime]:
        found = [next((us for name, us in times.items() if kernel.startswith(name)), 10.0) for kernel in asked]
        assert len(kernels) == len(found)
        return [KernelTime((us * 0.9e-6, us * 1e-6, us * 1.1e-6), 1) for us in found]

    def timed(kernel: ChosenKernel, built: Any) -> Any:
        asked.append(kernel.kernel)
        return kernel

    monkeypatch.setattr(ChosenKernel, "timed", timed)
    monkeypatch.setattr(latency, "build_kernel", lambda *_: None)
    monkeypatch.setattr(latency, "time_kernels", take)


def costs_of(network: str, table: LatencyTable) -> CostTable:
    """A cost table in which a layer loses 1 at 4 bits, and nothing at 8."""
    loss = {"weights": {"4": 0.5, "8": 0.0}, "inputs": {"4": 0.5, "8": 0.0}}
    sensitivity = {"method": "said", "layers": dict.fromkeys(candidates_of(network).layers, loss)}
    return cost_table(captured(network), (W4, W8), sensitivity=sensitivity, latency=table)


def test_the_kernels_between_layers_are_timed_with_theirs_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    taking({"requantize": 3.0}, asked, monkeypatch)
    candidates = candidates_of("Padded", W4, W8)
    table = measure_latency(candidates, LLVM)
    kernels = TableKernels.of(candidates, Machine.resolve(LLVM))
    assert asked == [kernel.kernel for kernel in kernels.distinct.values()]
    assert sum(name.startswith("requantize") for name in asked) == 2, "sums of two sizes are copied"
    assert table.source.endswith("copies between layers among them")
    by_layer = {border.second: border for border in table.borders}
    for name in ("down1", "down2"):
        copied = by_layer[name].costs[W8, W4]
        assert (copied.latency_us, copied.latency_spread_us) == (pytest.approx(3.0), pytest.approx((2.76, 3.24)))
        assert by_layer[name].source.startswith(f"measured: {name} reads a copy at 4 bits (requantize_")
    assert not by_layer["fc"].costs
    assert by_layer["fc"].source == "nothing runs there at any bits, fc reads what is written"


def test_a_border_that_was_measured_changes_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 bits save 5 us of each layer; where a copy takes more, there is nothing to save at the layer that reads it."""
    answers = []
    for copy in (1.0, 100.0):
        with monkeypatch.context() as patch:
            asked: list[str] = []
            taking({"requantize": copy}, asked, patch)
            table = measure_latency(candidates_of("Padded", W4, W8), LLVM)
        quick = {name: {W4: 5.0, W8: 10.0} for name in table.latency_us}
        costs = costs_of("Padded", LatencyTable(quick, table.source, borders=table.borders))
        answers.append(solve_ilp(formulate(costs, Budget(latency="36us"))).bits)
        found = explain(costs, "down1", uniform("Padded", W4), {"latency_us": 36.0})
        text = " ".join(sentences(found))
        assert f"between stem and down1: {copy:g} us" in text
        assert "measured: down1 reads a copy at 4 bits (requantize_" in text
    cheap, dear = answers
    assert list(cheap.layers.values()).count(W4) == 1
    assert dear.layers["down1"] == dear.layers["down2"] == W8, "the copy would take more than 4 bits save"


@compiles
@networks
def test_what_was_timed_is_what_the_library_calls(network: str, tmp_path: Path) -> None:
    """Of layers in turn at 8 and 4 bits, copies are called where their border costs something, and nowhere else."""
    candidates = candidates_of(network, W4, W8)
    table = measure_latency(candidates, LLVM)
    pairs = {name: (W8, W4)[number % 2] for number, name in enumerate(candidates.layers)}
    integers = integerize(candidates.graph, candidates.ranges, BitConfig(pairs))
    info = compiled(integers, tmp_path).info
    by_name = {node.name: node for node in integers}
    for border in table.borders:
        cost, read = border.at(pairs), by_name[border.second].inputs[0]
        is_copied = read in info.calls and isinstance(by_name[read].op, Requantize)
        if is_copied:
            assert cost is not None and cost.latency_spread_us is not None
            low, high = cost.latency_spread_us
            assert 0 < low <= cost.latency_us <= high
            assert info.call_kernels[read] in border.source
        else:
            assert cost is None or "takes longer" in border.source
    assert any(border.at(pairs) for border in table.borders)


@compiles
def test_a_copy_in_another_storage_is_timed_and_named() -> None:
    """`Pools` ends in a convolution of what an average pool writes otherwise than it reads it."""
    candidates = candidates_of("Pools", W8)
    (border,) = measure_latency(candidates, LLVM).borders
    assert border.source == "measured: last reads a copy as NCHW (convert_generic)"
    cost = border.costs[W8, W8]
    assert cost.latency_spread_us is not None
    assert 0 < cost.latency_spread_us[0] <= cost.latency_us <= cost.latency_spread_us[1]
    (border_kernels,) = TableKernels.of(candidates, Machine.resolve(LLVM)).borders
    (copy,) = border_kernels.crossings[8, 8].copies
    assert isinstance(copy.request, ConvertRequest)
    assert copy.inputs == (copy.output,)


def test_copies_are_called_copies_and_layers_layers() -> None:
    """In a message of a kernel that does not build, as in the source of a border."""
    planned = candidates_of("Padded", W4, W8).planned(uniform("Padded", W4), Machine.resolve(LLVM))
    titles = {name: ChosenKernel.of_node(planned.plan, name).title for name in ("stem", "stem.u4")}
    assert titles["stem"] == "layer 'stem' (conv2d)"
    assert titles["stem.u4"] == f"a copy at 4 bits ({planned.plan.kernels['stem.u4']})"


def code_of(times: Mapping[Hashable, Taken]) -> Price:
    return lambda kernel: times[kernel.code]


def test_a_kernel_takes_longer_only_beyond_the_spreads() -> None:
    """What a kernel writes for another reader counts where it is told apart from its own time."""
    kernels = TableKernels.of(candidates_of("Padded", W4, W8), Machine.resolve(LLVM))
    crossing = next(border for border in kernels.borders if border.second == "down1").crossings[4, 8]
    assert crossing.writes is not None, "a frame for the reader's padding, which a copy has alone"
    here, alone = crossing.writes

    def cost(us: float, spread: float) -> BorderCost:
        times = {here.code: us, alone.code: 10.0}
        return crossing.cost(
            lambda kernel: Taken(times[kernel.code], (times[kernel.code] - spread, times[kernel.code] + spread))
        )

    assert cost(13.0, 1.0) == BorderCost(latency_us=3.0, latency_spread_us=(1.0, 5.0))
    assert cost(13.0, 2.0) == cost(9.0, 0.1) == BorderCost()
    assert crossing.cost(lambda kernel: Taken(12.0 if kernel.code == here.code else 10.0)) == BorderCost(latency_us=2.0)
    for us, said in ((13.0, "stem takes longer where it writes"), (10.5, "stem takes no longer, as far as")):
        border = BorderKernels("stem", "down1", {(4, 8): crossing})
        times = {here.code: Taken(us, (us - 1, us + 1)), alone.code: Taken(10.0, (9.0, 11.0))}
        assert border.priced([W4, W8], code_of(times), "measured").source.startswith(f"measured: {said}")
    assert Crossing(()).cost(lambda kernel: pytest.fail("nothing runs")) == BorderCost()


# as files have them


def test_borders_are_read_as_they_were_written_and_as_they_were_before_they_had_a_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taking({"requantize": 3.0}, [], monkeypatch)
    costs = costs_of("Padded", measure_latency(candidates_of("Padded", W4, W8), LLVM))
    written = json.loads(json.dumps(costs.to_json()))
    assert CostTable.from_json(written) == costs
    for border in written["borders"]:
        del border["source"]
        for row in border["costs"].values():
            for cost in row.values():
                del cost["latency_spread_us"]
    old = CostTable.from_json(written)
    assert [border.source for border in old.borders] == [""] * len(old.borders)
    assert old.total(uniform("Padded", W4), "latency_us") == costs.total(uniform("Padded", W4), "latency_us")
    written["borders"][0]["source"] = 3
    with pytest.raises(AllocationError, match=r"^the cost table: borders\[0\].source is 3, expected text; mend it"):
        CostTable.from_json(written)


@networks
def test_borders_that_users_give_reach_the_cost_table(network: str, tmp_path: Path) -> None:
    graph = captured(network)
    names = tuple(layer.name for layer in graph.layers)
    border = {"first": names[0], "second": names[1], "costs": {"w4a4": {"w8a8": {"latency_us": 2.5}}}}
    path = tmp_path / "latency.json"
    times = {name: {"w4a4": 1.0, "w8a8": 2.0} for name in names}
    path.write_text(json.dumps({"latency_us": times, "borders": [border]}))
    table = cost_table(graph, (W4, W8), sensitivity=None, latency=read_latency_table(path, names))
    assert [b.costs for b in table.borders] == [{(W4, W8): BorderCost(latency_us=2.5)}]
    mixed = BitConfig(dict.fromkeys(names, W8) | {names[0]: W4})
    assert table.total(mixed, "latency_us") == 2.0 * (len(names) - 1) + 1.0 + 2.5
    path.write_text(json.dumps({"latency_us": times, "borders": [{**border, "second": "none"}]}))
    with pytest.raises(AllocationError, match="borders names 'none', which is no layer of layers"):
        read_latency_table(path, names)


def test_a_border_that_changed_in_the_users_file_reaches_a_run_that_was_profiled(tmp_path: Path, cli: Run) -> None:
    names = list(candidates_of("Padded").layers)
    path, run = tmp_path / "latency.json", tmp_path / "run"
    arguments = ["profile", f"{NETWORKS}:padded", "--data", f"{NETWORKS}:samples", *QUICK[:4], "--bits", "w4a4,w8a8"]
    given = {"latency_us": 2.5, "latency_spread_us": [2.0, 3.0]}
    changes = ({}, {"latency_us": 2.75}, {"latency_spread_us": [2.5, 2.5]})
    for source in ("a stopwatch", "a better stopwatch"):
        for change in changes:
            cost = given | change
            border = {"first": names[0], "second": names[1], "source": source, "costs": {"w4a4": {"w8a8": cost}}}
            times = {name: {"w4a4": 1.0, "w8a8": 2.0} for name in names}
            path.write_text(json.dumps({"latency_us": times, "borders": [border]}))
            assert cli(*arguments, "--latency-table", path, "-o", run)[0] == 0
            (found,) = json.loads((run / COSTS).read_text())["borders"]
            assert found["source"] == source
            assert {name: found["costs"]["w4a4"]["w8a8"][name] for name in cost} == cost
