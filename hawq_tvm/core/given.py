"""Ranges, scales and stored bits that users bring: read, held to the network, and put where ours would stand.

A range is a magnitude ``3.0`` (0 to 3 where the value cannot be negative, -3 to 3 elsewhere), a pair ``[-1.0, 3.0]`` or
one of these for each width, ``{"4": 3.0, "8": 5.0}``. A scale is one number for a layer, or one for each of its output
channels. Names are those of the float graph's values; the network's input may be called ``input``. What does not fit is
told in one sentence, and a name that the network does not have is never passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.errors import HawqError, SettingsError, did_you_mean
from hawq_tvm.core.float_ir import PASS_THROUGH, Clip, FloatGraph, FloatNode
from hawq_tvm.core.quantizer import Range, RangeTable
from hawq_tvm.core.specs import BitConfig, Bits, is_number
from hawq_tvm.core.strict_json import JsonReader

Interval = float | tuple[float, float]
"""A magnitude, or a lower and an upper end."""

GivenRanges = Mapping[str, Interval | Mapping[int, Interval]]
"""Ranges by value, as the user wrote them: for all widths, or for some."""

GivenScales = Mapping[str, float | tuple[float, ...]]
"""Weight scales by layer: one for all output channels, or one for each."""

WIDTHS = range(2, 9)
INPUT = "input"
"""What the network's input may be called, whatever the graph calls it."""

_RANGES_ADVICE = 'write {"layer": 3.0}, {"layer": [-1.0, 3.0]} or {"layer": {"4": 3.0, "8": 5.0}}'
_SCALES_ADVICE = 'write {"layer": 0.02} or {"layer": [0.02, 0.01, ...]}, one for each output channel'
_MOST_NAMED = 12  # names that a message lists
_Table = TypeVar("_Table", GivenRanges, GivenScales)
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)  # what networks compute in


# reading


def read_ranges(path: str | Path) -> GivenRanges:
    """Ranges from a JSON file: bare, or under ``ranges`` or ``range`` beside whatever else is there.

    Raises:
        SettingsError: see `parse_ranges`.
    """
    reader = JsonReader(f"the ranges {path}", SettingsError, _RANGES_ADVICE)
    return _filled(parse_ranges(reader.read(Path(path)), reader.name), reader)


def read_scales(path: str | Path) -> GivenScales:
    """Scales from a JSON file: bare, or under ``scales``.

    Raises:
        SettingsError: see `parse_scales`.
    """
    reader = JsonReader(f"the scales {path}", SettingsError, _SCALES_ADVICE)
    return _filled(parse_scales(reader.read(Path(path)), reader.name), reader)


def parse_ranges(data: object, name: str = "the given ranges") -> GivenRanges:
    """Ranges as JSON or Python holds them; numbers and arrays of any library, and `Range` itself, are understood.

    Args:
        data: a table by value; see the module's words.
        name: of the table, for messages.

    Raises:
        SettingsError: another format; a range that is not finite, does not hold 0 or holds nothing else, by layer.

    >>> parse_ranges({"range": {"conv1": 3, "fc": [-1, 2], "conv2": {"4": 3.0}}, "about": "mine"})
    {'conv1': 3.0, 'fc': (-1.0, 2.0), 'conv2': {4: 3.0}}
    """
    reader = JsonReader(name, SettingsError, _RANGES_ADVICE)
    table = _table(data, ("ranges", "range"), reader)
    return {layer: _range(value, layer, reader) for layer, value in table.items()}


def parse_scales(data: object, name: str = "the given scales") -> GivenScales:
    """Scales as JSON or Python holds them.

    Args:
        data: a table by layer; see the module's words.
        name: of the table, for messages.

    Raises:
        SettingsError: another format; a scale that is not finite and above 0, by layer and channel.

    >>> parse_scales({"conv1": 0.5, "fc": [0.25, 1]})
    {'conv1': 0.5, 'fc': (0.25, 1.0)}
    """
    reader = JsonReader(name, SettingsError, _SCALES_ADVICE)
    table = _table(data, ("scales",), reader)
    return {layer: _scale(value, layer, reader) for layer, value in table.items()}


