"""What the compiled network may cost, as users write it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hawq_tvm.core.errors import AllocationError, RunError
from hawq_tvm.core.option import option
from hawq_tvm.core.specs import COST_NAMES, CostName, is_number
from hawq_tvm.core.strict_json import JsonReader

CHOICE = "Allocation"
"""The heading of the options that decide on bits."""

_UNITS: dict[CostName, dict[str, float]] = {
    "size_bytes": {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30},
    "bops": {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12},
    "latency_us": {"": 1, "us": 1, "ms": 1e3, "s": 1e6},
    "energy_uj": {"": 1, "nj": 1e-3, "uj": 1, "mj": 1e3, "j": 1e6},
}
_BUDGETS: dict[str, CostName] = {
    "size": "size_bytes",
    "bops": "bops",
    "latency": "latency_us",
    "energy": "energy_uj",
}
_SHORT_UNITS: Mapping[CostName, str] = {"size_bytes": "B", "bops": "", "latency_us": "us", "energy_uj": "uJ"}
_LIMIT = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z%]*)")


@dataclass(frozen=True)
class Limit:
    """One budget: an absolute value, or a share of the way from the lowest to the highest uniform configuration.

    >>> Limit.parse("60%", "size_bytes")
    Limit(value=0.6, is_share=True)
    >>> Limit.parse("1.5ms", "latency_us")
    Limit(value=1500.0, is_share=False)
    """

    value: float
    is_share: bool = False

    def __post_init__(self) -> None:
        if not is_number(self.value) or self.value < 0:
            raise AllocationError(f"a budget is a finite number of at least 0, got {self.value!r}")

    @classmethod
    def parse(cls, text: str | float | Limit, cost: CostName) -> Limit:
        """Read a number in the cost's unit, a number with a unit, or a percentage.

        Args:
            text: such as ``60%``, ``6.5MB``, ``1.2G``, ``1500us`` or ``2000000``.
            cost: which budget it is, and so which units it may have.

        Raises:
            AllocationError: anything else.
        """
        if isinstance(text, Limit):
            return text
        if isinstance(text, float) and 0 < text < 1 and cost in ("size_bytes", "bops"):
            raise AllocationError(f"a budget of {text} on {cost} is less than one; a share is written '{text:.0%}'")
        match = _LIMIT.fullmatch(str(text).strip().lower())
        units = _UNITS[cost]
        if match is None or (match[2] != "%" and match[2] not in units):
            known = ", ".join(unit for unit in units if unit)
            raise AllocationError(
                f"a budget on {cost} is a number, one with a unit ({known}) or a percentage; got {text!r}"
            )
        if match[2] == "%":
            return cls(float(match[1]) / 100, is_share=True)
        return cls(float(match[1]) * units[match[2]])


@dataclass(frozen=True, kw_only=True, repr=False)
class Budget:
    """What the compiled network may cost; what is left out is not bounded.

    >>> Budget(size="60%", latency="1.5ms")
    Budget(size=60%, latency=1500us)

    Attributes:
        size: bytes of weights, as ``"6.5MB"``, ``2000000`` or a share such as ``"60%"``.
        bops: bit operations a sample, as ``"1.2G"`` or a share.
        latency: microseconds summed over the layers' kernels, as ``"1.5ms"`` or a share.
        energy: microjoules a sample, as ``"2mJ"`` or a share.

    Raises:
        AllocationError: a limit that cannot be read.
    """

    size: str | float | Limit | None = option(
        None, "bytes of weights: 60%, 6.5MB or 2000000", flag="--budget-size", panel=CHOICE, parse=str
    )
    bops: str | float | Limit | None = option(
        None, "bit operations a sample: 50% or 1.2G", flag="--budget-bops", panel=CHOICE, parse=str
    )
    latency: str | float | Limit | None = option(
        None, "time of all kernels: 80% or 1.5ms", flag="--budget-latency", panel=CHOICE, parse=str
    )
    energy: str | float | Limit | None = option(
        None, "energy of a sample: 80% or 2mJ", flag="--budget-energy", panel=CHOICE, parse=str
    )

    def __post_init__(self) -> None:
        for name, cost in _BUDGETS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Limit.parse(value, cost))

    @property
    def limits(self) -> dict[CostName, Limit]:
        """The limits by what they bound."""
        given = {cost: getattr(self, name) for name, cost in _BUDGETS.items()}
        return {cost: limit for cost, limit in given.items() if limit is not None}

    def __bool__(self) -> bool:
        return bool(self.limits)

    def __repr__(self) -> str:
        parts = []
        for name, cost in _BUDGETS.items():
            limit = getattr(self, name)
            if limit is not None:
                unit = _SHORT_UNITS[cost]
                parts.append(f"{name}={limit.value:.0%}" if limit.is_share else f"{name}={limit.value:g}{unit}")
        return f"Budget({', '.join(parts)})"

    def to_json(self) -> dict[str, Any]:
        return {cost: {"value": limit.value, "is_share": limit.is_share} for cost, limit in self.limits.items()}

    @classmethod
    def from_json(cls, data: Any) -> Budget:
        """Read what `to_json` wrote into a manifest's settings.

        Raises:
            RunError: anything else.
        """
        reader = JsonReader("the manifest's settings are damaged", RunError, "start the run again elsewhere")
        table = reader.take(data, Mapping[str, Limit], where="budget")
        unknown = [cost for cost in table if cost not in COST_NAMES]
        if unknown:
            raise reader.fault(f"budget bounds {unknown[0]!r}; the costs are {', '.join(COST_NAMES)}")
        return cls(**{name: table[cost] for name, cost in _BUDGETS.items() if cost in table})
