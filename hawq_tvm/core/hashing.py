"""Hashes of files and of what is stored in them, and seeds that no two uses share."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def file_sha256(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_sha256(data: Any) -> str:
    """sha256 of JSON values, hexadecimal; the order of an object's keys does not count.

    >>> json_sha256({"a": 1, "b": (2, 3)}) == json_sha256({"b": [2, 3], "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def own_seed(*key: int) -> int:
    """A seed of its own for each part of a piece of work, which that of no other repeats.

    Args:
        key: the seed of the whole, then what tells the parts apart: a layer's number, a piece's, a probe's.
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
