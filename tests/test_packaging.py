"""The wheel, and the program that it installs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mnist_sweep import config
from tests.helpers.cli import ROOT, environment


def test_wheel_contains_the_configuration(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    files = {path.relative_to(config.CONF_DIR) for path in config.CONF_DIR.rglob("*.yaml")}
    assert {f"mnist_sweep/conf/{file}" for file in files} <= names
    assert {"mnist_sweep/report/page.html", "mnist_sweep/tools/demo/page.html"} <= names
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"mnist_sweep"}
    # away from the checkout, the package finds the configuration inside itself
    done = subprocess.run(
        [sys.executable, "-m", "mnist_sweep", "--cfg", "job", "model=vgg"],
        cwd=tmp_path / "installed",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "batch_norm: true" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["tools"], 0),
        (["--version"], 0),
        (["predict", "--help"], 0),
        (["predict", "modle=x"], 2),
        (["model=simpel"], 2),
    ],
)
def test_console_script_is_the_same_as_the_module(arguments: list[str], code: int) -> None:
    script = [str(Path(sys.executable).with_name("mnist-sweep"))]
    module = [sys.executable, "-m", "mnist_sweep"]
    env = environment(PATH=str(Path(sys.executable).parent))
    by_script, by_module = (
        subprocess.run(
            [*program, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        for program in (script, module)
    )
    assert by_script.returncode == by_module.returncode == code, by_script.stderr
    named = by_module.stdout.replace("python -m mnist_sweep", "mnist-sweep")
    assert by_script.stdout == named
    assert by_script.stderr == by_module.stderr
