"""The code that a run records."""

import shutil
import subprocess
import sys
from pathlib import Path

from mnist_sweep.tracking import provenance
from tests.helpers.cli import ROOT

CODE = "from mnist_sweep.tracking.provenance import git_state; print(git_state())"


def test_package_inside_another_checkout_does_not_record_it(tmp_path: Path) -> None:
    installed = tmp_path / "venv"
    shutil.copytree(ROOT / "mnist_sweep", installed / "mnist_sweep")
    (tmp_path / "secret.txt").write_text("first")
    for arguments in (["init"], ["add", "secret.txt"], ["commit", "-m", "another project"]):
        git(tmp_path, *arguments)
    (tmp_path / "secret.txt").write_text("second")
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=installed,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "('none', '')"


def test_own_checkout_is_recorded() -> None:
    commit, _ = provenance.git_state()
    assert commit == git(ROOT, "rev-parse", "HEAD").strip()


def test_application_is_recorded_with_its_whole_checkout(tmp_path: Path) -> None:
    """Changes of any file that git tracks, and new Python files; not the outputs of earlier runs."""
    (tmp_path / "src").mkdir()
    app, library = tmp_path / "src" / "app.py", tmp_path / "library.py"
    for path in (app, library):
        path.write_text("first")
    for arguments in (["init"], ["add", "."], ["commit", "-m", "first"]):
        git(tmp_path, *arguments)
    library.write_text("second")
    (tmp_path / "new.py").write_text("")
    (tmp_path / "src" / "output.csv").write_text("")
    commit, diff = provenance.git_state(app)
    assert commit == git(tmp_path, "rev-parse", "HEAD").strip()
    assert "+second" in diff
    assert "new file: new.py" in diff
    assert "output.csv" not in diff
    assert provenance.git_state(tmp_path / "new.py") == ("none", "")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