def _filled(table: _Table, reader: JsonReader) -> _Table:
    if not table:
        raise reader.fault("no layer in it")
    return table


def _table(data: object, keys: Sequence[str], reader: JsonReader) -> Mapping[str, Any]:
    """The table itself: what stands under one of the keys, or all of it."""
    if not isinstance(data, Mapping):
        raise reader.fault(f"the whole is {_shown(data)}, expected a table by layer")
    found = [key for key in keys if isinstance(data.get(key), Mapping)]
    if len(found) > 1:
        raise reader.fault(f"it holds both {' and '.join(map(repr, found))}; keep one")
    table: Mapping[str, Any] = data[found[0]] if found else data
    odd = [name for name in table if not isinstance(name, str)]
    if odd:
        raise reader.fault(f"the name {odd[0]!r} is no text")
    return table


def _plain(value: object) -> object:
    """A value as JSON would hold it: numbers and lists in place of arrays, tensors and ranges."""
    if isinstance(value, Range):
        return [value.lo, value.hi]
    if hasattr(value, "tolist"):  # of numpy and of PyTorch
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _range(value: object, layer: str, reader: JsonReader) -> Interval | dict[int, Interval]:
    if not isinstance(value, Mapping):
        return _interval(_plain(value), f"the range of {layer!r}", reader)
    widths = {str(bits): bits for bits in WIDTHS}
    odd = [width for width in value if str(width) not in widths]
    if odd or not value:
        found = f"for {str(odd[0])!r} bits" if odd else "for no width"
        raise reader.fault(f"{layer!r} has a range {found}, expected some of {', '.join(widths)}")
    return {
        widths[str(width)]: _interval(_plain(item), f"the range of {layer!r} at {width} bits", reader)
        for width, item in value.items()
    }


def _interval(value: object, what: str, reader: JsonReader) -> Interval:
    if isinstance(value, list) and len(value) == 2 and all(map(is_number, value)):
        lo, hi = map(float, value)
        if not lo <= 0 <= hi:
            raise reader.fault(f"{what} is {lo:g} to {hi:g}, expected one that holds 0, as every grid of integers does")
        _positive(max(hi, -lo), f"the magnitude of {what}", reader)
        return lo, hi
    if isinstance(value, list | str | bool | None):
        raise reader.fault(f"{what} is {_shown(value)}, expected a number or a pair of them")
    return _positive(value, what, reader)


def _scale(value: object, layer: str, reader: JsonReader) -> float | tuple[float, ...]:
    plain = _plain(value)
    if not isinstance(plain, list):
        return _positive(plain, f"the scale of {layer!r}", reader)
    if not plain:
        raise reader.fault(f"the scales of {layer!r} are an empty list")
    return tuple(_positive(item, f"the scale of {layer!r} in channel {i}", reader) for i, item in enumerate(plain))


