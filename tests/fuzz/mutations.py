"""Ways to damage bytes, JSON and protobuf messages, all drawn from one seeded generator."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from google.protobuf.message import Message

# bytes

_PIECES = (
    b"\0" * 8,
    b"\xff" * 8,
    b"\x80",
    b'"',
    b"{",
    b"[",
    b"}",
    b"]",
    b",",
    b"\n",
    b"NaN",
    b"-",
    b"1e999",
    b"\\ud800",
)


def mutate_bytes(random: Random, data: bytes) -> bytes:
    """One to four flips, overwrites, insertions, removals, repetitions or a truncation."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(len(data) + 1)
        size = min(random.choice((1, 1, 2, 8, 64, 1024)), len(data) - at)
        match random.randrange(7):
            case 0 if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
            case 1:
                data = data[:at] + random.randbytes(size) + data[at + size :]
            case 2:
                data = data[:at] + random.choice(_PIECES) + data[at:]
            case 3:
                data = data[:at] + data[at + size :]
            case 4:
                data = data[: at + size] + data[at:]
            case 5:
                data = data[:at]
            case _:
                piece = random.choice(_PIECES)
                data = data[:at] + piece + data[at + len(piece) :]
    return data


# JSON; an object is a list of pairs, so that a key can stand twice


class Raw(str):
    """Text that goes into JSON as it stands."""

    __slots__ = ()


class Pairs(list[tuple[Any, Any]]):
    """A JSON object."""


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 255, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 0.5, -0.0, 1e-320, 1e308,
    Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("1" + "0" * 400), Raw("-" + "9" * 5000), Raw("01"),
    "", "w4a4", "4", "4" * 5000, "s32", "u8", "a\nb", "\x00", "\x1b[31m", "\ud800", "\udcff", "../x", "/etc/passwd",
    [], [[]], [0, 0], Pairs(), Pairs([("bits", 4)]), Pairs([("", None)]),
)  # fmt: skip


def dump(value: Any) -> str:
    """JSON text, repeated keys and raw text included."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {dump(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump, value)) + "]"
    return json.dumps(value)


def mutate_json(random: Random, data: bytes) -> bytes:
    """One to three changes of the structure, at times some of the text as well."""
    if random.random() < 0.2:
        return mutate_bytes(random, data)
    value = json.loads(data, object_pairs_hook=Pairs)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = _change(random, value)
    text = dump(value).encode("utf-8", "surrogatepass")
    return mutate_bytes(random, text) if random.random() < 0.05 else text


def _change(random: Random, value: Any) -> Any:
    """The value with one place in it changed; every place is as likely as any other of its depth."""
    if isinstance(value, list) and value and random.random() < 0.85:
        at = random.randrange(len(value))
        if random.random() < 0.7:
            inner = value[at][1] if isinstance(value, Pairs) else value[at]
            changed = _change(random, inner)
            return _with(value, at, changed)
        return _rearranged(random, value, at)
    match random.randrange(8):
        case 0:
            depth = random.choice((1, 2, 31, 33, 1100, 100_000))
            return Raw("[" * depth + dump(value) + "]" * depth)
        case 1 if isinstance(value, int | float) and not isinstance(value, bool):
            return random.choice((-value, value + 1, value * 2, value * 1000, float(value), str(value)))
        case 2 if isinstance(value, str):
            return random.choice((value * 2, value[:-1], value + "\n", value.upper(), [value]))
        case _:
            return random.choice(_VALUES)


def _with(value: Any, at: int, item: Any) -> Any:
    kind = type(value)
    return kind([*value[:at], (value[at][0], item) if kind is Pairs else item, *value[at + 1 :]])


def _rearranged(random: Random, value: Any, at: int) -> Any:
    """An item or a pair less, twice, renamed, or in another's place."""
    kind, other = type(value), random.randrange(len(value))
    match random.randrange(4):
        case 0:
            return kind(value[:at] + value[at + 1 :])
        case 1:
            return kind([*value, value[at]])
        case 2 if kind is Pairs:
            name = random.choice(("", "x", "bits", str(value[at][0]) + " ", value[other][0], "\ud800"))
            return kind([*value[:at], (name, value[at][1]), *value[at + 1 :]])
        case _:
            swapped = list(value)
            swapped[at], swapped[other] = swapped[other], swapped[at]
            if kind is Pairs:  # values change places, keys stay
                swapped = [(key, item) for (key, _), (_, item) in zip(value, swapped, strict=True)]
            return kind(swapped)


# protobuf

_INTEGERS = (0, 1, -1, 2, 3, 16, 255, 2**31 - 1, 2**31, 2**62, -(2**63))


def mutate_message(random: Random, message: Message) -> None:
    """Change one field of a message or of one inside it, in place."""
    present = message.ListFields()
    if not present:
        return None
    field, value = random.choice(present)
    messages = [value] if isinstance(value, Message) else [part for part in _items(value) if isinstance(part, Message)]
    if messages and random.random() < 0.9:
        return mutate_message(random, random.choice(messages))
    if not hasattr(value, "append") and not hasattr(value, "add"):
        if isinstance(value, Message) or random.random() < 0.2:
            message.ClearField(field.name)
        else:
            _try(lambda: setattr(message, field.name, _other(random, value)))
        return None
    at = random.randrange(len(value))
    match random.randrange(3):
        case 0:
            del value[at]
        case 1 if not messages:
            _try(lambda: value.__setitem__(at, _other(random, value[at])))
        case _:
            value.append(value[random.randrange(len(value))])
    return None


def _items(value: Any) -> list[Any]:
    return list(value) if hasattr(value, "append") or hasattr(value, "add") else []


def _other(random: Random, value: Any) -> Any:
    if isinstance(value, bytes):
        return mutate_bytes(random, value)
    if isinstance(value, str):
        return random.choice(("", "x", value + "x", value[:-1], value + "\n", "hawq_tvm", "ai.onnx"))
    return random.choice((*_INTEGERS, int(value) + 1)) if isinstance(value, int) else random.choice((0.0, -1.0, 1e30))


def _try(change: Callable[[], object]) -> None:
    """Leave the message as it is where a field cannot hold the value."""
    try:
        change()
    except (ValueError, TypeError, OverflowError):
        return
