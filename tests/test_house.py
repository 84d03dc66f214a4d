"""The rules of the house: who may import whom, how long a file may be, what is public, that examples are true."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
import tarfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hawq_tvm

ROOT = Path(__file__).parent.parent
ROOMS = ("calibration", "ilp", "kernels")
FLOORS = (
    ("__main__",),
    ("cli",),
    ("api",),
    ("pipeline",),
    ("stages",),
    ("runs",),
    ("measure", "search"),
    ("posttraining",),
    ("sources", "frontend"),
    ("backends", *ROOMS),
    ("emulator",),
    ("settings",),
    ("core",),
)
"""The house from top to bottom. A part imports itself and what stands on lower floors: nothing above, no neighbour."""

NEIGHBOURS = {("backends", "kernels")}
"""On one floor, who may look at whom: a back end builds what the kernels offer."""

STDLIB = set(sys.stdlib_module_names)
LIBRARIES = {
    "core": {"numpy"},
    "settings": set(),
    "calibration": {"numpy", "torch"},
    "ilp": {"numpy", "pulp"},
    "kernels": {"numpy", "tvm"},
    "emulator": {"numpy"},
    "backends/tvm/runtime": {"numpy", "tvm", "tvm_ffi"},
    "backends/tvm/codegen": {"tvm_ffi"},
    "backends/tvm/cuda/device": set(),
    "backends/tvm/cuda/nvrtc": set(),
    "backends/tvm/cuda/packages": set(),
    "backends/tvm/cuda/texts": set(),
    "backends/tvm/devices/messages": {"numpy"},
    "backends/tvm/devices/session": {"numpy"},
    "backends/tvm/devices/worker": {"numpy", "tvm", "tvm_ffi"},
    "backends/tvm/host": set(),
    "backends/tvm/info": {"numpy"},
    "sources/options": set(),
    "sources/names": set(),
}
"""What these parts and files may import beside the standard library and the house."""


def python_files() -> list[Path]:
    folders = ("hawq_tvm", *ROOMS, "benchmarks", "examples", "tests")
    found = {path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    return sorted(path.relative_to(ROOT) for path in found)


def imports(path: Path) -> set[str]:
    """The modules that a file imports, those for type checkers alone left out."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.orelse:
                walk(child)
            return
        assert not isinstance(node, ast.ImportFrom) or node.level == 0 or path.parts[0] == "tests", f"relative: {path}"
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.update({node.module} if node.module != "hawq_tvm" else {f"hawq_tvm.{a.name}" for a in node.names})
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse((ROOT / path).read_text()))
    return found


def part_of(path: Path) -> str:
    """The part of the house that a file of ours is in."""
    return path.parts[0] if path.parts[0] in ROOMS else path.with_suffix("").parts[1]


def module_name(path: Path) -> str:
    """What a file of ours is imported as."""
    parts = path.with_suffix("").parts
    name = ".".join(("hawq_tvm", *parts) if parts[0] in ROOMS else parts)
    return name.removesuffix(".__init__")


def floor_of(part: str) -> int:
    """0 is the top."""
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


def against_the_floors(part: str, modules: set[str]) -> list[str]:
    """What a part imports and may not."""
    wrong = []
    for module in sorted(modules):
        top, _, rest = module.partition(".")
        other = rest.split(".")[0]
        allowed = top != "hawq_tvm" or other == part or (part, other) in NEIGHBOURS
        if not allowed and (not other or floor_of(other) <= floor_of(part)):
            wrong.append(module)
    return wrong


FACE = Path("hawq_tvm/__init__.py")
OURS = [path for path in python_files() if path.parts[0] in ("hawq_tvm", *ROOMS) and path != FACE]
"""Every file of ours but the package's own face, which loads what it names when it is asked for."""


@pytest.mark.parametrize("path", OURS, ids=str)
def test_no_import_goes_against_the_floors(path: Path) -> None:
    assert against_the_floors(part_of(path), imports(path)) == []


def test_there_is_no_circle() -> None:
    """Not even between the files of one wing."""
    names = {module_name(path): path for path in OURS}
    graph = {name: {m for m in imports(path) if m in names and m != name} for name, path in names.items()}
    assert sum(map(len, graph.values())) > 100, "the walk sees the imports"
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_stay_where_they_belong(name: str) -> None:
    for path in OURS:
        place = "/".join(path.with_suffix("").parts).removeprefix("hawq_tvm/")
        if place == name or place.startswith(f"{name}/"):
            outside = {module.partition(".")[0] for module in imports(path)} - {"hawq_tvm"}
            assert outside <= STDLIB | LIBRARIES[name], path


