"""The project as a whole: its floors and its pins."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"rewards": (), "data_prep": ("rewards",), "recipes": ("rewards", "data_prep")}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, is it imported when the module is), for every import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module), id(node) in top


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", FLOORS)
def test_a_floor_imports_only_from_below(package: str) -> None:
    allowed = {package, *FLOORS[package]}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name, _ in imports(path)
        if name.split(".")[0] in FLOORS.keys() - allowed
    ]
    assert wrong == []


def test_the_pipeline_asks_what_is_left_to_do_without_loading_what_is_slow() -> None:
    code = "import sys; import recipes.tools.pipeline; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert {"torch", "datasets", "matplotlib"} & set(loaded.split()) == set()


def requirements(name: str) -> dict[str, tuple[str, str]]:
    """Distribution -> (version, remark) of a requirements file."""
    found = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "-r ")):
            match = re.fullmatch(r"([A-Za-z0-9_.-]+)==([0-9][\w.]*)\s+# (\S.*)", line)
            assert match, f"{name}: write `name==version  # what it is for`, not {line!r}"
            found[normal(match[1])] = (match[2], match[3])
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-gpu.txt", "requirements-smol.txt"])
def test_every_requirement_is_pinned_exactly_with_a_word_on_what_it_is_for(name: str) -> None:
    assert requirements(name)


@pytest.mark.parametrize("name", ["requirements-gpu.txt", "requirements-smol.txt"])
def test_the_other_files_start_from_the_laptop_file(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8").startswith("-r requirements.txt\n")


def test_what_is_imported_is_pinned() -> None:
    pinned = {pin for path in ROOT.glob("requirements*.txt") for pin in requirements(path.name)}
    distributions = packages_distributions()
    missing = set()
    for path in [file for package in FLOORS for file in sources(package)]:
        for name in {name.split(".")[0] for name, _ in imports(path)} - FLOORS.keys() - sys.stdlib_module_names:
            known = {normal(found) for found in distributions.get(name, [name])}
            if not known & pinned:
                missing.add(f"{name} ({path.relative_to(ROOT)})")
    assert sorted(missing) == []


@pytest.mark.slow
def test_pips_resolver_agrees_with_the_pins() -> None:
    """Of both files: the one for GPUs starts with the other, and is installed beside it."""
    name = "requirements-gpu.txt"
    assert (ROOT / name).read_text(encoding="utf-8").startswith("-r requirements.txt\n")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "-r", name]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if re.search("NewConnectionError|ConnectTimeout|NameResolutionError|Max retries exceeded", found.stderr):
        pytest.skip("PyPI cannot be reached")
    assert found.returncode == 0, found.stderr


def test_the_fast_tests_and_the_slow_ones_are_told_apart_by_one_marker() -> None:
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert [marker.split(":")[0] for marker in markers] == ["slow"]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_skip_fails_the_session_that_forbids_it(workers: str, tmp_path: Path) -> None:
    (tmp_path / "test_skipped.py").write_text("import pytest\n\ndef test_it(): pytest.skip('no browser here')\n")
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "conftest", "-n", workers, "--fail-on-skip"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "test_skipped.py::test_it: Skipped: no browser here" in found.stdout
