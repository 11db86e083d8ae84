"""Imports point one way, and each outside library has one owner."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mnist_sweep"
LEAVES = (
    *("errors", "config", "data", "models", "metrics", "figures", "checkpoint"),
    *("device", "graphs", "interrupt", "provenance", "reporting"),
)
OWNERS = {
    "mlflow": ("tracking", "recorded", "registry", "benchmark"),
    "optuna": ("sweep", "report", "benchmark"),
    "matplotlib": ("figures",),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Every module that `path` imports, as dotted names; what it runs as a script left out."""
    found = set()
    tree = ast.parse(path.read_text())
    tree.body = [n for n in tree.body if not ast.unparse(n).startswith("if __name__ ==")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from mnist_sweep import data` names modules, `from mnist_sweep.data import X` one
            found |= {n if n in MODULES else str(node.module) for n in names}
    return found


def project_imports(path: Path) -> set[str]:
    return {n for n in imports(path) if n.split(".")[0] == "mnist_sweep"}


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_imports_leaves_without_imports(leaf: str) -> None:
    assert project_imports(PACKAGE / f"{leaf}.py") <= {"mnist_sweep.errors", "mnist_sweep.metrics"}


def test_trainer_is_given_what_it_works_with() -> None:
    forbidden = {f"mnist_sweep.{n}" for n in ("models", "tracking", "figures", "train", "app")}
    assert not project_imports(PACKAGE / "trainer.py") & forbidden


def test_nothing_imports_main() -> None:
    for name, path in MODULES.items():
        assert "mnist_sweep.__main__" not in imports(path), name


def test_sweep_reaches_training_only_through_the_task_function() -> None:
    forbidden = {f"mnist_sweep.{n}" for n in ("trainer", "data", "models", "app")}
    for name, path in MODULES.items():
        if name.startswith("mnist_sweep.sweep"):
            assert not project_imports(path) & forbidden, name
            # the one thing the driver does for all trials: to fetch the data before they start
            source = path.read_text().replace("from mnist_sweep.train import load_data", "")
            assert "mnist_sweep.train" not in source, name


@pytest.mark.parametrize("library", OWNERS)
def test_library_has_one_owner(library: str) -> None:
    users = {
        n for n, path in MODULES.items() if library in {i.split(".")[0] for i in imports(path)}
    }
    assert {name.split(".")[1] for name in users} <= set(OWNERS[library]), users


def test_command_line_starts_without_the_heavy_packages() -> None:
    code = (
        "import sys, mnist_sweep.app;"
        "print([m for m in ('torch', 'mlflow', 'matplotlib', 'optuna', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
