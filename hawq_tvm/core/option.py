"""An option, said once: the field of a frozen dataclass that it sets carries its words for the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """How a field is set from the command line.

    Attributes:
        help: what it does, without its default.
        flag: as ``--budget-size``; None takes the field's name.
        panel: the heading that ``--help`` shows it under; None for the common one.
        parse: makes the field's value of what was typed; None where the field's own type serves. Raises `HawqError`.
        many: may be repeated, and `parse` is given the list.
        least: the smallest number; None for any.
        most: the largest number; None for any.
        negated: for a switch, whether there is also a ``--no-`` form.
    """

    help: str
    flag: str | None = None
    panel: str | None = None
    parse: Callable[[Any], Any] | None = None
    many: bool = False
    least: float | None = None
    most: float | None = None
    negated: bool = False


def option(default: T, help: str, **words: Any) -> T:
    """A dataclass field that is an option.

    Args:
        default: the field's default; a dict is copied for each instance.
        help: what it does.
        **words: the further fields of `Option`.
    """
    metadata = {"option": Option(help, **words)}
    if isinstance(default, dict):
        return field(default_factory=lambda: cast(T, dict(default)), metadata=metadata)
    return field(default=default, metadata=metadata)
