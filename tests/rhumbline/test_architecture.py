"""The shape of the project, read from its import statements: one way from records to jobs, no Ray in the library."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "platform" / "rhumbline"
JOBS = sorted((ROOT / "jobs").glob("*.py"))

# Imports go from a later line to an earlier one, or stay within a line. A new module takes its place here first.
FLOW = [
    {"errors", "records", "faults", "config"},
    {
        "durable",
        "fingerprint",
        "tables",
        "lease",
        "directions",
        "codecs",
        "scalarise",
        "selection",
        "store",
        "metrics",
        "steering",
        "data",
    },
    {"queries", "examples", "profiles", "lengths", "recipes", "rewards", "losses", "learning", "probe"},
    {"cards"},
    {"fitting", "plan", "evaluation", "users", "serving"},
    {"doctor", "runs", "cli", "cli_rewards"},
]
LEVEL = {name: level for level, names in enumerate(FLOW) for name in names}
LIGHT = [
    "config",
    "directions",
    "codecs",
    "errors",
    "records",
    "faults",
    "durable",
    "lease",
    "store",
    "metrics",
    "selection",
]


def modules(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py")) if "__pycache__" not in path.parts]


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Every imported module, dotted and absolute; `from a import b` counts as a.b too, because b may be a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _top_level(tree) if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _top_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements that run at import: not those in functions, nor under `if TYPE_CHECKING`."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not typing_only:
            yield node
            pending += ast.iter_child_nodes(node)


def own(path: Path) -> str:
    """`config` for platform/rhumbline/config.py, `data` for anything in platform/rhumbline/data."""
    first = path.relative_to(LIBRARY).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", modules(LIBRARY), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_the_library_imports_one_way_and_no_ray(path: Path) -> None:
    name = own(path)
    if name != "__init__":
        assert name in LEVEL, f"{name} has no place in the flow: add it to FLOW, as early as its imports allow"
    for module in imports(path):
        parts = module.split(".")
        assert parts[0] not in {"ray", "actors", "cluster", "jobs"}, f"{path.name} imports {module}"
        if parts[0] == "rhumbline" and len(parts) > 1 and parts[1] in LEVEL and name in LEVEL:
            assert LEVEL[parts[1]] <= LEVEL[name], f"{name} imports {module}, which comes later in the flow"


def test_no_module_of_the_library_imports_itself_in_a_circle() -> None:
    dotted = {
        ".".join(("rhumbline", *path.relative_to(LIBRARY).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in modules(LIBRARY)
    }
    graph = {
        name: {module for module in imports(path, top_level=True) if module in dotted} - {name, "rhumbline"}
        for name, path in dotted.items()
    }
    # `from rhumbline.rewards import rules` in a sibling names the package, but needs the module alone.
    graph = {name: {m for m in needs if not name.startswith(f"{m}.")} for name, needs in graph.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_actors_do_not_import_jobs_and_cluster_imports_nothing_of_ours() -> None:
    for path in modules(ROOT / "actors"):
        assert not {module.split(".")[0] for module in imports(path)} & {"jobs"}, path
    for path in modules(ROOT / "cluster"):
        assert not {module.split(".")[0] for module in imports(path)} & {"jobs", "actors", "rhumbline"}, path


def test_what_the_command_line_needs_early_loads_no_framework() -> None:
    code = f"import sys; import {', '.join(f'rhumbline.{name}' for name in LIGHT)}; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    loaded = set(done.stdout.split())
    assert "rhumbline.config" in loaded
    assert not loaded & {"torch", "transformers", "ray", "vllm", "datasets", "sklearn", "scipy", "matplotlib"}


def test_platform_is_still_the_standard_librarys() -> None:
    """A package of that name would break torch, Ray and pytest, each in its own way."""
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "tests" / "platform").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.system())"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == os.uname().sysname


def test_tests_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_there_are_no_drawers_for_odds_and_ends() -> None:
    stems = {path.stem for folder in (LIBRARY, ROOT / "actors", ROOT / "cluster") for path in modules(folder)}
    assert not stems & {"utils", "util", "common", "helpers", "helper", "misc"}


@pytest.mark.parametrize("path", JOBS, ids=[path.stem for path in JOBS])
def test_a_job_shadows_no_module(path: Path) -> None:
    """A script's folder is first on sys.path, so jobs/select.py would be everybody's `select`."""
    assert path.stem not in sys.stdlib_module_names
    found = importlib.util.find_spec(path.stem)
    assert found is None or found.origin is None or ROOT / "jobs" in Path(found.origin).parents, found


@pytest.mark.parametrize("path", JOBS, ids=[path.stem for path in JOBS])
def test_a_job_defines_no_class_and_can_be_run(path: Path) -> None:
    """A class of __main__ pickles by value: every actor would get its own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)] == []
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env python\n")
    assert os.access(path, os.X_OK)
