"""Measured accuracies, kept between runs: a search that was cut off measures nothing twice, nor does another one.

An entry a configuration, by all that decides its accuracy, in the user's cache folder (`hawq_tvm.backends.tvm.cache`):
it does not matter which allocator asked, nor under which budgets.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isfinite

from hawq_tvm.backends.tvm.cache import cache_key, read_entry, write_entry
from hawq_tvm.core.specs import BitConfig

Evaluate = Callable[[BitConfig], float]
"""The accuracy of a network at given bits: the share of samples that it gets right, 0 to 1."""

_KIND = "accuracies"


def remembered(evaluate: Evaluate, question: str) -> Evaluate:
    """The same measure, which is asked once for each configuration.

    Args:
        evaluate: always gives the same accuracy for the same bits.
        question: names everything else that decides it: network, ranges, samples, how weights are rounded. Empty:
            nothing is kept.
    """
    if not question:
        return evaluate

    def look(bits: BitConfig) -> float:
        asked = {name: value for name, value in bits.to_json().items() if name != "origin"}
        key = cache_key(question, json.dumps(asked))
        known = _number(read_entry(_KIND, key))
        if known is not None:
            return known
        found = evaluate(bits)
        write_entry(_KIND, key, repr(found).encode())
        return found

    return look


def _number(entry: list[bytes] | None) -> float | None:
    """What an entry says; None where it is none of ours."""
    try:
        found = None if entry is None else float(entry[0])
    except (ValueError, IndexError):
        return None
    return found if found is not None and isfinite(found) else None
