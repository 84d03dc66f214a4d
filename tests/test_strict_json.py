from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.core import strict_json
from hawq_tvm.core.errors import GraphError, RunError
from hawq_tvm.core.strict_json import MOST_BYTES, MOST_DEPTH, JsonReader

READER = JsonReader("r/x.json", RunError, "make it again")

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner),
    max_leaves=20,
)


@given(VALUES)
def test_what_json_writes_is_read_as_it_is(value: Any) -> None:
    assert READER.parse(json.dumps(value).encode()) == value


BAD: dict[str, tuple[bytes, str]] = {
    "no JSON": (b'{"a": ', "not valid JSON (Expecting value at line 1, column 7)"),
    "nothing": (b"", "not valid JSON (Expecting value at line 1, column 1)"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 0"),
    "a key twice": (b'{"a": {"conv.1": 1, "b": 2, "conv.1": 3}}', "the key 'conv.1' stands twice in a"),
    "a key twice at the top": (b'{"a": 1, "a": 1}', "the key 'a' stands twice in the whole"),
    "NaN": (b'{"a": [1, NaN]}', "a[1] is NaN, not a finite number"),
    "infinity": (b'{"a b": Infinity}', "['a b'] is Infinity, not a finite number"),
    "minus infinity": (b"-Infinity", "the whole is -Infinity, not a finite number"),
    "a float beyond all": (b'{"a": 1e400}', "a is Infinity, not a finite number"),
    "10^400": (b'{"a": 1' + b"0" * 400 + b"}", f"a is 1{'0' * 59}, a number that 64 bits do not hold"),
    "10^5000, which Python does not turn into a number": (b"1" + b"0" * 5000, "a number that 64 bits do not hold"),
    "2^63": (b'{"a": 9223372036854775808}', "a is 9223372036854775808, a number that 64 bits do not hold"),
    "too deep": (b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1), f"nested deeper than the {MOST_DEPTH} levels"),
    "deeper than Python's stack": (b"[" * 10**6, f"nested deeper than the {MOST_DEPTH} levels"),
    "deep objects": (b'{"a":' * 10**5, f"nested deeper than the {MOST_DEPTH} levels"),
    "half a character": (b'{"a": "\\ud800"}', r"a is '\ud800', text that cannot be written as UTF-8"),
    "half a character as key": (b'{"\\ud800": 1}', r"the whole has the key '\ud800', text that cannot be written"),
    "a line break in a place": (b'{"a\\nb": NaN}', r"['a\nb'] is NaN"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_json_is_one_sentence(name: str) -> None:
    data, message = BAD[name]
    with pytest.raises(RunError) as raised:
        READER.parse(data)
    text = str(raised.value)
    assert text.startswith("r/x.json: ")
    assert message in text
    assert text.endswith("; make it again")
    assert "\n" not in text


def test_the_deepest_and_the_largest_are_read() -> None:
    assert READER.parse(b"[" * MOST_DEPTH + b"]" * MOST_DEPTH)
    assert READER.parse(b"[-9223372036854775808, 9223372036854775807]") == [-(2**63), 2**63 - 1]
    assert READER.parse(b'\xef\xbb\xbf{"a": "\\udcff"}') == {"a": "\udcff"}, "a BOM, and a file name that is not UTF-8"


def test_a_file_is_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    path.write_text('["abc"]')
    assert READER.read(path) == ["abc"]
    monkeypatch.setattr(strict_json, "MOST_BYTES", 4)
    with pytest.raises(RunError, match="r/x.json: larger than the 0 MiB that are read; make it again"):
        READER.read(path)
    with pytest.raises(RunError, match=r"r/x.json: cannot be read \(No such file or directory\); make it again"):
        READER.read(tmp_path / "none.json")


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.5

    def __post_init__(self) -> None:
        if self.x == 13:
            raise GraphError("13 is refused")


class Shape(TypedDict):
    points: tuple[Point, ...]
    label: NotRequired[str | None]
    weights: NotRequired[Mapping[str, tuple[float, float]]]


def test_values_become_their_types() -> None:
    data = {"points": [{"x": 1}, {"x": 2, "y": 3}], "label": None, "weights": {"a": [0, 1.5]}, "unread": 7}
    assert READER.take(data, Shape) == {
        "points": (Point(1), Point(2, 3)), "label": None, "weights": {"a": (0, 1.5)},
    }  # fmt: skip
    assert READER.take({"points": []}, Shape) == {"points": ()}
    assert READER.take({"a": -1}, Mapping[str, int], signed=("a",)) == {"a": -1}
    assert READER.take(True, bool) is True


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the whole is a list of 0, expected an object"),
        ({}, "points is missing"),
        ({"points": {}}, "points is an object of 0, expected a list"),
        ({"points": [{}]}, "points[0].x is missing"),
        ({"points": [{"x": 1.0}]}, "points[0].x is 1.0, expected a whole number of at least 0"),
        ({"points": [{"x": True}]}, "points[0].x is true, expected a whole number"),
        ({"points": [{"x": "1"}]}, "points[0].x is '1', expected a whole number"),
        ({"points": [{"x": -1}]}, "points[0].x is -1, expected a whole number of at least 0"),
        ({"points": [{"x": 1, "y": None}]}, "points[0].y is null, expected a number of at least 0"),
        ({"points": [{"x": 1, "z": 1}]}, "points[0].z is not known here"),
        ({"points": [{"x": 13}]}, "points[0] cannot stand (13 is refused)"),
        ({"points": [], "label": 3}, "label is 3, expected text"),
        ({"points": [], "weights": []}, "weights is a list of 0, expected an object"),
        ({"points": [], "weights": {"a.b": [1]}}, "weights['a.b'] is a list of 1, expected a list of 2"),
        ({"points": [], "weights": {"a": [1, -2]}}, "weights.a[1] is -2, expected a number of at least 0"),
    ],
)
def test_what_does_not_fit_is_one_sentence(data: Any, message: str) -> None:
    with pytest.raises(RunError) as raised:
        READER.take(data, Shape)
    assert str(raised.value).startswith(f"r/x.json: {message}")
    assert str(raised.value).endswith("; make it again")


