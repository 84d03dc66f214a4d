"""Storages: what is packed comes back, padding holds what the contract says, and the choice costs least."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import inf
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.backends.tvm.storage import Choice, Conversion, Step, choose_offers
from hawq_tvm.core.errors import CompileError, GraphError
from hawq_tvm.core.ir import Array, IntType, TensorType
from hawq_tvm.core.storage import Storage, pack, unpack
from hawq_tvm.kernels import BuiltKernel, Offer

from .builders import random_integers

U8, S8, U4, S4, S32 = (IntType.parse(text) for text in ("u8", "s8", "u4", "s4", "s32"))


@st.composite
def stored_types(draw: st.DrawFn) -> tuple[TensorType, Storage]:
    """Any storage with a type that it can hold."""
    order = draw(st.sampled_from(["NCHW", "NHWC"]))
    block = draw(st.sampled_from([1, 4, 16])) if order == "NCHW" else 1
    multiple = block * draw(st.integers(1, 3))
    frame = draw(st.tuples(*[st.integers(0, 3)] * 4))
    bits = draw(st.sampled_from([4, 8, 32]))
    if bits == 32:
        dtype = S32
    else:
        dtype = IntType(draw(st.integers(2, bits)), draw(st.booleans()))
    offset = 0
    if bits < 32 and dtype.signed and draw(st.booleans()):
        offset = -dtype.lo + draw(st.integers(0, (1 << bits) - 1 - (dtype.hi - dtype.lo)))
    shape = draw(st.tuples(st.integers(1, 19), st.integers(1, 5), st.integers(1, 5)))
    beside = st.integers(0, 3) if (order, bits) == ("NHWC", 8) else st.just(0)
    return TensorType(dtype, shape, 1.0), Storage(
        order, block, multiple, frame, bits, offset, draw(beside), draw(beside)
    )


def values_of_stored(stored: Array, type: TensorType, storage: Storage) -> Array:
    """Every element's value as [N, C, H, W], padding included, by other means than `unpack`: one loop."""
    top, left, bottom, right = storage.frame
    channels = storage.before + storage.channels(type) + storage.after
    height, width = type.shape[1] + top + bottom, type.shape[2] + left + right
    found = np.empty((len(stored), channels, height, width), np.int64)
    signed = type.dtype.signed and not storage.offset
    for n, c, h, w in np.ndindex(*found.shape):
        index = [n, h, w, c] if storage.order == "NHWC" else [n, c, h, w]
        if storage.block > 1:
            index = [n, c // storage.block, h, w, c % storage.block]
        if storage.bits == 4:
            byte = int(stored[(*index[:-1], index[-1] // 2)])
            nibble = byte >> 4 if index[-1] % 2 else byte & 15
            element = nibble - 16 if signed and nibble > 7 else nibble
        else:
            element = int(stored[tuple(index)])
        found[n, c, h, w] = element - storage.offset
    return found


@given(stored_types(), st.integers(1, 2), st.integers(0, 99))
def test_unpack_is_the_inverse_and_padding_is_zero(case: tuple[TensorType, Storage], batch: int, seed: int) -> None:
    type, storage = case
    x = random_integers(TensorType(type.dtype, (batch, *type.shape), 1.0), 1, seed)[0]
    stored = pack(x, type, storage)
    assert stored.shape == storage.shape(type, batch)
    own = storage.own(stored, type)
    assert own.nbytes == storage.size_bytes(type, batch)
    back = unpack(stored, type, storage)
    assert back.dtype == x.dtype
    assert np.array_equal(back, x)
    every = values_of_stored(stored, type, storage)
    top, left, _, _ = storage.frame
    channels, height, width = type.shape
    inside = every[:, storage.before : storage.before + channels, top : top + height, left : left + width]
    assert np.array_equal(inside, x)
    inside[...] = 0
    assert not every.any(), "the frame, the channels that fill up and those of others hold the value zero"
    own[...] = 1
    assert (stored == 1).sum() == own.size, "a view of the array"


@given(stored_types(), st.data())
def test_a_part_lies_where_the_whole_has_its_channels(case: tuple[TensorType, Storage], data: st.DataObject) -> None:
    type, storage = case
    if (storage.order, storage.bits) != ("NHWC", 8):
        type, storage = replace(type, dtype=U8), Storage("NHWC", frame=storage.frame, multiple=storage.multiple)
    x = random_integers(TensorType(type.dtype, (2, *type.shape), 1.0), 1)[0]
    start = data.draw(st.integers(0, type.shape[0] - 1))
    count = data.draw(st.integers(1, type.shape[0] - start))
    some = replace(type, shape=(count, *type.shape[1:]))
    part = storage.part(type, start, some, 1)
    assert part.shape(some, 2) == storage.shape(type, 2)
    stored = pack(x, type, storage)
    assert np.array_equal(unpack(stored, some, part), x[:, start : start + count])
    assert part.part(some, 0, replace(some, shape=(1, *type.shape[1:])), 1).before == storage.before + start


@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([4, 8]))
def test_vectors_have_channels_that_fill_up(features: int, multiple: int, bits: int) -> None:
    type = TensorType(S4, (features,), 1.0)
    storage = Storage(multiple=multiple, bits=bits)
    x = random_integers(TensorType(S4, (2, features), 1.0), 1)[0] if features > 1 else np.array([[-8], [7]], np.int8)
    stored = pack(x, type, storage)
    channels = -(-features // multiple) * multiple
    assert stored.shape == (2, -(-channels // 2) if bits == 4 else channels)
    assert np.array_equal(unpack(stored, type, storage), x)


def test_the_canonical_storage_is_the_array_itself() -> None:
    for dtype in (U8, S8, U4, S4, S32):
        type = TensorType(dtype, (3, 4, 5), 1.0)
        x = random_integers(type, 2)
        stored = pack(x, type, Storage.canonical(type))
        assert stored.dtype == x.dtype
        assert np.array_equal(stored, x)


def test_four_bit_neighbours_share_a_byte_the_first_in_its_low_half() -> None:
    x = np.array([[[[1, -2, 3]]]], np.int8)
    assert pack(x, TensorType(S4, (1, 1, 3), 1.0), Storage(bits=4)).tolist() == [[[[0xE1, 0x03]]]]


def test_signed_values_are_stored_with_an_offset() -> None:
    type, storage = TensorType(S8, (1, 1, 2), 1.0), Storage("NHWC", multiple=2, frame=(0, 1, 0, 0), offset=128)
    stored = pack(np.array([[[[-128, 127]]]], np.int8), type, storage)
    assert stored.dtype == np.uint8
    assert stored.tolist() == [[[[128, 128], [0, 128], [255, 128]]]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"order": "CHWN"}, "an order of"),
        ({"bits": 5}, "bits of"),
        ({"block": 4}, "whole blocks, got block 4 in 1"),
        ({"block": 0}, "whole blocks"),
        ({"order": "NHWC", "block": 4, "multiple": 4}, "channels last lie together"),
        ({"frame": (0, 0, -1, 0)}, "four sizes of at least 0"),
        ({"frame": (1, 1)}, "four sizes of at least 0"),
        ({"bits": 32, "offset": 1}, "stored as they are"),
        ({"before": 4}, "only bytes that lie channels last are a part"),
        ({"order": "NHWC", "after": -1}, "only bytes that lie channels last are a part"),
        ({"order": "NHWC", "after": 4, "bits": 4}, "only bytes that lie channels last are a part"),
    ],
)
def test_fields_that_contradict_one_another(fields: dict[str, object], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Storage(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "storage", "message"),
    [
        (U8, Storage(bits=4), r"u8 in NCHW 4 bits would store 0 to 255, which leave 0\.\.15"),
        (S8, Storage(offset=1), "would store -127 to 128"),
        (U8, Storage(offset=1), "would store 1 to 256"),
        (S32, Storage(), "would store"),
    ],
)
def test_values_that_do_not_fit(dtype: IntType, storage: Storage, message: str) -> None:
    type = TensorType(dtype, (1, 2, 2), 1.0)
    with pytest.raises(GraphError, match=message):
        pack(np.zeros((1, 1, 2, 2), np.int64), type, storage)


def test_what_only_images_have_is_refused_for_vectors() -> None:
    for storage in (Storage("NHWC"), Storage(frame=(0, 0, 0, 1)), Storage(block=2, multiple=2)):
        with pytest.raises(GraphError, match="only images"):
            storage.check(TensorType(U8, (4,), 1.0))


def test_an_array_that_was_packed_otherwise_is_refused() -> None:
    type, storage = TensorType(U8, (3, 2, 2), 1.0), Storage("NHWC")
    for array in (np.zeros((1, 3, 2, 2), np.uint8), np.zeros((1, 2, 2, 3), np.int8)):
        with pytest.raises(GraphError, match="was it packed otherwise"):
            unpack(array, type, storage)


@given(stored_types())
def test_json_keeps_everything(case: tuple[TensorType, Storage]) -> None:
    _, storage = case
    assert Storage.from_json(json.loads(json.dumps(storage.to_json()))) == storage


# the choice over a network, held to brute force


def place(number: int) -> Storage:
    """A storage that stands for a number; only its identity counts here."""
    return Storage(multiple=number + 1)


def never() -> BuiltKernel:
    raise AssertionError("nothing is built here")


@dataclass(frozen=True)
class Problem:
    """An invented network: steps, its output, and what each value costs to convert, by (from, to)."""

    steps: tuple[Step, ...]
    output: str
    prices: dict[str, dict[tuple[Storage, Storage], float]]

    def conversion_cost(self, value: str, source: Storage, to: Storage) -> float:
        return self.prices[value].get((source, to), inf)

    def choose(self, **options: int) -> Choice:
        return choose_offers(self.steps, {"x": place(0)}, self.output, place(0), self.conversion_cost, **options)


def random_problem(random: Random, *, palette: int, nodes: int) -> Problem:
    """Nodes with up to three inputs of any earlier value: chains, residual joins, concatenations, values read twice."""
    places = [place(number) for number in range(palette)]
    names, steps = ["x"], []
    for index in range(nodes):
        count = random.choice([1, 2, 2, 3])
        inputs = (names[-1], *(random.choice(names) for _ in range(count - 1)))
        offers = {}
        for number in range(random.randint(1, 3)):
            reads = tuple(random.choice(places) for _ in inputs)
            offers[f"kernel{number}"] = Offer(reads, random.choice(places), random.randint(0, 12), never)
        steps.append(Step(f"n{index}", inputs, offers))
        names.append(f"n{index}")
    prices = {
        name: {(a, b): random.randint(0, 9) for a in places for b in places if a != b and random.random() < 0.95}
        for name in names
    }
    return Problem(tuple(steps), random.choice(names[-2:]), prices)


def cost_of(problem: Problem, kernels: Sequence[str]) -> float:
    """What one choice of kernels costs: each conversion when it is first asked for, from where it is cheapest."""
    total, exists = 0.0, {"x": {place(0)}}
    wanted = []
    for step, kernel in zip(problem.steps, kernels, strict=True):
        offer = step.offers[kernel]
        total += offer.cost
        exists[step.name] = {offer.writes}
        wanted += list(zip(step.inputs, offer.reads, strict=True))
    for value, storage in [*wanted, (problem.output, place(0))]:
        if storage not in exists[value]:
            total += min(problem.conversion_cost(value, known, storage) for known in exists[value])
            exists[value].add(storage)
    return total


def brute_force(problem: Problem) -> float:
    return min(cost_of(problem, kernels) for kernels in product(*(step.offers for step in problem.steps)))


def test_the_choice_costs_what_brute_force_finds_on_1000_graphs_with_joins() -> None:
    random = Random(8)
    joins = conversions = impossible = 0
    for number in range(1000):
        problem = random_problem(random, palette=2 + number % 2, nodes=random.randint(2, 6))
        joins += any(len(set(step.inputs)) > 1 for step in problem.steps)
        best = brute_force(problem)
        if best == inf:
            impossible += 1
            with pytest.raises(CompileError, match="nothing converts"):
                problem.choose()
            continue
        choice = problem.choose()
        assert choice.exact
        assert choice.cost == best, number
        assert cost_of(problem, list(choice.kernels.values())) == best, "and the kernels that it names cost that"
        conversions += bool(choice.conversions)
    assert joins > 800
    assert conversions > 500
    assert impossible < 100


def test_a_conversion_is_made_once_for_all_its_readers() -> None:
    a, b = place(0), place(1)
    one = {"only": Offer((b,), b, 1.0, never)}
    steps = (
        Step("p", ("x",), one),
        Step("q", ("x",), one),
        Step("sum", ("p", "q"), {"sum": Offer((b, b), a, 1, never)}),
    )
    choice = Problem(steps, "sum", {"x": {(a, b): 5.0}, "p": {}, "q": {}, "sum": {}}).choose()
    assert choice.conversions == (Conversion("x", a, b, "p"),)
    assert choice.cost == 8.0


def test_a_join_is_where_greedy_choices_go_wrong() -> None:
    """Each branch alone is cheaper in the other storage by 1; the join that reads both makes that cost 4."""
    a, b = place(0), place(1)
    branch = {"a": Offer((a,), a, 3.0, never), "b": Offer((a,), b, 2.0, never)}
    join = {"sum": Offer((a, a), a, 1.0, never)}
    steps = (Step("p", ("x",), branch), Step("q", ("x",), branch), Step("sum", ("p", "q"), join))
    back = {(b, a): 2.0}
    choice = Problem(steps, "sum", {"x": {}, "p": back, "q": back, "sum": {}}).choose()
    assert dict(choice.kernels) == {"p": "a", "q": "a", "sum": "sum"}
    assert choice.conversions == ()


def test_of_equal_offers_the_earlier_row_is_taken() -> None:
    a = place(0)
    offers = {"first": Offer((a,), a, 1.0, never), "second": Offer((a,), a, 1.0, never)}
    choice = Problem((Step("p", ("x",), offers),), "p", {"x": {}, "p": {}}).choose()
    assert choice.kernels["p"] == "first"


def test_the_output_is_converted_to_what_users_have() -> None:
    a, b = place(0), place(1)
    steps = (Step("p", ("x",), {"only": Offer((a,), b, 1.0, never)}),)
    choice = Problem(steps, "p", {"x": {}, "p": {(b, a): 2.0}}).choose()
    assert choice.conversions == (Conversion("p", b, a, None),)
    assert choice.cost == 3.0


def dense_block(layers: int, random: Random) -> Problem:
    """Every layer reads all earlier ones, each of which stays alive to the end: 2^layers states without a cap."""
    a, b = place(0), place(1)
    names, steps = ["x"], []
    for index in range(layers):
        offers = {
            f"reads {reads} writes {writes}": Offer((reads,) * len(names), writes, random.randint(1, 9), never)
            for reads in (a, b)
            for writes in (a, b)
        }
        steps.append(Step(f"n{index}", tuple(names), offers))
        names.append(f"n{index}")
    prices = {name: {(a, b): random.randint(5, 60), (b, a): random.randint(5, 60)} for name in names}
    return Problem(tuple(steps), names[-1], prices)


def test_a_frontier_too_wide_is_cut_and_the_plan_says_so() -> None:
    problem = dense_block(40, Random(1))
    choice = problem.choose(max_states=20)
    assert not choice.exact
    assert choice.cost == cost_of(problem, list(choice.kernels.values())), "it is a choice that can be made"
    all_canonical = [
        next(name for name in step.offers if name.endswith(f"writes {place(0)}")) for step in problem.steps
    ]
    assert choice.cost <= cost_of(problem, all_canonical)


@pytest.mark.parametrize("layers", [4, 5])
def test_a_narrow_dense_block_is_exact(layers: int) -> None:
    for seed in range(10):
        problem = dense_block(layers, Random(seed))
        choice = problem.choose()
        assert choice.exact
        assert choice.cost == brute_force(problem)


def test_blocks_of_two_are_blocks() -> None:
    type, storage = TensorType(U8, (3, 1, 2), 1.0), Storage(block=2, multiple=2)
    x = np.arange(6, dtype=np.uint8).reshape(1, 3, 1, 2)
    stored = pack(x, type, storage)
    assert stored.tolist() == [[[[[0, 2], [1, 3]]], [[[4, 0], [5, 0]]]]]
    assert np.array_equal(unpack(stored, type, storage), x)


def test_what_is_left_out_of_json_has_its_default() -> None:
    assert Storage.from_json({}) == Storage() == Storage("NCHW", 1, 1, (0, 0, 0, 0), 8, 0)
    given = Storage.from_json({"order": "NHWC", "frame": [1, 2, 3, 4]})
    assert given == Storage("NHWC", frame=(1, 2, 3, 4))
    listed = Storage("NHWC", frame=[1, 2, 3, 4])  # type: ignore[arg-type]
    assert len({given, listed}) == 1


def test_unpacking_checks_the_type_first() -> None:
    with pytest.raises(GraphError, match="would store"):
        unpack(np.zeros((1, 1, 2, 1), np.uint8), TensorType(U8, (1, 2, 2), 1.0), Storage(bits=4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"multiple": 0}, "whole blocks, got block 1 in 0"),
        ({"multiple": -1}, "whole blocks, got block 1 in -1"),
        ({"order": "NHWC", "block": 2, "multiple": 2}, "channels last lie together"),
    ],
)
def test_channels_are_filled_up_to_something(fields: dict[str, object], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Storage(**fields)  # type: ignore[arg-type]
