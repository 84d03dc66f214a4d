"""JSON as every file of ours is read: of bounded size and depth, held to a type, each fault told in one sentence.

`JsonReader.parse` refuses what JSON's own rules leave open: a key that stands twice, NaN, infinities, whole numbers
that 64 bits do not hold, text that no encoding can write. `JsonReader.take` holds what was parsed to a Python type, a
dataclass as a rule, so that whoever uses the values need not look at them again. Reading has no side effect.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from hawq_tvm.core.errors import HawqError

MOST_BYTES = 64 << 20
"""The largest file that is read: a hundred times what the largest network of ours needs."""

MOST_DEPTH = 32
"""How deep lists and objects may lie in one another; no file of ours goes past 7."""

_MOST_SHOWN = 60  # characters of a value in a message
_WHOLE_DIGITS = 20  # of 2^63 with its sign; longer ones are not even turned into numbers
_PLAIN_KEY = re.compile(r"\w+", re.ASCII)


class _Twice(dict[str, Any]):
    """An object in which `key` stands twice."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key


class _TooLarge(str):
    """The digits of a whole number that 64 bits do not hold."""

    __slots__ = ()


class _MisfitError(Exception):
    """A value that is not what it should be; caught where the file's name is known."""

    def __init__(self, where: str, expected: str, value: object = MISSING) -> None:
        super().__init__()
        self.where, self.expected, self.value = where, expected, value


@dataclass(frozen=True)
class JsonReader:
    """Reads one file, or one piece of JSON.

    Attributes:
        name: what is read, as messages call it.
        error: what its faults are raised as.
        advice: the next step, which ends each message.
    """

    name: str
    error: type[HawqError]
    advice: str

    def read(self, path: Path) -> Any:
        """A file, parsed; see `parse`."""
        try:
            with path.open("rb") as stream:
                data = stream.read(MOST_BYTES + 1)
        except OSError as error:
            raise self.fault(f"cannot be read ({error.strerror or error})") from error
        return self.parse(data)

    def parse(self, data: bytes) -> Any:
        """JSON in UTF-8, as dicts, lists, texts, numbers, booleans and None.

        Raises:
            HawqError: of the type `error`: not JSON, too large or too deep, a key twice, a number that is none.
        """
        if len(data) > MOST_BYTES:
            raise self.fault(f"larger than the {MOST_BYTES >> 20} MiB that are read")
        try:
            value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object, parse_int=_whole)
        except UnicodeDecodeError as error:
            raise self.fault(f"not UTF-8 at byte {error.start}") from None
        except json.JSONDecodeError as error:
            where = f"at line {error.lineno}, column {error.colno}"
            raise self.fault(f"not valid JSON ({error.msg} {where})") from None
        except RecursionError:
            raise self.fault(f"nested deeper than the {MOST_DEPTH} levels that are read") from None
        what = _first_fault(value)
        if what is not None:
            raise self.fault(what)
        return value

    def take(self, data: object, kind: Any, *, where: str = "", signed: Collection[str] = ()) -> Any:
        """What was parsed, as a type.

        Args:
            data: from `parse`.
            kind: a dataclass (its fields, no others), a TypedDict (its keys, and others that nobody reads), ``Any``,
                ``int``, ``float``, ``str``, ``bool``, a union, or a tuple, list or mapping from texts of those.
            where: the place of `data` in the file.
            signed: fields under which numbers may be negative; elsewhere they are at least 0.

        Returns:
            The dataclass, filled; of a TypedDict its keys; tuples for lists.

        Raises:
            HawqError: of the type `error`: a part is missing, unknown, negative or of another type.
        """
        try:
            return _take(data, kind, where, frozenset(signed), negative=False)
        except _MisfitError as misfit:
            place = misfit.where or "the whole"
            if misfit.value is MISSING:
                raise self.fault(f"{place} {misfit.expected}") from None
            raise self.fault(f"{place} is {_shown(misfit.value)}, expected {misfit.expected}") from None

    def fault(self, what: str) -> HawqError:
        """The error that says so of this file."""
        return self.error(f"{self.name}: {what}; {self.advice}")


