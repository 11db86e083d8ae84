"""Imports point one way, each outside library has one owner, and the engine stands alone."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import engine
from tests.helpers.cli import ROOT, environment

PACKAGE = ROOT / "mnist_sweep"
# From the bottom to the top. A part imports from itself and from the layers below it.
LAYERS = (
    ("__init__", "common"),
    ("sweep", "architecture"),
    ("models", "data", "integrations"),
    ("sources", "tracking"),
    ("analysis",),
    ("training",),
    ("config",),
    ("report",),
    ("callbacks",),
    ("tools",),
    ("app",),
    ("__main__",),
)
LAYER = {part: i for i, layer in enumerate(LAYERS) for part in layer}
OWNERS = {
    "mlflow": {"tracking"},
    "optuna": {"sweep", "report"},
    "matplotlib": {"analysis"},
    "plotly": {"report"},
    "lightning": {"integrations"},
}
# Private names: what gives them away, and the one module that uses them.
PRIVATE = {
    "Hydra": (r"hydra\._internal|\._return_value", "mnist_sweep.sweep.hydra_internals"),
    "Optuna": (
        r"\._(storage|trial_id|study_id|suggest|get_stale_trial_ids)\b",
        "mnist_sweep.sweep.optuna_internals",
    ),
    "Hydra's Optuna sweeper": (r"hydra_optuna_sweeper\._impl", "mnist_sweep.sweep.space"),
}
HEAVY = ("torch", "mlflow", "matplotlib", "optuna", "ray", "pandas", "numpy", "plotly")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(name: str) -> set[str]:
    """Return all modules that a module imports, at any depth: in functions and in `if` blocks too."""
    imported = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            # `from package import module` names a module, `from module import name` does not
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= {n if n in MODULES else str(node.module) for n in names}
    return imported


def project_imports(name: str) -> set[str]:
    return imports(name) & set(MODULES)


def part(name: str) -> str:
    """Return the top-level module or package that a module belongs to."""
    return name.split(".")[1] if "." in name else "__init__"


def test_every_part_has_a_layer() -> None:
    assert {part(name) for name in MODULES} == set(LAYER)


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_from_its_own_part_and_from_layers_below(name: str) -> None:
    for other in project_imports(name):
        below = LAYER[part(other)] < LAYER[part(name)]
        assert below or part(other) == part(name), f"{name} imports {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    for name in MODULES:
        assert name not in set(reachable(name)), f"{name} imports itself through others"


def reachable(name: str) -> Iterator[str]:
    """Yield the modules that a module imports, directly or through others."""
    seen: set[str] = set()
    left = list(project_imports(name))
    while left:
        other = left.pop()
        if other not in seen:
            seen.add(other)
            yield other
            left += project_imports(other)


@pytest.mark.parametrize("name", [n for n in MODULES if part(n) == "sweep"])
def test_engine_imports_nothing_of_the_project_but_common(name: str) -> None:
    assert {part(other) for other in project_imports(name)} <= {"sweep", "common"}


@pytest.mark.parametrize("library", OWNERS)
def test_library_has_one_owner(library: str) -> None:
    users = {n for n in MODULES if library in {i.split(".")[0] for i in imports(n)}}
    assert {part(name) for name in users} <= OWNERS[library], users


@pytest.mark.parametrize("owner", PRIVATE)
def test_private_names_are_used_in_one_module(owner: str) -> None:
    pattern, home = PRIVATE[owner]
    users = {name for name, path in MODULES.items() if re.search(pattern, path.read_text())}
    assert users <= {home}


def test_command_line_starts_without_the_heavy_packages() -> None:
    code = f"import sys, mnist_sweep.app; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("space", "n_trials"), [("x=1,2", []), ("x=interval(0,1)", ["sweep.n_trials=2"])]
)
def test_engine_works_where_torch_and_mlflow_cannot_be_imported(
    space: str, n_trials: list[str], tmp_path: Path
) -> None:
    for library in ("torch", "mlflow"):
        (tmp_path / library).mkdir()
        (tmp_path / library / "__init__.py").write_text(f"raise ImportError('no {library} here')")
    env = environment(PYTHONPATH=str(tmp_path))
    failed = subprocess.run([sys.executable, "-c", "import torch"], env=env, check=False)
    assert failed.returncode == 1, "the library is really missing"
    store = tmp_path / "store"
    arguments = (space, *n_trials, "sweep.name=alone")
    code, output = engine.run(*arguments, store=store, PYTHONPATH=str(tmp_path))
    assert code == 0, output
    assert engine.states(engine.trials(store, "alone")) == {"COMPLETE": 2}


def test_map_of_the_packages_is_complete() -> None:
    """Each row of CONTRIBUTING.md's table names a path, and each part of the tree has a row."""
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    files = {f"mnist_sweep/{path.name}" for path in PACKAGE.glob("*.py")}
    folders = {f"mnist_sweep/{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(rows) == sorted(files | folders | {"benchmarks/", "conf/", "docs/", "tests/"})
