from __future__ import annotations

import hashlib
from pathlib import Path

from hawq_tvm.core.errors import InfeasibleBudget, UnsupportedOperator, first_line
from hawq_tvm.core.hashing import file_sha256


def test_an_unsupported_operator_says_which_and_where() -> None:
    inner = UnsupportedOperator("aten.silu", "features.3", "use a ReLU")
    assert (inner.operator, inner.module) == ("aten.silu", "features.3")
    assert str(inner) == "operator 'aten.silu' in module 'features.3' has no integer form; use a ReLU"
    outer = UnsupportedOperator("aten.silu", "", "use a ReLU")
    assert str(outer) == "operator 'aten.silu' in the network's own forward() has no integer form; use a ReLU"


def test_an_infeasible_budget_carries_its_numbers() -> None:
    error = InfeasibleBudget("size_bytes", 10.0, 12.5, "the nearest is 12.5")
    assert (error.budget, error.limit, error.nearest) == ("size_bytes", 10.0, 12.5)
    assert str(error) == "the nearest is 12.5"


def test_the_first_line_of_an_exception() -> None:
    assert first_line(ValueError("\n \n  \x1b[1;31mno such file\x1b[0m \nand more")) == "no such file"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(OSError(" \n ")) == "OSError"


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abc" * 100_000)
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
