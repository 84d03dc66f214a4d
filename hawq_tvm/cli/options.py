"""Command line options from the fields of dataclasses: each option is said once, where the value that it sets lives.

A verb takes a settings object, and `flat` gives typer one parameter a field instead:

    @app.command()
    @flat
    def run(model: str, settings: Settings) -> int: ...

    @app.command()
    @flat
    def allocate(path: Path, changes: Annotated[Changes, Of(Settings, only=("bits", "budget"))]) -> int: ...

The second form gives what the user said and nothing else, to be put over stored settings.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from hawq_tvm.core.option import Option

Verb = TypeVar("Verb", bound=Callable[..., int])

Changes = Mapping[str, Any]
"""Values that the user gave, by field; what was not said is not there."""


@dataclass(frozen=True)
class Of:
    """Whose fields a parameter of a verb stands for.

    Attributes:
        kind: a dataclass whose fields are options, or dataclasses of such.
        only: top fields that the verb takes; empty for all.
        without: top fields that it does not take.
    """

    kind: type
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def takes(self, name: str) -> bool:
        return name in self.only if self.only else name not in self.without


@dataclass(frozen=True)
class _Leaf:
    """One option: where its field is in the object, and its words."""

    path: tuple[str, ...]
    option: Option
    type: Any
    default: Any

    @property
    def flag(self) -> str:
        return self.option.flag or f"--{self.path[-1].replace('_', '-')}"

    @property
    def parameter_name(self) -> str:
        return self.flag.removeprefix("--").replace("-", "_")

    def parameter(self, *, show_default: bool) -> inspect.Parameter:
        """As typer reads it; None where the user says nothing, so that defaults live in the dataclass alone."""
        words, flag = self.option, self.flag
        kind: Any = self.type
        if words.parse is not None:
            kind = list[str] if words.many else str
        if kind is bool and words.negated:
            flag = f"{flag}/--no-{flag.removeprefix('--')}"
        typed = typer.Option(
            flag,
            help=f"{words.help}{_default_words(self.default) if show_default else ''}",
            min=words.least,
            max=words.most,
            rich_help_panel=words.panel,
            show_default=False,
        )
        annotation: Any = Annotated[kind | None, typed]
        return inspect.Parameter(
            self.parameter_name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
        )

    def value(self, typed: Any) -> Any:
        return typed if self.option.parse is None else self.option.parse(typed)


def _default_words(default: Any) -> str:
    """A default as one would type it, to follow the help; nothing for what is off or empty."""
    if default is None or default is False or default == {}:
        return ""
    if default is True:
        return "; on by default"
    return f"; default {','.join(map(str, default)) if isinstance(default, tuple) else default}"


def _leaves(of: Of) -> Iterator[_Leaf]:
    """The options of a dataclass and of those it holds, in the order of their fields."""
    return _walk(of.kind, (), of.kind(), of)


def _walk(kind: type, path: tuple[str, ...], instance: Any, of: Of | None) -> Iterator[_Leaf]:
    hints = get_type_hints(kind)
    for item in fields(kind):
        if of is not None and not of.takes(item.name):
            continue
        value = getattr(instance, item.name)
        if "option" in item.metadata:
            yield _Leaf((*path, item.name), item.metadata["option"], _bare(hints[item.name]), value)
        elif is_dataclass(value):
            yield from _walk(type(value), (*path, item.name), value, None)


def _bare(kind: Any) -> Any:
    """A type without ``| None``."""
    rest = [part for part in get_args(kind) if part is not type(None)]
    return rest[0] if len(rest) == 1 and get_origin(kind) is not tuple else kind


def _given(of: Of, values: dict[str, Any]) -> dict[str, Any]:
    """What the user said, as a nested table of fields; takes it out of `values`."""
    found: dict[str, Any] = {}
    for leaf in _leaves(of):
        typed = values.pop(leaf.parameter_name)
        if typed is not None and typed != []:
            table = found
            for name in leaf.path[:-1]:
                table = table.setdefault(name, {})
            table[leaf.path[-1]] = leaf.value(typed)
    return found


def _put(instance: Any, changes: Mapping[str, Any]) -> Any:
    """A dataclass with other values, at any depth."""
    new = {
        name: _put(getattr(instance, name), value)
        if isinstance(value, dict) and is_dataclass(getattr(instance, name))
        else value
        for name, value in changes.items()
    }
    return replace(instance, **new)


def _made(of: Of, changes: bool, values: dict[str, Any]) -> Any:
    given = _given(of, values)
    if not changes:
        return _put(of.kind(), given)
    return {
        name: _put(getattr(of.kind(), name), value) if is_dataclass(getattr(of.kind(), name)) else value
        for name, value in given.items()
    }


def _of(hint: Any) -> Of | None:
    """Whose fields a parameter stands for; None for one of its own."""
    if isinstance(hint, type) and is_dataclass(hint):
        return Of(hint)
    return next((extra for extra in get_args(hint)[1:] if isinstance(extra, Of)), None)


def flat(verb: Verb) -> Verb:
    """A verb whose settings objects typer sees as one option a field."""
    hints = get_type_hints(verb, include_extras=True)
    parameters: list[inspect.Parameter] = []
    objects: dict[str, tuple[Of, bool]] = {}
    for parameter in inspect.signature(verb).parameters.values():
        hint = hints[parameter.name]
        of = _of(hint)
        if of is None:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hint))
            continue
        changes = get_origin(hint) is Annotated and get_args(hint)[0] is not of.kind
        objects[parameter.name] = (of, changes)
        parameters += [leaf.parameter(show_default=not changes) for leaf in _leaves(of)]

    @functools.wraps(verb)
    def wrapper(**values: Any) -> int:
        made = {name: _made(of, changes, values) for name, (of, changes) in objects.items()}
        return verb(**made, **values)

    del wrapper.__wrapped__  # or typer would look at the verb behind it
    wrapper.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper  # type: ignore[return-value]
