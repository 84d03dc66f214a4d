"""Accuracy as it is stored and shown; `evaluate` measures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hawq_tvm.core.errors import RunError
from hawq_tvm.core.strict_json import JsonReader


@dataclass(frozen=True)
class Accuracy:
    """Top-1 over a set of samples; None where they have no labels.

    Attributes:
        samples: how many.
        float_top1: share that the float network gets right.
        integer_top1: share that the integer network gets right.
        difference: integer minus float.
        standard_error: of that difference, from the paired outcomes.
        agreement: share of samples on which both name the same class, right or wrong.
        data: the name of the samples.
        note: what is to be known of them, such as that a part of one set was held out.
    """

    samples: int
    float_top1: float | None
    integer_top1: float | None
    difference: float | None
    standard_error: float | None
    agreement: float
    data: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Any, name: str = "the accuracy") -> Accuracy:
        """Read what `to_json` wrote.

        Args:
            data: as `JsonReader` parses it.
            name: of the file, for messages.

        Raises:
            RunError: anything else.
        """
        reader = JsonReader(name, RunError, "make it again with hawq-tvm compile")
        found: Accuracy = reader.take(data, cls, signed=("difference",))
        of_labels = (found.float_top1, found.integer_top1, found.difference, found.standard_error)
        if 0 < of_labels.count(None) < len(of_labels):
            raise reader.fault("of its figures for labelled samples some are null and some are not")
        return found

    def __str__(self) -> str:
        if self.float_top1 is None or self.integer_top1 is None:
            return f"same class on {self.agreement:.2%} of {self.samples} samples{self._named()} (no labels)"
        assert self.difference is not None and self.standard_error is not None
        return (
            f"top-1 fp32 {self.float_top1:.2%}, integer {self.integer_top1:.2%}, "
            f"difference {100 * self.difference:+.2f} +- {100 * self.standard_error:.2f} points "
            f"on {self.samples} samples{self._named()}"
        )

    def _named(self) -> str:
        return f" of {self.data}" if self.data else ""
