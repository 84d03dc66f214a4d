"""Hashes of files and of what is stored in them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


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