def test_a_union_of_kinds_names_them() -> None:
    assert READER.take(["w4a4", 4], list[str | int]) == ("w4a4", 4)
    with pytest.raises(RunError, match=r"\[0\] is null, expected text or a whole number of at least 0; make"):
        READER.take([None], list[str | int])


def test_the_limits_are_those_that_are_told() -> None:
    """`SECURITY.md` names them."""
    assert (MOST_BYTES, MOST_DEPTH) == (64 << 20, 32)
    reader = JsonReader("f", RunError, "do")
    assert reader.parse(b" " * (MOST_BYTES - 1) + b"1") == 1
    with pytest.raises(RunError, match="f: larger than the 64 MiB that are read; do"):
        reader.parse(b" " * MOST_BYTES + b"1")


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
def test_lists_and_objects_count_as_depth(start: str, end: str) -> None:
    reader = JsonReader("f", RunError, "do")
    reader.parse((start * MOST_DEPTH + "1" + end * MOST_DEPTH).encode())
    with pytest.raises(RunError, match="nested deeper than the 32 levels"):
        reader.parse((start * (MOST_DEPTH + 1) + "1" + end * (MOST_DEPTH + 1)).encode())


def test_whole_numbers_end_where_64_bits_do() -> None:
    reader = JsonReader("f", RunError, "do")
    for number in (-(2**63), 2**63 - 1):
        assert reader.parse(str(number).encode()) == number
    for number in (-(2**63) - 1, 2**63):
        with pytest.raises(RunError, match="a number that 64 bits do not hold"):
            reader.parse(str(number).encode())


def test_a_union_blames_the_only_kind_that_holds_anything() -> None:
    reader = JsonReader("f", RunError, "do")
    assert reader.take(None, int | None) is None
    with pytest.raises(RunError, match="the whole is 'x', expected a whole number of at least 0;"):
        reader.take("x", int | None)
    with pytest.raises(RunError, match="expected text or a whole number of at least 0;"):
        reader.take([], str | int)
    with pytest.raises(RunError, match="the whole is null, expected a whole number of at least 0 or text;"):
        reader.take(None, int | str)


class _Signed(TypedDict):
    omega: Mapping[str, float]
    point: NotRequired[_Point]


class _Point(TypedDict):
    x: float


@dataclass(frozen=True)
class _Made:
    name: str
    table: Mapping[str, int] = field(default_factory=dict)


def test_numbers_below_a_signed_field_may_be_negative() -> None:
    reader = JsonReader("f", RunError, "do")
    data = {"omega": {"4": -1.0}, "point": {"x": -2.0}}
    assert reader.take(data, _Signed, signed=("omega", "point")) == data
    with pytest.raises(RunError, match="omega.4 is -1.0, expected a number of at least 0;"):
        reader.take(data, _Signed, signed=("point",))
    with pytest.raises(RunError, match="omega.4 is 'x', expected a number;"):
        reader.take({"omega": {"4": "x"}}, _Signed, signed=("omega",))


def test_a_field_that_is_made_where_it_is_missing() -> None:
    assert JsonReader("f", RunError, "do").take({"name": "a"}, _Made) == _Made("a")


@pytest.mark.parametrize(("length", "shown"), [(60, "'" + 60 * "a" + "'"), (61, "'" + 60 * "a" + "...'")])
def test_long_texts_are_cut(length: int, shown: str) -> None:
    with pytest.raises(RunError, match=re.escape(f"the whole is {shown}, expected")):
        JsonReader("f", RunError, "do").take("a" * length, int)
