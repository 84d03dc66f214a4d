"""How a network's quantities are called and written for the reader, in tables, plots and sentences."""

from __future__ import annotations

from collections.abc import Mapping

from hawq_tvm.core.specs import COST_UNITS
from hawq_tvm.ilp.problem import Quantity

_WRITTEN: Mapping[Quantity, tuple[str, float, str]] = {
    "sensitivity": ("sensitivity", 1.0, ""),
    "size_bytes": ("size", 1e3, "kB"),
    "bops": ("BOPS", 1e6, "M"),
    "latency_us": ("latency", 1.0, "us"),
    "energy_uj": ("energy", 1.0, "uJ"),
}
"""Name, and the unit that it is written in: how many of its own, and how that is called."""


def name_of(quantity: Quantity) -> str:
    return _WRITTEN[quantity][0]


def title_of(quantity: Quantity) -> str:
    """Its name and unit, over a column or at an axis."""
    name, _, unit = _WRITTEN[quantity]
    return f"{name}, {unit}" if unit else name


def unit_of(quantity: Quantity) -> float:
    """The unit that it is written in, in the quantity's own."""
    return _WRITTEN[quantity][1]


def a_unit_of(quantity: Quantity) -> str:
    """One of that unit, in words."""
    return {"bops": "a million", "sensitivity": "a unit"}.get(quantity, f"a {_WRITTEN[quantity][2]}")


def number_of(value: float, quantity: Quantity) -> str:
    """A value in that unit, which stands elsewhere.

    >>> number_of(170_416, "size_bytes"), number_of(2.5e9, "bops"), number_of(0.03125, "sensitivity")
    ('170.4', '2,500', '0.03125')
    """
    scaled = value / unit_of(quantity)
    return f"{scaled:,.0f}" if abs(scaled) >= 1000 else f"{scaled:,.4g}"


def tick_of(value: float, quantity: Quantity) -> str:
    """The same in seven characters at most, at an axis.

    >>> tick_of(0.0075071, "sensitivity"), tick_of(0.00012345, "sensitivity"), tick_of(135_168, "size_bytes")
    ('0.0075', '0.00012', '135')
    """
    scaled = value / unit_of(quantity)
    return f"{scaled:,.0f}" if abs(scaled) >= 1000 else f"{scaled:.3g}" if abs(scaled) >= 1 else f"{scaled:.2g}"


def change_of(value: float, quantity: Quantity) -> str:
    """The same with its sign."""
    return f"{'+' if value >= 0 else '-'}{number_of(abs(value), quantity)}"


def amount_of(value: float, quantity: Quantity) -> str:
    """A value and its unit; its own unit where it is less than one of the other.

    >>> amount_of(170_416, "size_bytes"), amount_of(48, "size_bytes"), amount_of(2.5, "latency_us")
    ('170.4 kB', '48 bytes', '2.5 us')
    """
    if quantity != "sensitivity" and abs(value) < unit_of(quantity):
        return f"{value:,.4g} {COST_UNITS[quantity]}"
    return f"{number_of(value, quantity)} {_WRITTEN[quantity][2]}".strip()
