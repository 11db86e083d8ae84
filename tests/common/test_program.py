"""The command that the user typed, from the process that it started."""

import subprocess
import sys
from pathlib import Path

import pytest

from mnist_sweep.common import program
from tests.helpers.cli import ROOT

CODE = "from mnist_sweep.common.program import command_line; print(command_line('x=2'))"


def test_script_is_named_with_python(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(CODE)
    assert run(tmp_path, "train.py", "x=1", "y=a b") == "python train.py 'y=a b' x=2"


def test_module_is_named_with_python_m(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__main__.py").write_text(CODE)
    assert run(tmp_path, "-m", "mine", "+x=1") == "python -m mine x=2"


def test_console_script_is_named_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "mytool"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert program.program() == [str(script)]
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert program.program() == ["mytool"]


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