def test_the_floors_would_see_a_wrong_import() -> None:
    assert against_the_floors("ilp", {"hawq_tvm.core.ir", "numpy"}) == []
    assert against_the_floors("ilp", {"hawq_tvm.kernels", "hawq_tvm.api"}) == ["hawq_tvm.api", "hawq_tvm.kernels"]
    assert against_the_floors("backends", {"hawq_tvm.kernels.interface"}) == []
    assert against_the_floors("kernels", {"hawq_tvm.backends.tvm.lower"}) != []
    assert against_the_floors("core", {"hawq_tvm.settings"}) == ["hawq_tvm.settings"]


def test_the_rule_would_see_a_wrong_import(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "def f():\n    import torch\n    from hawq_tvm import api\n    from hawq_tvm.kernels import KERNELS\n"
    )
    assert imports(file) == {"torch", "hawq_tvm.api", "hawq_tvm.kernels"}


def test_the_package_itself_knows_its_version_alone() -> None:
    found = {module for module in imports(FACE) if module.startswith("hawq_tvm")}
    assert found == {"hawq_tvm.core.version"}


def test_importing_the_package_loads_neither_torch_nor_tvm() -> None:
    script = (
        "import sys, hawq_tvm\n"
        "from hawq_tvm import Budget, Bits\n"
        "import hawq_tvm.core.errors, hawq_tvm.core.interpreter, hawq_tvm.ilp\n"
        "assert not {'torch', 'tvm', 'onnx'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_public_surface() -> None:
    assert hawq_tvm.__all__ == [
        "BitConfig", "Bits", "Budget", "CostTable", "Data", "DataOptions", "HawqError", "HessianSettings",
        "Preprocessing", "QuantizedNetwork", "RoundingSettings", "load", "quantize",
    ]  # fmt: skip
    for name in hawq_tvm.__all__:
        assert getattr(hawq_tvm, name).__doc__, f"{name} is documented"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hawq_tvm.nothing


def test_no_file_is_long_and_none_is_called_utils() -> None:
    for path in python_files():
        assert len((ROOT / path).read_text().splitlines()) <= 500, f"{path} is past 500 lines: find its seam"
        assert path.stem not in ("utils", "helpers", "misc", "common")


def test_the_compiler_fits_on_one_page() -> None:
    assert len((ROOT / "hawq_tvm" / "pipeline.py").read_text().splitlines()) <= 200


def test_the_rooms_are_linked_into_the_package() -> None:
    for room in ROOMS:
        link = ROOT / "hawq_tvm" / room
        assert link.is_symlink()
        assert link.resolve() == (ROOT / room).resolve()
        assert importlib.import_module(f"hawq_tvm.{room}").__name__ == f"hawq_tvm.{room}"


def test_the_source_distribution_holds_what_is_tracked(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout, so what is tracked is not known")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    script = f"import setuptools.build_meta as backend; print(backend.build_sdist({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    links = {f"hawq_tvm/{room}" for room in ROOMS}  # which `make setup` makes again
    assert set(filter(None, tracked)) - held == {".gitignore", *links}


def test_every_package_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for path in python_files():
        if path.name == "__init__.py" and path.parts[0] in (*ROOMS, "hawq_tvm"):
            package = ".".join(path.parent.parts)
            package = package if package.startswith("hawq_tvm") else f"hawq_tvm.{package}"
            assert f'"{package}"' in text, f"{package} is missing from pyproject.toml"


@pytest.mark.parametrize(
    "module",
    [
        "backends.tvm.devices.worker",
        "core.devices",
        "core.dyadic",
        "core.float32_rescale",
        "core.errors",
        "core.given",
        "core.ir",
        "core.quantizer",
        "core.specs",
        "core.storage",
        "runs.verbs",
        "calibration.eigenvalue",
        "calibration.hessian",
        "kernels.cuda.storages",
        "kernels.cuda.gemm_weights",
    ],
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


def test_the_design_lists_every_module() -> None:
    house = (ROOT / "docs" / "design.md").read_text().split("## The house")[1].split("## Decisions")[0]
    modules = {p.stem for folder in ("hawq_tvm", *ROOMS) for p in (ROOT / folder).rglob("*.py") if "zoo" not in p.parts}
    assert {m for m in modules if not m.startswith("__")} <= set(re.findall(r"\w+", house))