def _positive(value: object, what: str, reader: JsonReader) -> float:
    if not (isinstance(value, int | float) and is_number(value) and value > 0):
        raise reader.fault(f"{what} is {_shown(value)}, expected a number above 0")
    if not _LEAST <= value <= _MOST:
        raise reader.fault(f"{what} is {value:g}, expected one that float32 holds")
    return float(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


# names


def unknown_name(what: str, name: str, known: Iterable[str]) -> HawqError:
    """The error of a name that the network does not have: what was meant, and where the names are."""
    names = list(known)
    listed = ", ".join(names[:_MOST_NAMED])
    more = f", ... ({len(names)} in all; ranges.json of a run of this network lists them)"
    return SettingsError(
        f"{what} '{name}', which this network does not have{did_you_mean(name, names) or ';'} "
        f"it has {listed}{more if len(names) > _MOST_NAMED else ''}"
    )


def _value(what: str, name: str, graph: FloatGraph) -> str:
    """The value of that name; the input may be called `INPUT`, unless a value has that very name."""
    values = graph.shapes
    if name in values:
        return name
    if name == INPUT:
        return graph.input_name
    raise unknown_name(what, name, values)


# ranges


def ranges_of(given: GivenRanges, graph: FloatGraph) -> dict[str, Range | dict[int, Range]]:
    """Given ranges as a table of the values that are stored.

    What passes values through, such as a max-pool, is stored as the value that it reads: its range is that value's,
    unless that has one of its own.

    Raises:
        SettingsError: a name that the network does not have; two ranges for one value; a range below 0 for a value that
            cannot be negative; a view's range where others read the same value, which would be cut too.
    """
    signs, users = graph.nonnegative(), graph.users
    named: dict[str, str] = {}
    for name in given:
        value = _value("there is a range for", name, graph)
        if value in named:
            raise SettingsError(f"'{named[value]}' and '{name}' are one value and have two ranges; give one")
        named[value] = name
    stored: dict[str, str] = {value: name for value, name in named.items() if graph.source(value) == value}
    for value, name in named.items():
        source = graph.source(value)
        if source in named:
            continue
        if source in stored:
            raise SettingsError(f"'{stored[source]}' and '{name}' are views of '{source}'; give '{source}' the range")
        if _is_shared(value, graph, users):
            raise SettingsError(
                f"'{name}' is a view of '{source}', which others read too; give '{source}' the range, for all of them"
            )
        stored[source] = name
    return {value: _resolved(given[name], name, signs[value]) for value, name in stored.items()}


def _is_shared(view: str, graph: FloatGraph, users: Mapping[str, Sequence[FloatNode]]) -> bool:
    """Whether anything but this view reads what it is a view of."""
    table = graph.by_name
    while view in table and table[view].kind in PASS_THROUGH:
        view = table[view].inputs[0]
        if len(users[view]) > 1:
            return True
    return False


def _resolved(given: Interval | Mapping[int, Interval], name: str, nonnegative: bool) -> Range | dict[int, Range]:
    if isinstance(given, Mapping):
        return {bits: _as_range(interval, name, nonnegative) for bits, interval in given.items()}
    return _as_range(given, name, nonnegative)


def _as_range(interval: Interval, name: str, nonnegative: bool) -> Range:
    if not isinstance(interval, tuple):
        return Range(0.0 if nonnegative else -interval, interval)
    found = Range(*interval)
    if nonnegative and found.hi < _LEAST:
        raise SettingsError(
            f"'{name}' cannot be negative, and its range is {found.lo:g} to {found.hi:g}; give an upper end above 0"
        )
    return found


def override(table: RangeTable, given: GivenRanges, graph: FloatGraph) -> RangeTable:
    """A table of calibrated ranges with the given ones in their place.

    Where a range is given for some widths alone, the others keep what was calibrated.

    Raises:
        SettingsError: as `ranges_of`.
    """
    result = dict(table)
    for name, found in ranges_of(given, graph).items():
        before = result.get(name, {})
        if isinstance(found, Range):
            result[name] = found
        else:
            calibrated = dict.fromkeys(WIDTHS, before) if isinstance(before, Range) else before
            result[name] = {**calibrated, **found}
    return result


def settled_by(given: GivenRanges, graph: FloatGraph) -> frozenset[str]:
    """The values that need no calibration: given ranges hold for them at all widths.

    The input is never among them, so that calibration still sees whether the samples are finite.

    Raises:
        SettingsError: as `ranges_of`.
    """
    known = {name for name, found in ranges_of(given, graph).items() if isinstance(found, Range)}
    return frozenset(known - {graph.input_name})


def unused_ranges(given: GivenRanges, graph: FloatGraph) -> str | None:
    """A sentence on given ranges that no quantiser asks for; None where there are none."""
    types = ActivationTypes(graph, {}, BitConfig.uniform(tuple(layer.name for layer in graph.layers), Bits(8, 8)))
    why = []
    for name in ranges_of(given, graph):
        if name == types.wide:
            why.append(f"'{name}' is the network's result, which keeps 32 bits")
        elif types.owner(name) != name:
            why.append(f"'{name}' is stored as a part of '{types.owner(name)}', whose range counts")
    if not why:
        return None
    more = f"; and {len(why) - 3} more" if len(why) > 3 else ""
    return f"given ranges that no integers are made by: {'; '.join(why[:3])}{more}"


def clip_to(graph: FloatGraph, given: GivenRanges) -> FloatGraph:
    """The network with the given ranges as clips, as it was trained: each node's result stays within its range.

    A clip counts after the node's own and after a fused residual. That of a max-pool, or of anything else that passes
    values through, is taken by the value that it reads, which gives the same numbers. The network's input has no node
    that could clip it: its range counts in the integers alone.

    Raises:
        SettingsError: as `ranges_of`; a range a width, since a clip knows none.
    """
    clips: dict[str, Clip] = {}
    for name, found in ranges_of(given, graph).items():
        if not isinstance(found, Range):
            raise SettingsError(
                f"'{name}' has a range for each width, and a clip holds for all; give one range, or do not clip to them"
            )
        clips[name] = Clip(found.lo, found.hi)
    nodes = (replace(node, clip=clips[node.name].after(node.clip)) if node.name in clips else node for node in graph)
    return replace(graph, nodes=tuple(nodes))


def check_ranges(ranges: RangeTable, graph: FloatGraph) -> None:
    """Refuse ranges of values that the network does not have: in a file that was edited, a slip of the hand.

    Raises:
        SettingsError: by name.
    """
    for name in ranges:
        if name not in graph.shapes:
            raise unknown_name("ranges.json has a range for", name, graph.shapes)


# scales


def scales_of(given: GivenScales, node: FloatNode) -> NDArray[np.float64] | None:
    """A layer's given scales, float64 [out], all above 0; None where it has none.

    Raises:
        SettingsError: not one and not as many as it has output channels.
    """
    if node.name not in given or node.weight is None:
        return None
    channels = len(node.weight)
    scales = np.atleast_1d(np.asarray(given[node.name], np.float64))
    if isinstance(given[node.name], tuple) and len(scales) != channels:
        raise SettingsError(
            f"layer '{node.name}' has {channels} output channels and {len(scales)} given scales; give {channels} in "
            "their order, or one number for all"
        )
    return np.broadcast_to(scales, channels).copy()


def check_scales(given: GivenScales, graph: FloatGraph) -> None:
    """Refuse scales of layers that the network does not have, and lists of another length than a layer's channels.

    Raises:
        SettingsError: by layer.
    """
    layers = {layer.name: layer for layer in graph.layers}
    for name in given:
        if name not in layers:
            raise unknown_name("there are scales for the layer", name, layers)
        scales_of(given, layers[name])


# stored bits


def stored_bits_of(given: Mapping[str, int], graph: FloatGraph) -> dict[str, int]:
    """Bits of stored values by name; ``*`` and ``?`` in a name stand for any letters, and a later one counts.

    Raises:
        SettingsError: a name that fits no value; the network's result; a value that is stored as a part of another.
    """
    values = graph.shapes
    types = ActivationTypes(graph, {}, BitConfig.uniform(tuple(layer.name for layer in graph.layers), Bits(8, 8)))
    stored: dict[str, int] = {}
    for pattern, bits in given.items():
        names = [] if pattern in values else [name for name in values if fnmatchcase(name, pattern)]
        if not names:
            names = [_value("there are stored bits for", pattern, graph)]
            _refuse_unstored(names[0], types)
        stored |= {name: bits for name in names if name != types.wide}
    return stored


def _refuse_unstored(name: str, types: ActivationTypes) -> None:
    if name == types.wide:
        raise SettingsError(f"'{name}' is the network's result, which keeps 32 bits; leave its stored bits out")
    if types.owner(name) != name:
        raise SettingsError(
            f"'{name}' is stored as a part of '{types.owner(name)}'; give that its stored bits, for all of its parts"
        )