# parsing


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        return _Twice(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return table


def _whole(digits: str) -> int | _TooLarge:
    if len(digits) <= _WHOLE_DIGITS and -(2**63) <= int(digits) < 2**63:
        return int(digits)
    return _TooLarge(digits)


def _first_fault(value: object) -> str | None:
    """What is wrong with parsed JSON that its grammar allows, and where."""
    queue: list[tuple[object, str, int]] = [(value, "", 1)]
    for item, where, depth in queue:  # which grows meanwhile
        place = where or "the whole"
        if isinstance(item, _Twice):
            return f"the key {_shown(item.key)} stands twice in {place}"
        if isinstance(item, _TooLarge):
            return f"{place} is {item[:_MOST_SHOWN]}, a number that 64 bits do not hold"
        if isinstance(item, float) and not isfinite(item):
            return f"{place} is {_shown(item)}, not a finite number"
        if isinstance(item, str) and not _is_text(item):
            return f"{place} is {_shown(item)}, text that cannot be written as UTF-8"
        if isinstance(item, dict | list) and depth > MOST_DEPTH:
            return f"nested deeper than the {MOST_DEPTH} levels that are read"
        if isinstance(item, dict):
            odd = next((key for key in item if not _is_text(key)), None)
            if odd is not None:
                return f"{place} has the key {_shown(odd)}, text that cannot be written as UTF-8"
            queue.extend((part, _under(where, key), depth + 1) for key, part in item.items())
        elif isinstance(item, list):
            queue.extend((part, f"{where}[{index}]", depth + 1) for index, part in enumerate(item))
    return None


def _is_text(text: str) -> bool:
    """Whether text is Unicode, or the name of a file that is not (PEP 383)."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


# types


def _take(value: object, kind: Any, where: str, signed: frozenset[str], *, negative: bool) -> Any:
    """`value` as `kind`; numbers may be negative where `negative`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _take_one_of(value, arguments, where, signed, negative=negative)
    if is_dataclass(kind) or is_typeddict(kind):
        return _take_record(value, kind, where, signed, negative=negative)
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise _MisfitError(where, "a list", value)
        kinds = arguments[:1] * len(value) if origin is list or arguments[-1] is ... else arguments
        if len(kinds) != len(value):
            raise _MisfitError(where, f"a list of {len(kinds)}", value)
        places = (
            (item, part, f"{where}[{index}]") for index, (item, part) in enumerate(zip(value, kinds, strict=True))
        )
        return tuple(_take(item, part, place, signed, negative=negative) for item, part, place in places)
    if origin in (Mapping, dict):
        if not isinstance(value, dict):
            raise _MisfitError(where, "an object", value)
        return {
            key: _take(item, arguments[1], _under(where, key), signed, negative=negative or key in signed)
            for key, item in value.items()
        }
    return _take_plain(value, kind, where, negative=negative)


_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "text"),
    bool: ((bool,), "true or false"),
    NoneType: ((NoneType,), "null"),
}


def _take_plain(value: object, kind: Any, where: str, *, negative: bool) -> Any:
    types, expected = _PLAIN[kind]
    if kind in (int, float) and not negative:
        expected += " of at least 0"
    if not isinstance(value, types) or (isinstance(value, bool) and kind is not bool):
        raise _MisfitError(where, expected, value)
    if isinstance(value, int | float) and value < 0 and not negative:
        raise _MisfitError(where, expected, value)
    return value


def _take_one_of(value: object, kinds: tuple[Any, ...], where: str, signed: frozenset[str], *, negative: bool) -> Any:
    """The first kind that fits; where none does, the fault of the only one that is not None, or of all."""
    misfits = []
    for kind in kinds:
        try:
            return _take(value, kind, where, signed, negative=negative)
        except _MisfitError as misfit:
            misfits.append((kind, misfit))
    others = [misfit for kind, misfit in misfits if kind is not NoneType]
    if len(others) == 1 and value is not None:
        raise others[0]
    raise _MisfitError(where, " or ".join(misfit.expected for _, misfit in misfits), value)


@cache
def _parts(kind: Any) -> Mapping[str, tuple[Any, bool]]:
    """The fields of a dataclass or the keys of a TypedDict: the type of each, and whether it must be there."""
    hints = get_type_hints(kind, include_extras=True)
    if is_typeddict(kind):
        open_ = {name: get_args(hint)[0] for name, hint in hints.items() if get_origin(hint) is NotRequired}
        return {name: (open_.get(name, hint), name not in open_) for name, hint in hints.items()}
    return {
        item.name: (hints[item.name], item.default is MISSING and item.default_factory is MISSING)
        for item in fields(kind)
    }


def _take_record(value: object, kind: Any, where: str, signed: frozenset[str], *, negative: bool) -> Any:
    if not isinstance(value, dict):
        raise _MisfitError(where, "an object", value)
    parts = _parts(kind)
    for name, (_, needed) in parts.items():
        if needed and name not in value:
            raise _MisfitError(_under(where, name), "is missing")
    if is_dataclass(kind):
        unknown = next((name for name in value if name not in parts), None)
        if unknown is not None:
            raise _MisfitError(_under(where, unknown), "is not known here")
    found = {
        name: _take(value[name], part, _under(where, name), signed, negative=negative or name in signed)
        for name, (part, _) in parts.items()
        if name in value
    }
    if not is_dataclass(kind):
        return found
    try:
        return kind(**found)  # type: ignore[operator]
    except HawqError as error:
        raise _MisfitError(where, f"cannot stand ({error})") from error


# messages


def _under(where: str, key: str) -> str:
    """The place of a key: ``layers[3].name``, and ``ranges['layer1.0']`` where the key has dots of its own."""
    if _PLAIN_KEY.fullmatch(key):
        return f"{where}.{key}" if where else key
    return f"{where}[{_shown(key)}]"


def _shown(value: object) -> str:
    """A value on one line, cut short."""
    if isinstance(value, str):
        return repr(value if len(value) <= _MOST_SHOWN else f"{value[:_MOST_SHOWN]}...")
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return json.dumps(value)
