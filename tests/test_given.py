"""Ranges, scales and stored bits of the user's: what is understood, what is refused and what it comes to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.core.errors import SettingsError
from hawq_tvm.core.float_ir import Clip, FloatGraph
from hawq_tvm.core.given import (
    check_ranges,
    check_scales,
    clip_to,
    override,
    parse_ranges,
    parse_scales,
    ranges_of,
    read_ranges,
    read_scales,
    scales_of,
    settled_by,
    stored_bits_of,
    unused_ranges,
)
from hawq_tvm.core.quantizer import Range, range_at

from .builders import captured, samples
from .float_graphs import RELU, conv, graph, node

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "resnet50_imagenet_ranges.json"
MAGNITUDES = st.floats(1e-6, 1e6)
INTERVALS = MAGNITUDES | st.tuples(MAGNITUDES.map(lambda x: -x) | st.just(0.0), MAGNITUDES)
GIVEN_RANGES = st.dictionaries(st.text(), INTERVALS | st.dictionaries(st.integers(2, 8), INTERVALS, min_size=1))
GIVEN_SCALES = st.dictionaries(st.text(), MAGNITUDES | st.lists(MAGNITUDES, min_size=1).map(tuple))


def values_of(network: FloatGraph, x: torch.Tensor) -> dict[str, torch.Tensor]:
    values: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        FloatModule(network)(x, tap=values.__setitem__)
    return values


# formats


@drawn(GIVEN_RANGES, GIVEN_SCALES)
def test_what_was_read_survives_json(ranges: Any, scales: Any) -> None:
    assert parse_ranges(json.loads(json.dumps({"ranges": ranges}))) == parse_ranges({"ranges": ranges}) == ranges
    assert parse_scales(json.loads(json.dumps({"scales": scales}))) == parse_scales({"scales": scales}) == scales


@pytest.mark.parametrize("key", ["ranges", "range"])
def test_a_file_is_bare_or_has_the_table_under_a_key(key: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"conv1": 3}))
    bare = read_ranges(path)
    path.write_text(json.dumps({"about": "where they are from", key: {"conv1": 3}}))
    assert read_ranges(path) == bare == {"conv1": 3.0}
    path.write_text(json.dumps({key: 3}))
    assert read_ranges(path) == {key: 3.0}, "a layer may have that name"
    path.write_text(json.dumps({"scales": {"fc": [1, 0.5]}}))
    assert read_scales(str(path)) == {"fc": (1.0, 0.5)}


def test_numbers_of_numpy_and_pytorch_are_numbers() -> None:
    given = {"a": np.float32(0.5), "b": torch.tensor([-1.0, 2.0]), "c": Range(-1.0, 0.5), "d": {4: np.float64(3)}}
    assert parse_ranges(given) == {"a": 0.5, "b": (-1.0, 2.0), "c": (-1.0, 0.5), "d": {4: 3.0}}
    assert parse_scales({"a": np.array([0.5, 1.0], np.float32), "b": torch.tensor(0.25)}) == {
        "a": (0.5, 1.0),
        "b": 0.25,
    }


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ([3.0], "the whole is [3.0], expected a table by layer"),
        ({"conv1": "3"}, "the range of 'conv1' is '3', expected a number or a pair of them"),
        ({"conv1": None}, "the range of 'conv1' is None, expected a number"),
        ({"conv1": True}, "the range of 'conv1' is True, expected a number"),
        ({"conv1": [0, 1, 2]}, "the range of 'conv1' is [0, 1, 2], expected a number or a pair"),
        ({"conv1": [0, "1"]}, "the range of 'conv1' is [0, '1'], expected a number or a pair"),
        ({"conv1": [1, 3]}, "the range of 'conv1' is 1 to 3, expected one that holds 0"),
        ({"conv1": [-3, -1]}, "the range of 'conv1' is -3 to -1, expected one that holds 0"),
        ({"conv1": [0, 0]}, "the magnitude of the range of 'conv1' is 0.0, expected a number above 0"),
        ({"conv1": 0}, "the range of 'conv1' is 0, expected a number above 0"),
        ({"conv1": -3.0}, "the range of 'conv1' is -3.0, expected a number above 0"),
        ({"conv1": float("nan")}, "the range of 'conv1' is nan, expected"),
        ({"conv1": float("inf")}, "the range of 'conv1' is inf, expected"),
        ({"conv1": [float("-inf"), 1]}, "the range of 'conv1' is [-inf, 1], expected"),
        ({"conv1": 1e39}, "the range of 'conv1' is 1e+39, expected one that float32 holds"),
        ({"conv1": {}}, "'conv1' has a range for no width, expected some of 2, 3,"),
        ({"conv1": {"9": 1}}, "'conv1' has a range for '9' bits, expected some of 2, 3,"),
        ({"conv1": {"4": -1}}, "the range of 'conv1' at 4 bits is -1, expected a number above 0"),
        ({"conv1": {"4": {"8": 1}}}, "the range of 'conv1' at 4 bits is {'8': 1}, expected a number"),
        ({3: 1.0}, "the name 3 is no text"),
        ({"range": {}, "ranges": {}}, "it holds both 'ranges' and 'range'; keep one"),
        ({"conv1": ["x" * 99, 1]}, "is ['" + "x" * 58 + "..., expected"),
    ],
)
def test_ranges_that_are_none_are_told_by_layer_with_an_example(data: object, told: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(told)) as raised:
        parse_ranges(data, "the ranges mine.json")
    assert str(raised.value).startswith("the ranges mine.json: ")
    assert str(raised.value).endswith(
        '; write {"layer": 3.0}, {"layer": [-1.0, 3.0]} or {"layer": {"4": 3.0, "8": 5.0}}'
    )


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("scales", "the whole is 'scales', expected a table by layer"),
        ({"fc": 0}, "the scale of 'fc' is 0, expected a number above 0"),
        ({"fc": float("nan")}, "the scale of 'fc' is nan, expected a number above 0"),
        ({"fc": [0.5, -0.5]}, "the scale of 'fc' in channel 1 is -0.5, expected a number above 0"),
        ({"fc": [0.5, 1e-39]}, "the scale of 'fc' in channel 1 is 1e-39, expected one that float32 holds"),
        ({"fc": []}, "the scales of 'fc' are an empty list"),
        ({"fc": [[0.5]]}, "the scale of 'fc' in channel 0 is [0.5], expected a number above 0"),
        ({"fc": {"0": 0.5}}, "the scale of 'fc' is {'0': 0.5}, expected a number above 0"),
    ],
)
def test_scales_that_are_none_are_told_by_layer_and_channel(data: object, told: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"the given scales: {told}; write {{")):
        parse_scales(data)


@pytest.mark.parametrize("read", [read_ranges, read_scales])
def test_files_of_nothing(read: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"x.json: cannot be read \(No such file or directory\); write"):
        read(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SettingsError, match="x.json: no layer in it; write"):
        read(tmp_path / "x.json")


def test_the_ranges_of_a_trained_network_are_read_as_they_are() -> None:
    if not SHARED.is_file():
        pytest.skip(f"{SHARED} is not there")
    found = read_ranges(SHARED)
    assert (len(found), found["input"], found["layer4.2.conv3"]) == (50, 2.64, pytest.approx(19.614448))


# names


def test_a_magnitude_is_symmetric_where_a_value_can_be_negative() -> None:
    found = ranges_of(
        {"input": 2.0, "stem": 3.0, "conv2": 4.0, "conv1": {4: 1.0, 8: (-1.0, 2.0)}}, captured("Residual")
    )
    assert found == {
        "x": Range(-2.0, 2.0),
        "stem": Range(0.0, 3.0),
        "conv2": Range(-4.0, 4.0),
        "conv1": {4: Range(0.0, 1.0), 8: Range(-1.0, 2.0)},
    }


def test_a_value_that_is_called_input_is_itself() -> None:
    network = graph(conv("input", "x"), conv("last", "input"))
    assert ranges_of({"input": 2.0}, network) == {"input": Range(-2.0, 2.0)}
    with pytest.raises(SettingsError, match="'input' and 'x' are one value and have two ranges; give one"):
        ranges_of({"input": 2.0, "x": 3.0}, captured("Residual"))


def test_a_file_of_ranges_is_of_this_networks_values() -> None:
    net = graph(conv("a", "x"), conv("b", "a"))
    check_ranges({"x": Range(-1.0, 1.0), "a": {4: Range(0.0, 1.0)}}, net)
    with pytest.raises(SettingsError, match=r"ranges.json has a range for 'aa', .*; did you mean a"):
        check_ranges({"x": Range(-1.0, 1.0), "aa": Range(0.0, 1.0)}, net)


def test_unknown_names_are_told_with_what_was_meant() -> None:
    network = captured("Residual")
    message = "range for 'cnv1', which this network does not have; did you mean conv1. it has x, stem, pool"
    with pytest.raises(SettingsError, match=message):
        ranges_of({"cnv1": 3.0}, network)
    with pytest.raises(
        SettingsError, match="scales for the layer 'pool', which this network does not have; it has stem,"
    ):
        check_scales({"pool": 0.5}, network)
    with pytest.raises(SettingsError, match="there are stored bits for 'conv9', .*; did you mean conv"):
        stored_bits_of({"conv9": 4}, network)
    long = graph(*(conv(f"c{i}", f"c{i - 1}" if i else "x") for i in range(20)))
    with pytest.raises(SettingsError, match=r"it has x, c0, .*, c10, \.\.\. \(21 in all; ranges.json of a run of"):
        ranges_of({"fc": 3.0}, long)


def test_a_view_gives_its_range_to_the_value_that_it_reads() -> None:
    network = captured("Residual")
    assert ranges_of({"pool": 3.0, "flatten": 2.0}, network) == {"stem": Range(0.0, 3.0), "gap": Range(0.0, 2.0)}
    assert ranges_of({"pool": 3.0, "stem": 4.0}, network) == {"stem": Range(0.0, 4.0)}, "its own counts"
    pools = [node(name, "flatten", "c", shape=(144,)) for name in ("p", "q")]
    with pytest.raises(SettingsError, match="'p' is a view of 'c', which others read too; give 'c' the range"):
        ranges_of({"p": 1.0}, graph(conv("c", "x"), *pools))
    chain = graph(conv("c", "x"), node("p", "flatten", "c", shape=(144,)), node("q", "flatten", "p", shape=(144,)))
    with pytest.raises(SettingsError, match="'p' and 'q' are views of 'c'; give 'c' the range"):
        ranges_of({"p": 1.0, "q": 2.0}, chain)


def test_a_range_below_0_does_not_fit_a_value_that_cannot_be_negative() -> None:
    with pytest.raises(SettingsError, match="'stem' cannot be negative, and its range is -3 to 0; give an upper end"):
        ranges_of({"stem": (-3.0, 0.0)}, captured("Residual"))
    assert ranges_of({"conv2": (-3.0, 0.0)}, captured("Residual")) == {"conv2": Range(-3.0, 0.0)}


# what they come to


def test_given_ranges_take_the_place_of_calibrated_ones() -> None:
    network = captured("Residual")
    calibrated = {
        "stem": Range(0.0, 9.0),
        "conv1": Range(0.0, 7.0),
        "conv2": {4: Range(-5.0, 5.0), 8: Range(-6.0, 6.0)},
    }
    given = {"stem": 3.0, "conv1": {4: 2.0}, "conv2": {4: 1.0}, "fc": {8: 4.0}}
    found = override(calibrated, given, network)
    assert found["stem"] == Range(0.0, 3.0)
    assert [range_at(found, "conv1", bits).hi for bits in (3, 4, 8)] == [7.0, 2.0, 7.0]
    assert found["conv2"] == {4: Range(-1.0, 1.0), 8: Range(-6.0, 6.0)}
    assert found["fc"] == {8: Range(-4.0, 4.0)}
    assert calibrated["stem"] == Range(0.0, 9.0), "the table itself stays"
    assert settled_by({**given, "input": 1.0}, network) == {"stem"}


def test_ranges_that_no_integers_are_made_by_are_told() -> None:
    assert unused_ranges({"stem": 3.0}, captured("Residual")) is None
    told = unused_ranges({"fc": 3.0}, captured("Residual"))
    assert told == "given ranges that no integers are made by: 'fc' is the network's result, which keeps 32 bits"
    branches = [conv(name, "x") for name in "abcde"]
    network = graph(*branches, node("cat", "concat", *"abcde", shape=(20, 6, 6)), conv("z", "x"))
    told = unused_ranges(dict.fromkeys("abcde", 1.0), network)
    assert told is not None
    assert told.endswith("'c' is stored as a part of 'cat', whose range counts; and 2 more")


@hypothesis_settings(max_examples=25)
@drawn(st.dictionaries(st.sampled_from(["stem", "pool", "conv1", "conv2", "project", "gap", "fc"]), st.floats(0.01, 3)))
def test_clips_hold_and_change_nothing_else(given: dict[str, float]) -> None:
    """Every value stays within its range; twice is as once; without a given range nothing is clipped."""
    network, x = captured("Residual"), samples()
    clipped = clip_to(network, given)
    clipped.check()
    values = values_of(clipped, x)
    for name, found in ranges_of(given, network).items():
        assert isinstance(found, Range)
        assert float(values[name].min()) >= np.float32(found.lo)
        assert float(values[name].max()) <= np.float32(found.hi)
    for before, after in zip(network, clipped, strict=True):
        assert after.clip == before.clip or before.name in ranges_of(given, network)
    assert [node.clip for node in clip_to(clipped, given)] == [node.clip for node in clipped]


def test_the_clip_of_a_view_is_that_of_what_it_reads() -> None:
    network, x = captured("Residual"), samples()
    pool = values_of(network, x)["pool"].clamp(max=0.5)
    assert torch.equal(values_of(clip_to(network, {"pool": 0.5}), x)["pool"], pool)


def test_clips_join_those_of_the_network() -> None:
    network = graph(conv("a", "x", clip=Clip(0.0, 6.0)), conv("b", "a", clip=RELU), conv("c", "b"))
    clips = {node.name: node.clip for node in clip_to(network, {"a": 8.0, "b": (-1.0, 2.0), "c": 4.0, "input": 1.0})}
    assert clips == {"a": Clip(0.0, 6.0), "b": Clip(0.0, 2.0), "c": Clip(-4.0, 4.0)}
    with pytest.raises(SettingsError, match="'b' has a range for each width, and a clip holds for all; give one range"):
        clip_to(network, {"b": {4: 1.0}})


def test_scales_of_a_layer() -> None:
    layer = captured("Residual").by_name["stem"]
    assert scales_of({"fc": 1.0}, layer) is None
    one = scales_of({"stem": 0.5}, layer)
    assert one is not None and one.dtype == np.float64 and one.tolist() == [0.5] * 8
    many = scales_of(parse_scales({"stem": list(range(1, 9))}), layer)
    assert many is not None and many.tolist() == list(range(1, 9))
    for count in (1, 7, 9):
        told = (
            f"layer 'stem' has 8 output channels and {count} given scales; give 8 in their order, or one number for all"
        )
        with pytest.raises(SettingsError, match=re.escape(told)):
            check_scales({"stem": (0.5,) * count}, captured("Residual"))


def test_stored_bits_are_given_by_name_or_pattern() -> None:
    network = captured("Residual")
    assert stored_bits_of({"input": 7, "conv?": 4, "conv2": 6}, network) == {"x": 7, "conv1": 4, "conv2": 6}
    assert "fc" not in stored_bits_of({"*": 4}, network), "the result keeps 32 bits"
    with pytest.raises(SettingsError, match="'fc' is the network's result, which keeps 32 bits"):
        stored_bits_of({"fc": 4}, network)
    with pytest.raises(SettingsError, match="there are stored bits for 'layer9.*', which this network does not have"):
        stored_bits_of({"layer9.*": 4}, network)
    parts = graph(conv("a", "x"), conv("b", "x"), node("cat", "concat", "a", "b", shape=(8, 6, 6)), conv("z", "x"))
    with pytest.raises(SettingsError, match="'a' is stored as a part of 'cat'; give that its stored bits"):
        stored_bits_of({"a": 4}, parts)
    assert stored_bits_of({"cat": 4}, parts) == {"cat": 4}
