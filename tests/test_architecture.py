"""The rule of ARCHITECTURE.md, held over the syntax trees: a room imports only what stands below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "stn_infer"

#: From the top floor down. A folder, or a file of the package itself, may import what comes after it.
FLOORS = (
    "__main__",
    "cli",
    "interrupts",
    "api",
    "pictures",
    "benchmarking",
    "verification",
    "serving",
    "precision",
    "cluster",
    "pipeline",
    "data",
    "reference",
    "targets",
    "backends",
    "torch_export",
    "sources",
    "foreign",
    "models",
    "nhwc",
    "kernels",
    "layers",
    "fused_lattices",
    "fused",
    "plugin",
    "conventions",
    "transforms",
    "lint_rules",
    "repairs",
    "fusion",
    "proto",
    "quiet",
    "isolation",
    "budget",
    "metadata",
    "predictions",
    "ranking",
    "preprocess",
    "decoding",
    "activation",
    "remote",
    "files",
    "deviation",
    "extras",
    "errors",
    "web",
    "text_tables",
    "printing",
    "json_text",
    "progress",
    "version",
    "spellings",
    "sampling",
    "samplers",
    "arrays",
)
#: The package's own page of public names, which imports them when they are asked for.
FACADE = PACKAGE / "__init__.py"


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = _modules()


def _imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of every import of our own, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stn_infer":
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (node.lineno, inner, "") if inner in MODULES else (node.lineno, node.module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "stn_infer":
                    yield node.lineno, alias.name, ""


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_every_room_has_its_floor() -> None:
    assert {_room(module) for module in MODULES} - {""} == set(FLOORS)


def test_a_room_imports_only_what_stands_below_it() -> None:
    climbing = []
    for module, path in MODULES.items():
        if path == FACADE:
            continue
        for line, target, _ in _imports(path):
            here, there = _room(module), _room(target)
            if there and here != there and FLOORS.index(there) < FLOORS.index(here):
                climbing.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert climbing == []


def test_no_file_imports_itself_in_a_circle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES if module != "stn_infer"}
    for module in graph:
        graph[module] = {target for _, target, _ in _imports(MODULES[module]) if target in graph and target != module}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_private_names_stay_in_their_folder() -> None:
    crossing = []
    for module, path in MODULES.items():
        for line, target, name in _imports(path):
            private = name.startswith("_") and not name.startswith("__")
            if private and _room(module) != _room(target):
                crossing.append(f"{path.relative_to(ROOT)}:{line} imports {name} of {target}")
    assert crossing == []


STARTING = {
    *(f"subprocess.{name}" for name in ("Popen", "run", "call", "check_call", "check_output")),
    *(f"os.{name}" for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "popen", "spawnv")),
}


def test_python_is_started_in_one_place() -> None:
    """isolation.py says what a child imports, and that it ends with its parent."""
    found = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = {ast.unparse(node)} if isinstance(node, ast.Attribute) else set()
            if isinstance(node, ast.Import):
                named = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                named = {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
            if any(name in STARTING or "multiprocessing" in name or "ProcessPool" in name for name in named):
                found.add(str(path.relative_to(PACKAGE)))
    assert found == {"isolation.py"}


def test_folders_fit_in_a_head() -> None:
    folders = [path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__"]
    crowded = {folder.name: count for folder in folders if (count := len(list(folder.glob("*.py")))) > 19}
    assert crowded == {}


#: Tests of no single file of ours: of the whole, of C++ sources, and of what tests stand on.
WHOLE = {"test_architecture", "test_docs", "test_english", "test_fuzz_files", "test_notebooks", "test_public_names"}


def test_tests_are_named_after_what_they_test() -> None:
    """tests/<folder>/test_<file>.py, or test_<file>_<aspect>.py, is of stn_infer/<folder>/<file>.py."""
    strays = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        folder, name = path.parent.relative_to(ROOT / "tests"), path.stem.removeprefix("test_")
        if path.stem in WHOLE or folder.parts[:1] == ("plugins",):
            continue
        own = folder.parts[:1] in (("support",), ("fuzz",))
        homes = [ROOT / "tests" / folder] if own else [PACKAGE / folder, ROOT / folder]
        tested = {it.stem for home in homes for it in home.glob("*") if it.suffix == ".py" or it.is_dir()}
        if not any(name == it or name.startswith(f"{it}_") for it in tested - {"__init__", "__pycache__"}):
            strays.append(str(path.relative_to(ROOT)))
    assert strays == []


def test_files_of_tests_fit_in_a_head() -> None:
    paths = (ROOT / "tests").rglob("*.py")
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_nothing_outside_of_the_tests_imports_them() -> None:
    importing = []
    for folder in ("stn_infer", "benchmarks", "export", "examples", "release"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "tests/support" in text:
                importing.append(f"{path.relative_to(ROOT)} names a file of theirs")
            for node in ast.walk(ast.parse(text)):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.split(".")[0] == "tests" for name in names):
                    importing.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert importing == []


def test_benchmarks_run_as_files_and_as_modules() -> None:
    """A script finds the package that it belongs to, from wherever it is started."""
    lost = []
    for path in sorted((ROOT / "benchmarks").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        script = "__main__" in text and re.search(r"^from benchmarks", text, re.MULTILINE)
        root = f"sys.path.insert(0, str(Path(__file__).resolve().parents[{len(path.relative_to(ROOT).parts) - 1}]))"
        if script and root not in text.partition("from benchmarks")[0]:
            lost.append(str(path.relative_to(ROOT)))
    assert lost == []
