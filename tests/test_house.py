"""The rules of the house: who may import whom, how long a file may be, what is public, that examples are true."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hawq_tvm

ROOT = Path(__file__).parent.parent
HEART = {"errors", "dyadic", "ir", "ops", "interpreter", "specs", "targets", "quantizer", "float_ir", "hashing", "host"}
ROOMS = ("calibration", "ilp", "kernels")
STDLIB = set(sys.stdlib_module_names)
ALLOWED = {
    "heart": {"numpy"},
    "calibration": {"numpy", "torch"},
    "ilp": {"numpy", "pulp"},
    "kernels": {"numpy", "tvm"},
}
"""What each part may import beside the standard library and the heart."""


def python_files() -> list[Path]:
    folders = ("hawq_tvm", *ROOMS, "benchmarks", "tests")
    found = {path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    return sorted(path.relative_to(ROOT) for path in found)


def imports(path: Path) -> set[str]:
    """The modules that a file imports, those for type checkers alone left out."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.update({node.module} if node.module != "hawq_tvm" else {f"hawq_tvm.{a.name}" for a in node.names})
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse((ROOT / path).read_text()))
    return found


def part_of(path: Path) -> str | None:
    """Which part's rule a file is under: the heart, a room, or none."""
    if path.parts[0] in ROOMS:
        return path.parts[0]
    if path.parts[0] == "hawq_tvm" and path.stem in HEART and len(path.parts) == 2:
        return "heart"
    return None


@pytest.mark.parametrize("path", [path for path in python_files() if part_of(path)], ids=str)
def test_the_heart_and_the_rooms_import_what_they_may(path: Path) -> None:
    part = part_of(path)
    assert part is not None
    for module in imports(path):
        top, _, rest = module.partition(".")
        if top == "hawq_tvm":
            own_room = rest.split(".")[0] == part
            assert own_room or rest.split(".")[0] in HEART, f"{path} imports {module}"
        else:
            assert top in STDLIB | ALLOWED[part], f"{path} imports {module}"


def test_the_rule_would_see_a_wrong_import(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "def f():\n    import torch\n    from hawq_tvm import api\n    from hawq_tvm.kernels import KERNELS\n"
    )
    assert imports(file) == {"torch", "hawq_tvm.api", "hawq_tvm.kernels"}


def test_importing_the_package_loads_neither_torch_nor_tvm() -> None:
    script = (
        "import sys, hawq_tvm\n"
        "from hawq_tvm import Budget, Bits\n"
        "import hawq_tvm.errors, hawq_tvm.interpreter, hawq_tvm.ilp\n"
        "assert not {'torch', 'tvm', 'onnx'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_public_surface() -> None:
    assert hawq_tvm.__all__ == [
        "BitConfig", "Bits", "Budget", "CostTable", "Data", "DataOptions", "HawqError", "HessianSettings",
        "Preprocessing", "QuantizedNetwork", "load", "quantize",
    ]  # fmt: skip
    for name in hawq_tvm.__all__:
        assert getattr(hawq_tvm, name).__doc__, f"{name} is documented"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hawq_tvm.nothing


def test_no_file_is_long_and_none_is_called_utils() -> None:
    for path in python_files():
        assert len((ROOT / path).read_text().splitlines()) <= 500, f"{path} is past 500 lines: find its seam"
        assert path.stem not in ("utils", "helpers", "misc", "common")


def test_the_rooms_are_linked_into_the_package() -> None:
    for room in ROOMS:
        link = ROOT / "hawq_tvm" / room
        assert link.is_symlink()
        assert link.resolve() == (ROOT / room).resolve()
        assert importlib.import_module(f"hawq_tvm.{room}").__name__ == f"hawq_tvm.{room}"


def test_every_package_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for path in python_files():
        if path.name == "__init__.py" and path.parts[0] in (*ROOMS, "hawq_tvm"):
            package = ".".join(path.parent.parts)
            package = package if package.startswith("hawq_tvm") else f"hawq_tvm.{package}"
            assert f'"{package}"' in text, f"{package} is missing from pyproject.toml"


@pytest.mark.parametrize(
    "module",
    ["dyadic", "ir", "quantizer", "specs", "calibration.hessian"],
)
def test_examples_in_docstrings_are_true(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"hawq_tvm.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_the_arithmetic_document_runs() -> None:
    result = doctest.testfile(str(ROOT / "docs" / "arithmetic.md"), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0


def test_the_readme_runs_when_pasted(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) <= 6, "an import and five lines"
    result = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert "0 mismatches" in result.stdout


def test_the_readme_names_real_verbs_and_options() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "hawq_tvm", "run", "--help"], capture_output=True, text=True, check=True
    ).stdout
    verbs = subprocess.run(
        [sys.executable, "-m", "hawq_tvm", "--help"], capture_output=True, text=True, check=True
    ).stdout
    text = (ROOT / "README.md").read_text()
    for verb in set(re.findall(r"hawq-tvm ([a-z]+)", text)):
        assert verb in verbs, verb
    for command in re.findall(r"hawq-tvm run [^\n`]*", text):
        for option in re.findall(r"--[a-z-]+", command):
            assert option in help_text, option


def test_every_decision_names_its_files() -> None:
    """Paths that the documents name are there."""
    for document in ("README.md", "docs/design.md", "docs/adding.md", "docs/arithmetic.md"):
        for path in re.findall(r"`((?:hawq_tvm|kernels|ilp|calibration|benchmarks|tests|docs)/[\w./]+)`",
                               (ROOT / document).read_text()):  # fmt: skip
            assert (ROOT / path).exists(), f"{document} names {path}"


def test_the_design_lists_every_module() -> None:
    house = (ROOT / "docs" / "design.md").read_text().split("## The house")[1].split("## Decisions")[0]
    modules = {p.stem for folder in ("hawq_tvm", *ROOMS) for p in (ROOT / folder).glob("*.py")}
    assert {m for m in modules if not m.startswith("__")} <= set(re.findall(r"\w+", house))
